"""The text part of multimodal checkpoints: equal to the whole on text, adapted and written back under its names."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMultimodalLM

from tests.tiny_families import (
    CHAT_IDS,
    EXPERTS,
    FAMILIES,
    HEADS,
    MROPE,
    QWEN_TOKENS,
    QWEN_VISION,
    TinyFamily,
    _chatml,
)
from tunesmith.data.tokenization.chat_template import Template, Tokens
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import ModelError
from tunesmith.inference.open_model import open_model
from tunesmith.models.batch import pack
from tunesmith.models.families import family_of
from tunesmith.models.generation.generate import generate
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.kernels.multi_lora import share_parameters
from tunesmith.models.loading.load import Base, load_base
from tunesmith.models.loading.locate import LoadOptions, local_family
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.loading.text_part import part_of, save_network, without_missing_packages
from tunesmith.models.policy import Policy
from tunesmith.techniques import Full, Ia3, Lora, Prompt

KINDS = ["gemma3", "gemma3n", "gemma4", "mistral3", "ministral3", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "llama4"]
ROWS = [list(range(3, 33)), list(range(50, 70)), [*range(3, 20), 99, 98, 97]]
IDS = torch.tensor([[5, 17, 40, 3, 88, 120, 9]])


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole checkpoint."""
    return FAMILIES[request.param].write(tmp_path_factory.mktemp("whole") / request.param)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3 in two shards, the images' tower in the second, with a processor's configuration."""
    folder = FAMILIES["gemma3"].write(tmp_path_factory.mktemp("whole") / "sharded")
    return in_shards(folder)


def in_shards(folder: Path) -> Path:
    """Cut the only weight file of a checkpoint into one of the text part and one of the rest."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shard = {name: f"model-0000{1 + ('language_model' not in name)}-of-00002.safetensors" for name in weights}
    for file in {*shard.values()}:
        part = {name: weights[name] for name in weights if shard[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard}))
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "Gemma3ImageProcessor"}')
    return folder


def whole(folder: Path) -> Any:
    """The checkpoint in transformers' own class."""
    with quiet(), without_missing_packages():  # Gemma 3n's images need timm, text does not
        return AutoModelForMultimodalLM.from_pretrained(folder, dtype=torch.float32).eval()


