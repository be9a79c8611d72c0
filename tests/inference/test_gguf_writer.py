"""Decoders as GGUF files: read back by transformers, and by llama.cpp where a run is exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.bases import base
from tests.tiny import CHATML, CHATML_TOKENS, frame, tokenizer
from tunesmith.errors import ModelError
from tunesmith.inference.export.gguf_writer import RULES, TELLING, write_gguf
from tunesmith.inference.llamacpp import LlamaCpp
from tunesmith.models.loading.gguf_reader import read_gguf

IDS = torch.tensor([[1, 20, 30, 40, 50, 60]])


def test_what_is_written_reads_back_with_the_same_logits_and_tokens(tmp_path: Path):
    made = base("llama")
    write_gguf(made.network, made.tokenizer, tmp_path / "model.gguf", kind="f16", name="tiny")
    network, cutter = read_gguf(tmp_path / "model.gguf", where="tiny")
    with torch.no_grad():
        ours, theirs = made.network(IDS).logits, network(IDS).logits
    assert (ours - theirs).abs().max() < 2e-3 * ours.abs().max()  # numbers of 16 bits
    assert cutter(TELLING)["input_ids"] == made.tokenizer(TELLING)["input_ids"]
    assert cutter.chat_template == made.tokenizer.chat_template


def test_the_beginning_of_a_text_is_written_by_the_tokenizer_and_that_of_a_chat_by_its_template(tmp_path: Path):
    made, cutter = base("llama"), tokenizer(CHATML_TOKENS, bos_token="<|endoftext|>", eos_token="<|im_end|>")
    frame(cutter.backend_tokenizer, "<|endoftext|> $A", "<|endoftext|> $A $B:1")
    for chat in ("", CHATML):
        cutter.chat_template = chat
        write_gguf(made.network, cutter, tmp_path / "model.gguf", kind="f16", name="tiny")
        found = LlamaCpp(tmp_path / "model.gguf", threads=1, positions=64).ids("the phone")
        assert found == cutter("the phone", add_special_tokens=not chat)["input_ids"]


def test_eight_bits_weigh_half_of_sixteen(tmp_path: Path):
    made = base("llama")
    sizes = []
    for kind in ("f16", "q8_0"):
        write_gguf(made.network, made.tokenizer, tmp_path / kind, kind=kind, name="tiny")
        sizes.append((tmp_path / kind).stat().st_size)
    matrices = sum(value.numel() for value in made.network.parameters() if value.ndim == 2)
    assert sizes[0] - sizes[1] == pytest.approx(matrices * (2 - 34 / 32), rel=0.02)


def test_no_two_rules_cut_the_telling_text_alike():
    cuts = {tuple(rule.pre_tokenize_str(TELLING)) for rule in RULES.values()}
    assert len(cuts) == len(RULES)


def test_a_family_that_llama_cpp_would_read_otherwise_is_refused(tmp_path: Path):
    made = base("gemma")
    with pytest.raises(ModelError, match=r"not for gemma2; nearest that works: --format merged"):
        write_gguf(made.network, made.tokenizer, tmp_path / "model.gguf", kind="f16", name="tiny")
    assert not (tmp_path / "model.gguf").exists()


def test_layers_that_see_only_a_window_are_refused(tmp_path: Path):
    config = Qwen2Config(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, use_sliding_window=True, sliding_window=8, max_window_layers=0,
    )  # fmt: skip
    with pytest.raises(ModelError, match="tiny: some layers have a sliding attention window; nearest that works"):
        write_gguf(Qwen2ForCausalLM(config), base("llama").tokenizer, tmp_path / "q.gguf", kind="f16", name="tiny")


def test_a_tokenizer_that_llama_cpp_would_cut_otherwise_is_refused(tmp_path: Path):
    from tokenizers import pre_tokenizers

    made, cutter = base("llama"), tokenizer(CHATML_TOKENS)
    cutter.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match="no pre-tokenizer that splits text as this tokenizer does"):
        write_gguf(made.network, cutter, tmp_path / "model.gguf", kind="f16", name="tiny")


def test_a_config_that_says_no_width_of_a_head_is_written_too(tmp_path: Path):
    made = base("llama")
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    network = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(made.tokenizer), intermediate_size=64, **sizes))
    write_gguf(network, made.tokenizer, tmp_path / "model.gguf", kind="f16", name="tiny")
    again, _ = read_gguf(tmp_path / "model.gguf", where="tiny")
    with torch.no_grad():
        ours, theirs = network(IDS).logits, again(IDS).logits
    assert (ours - theirs).abs().max() < 2e-3 * ours.abs().max()
