"""Questions as vLLM is asked them, on a stand-in with vLLM's documented interface; nothing here ran on vLLM itself."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import openai
import pytest
import torch

from tests.bases import folder
from tests.served import HEAD, LABELS, save_run, served_outside
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import ModelError
from tunesmith.inference.identify import MANIFEST_FILE, find_model, read_manifest
from tunesmith.inference.saved_model import load
from tunesmith.inference.serving.backends.vllm import Vllm, refuse
from tunesmith.inference.serving.protocol import Limits
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.techniques import Full, Ia3, Lora, Prefix, Prompt, PTuning
from tunesmith.techniques.base import Technique

QUESTIONS = ("hi", "What is the capital of France?")


@dataclass
class LoRARequest:
    """As in vllm.lora.request."""

    lora_name: str
    lora_int_id: int
    lora_path: str


class SamplingParams(SimpleNamespace):
    """As in vllm.sampling_params: takes what it is given."""


@dataclass
class AsyncLLM:
    """As in vllm.v1.engine.async_llm; it draws with transformers and PEFT, a token a part, and keeps its questions."""

    args: dict[str, Any]
    asked: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False

    @classmethod
    def from_engine_args(cls, args: SimpleNamespace) -> AsyncLLM:
        made.append(cls(vars(args)))
        return made[-1]

    async def generate(
        self, prompt: dict[str, Any], params: Any, *, request_id: str, lora_request: LoRARequest | None = None
    ) -> AsyncIterator[Any]:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.asked.append({"prompt": prompt, "params": params, "lora": lora_request, "id": request_id})
        with quiet():
            network: Any = AutoModelForCausalLM.from_pretrained(self.args["model"]).eval()
            words = AutoTokenizer.from_pretrained(self.args["tokenizer"])
            if lora_request is not None:
                network = PeftModel.from_pretrained(network, lora_request.lora_path).eval()
        embed, drawn, text = network.get_input_embeddings(), list[int](), ""
        states = prompt.get("prompt_embeds")
        with torch.inference_mode():
            states = embed(torch.tensor(prompt["prompt_token_ids"])) if states is None else states
            for left in reversed(range(params.max_tokens)):
                drawn.append(int(network(inputs_embeds=states[None]).logits[0, -1].argmax()))
                states = torch.cat([states, embed(torch.tensor(drawn[-1:]))])
                stops = drawn[-1] in params.stop_token_ids
                now = words.decode(drawn, skip_special_tokens=True)
                reason = "stop" if stops else None if left else "length"
                said = SimpleNamespace(text=now[len(text) :], token_ids=drawn[-1:], finish_reason=reason)
                yield SimpleNamespace(outputs=[said], finished=reason is not None)
                text = now
                if stops:
                    return

    def shutdown(self) -> None:
        self.ended = True


made: list[AsyncLLM] = []


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[AsyncLLM]]:
    """The names of vLLM's modules, with the stand-in behind them; every engine that is started."""
    parts: dict[str, dict[str, Any]] = {
        "vllm": {},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": SimpleNamespace},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": AsyncLLM},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.sampling_params": {
            "SamplingParams": SamplingParams,
            "RequestOutputKind": SimpleNamespace(DELTA="delta"),
        },
    }
    for name, members in parts.items():
        module = ModuleType(name)
        for member, value in members.items():
            setattr(module, member, value)
        monkeypatch.setitem(sys.modules, name, module)
    made.clear()
    yield made
    made.clear()


def test_where_it_is_not_installed_one_line_says_how_to_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelError, match=r"vLLM is not installed: pip install 'tunesmith\[vllm\]'"):
        Vllm({"one": tmp_path}, rows=4)


def test_lora_and_soft_prompts_over_one_base_answer_through_vllm_as_in_python(tmp_path: Path, stand_in):
    techniques: dict[str, Technique] = {
        "lora": Lora(rank=12),
        "rslora": Lora(rank=4, rslora=True),
        "prompt": Prompt(tokens=5),
        "p-tuning": PTuning(tokens=5),
    }
    for number, (name, technique) in enumerate(techniques.items()):
        save_run(tmp_path / name, technique, seed=number)
    program = Vllm({name: tmp_path / name for name in techniques}, rows=4, offline=True)
    (engine,) = stand_in
    assert engine.args == {
        "model": str(folder("llama")),
        "tokenizer": str(tmp_path / "lora" / "model"),
        "max_num_seqs": 4,
        "enable_lora": True,
        "max_loras": 2,
        "max_lora_rank": 16,
        "enable_prompt_embeds": True,
    }
    with served_outside(program, limits=Limits(rows=4)) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)
        assert {model.id for model in client.models.list()} == {*techniques, "llama"}
        for name in techniques:
            for question in QUESTIONS:
                wanted = load(tmp_path / name).reply([Message("user", question)])
                turns: Any = [{"role": "user", "content": question}]
                whole = client.chat.completions.create(model=name, messages=turns)
                assert whole.choices[0].message.content == wanted.text, name
                assert whole.usage is not None
                counts = (whole.usage.prompt_tokens, whole.usage.completion_tokens)
                assert counts == (wanted.prompt_tokens, wanted.new_tokens)
                parts = client.chat.completions.create(model=name, messages=turns, stream=True)
                assert "".join(part.choices[0].delta.content or "" for part in parts) == wanted.text
        assert server.bugs == []
    assert engine.ended
    last = {asked["lora"].lora_name if asked["lora"] else "": asked for asked in engine.asked}
    assert last["lora"]["lora"] == LoRARequest("lora", 1, str(tmp_path / "lora" / "model"))
    assert last["lora"]["prompt"] == {
        "prompt_token_ids": load(tmp_path / "lora").prompt([Message("user", QUESTIONS[1])])
    }
    assert last["rslora"]["lora"].lora_int_id == 2
    assert last[""]["prompt"]["prompt_embeds"].shape[1] == 32  # virtual tokens and words, as wide as the model
    assert len({asked["id"] for asked in engine.asked}) == len(engine.asked)