def of_whole(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits [T, V] of the whole model."""
    inner = getattr(model, "get_base_model", lambda: model)()
    if type(inner).__name__ == "Llama4ForConditionalGeneration":  # in transformers 5.24, it fails to make its output
        model = inner.language_model
    logits: torch.Tensor = model(input_ids=ids).logits[0]
    return logits


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor in the files of a folder."""
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def opened_in_peft(folder: Path, adapter: Path) -> Any:
    """The whole checkpoint with an adapter, as PEFT alone opens them; it has to find every weight it looks for."""
    model = whole(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wrapped = PeftModel.from_pretrained(model, adapter).eval()
    # PEFT 0.21 reads a property that transformers 5.24 has deprecated.
    assert not [one for one in caught if "is_gradient_checkpointing" not in str(one.message)]
    return wrapped


def adapted(base: Base, technique: Any) -> Policy:
    """A policy whose trainable numbers are random instead of zero."""
    policy: Policy = technique.adapt(base.network, family="decoder", keep_reference=False, start=[5, 6, 7])
    torch.manual_seed(1)
    with torch.no_grad():
        for _, value in policy.trainable():
            value.add_(torch.randn_like(value) * 0.1)
    policy.train(False)
    return policy


@torch.no_grad()
def logits(policy: Policy) -> torch.Tensor:
    """Logits [T - 1, V] of IDS, as every objective computes them; what follows the last id is not asked for."""
    batch = pack([Tokens(IDS[0].tolist(), [False] + [True] * (IDS.shape[1] - 1))])
    return policy.words.logits(policy.states(batch))


def test_loss_and_gradients_are_those_of_the_whole_model(folder: Path):
    base = load_base(str(folder))
    reference = whole(folder).requires_grad_(True)
    base.network.requires_grad_(True)
    policy = Policy.over(base.network, family="decoder")
    loss = policy.sum_nll(pack([Tokens(row, [False] + [True] * (len(row) - 1)) for row in ROWS]))
    loss.backward()
    expected = 0.0
    for row in ROWS:
        out = of_whole(reference, torch.tensor([row]))[:-1]
        nats = torch.nn.functional.cross_entropy(out, torch.tensor(row[1:]), reduction="sum")
        nats.backward()
        expected += nats.item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    gradients = {
        name: value.grad for name, value in reference.named_parameters() if value.grad is not None and value.grad.any()
    }
    part = part_of(base.network)
    assert part is not None
    ours = {name: value.grad for name, value in part.tree.named_parameters()}
    assert {*gradients} <= {*ours}
    for name, gradient in gradients.items():
        own = ours[name]
        assert own is not None, name
        assert (own - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name


def test_only_the_text_part_is_held_and_its_names_are_the_checkpoints(folder: Path):
    base = load_base(str(folder))
    part = part_of(base.network)
    assert part is not None
    assert base.family == local_family(str(folder)) == "decoder"
    assert part.names < {*weights_of(folder)}
    assert not any(word in name for name, _ in part.tree.named_modules() for word in ("vision", "visual", "audio"))
    assert {id(value) for value in base.network.parameters()} == {id(value) for value in part.tree.parameters()}


def test_other_towers_need_not_even_be_there(gemma: Path, tmp_path: Path):
    expected = load_base(str(gemma))
    copy = Path(shutil.copytree(gemma, tmp_path / "copy"))
    (copy / "model-00002-of-00002.safetensors").unlink()
    missing = load_base(str(copy))
    assert missing.fingerprint == expected.fingerprint
    (copy / "model-00002-of-00002.safetensors").write_bytes(b"no weights")
    broken = load_base(str(copy))
    assert broken.fingerprint == expected.fingerprint
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="model-00002-of-00002.safetensors is cut short or damaged"):
        save_network(broken.network, tmp_path / "out")
    (copy / "model-00001-of-00002.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="model-00001-of-00002.safetensors is cut short or damaged"):
        load_base(str(copy))


def test_weights_of_one_file_are_not_read_unless_they_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = FAMILIES["gemma3"].write(tmp_path)
    read: list[tuple[int, ...]] = []
    original = torch.nn.Parameter.__new__

    def parameter(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
        if data is not None and data.device.type != "meta":
            read.append(tuple(data.shape))
        return original(cls, data, requires_grad)

    monkeypatch.setattr(torch.nn.Parameter, "__new__", parameter)
    base = load_base(str(folder))
    part = part_of(base.network)
    assert part is not None
    stored = weights_of(folder)
    assert sorted(read) == sorted(tuple(stored[name].shape) for name in part.names)


def test_peft_finds_an_adapter_over_the_whole_checkpoint(folder: Path, tmp_path: Path):
    check_over_the_whole(folder, Lora(rank=4), tmp_path)


@pytest.mark.parametrize(
    "technique", [Lora(rank=4, targets=("q_proj",), dora=True), Ia3(targets=("k_proj", "v_proj")), Lora(rslora=True)]
)
def test_peft_finds_other_kinds_of_adapters(gemma: Path, technique: Any, tmp_path: Path):
    check_over_the_whole(gemma, technique, tmp_path)


def check_over_the_whole(folder: Path, technique: Any, tmp_path: Path) -> None:
    """An adapter acts, PEFT finds it over the whole checkpoint and in no other tower, and it is restored."""
    base = load_base(str(folder))
    before = logits(Policy.over(base.network, family="decoder"))
    policy = adapted(base, technique)
    expected = logits(policy)
    assert not torch.allclose(before, expected, atol=1e-3)
    technique.save(policy, tmp_path)
    reference = opened_in_peft(folder, tmp_path)
    assert torch.allclose(of_whole(reference, IDS)[:-1], expected, atol=1e-4)
    names = {name for name, _ in reference.named_parameters() if "lora_" in name or "ia3_" in name}
    assert names
    assert all("language_model" in name for name in names)
    again = technique.restore(load_base(str(folder)).network, tmp_path, family="decoder")
    again.train(False)
    assert torch.allclose(logits(again), expected, atol=1e-5)


def test_updates_of_experts_are_found_over_the_whole_checkpoint(tmp_path: Path):
    text = {**HEADS, **CHAT_IDS, **EXPERTS, "rope_parameters": {**MROPE, "mrope_interleaved": True}}
    vision = {**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    config = transformers.Qwen3VLMoeConfig(text_config=text, vision_config=vision, **QWEN_TOKENS)
    mixture = TinyFamily("Qwen3-VL mixture", lambda: (config, _chatml()), "AutoModelForImageTextToText")
    folder = mixture.write(tmp_path / "base")
    technique = Lora(rank=4)
    policy = adapted(load_base(str(folder)), technique)
    assert any("experts" in name for name, _ in policy.trainable())
    technique.save(policy, tmp_path / "adapter")
    with quiet():  # of ranks that are a pattern, PEFT 0.21 warns although it uses them
        reference = PeftModel.from_pretrained(whole(folder), tmp_path / "adapter").eval()
    assert torch.allclose(of_whole(reference, IDS)[:-1], logits(policy), atol=1e-4)
    again = technique.restore(load_base(str(folder)).network, tmp_path / "adapter", family="decoder")
    again.train(False)
    assert torch.allclose(logits(again), logits(policy), atol=1e-5)


def test_an_adapter_of_the_output_layer_acts_and_is_found(gemma: Path, tmp_path: Path):
    folder = FAMILIES["mistral3"].write(tmp_path / "base")
    technique = Lora(rank=4, targets=("lm_head", "q_proj"))
    policy = adapted(load_base(str(folder)), technique)
    technique.save(policy, tmp_path / "adapter")
    reference = opened_in_peft(folder, tmp_path / "adapter")
    assert any("lm_head.lora_A" in name for name, _ in reference.named_parameters())
    assert torch.allclose(of_whole(reference, IDS)[:-1], logits(policy), atol=1e-4)


@pytest.mark.parametrize("targets", [r".*language_model.*\.(q_proj|down_proj)", ["q_proj", "fc1"]])
def test_an_adapter_that_peft_trained_over_the_whole_is_opened(gemma: Path, targets: str | list[str], tmp_path: Path):
    with quiet():
        reference = get_peft_model(whole(gemma), LoraConfig(target_modules=targets, init_lora_weights=False))
    reference.save_pretrained(tmp_path)
    model = open_model(tmp_path, base=str(gemma))
    assert torch.allclose(logits(model.policy), of_whole(reference, IDS)[:-1], atol=1e-4)


def test_greedy_answers_are_those_of_the_whole_model(folder: Path):
    if folder.name == "llama4":
        pytest.skip("transformers 5.24 cannot generate from text with it")
    base = load_base(str(folder))
    policy = Policy.over(base.network, family="decoder")
    policy.train(False)
    template = Template(base.tokenizer)
    prompts = [template.prompt([Message("user", text)]) for text in ("What is the capital?", "hi")]
    answers = generate(policy, prompts, sampling=Sampling(max_new_tokens=12), template=template)
    reference = whole(folder)
    for prompt, answer in zip(prompts, answers, strict=True):
        with quiet():
            out = reference.generate(
                input_ids=torch.tensor([prompt]), do_sample=False, max_new_tokens=12, eos_token_id=[*template.stop_ids]
            )
        assert [id for id in out[0, len(prompt) :].tolist() if id not in template.stop_ids] == list(answer.ids)


def test_a_merged_checkpoint_is_whole_and_its_other_towers_are_bit_equal(folder: Path, tmp_path: Path):
    base = load_base(str(folder))
    policy = adapted(base, Lora(rank=4))
    expected = logits(policy)
    with quiet():
        policy.adapter.merge_and_unload()
    save_network(base.network, tmp_path)
    assert torch.allclose(of_whole(whole(tmp_path), IDS)[:-1], expected, atol=1e-4)
    check_other_towers(base, folder, tmp_path, torch.float32)


def check_other_towers(base: Base, folder: Path, out: Path, dtype: torch.dtype) -> None:
    """Text is of a dtype, and everything else is the checkpoint's."""
    part = part_of(base.network)
    assert part is not None
    old, new = weights_of(folder), weights_of(out)
    assert {*old} == {*new}
    for name, value in old.items():
        if name in part.names:
            assert new[name].dtype == dtype
        else:
            assert new[name].dtype == value.dtype
            assert torch.equal(new[name].view(torch.uint8), value.view(torch.uint8)), name
    assert json.loads((out / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_the_text_part_is_written_in_half_precision_and_no_other_tower(gemma: Path, tmp_path: Path):
    base = load_base(str(gemma))
    save_network(base.network.to(torch.bfloat16), tmp_path)
    check_other_towers(base, gemma, tmp_path, torch.bfloat16)


def test_shards_and_processor_files_are_kept(gemma: Path, tmp_path: Path):
    base = load_base(str(gemma))
    save_network(base.network, tmp_path)
    assert (tmp_path / "preprocessor_config.json").read_text() == (gemma / "preprocessor_config.json").read_text()
    index = "model.safetensors.index.json"
    listed = [json.loads((one / index).read_text())["weight_map"] for one in (gemma, tmp_path)]
    assert listed[0] == listed[1]
    old, new = weights_of(gemma), weights_of(tmp_path)
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_full_tuning_is_saved_as_the_whole_checkpoint(folder: Path, tmp_path: Path):
    base = load_base(str(folder))
    policy = Full().adapt(base.network, family="decoder", keep_reference=True)
    before = logits(policy)
    with torch.no_grad():
        for _, value in policy.trainable():
            value.add_(torch.randn_like(value) * 0.02)
    policy.train(False)
    expected = logits(policy)
    with policy.reference():
        assert torch.allclose(logits(policy), before, atol=1e-5)
    Full().save(policy, tmp_path)
    assert torch.allclose(of_whole(whole(tmp_path), IDS)[:-1], expected, atol=1e-4)
    again = Full().restore(load_base(str(folder)).network, tmp_path, family="decoder")
    assert torch.allclose(logits(again), expected, atol=1e-5)


def test_a_soft_prompt_is_restored(folder: Path, tmp_path: Path):
    technique = Prompt(tokens=4, init="random")
    base = load_base(str(folder))
    if technique.refusal(base.network, family="decoder"):
        pytest.skip("this network looks its words up again for every layer")
    policy = adapted(base, technique)
    technique.save(policy, tmp_path)
    again = technique.restore(load_base(str(folder)).network, tmp_path, family="decoder")
    again.train(False)
    assert torch.allclose(logits(again), logits(policy), atol=1e-5)
    # PEFT over the whole checkpoint finds the same tokens.
    reference = opened_in_peft(folder, tmp_path)
    assert torch.equal(reference.get_prompt(1), policy.adapter.get_prompt(1))


def test_adapters_of_several_runs_share_one_base(gemma: Path, tmp_path: Path):
    technique = Lora(rank=4)
    policy = adapted(load_base(str(gemma)), technique)
    technique.save(policy, tmp_path)
    base = load_base(str(gemma))
    plain = Policy.over(base.network, family="decoder")
    before = logits(plain)
    for _ in range(2):
        copy = share_parameters(base.network)
        again = technique.restore(copy, tmp_path, family="decoder")
        again.train(False)
        assert torch.allclose(logits(again), logits(policy), atol=1e-5)
    assert torch.equal(logits(plain), before)
    assert {value.data_ptr() for value in base.network.parameters()} <= {
        value.data_ptr() for value in copy.parameters()
    }


def test_four_bits_hold_the_text_part_alone(gemma: Path, tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    base = load_base(str(gemma), options=LoadOptions(quantize="nf4"))
    assert base.fingerprint == load_base(str(gemma)).fingerprint
    policy = adapted(base, Lora(rank=4, quantize="nf4"))
    Lora(rank=4).save(policy, tmp_path)
    again = Lora(rank=4).restore(
        load_base(str(gemma), options=LoadOptions(quantize="nf4")).network, tmp_path, family="decoder"
    )
    again.train(False)
    assert torch.allclose(logits(again), logits(policy), atol=1e-4)


@pytest.mark.parametrize(
    ("config", "finding"),
    [
        ({"model_type": "siglip_vision_model"}, "neither a text decoder nor a text encoder"),
        ({"model_type": "chameleon"}, "reads images or sound in the same layers as text; choose"),
        ({"model_type": "florence2", "is_encoder_decoder": True}, "florence2 is an encoder-decoder"),
        ({"model_type": "gemma9", "text_config": {}}, "does not support the model type 'gemma9'"),
        ({"model_type": "gemma9", "auto_map": {"AutoConfig": "a.B"}}, "is never run; choose a model"),
        ({"model_type": "gemma3", "text_config": {"hidden_size": "wide"}}, "config.json"),
    ],
)
def test_what_has_no_text_part_is_refused(config: dict[str, Any], finding: str):
    with pytest.raises(ModelError, match=finding) as caught:
        family_of(config, where="x")
    assert "\n" not in str(caught.value)
