"""Tensors in the types of llama.cpp: its kernels, its mixtures, and an importance matrix."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import xllamacpp.xllamacpp as extension
from gguf.quants import dequantize
from transformers import LlamaConfig, LlamaForCausalLM

from tests.bases import base, policy
from tunesmith.cli.commands import export as command
from tunesmith.data.tokenization.tokens import Encoded, Tokens
from tunesmith.errors import ModelError
from tunesmith.inference.export import gguf_quantize as room
from tunesmith.inference.export.gguf_quantize import (
    MIXTURES,
    GgufWeights,
    Quantization,
    fitting,
    measure_importance,
    quantize,
    rounded,
)
from tunesmith.inference.export.gguf_writer import write_gguf
from tunesmith.inference.llamacpp import LlamaCpp
from tunesmith.pipelines.export.request import DTYPES

Q = Quantization
# Bits per weight, and the largest relative error on normally distributed weights.
ERRORS = {
    Q.Q8_0: (8.5, 0.006), Q.Q6_K: (6.5625, 0.02), Q.Q5_1: (6.0, 0.04), Q.Q5_K: (5.5, 0.04), Q.Q5_0: (5.5, 0.045),
    Q.Q4_K: (4.5, 0.08), Q.IQ4_NL: (4.5, 0.08), Q.IQ4_XS: (4.25, 0.08), Q.Q4_0: (4.5, 0.09), Q.Q3_K: (3.4375, 0.16),
    Q.Q2_K: (2.625, 0.3),
}  # fmt: skip


def weight(rows: int = 24, columns: int = 512) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("stored", ERRORS, ids=lambda stored: stored.name)
def test_a_tensor_is_what_the_kernel_of_llama_cpp_writes_and_reads_back_within_the_error_of_its_type(
    stored: Quantization, monkeypatch: pytest.MonkeyPatch
):
    values, importance = weight(), np.random.default_rng(1).uniform(0.1, 2, 512).astype(np.float32)
    monkeypatch.setattr(room, "CHUNK", 5 * 512)  # threads write parts of five rows
    found = quantize(values, stored, importance)
    importance = importance / importance.mean() + np.float32(room.LEAST_IMPORTANCE)
    whole, kernel = np.empty_like(found), ctypes.CDLL(extension.__file__).ggml_quantize_chunk
    kernel.restype = ctypes.c_size_t
    kernel(
        int(stored), ctypes.c_void_p(values.ctypes.data), ctypes.c_void_p(whole.ctypes.data), ctypes.c_int64(0),
        ctypes.c_int64(24), ctypes.c_int64(512), ctypes.c_void_p(importance.ctypes.data),
    )  # fmt: skip
    bits, error = ERRORS[stored]
    assert np.array_equal(found, whole)
    assert 8 * found.nbytes / values.size == bits
    back = dequantize(quantize(values, stored), stored)
    assert np.sqrt(np.mean((back - values) ** 2)) < error


def test_columns_that_matter_are_rounded_more_precisely():
    values, importance = weight(), np.full(512, 0.01, np.float32)
    importance[::4] = 1.0
    errors = [np.square(dequantize(quantize(values, Q.Q4_K, used), Q.Q4_K) - values) for used in (None, importance)]
    assert errors[1][:, ::4].mean() < 0.8 * errors[0][:, ::4].mean()


@pytest.mark.parametrize("stored", ERRORS, ids=lambda stored: stored.name)
def test_columns_that_training_rows_do_not_use_keep_their_weights(stored: Quantization):
    values, importance = weight(columns=768), np.random.default_rng(1).uniform(0.1, 2, 768).astype(np.float32)
    importance[:32] = importance[256:512] = 0
    for used in (importance, 1e-30 * importance, 0 * importance, np.full(768, np.nan, np.float32)):
        back = dequantize(quantize(values, stored, used), stored)
        for unused in (slice(32), slice(256, 512)):
            assert np.sqrt(np.mean((back - values)[:, unused] ** 2)) < 1.5 * ERRORS[stored][1]


def test_what_a_kernel_must_not_get_or_return_is_one_line(monkeypatch: pytest.MonkeyPatch):
    for wrong in (np.nan, np.inf):
        with pytest.raises(ModelError, match="a weight is not finite, or too large for 16 bits; check the run"):
            quantize(np.full((2, 256), wrong, np.float32), Q.Q4_K)
    with pytest.raises(ModelError, match="too large for 16 bits"):
        rounded(torch.full((2, 256), 70_000.0), Q.Q4_K, None)
    with pytest.raises(ValueError, match=r"importance of \(255,\) columns for 256"):
        quantize(weight(2, 256), Q.Q4_K, np.ones(255, np.float32))
    monkeypatch.setattr(room._kernels(), "ggml_quantize_chunk", lambda *given: 7)
    with pytest.raises(ModelError, match=r"llama.cpp wrote 7 bytes of Q4_K for 288; install another xllamacpp"):
        quantize(weight(2, 256), Q.Q4_K)


def network(hidden: int = 256, inner: int = 512, layers: int = 8) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(base("llama").tokenizer), hidden_size=hidden, intermediate_size=inner,
            tie_word_embeddings=True, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=1,
            max_position_embeddings=128,
        )
    ).eval()  # fmt: skip


def written(made: LlamaForCausalLM, file: Path) -> GgufWeights:
    write_gguf(made, base("llama").tokenizer, file, name="tiny")
    return GgufWeights(file)


def test_mixtures_give_the_types_that_llama_cpp_gives(tmp_path: Path):
    source = written(network(), tmp_path / "f16.gguf")
    types = {name: source.types(name) for name in MIXTURES}

    def bits(name: str, kind: str) -> str:
        stored = [types[name][f"blk.{layer}.{kind}.weight"].name for layer in range(8)]
        return "".join(one.strip("IQ")[0] for one in stored)

    # Of 8 layers, 0, 3, 6 and 7 get more: the first and last eighth, and every third between.
    assert bits("q4_k_m", "attn_v") == bits("q4_k_m", "ffn_down") == "64464466"
    assert bits("q5_k_m", "ffn_down") == "65565566"
    assert (bits("q3_k_m", "attn_v"), bits("q3_k_m", "ffn_down")) == ("55444444", "4" * 8)
    assert (bits("q3_k_m", "attn_output"), bits("q3_k_m", "ffn_up")) == ("4" * 8, "3" * 8)
    assert (bits("iq4_xs", "attn_v"), bits("iq4_xs", "ffn_up")) == ("5" * 8, "4" * 8)  # four heads share a value
    assert (bits("q2_k", "attn_v"), bits("q2_k", "ffn_down")) == ("4" * 8, "3" * 8)
    types["unmeasured"] = source.types("iq4_xs", importance=False)
    assert (bits("iq4_xs", "ffn_down"), bits("unmeasured", "ffn_down")) == ("4" * 8, "5" + "4" * 7)
    plain = {"q8_0", "iq4_nl", "q4_0"}
    assert {types[name]["token_embd.weight"] for name in types.keys() - plain} == {Q.Q6_K}


def test_a_file_with_columns_that_no_block_of_256_divides_falls_back_and_opens_in_llama_cpp(tmp_path: Path):
    source = written(network(hidden=96, inner=256, layers=2), tmp_path / "f16.gguf")
    types = source.types("q4_k_m")
    assert (types["blk.0.attn_q.weight"], types["blk.0.ffn_up.weight"]) == (Q.Q5_0, Q.Q5_0)
    assert (types["token_embd.weight"], types["blk.0.attn_v.weight"]) == (Q.Q8_0, Q.Q5_0)
    assert types["blk.1.ffn_down.weight"] in (Q.Q4_K, Q.Q6_K)
    assert fitting(Q.Q4_K, 48) == Q.F16
    with source:
        source.write(tmp_path / "out.gguf", types, {}, file_type=MIXTURES["q4_k_m"].file_type)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path / "f16.gguf") not in maps.read_text()  # it may be replaced on Windows
    reader, before = gguf.GGUFReader(tmp_path / "out.gguf"), gguf.GGUFReader(tmp_path / "f16.gguf")
    stated = {key: reader.get_field(f"general.{key}").contents() for key in ("file_type", "quantization_version")}
    assert stated == {"file_type": gguf.LlamaFileType.MOSTLY_Q4_K_M, "quantization_version": gguf.GGML_QUANT_VERSION}
    changed = {"general.file_type", "general.quantization_version"}
    for key in before.fields.keys() - changed:
        if not key.startswith("GGUF."):
            assert reader.get_field(key).contents() == before.get_field(key).contents(), key
    assert {tensor.name: tensor.tensor_type for tensor in reader.tensors if tensor.name in types} == types
    program = LlamaCpp(tmp_path / "out.gguf", threads=1, positions=64)
    asked = [program.ids("the phone"), program.ids("a")]
    short, long = program.answers(asked[:1] * 2, longest=[1, 9])
    assert short != long
    assert long.startswith(short)
    said = program.answers(asked, longest=20, choices=["great phone", 'it "broke"'])
    assert set(said) <= {"great phone", 'it "broke"'}
    assert program.speed(program.ids("the phone")) > 0


def test_a_rounded_weight_has_the_rows_of_the_file_whatever_their_order(tmp_path: Path):
    made = network(layers=1)
    source = written(made, tmp_path / "f16.gguf")
    names = source.parameters(made)
    assert set(names) == set(source.shapes)
    made.model.layers[0].mlp.up_proj.__class__ = type(
        "Conv1D", (torch.nn.Module,), {}
    )  # stored transposed, as in GPT-2
    assert names.keys() - source.parameters(made).keys() == {"blk.0.ffn_up.weight"}
    types = source.types("q3_k_m")
    importance = {name: np.linspace(0.1, 1, shape[-1]).astype(np.float32) for name, shape in source.shapes.items()}
    source.write(tmp_path / "out.gguf", types, importance, file_type=MIXTURES["q3_k_m"].file_type)
    for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors:
        if tensor.name in types:
            ours = rounded(made.get_parameter(names[tensor.name]), types[tensor.name], importance[tensor.name])
            read = dequantize(tensor.data, tensor.tensor_type)
            assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, read.tolist())), tensor.name


def test_importance_is_the_mean_square_of_each_input_over_all_tokens(tmp_path: Path):
    model = policy("llama")
    parameters = written(model.network, tmp_path / "f16.gguf").parameters(model.network)
    rows = [Encoded((Tokens.of([1, 20, 30, 40][:n], [50]),), "rows:1") for n in (2, 4, 3)]
    found = measure_importance(model, parameters, rows)
    inputs: list[torch.Tensor] = []
    layer = model.network.get_submodule(parameters["blk.1.ffn_down.weight"].removesuffix(".weight"))
    with torch.no_grad(), layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0][0])):
        for row in rows:
            model.network(input_ids=torch.tensor([row.sequences[0].ids]))
    expected = torch.cat(inputs).square().mean(0)
    assert len(torch.cat(inputs)) == 3 + 5 + 4
    assert torch.allclose(torch.from_numpy(found["blk.1.ffn_down.weight"]), expected, rtol=1e-4)
    assert "token_embd.weight" not in found


def test_a_missing_quantizer_is_one_line_with_the_fix(monkeypatch: pytest.MonkeyPatch):
    room._kernels.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "xllamacpp.xllamacpp", None)
        with pytest.raises(ModelError, match=r"llama.cpp is not installed: pip install .*tunesmith\[llamacpp\]"):
            room.check_quantizer("q4_k_m")
    with monkeypatch.context() as patch:  # a type has another size in another version
        patch.setitem(gguf.GGML_QUANT_SIZES, Q.Q4_K, (256, 145))
        with pytest.raises(ModelError, match="export: q4_k_m needs .*, or in another version; use --dtype q8_0"):
            room.check_quantizer("q4_k_m")
    room._kernels.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda path: object())  # as in a build that exports only what Python needs
    with pytest.raises(
        ModelError,
        match="export: q4_k_m needs llama.cpp's quantizer, which this build of xllamacpp .*; use --dtype q8_0",
    ):
        room.check_quantizer("q4_k_m")
    room.check_quantizer("q8_0")
    assert np.abs(dequantize(quantize(weight(), Q.Q8_0), Q.Q8_0) - weight()).max() < 0.02
    room._kernels.cache_clear()


def test_the_command_offers_what_can_be_written():
    assert command.DTYPES is DTYPES
    assert DTYPES["gguf"] == ("f16", *MIXTURES)