def test_every_setting_of_an_answer_reaches_vllm_and_what_it_does_not_give_here_is_refused(tmp_path: Path, stand_in):
    save_run(tmp_path / "one", Lora(rank=4))
    program = Vllm({"one": tmp_path / "one"}, rows=2, offline=True)
    with served_outside(program, limits=Limits(rows=2)) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)
        turns: Any = [{"role": "user", "content": "hi"}]
        settings: Any = {"max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["x"]}
        client.chat.completions.create(model="one", messages=turns, **settings)
        stops = sorted(load(tmp_path / "one").template.stop_ids)
        assert vars(stand_in[0].asked[0]["params"]) == {
            **settings,
            "stop_token_ids": stops,
            "output_kind": "delta",
        }
        for more, said in (
            ({"logprobs": True}, "logprobs: not given by vLLM here"),
            ({"response_format": {"type": "json_object"}}, "response_format: not given by vLLM here"),
        ):
            with pytest.raises(openai.BadRequestError, match=said):
                client.chat.completions.create(model="one", messages=turns, **more)
        with pytest.raises(openai.BadRequestError, match="served by vLLM, which gives no embeddings here"):
            client.embeddings.create(model="one", input="x")


def test_a_run_of_its_own_weights_is_the_model_that_vllm_loads(tmp_path: Path, stand_in):
    save_run(tmp_path / "full", Full(), lively=0.05)
    program = Vllm({"full": tmp_path / "full"}, rows=2, offline=True)
    assert stand_in[0].args["model"] == str(tmp_path / "full" / "model")
    assert "enable_lora" not in stand_in[0].args
    assert list(program.models) == ["full"]


@pytest.mark.parametrize(
    ("technique", "objective", "kind", "said"),
    [
        (Ia3(), None, "llama", "does not support the weights of ia3"),
        (Prefix(tokens=5), None, "llama", "does not support the weights of prefix"),
        (Lora(rank=4, dora=True), None, "llama", "vLLM has no DoRA"),
        (Lora(rank=4), HEAD, "bert", "an encoder writes no text"),
        (Lora(rank=4), HEAD, "llama", "answers through a head"),
        (Prompt(tokens=5), None, "gemma", "virtual tokens go to vLLM over llama, qwen2, qwen3 alone"),
    ],
)
def test_what_vllm_has_no_way_to_answer_with_is_refused(
    technique: Technique, objective: Any, kind: str, said: str, tmp_path: Path, stand_in
):
    more = {} if objective is None else {"objective": objective}
    save_run(tmp_path / "one", technique, kind=kind, **more)
    with pytest.raises(ModelError, match=f"one: .*{said}.*serve it with --engine torch"):
        Vllm({"one": tmp_path / "one"}, rows=2, offline=True)
    assert stand_in == []


def test_a_run_over_a_run_is_refused_before_vllm_is_started_on_an_adapter(tmp_path: Path, stand_in):
    save_run(tmp_path / "one", Lora(rank=4))
    save_run(tmp_path / "two", Lora(rank=4))
    page = find_model(tmp_path / "two") / MANIFEST_FILE
    page.write_text(json.dumps(json.loads(page.read_text()) | {"base": str(tmp_path / "one")}))
    with pytest.raises(ModelError, match="two: its base is a run, whose adapter vLLM would not merge"):
        Vllm({"two": tmp_path / "two"}, rows=2, offline=True)
    assert stand_in == []
    folder = find_model(tmp_path / "two")
    refuse("whole", folder, read_manifest(folder).model_copy(update={"technique": Full()}))  # whatever it began with


def test_runs_over_two_bases_are_refused(tmp_path: Path, stand_in):
    save_run(tmp_path / "one", Lora(rank=4))
    save_run(tmp_path / "two", Lora(rank=4), LABELS, kind="qwen3")
    with pytest.raises(ModelError, match="expected runs over one base"):
        Vllm({"one": tmp_path / "one", "two": tmp_path / "two"}, rows=2, offline=True)
