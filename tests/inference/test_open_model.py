"""Opening whatever answers: bases, merged folders, runs, and adapters that other tools made."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import tiny_decoder
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.errors import CheckpointError, ModelError, RecipeError
from tunesmith.inference.defaults import BASE_CHAT
from tunesmith.inference.identify import ModelManifest, identify
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.open_model import open_model
from tunesmith.inference.saved_model import save_model
from tunesmith.models.loading.load import load_base
from tunesmith.objectives import Classify, Instruct
from tunesmith.techniques import Lora

# PEFT asks transformers for a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

MOOD = Classify(labels=("bad", "good"), instruction="How does it sound?")
TEXTS = ["This battery is bad.", "I like the phone."]
LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"}


def foreign(folder: Path, base: Path, config: Any, *, resize: int = 0) -> Any:
    """An adapter as PEFT itself writes it, and the network that it was made of."""
    network = AutoModelForCausalLM.from_pretrained(base)
    if resize:
        network.resize_token_embeddings(resize, mean_resizing=False)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(1)
        wrapped = get_peft_model(network, config)
        wrapped.save_pretrained(folder)
    return wrapped.eval()


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def logits_of(network: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return network(input_ids=torch.tensor([ids])).logits[0, -1]


@pytest.fixture
def adapter(tiny_llama: Path, tmp_path: Path) -> Path:
    foreign(tmp_path / "adapter", tiny_llama, LoraConfig(**LORA))
    return tmp_path / "adapter"


def test_a_base_is_asked_in_the_words_of_the_labels(tiny_llama: Path) -> None:
    model = open_model(tiny_llama, objective=MOOD.model_copy(update={"output": "linear"}))
    assert [one.label in ("bad", "good") for one in model.classify(TEXTS)] == [True, True]
    assert model.policy.head is None
    assert not any(value.requires_grad for value in model.policy.network.parameters())


def test_a_base_without_an_objective_chats(tiny_llama: Path) -> None:
    model = open_model(tiny_llama)
    assert model.objective == BASE_CHAT
    assert len(model.generate(["What is the capital of France?"])) == 1


@pytest.mark.parametrize("config", [LoraConfig(**LORA), IA3Config(task_type="CAUSAL_LM", init_ia3_weights=False)])
def test_an_adapter_answers_as_it_does_in_peft(config: Any, tiny_llama: Path, tmp_path: Path) -> None:
    wrapped = foreign(tmp_path / "adapter", tiny_llama, config)
    model = open_model(tmp_path / "adapter")
    ids = [1, 7, 30, 9]
    plain = logits_of(AutoModelForCausalLM.from_pretrained(tiny_llama), ids)
    torch.testing.assert_close(logits_of(model.policy.network, ids), logits_of(wrapped, ids))
    assert not torch.allclose(logits_of(model.policy.network, ids), plain)
    with model.policy.reference():
        torch.testing.assert_close(logits_of(model.policy.network, ids), plain)


def test_an_adapter_that_grew_the_vocabulary_is_given_the_room(tiny_llama: Path, tmp_path: Path) -> None:
    config = LoraConfig(**{**LORA, "target_modules": ["q_proj"]}, modules_to_save=["embed_tokens", "lm_head"])
    wrapped = foreign(tmp_path / "adapter", tiny_llama, config, resize=324)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.add_tokens(["<a>", "<b>"])
    tokenizer.save_pretrained(tmp_path / "adapter")
    model = open_model(tmp_path / "adapter")
    torch.testing.assert_close(logits_of(model.policy.network, [1, 321]), logits_of(wrapped, [1, 321]))
    assert len(model.template.tokenizer) == len(tokenizer)


def test_a_config_json_beside_an_adapter_does_not_make_it_a_model(adapter: Path, tiny_llama: Path) -> None:
    shutil.copy(tiny_llama / "config.json", adapter)
    assert identify(adapter).kind == "adapter"


def test_another_base_can_be_named(adapter: Path, tiny_llama: Path) -> None:
    edit(adapter, base_model_name_or_path="/home/somebody/models/llama")
    with pytest.raises(ModelError, match="name the base with --base"):
        open_model(adapter)
    assert open_model(adapter, base=str(tiny_llama)).policy.adapter is not None


def test_only_an_adapter_takes_another_base(tiny_llama: Path) -> None:
    with pytest.raises(RecipeError, match="only an adapter"):
        open_model(tiny_llama, base=str(tiny_llama))


def test_an_adapter_of_another_architecture_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = tiny_decoder(tmp_path / "gpt2", "gpt2")
    with pytest.raises(ModelError, match="does not fit"):
        open_model(adapter, base=str(other))


def test_an_adapter_kept_as_a_pickle_is_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match="adapter_model.bin is a pickle"):
        open_model(adapter)


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "does not modify the layers"),
        ({"task_type": "SEQ_CLS"}, "made for SEQ_CLS"),
        ({"megatron_config": {"a": 1}, "megatron_core": "evil"}, "code from elsewhere"),
        ({"alora_invocation_tokens": [5, 6]}, "acts from certain tokens on"),
        ({"base_model_name_or_path": None}, "names no base"),
        ({"peft_type": "LORA", "target_modules": ["nothing"]}, "does not fit"),
    ],
)
def test_an_adapter_that_cannot_be_asked_is_refused_in_one_line(
    changes: dict[str, Any], finding: str, adapter: Path
) -> None:
    edit(adapter, **changes)
    with pytest.raises(ModelError, match=finding) as caught:
        open_model(adapter)
    assert "\n" not in str(caught.value)


def test_an_adapter_with_numbers_absent_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    foreign(tmp_path / "adapter", tiny_llama, LoraConfig(**{**LORA, "target_modules": ["q_proj"]}))
    edit(tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    with pytest.raises(ModelError, match="some of its weights are missing"):
        open_model(tmp_path / "adapter")


def test_prompt_tuning_of_another_tool_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    foreign(tmp_path / "adapter", tiny_llama, config)
    with pytest.raises(ModelError, match="PROMPT_TUNING"):
        open_model(tmp_path / "adapter")


def test_an_encoder_without_a_head_is_refused_with_the_cure(tiny_bert: Path) -> None:
    with pytest.raises(RecipeError, match="tunesmith tune ROWS"):
        open_model(tiny_bert, objective=MOOD)


def test_several_labels_need_a_head(tiny_llama: Path) -> None:
    with pytest.raises(RecipeError, match="need a head"):
        open_model(tiny_llama, objective=MOOD.model_copy(update={"multi": True}))


def run_folder(folder: Path, base: Path, objective: Classify | Instruct) -> Path:
    """A run's model folder, as `tune` leaves it."""
    loaded = load_base(str(base))
    technique = Lora(rank=2)
    policy = technique.adapt(loaded.network, family="decoder", keep_reference=False)
    policy.head = objective.head(policy)
    model = LocalModel(policy, Template(loaded.tokenizer), objective, 200)
    about = ModelManifest(
        base=str(base),
        fingerprint=loaded.fingerprint,
        family="decoder",
        objective=objective,
        technique=technique,
        template_hash=model.template.hash,
        limit=200,
    )
    save_model(folder / "model", model, about)
    return folder


def test_a_run_keeps_its_own_objective_and_limit(tiny_llama: Path, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", tiny_llama, MOOD.model_copy(update={"output": "words"}))
    other = MOOD.model_copy(update={"labels": ("x", "y")})
    model = open_model(run, objective=other)
    assert (model.objective.labels, model.limit) == (("bad", "good"), 200)  # type: ignore[union-attr]
    assert identify(run).base == str(tiny_llama)


def test_a_run_without_a_head_can_be_asked_for_something_else(tiny_llama: Path, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", tiny_llama, MOOD.model_copy(update={"output": "words"}))
    assert open_model(run, objective=Instruct()).objective == Instruct()


def test_a_run_with_a_head_answers_only_through_it(tiny_llama: Path, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", tiny_llama, MOOD.model_copy(update={"output": "linear"}))
    with pytest.raises(RecipeError, match="through a head"):
        open_model(run, objective=Instruct())


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no finished model"):
        open_model(tmp_path)
