"""Quantization of GGUF files by llama.cpp's own kernels, with types per tensor and an importance matrix.

The kernels are functions of the library inside `xllamacpp` (extra `llamacpp`). Which tensors a mixture such as Q4_K_M
stores in which types follows llama.cpp's `src/llama-quant.cpp`, apart from its exceptions for Falcon, for mixtures of
eight experts and for 70B models.

Letters: R rows and C columns of a weight; a block is the part of a row that shares its scales.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, Self

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from numpy.typing import NDArray

from tunesmith.data.cpu_count import cores
from tunesmith.data.tokenization.tokens import Encoded
from tunesmith.errors import ModelError
from tunesmith.inference.llamacpp import EXTRA
from tunesmith.models.batch import collate, split_by_tokens
from tunesmith.models.policy import Policy
from tunesmith.progress import track

Quantization = gguf.GGMLQuantizationType
Q = Quantization
Types = Mapping[str, Quantization]
FloatArray = NDArray[np.float32]
# From the place of a layer among those with this tensor, their number, and whether four or more query heads share a
# value head, to the type of the tensor; None for that of the mixture.
Rule = Callable[[int, int, bool], Quantization | None]

# Stored instead where blocks do not divide the columns, as in llama.cpp; then f16.
FALLBACKS = {Q.Q2_K: Q.Q4_0, Q.Q3_K: Q.Q4_0, Q.Q4_K: Q.Q5_0, Q.Q5_K: Q.Q5_1, Q.Q6_K: Q.Q8_0, Q.IQ4_XS: Q.IQ4_NL}
# Small, sensitive weights with several dimensions, which llama.cpp does not quantize either.
UNQUANTIZED = re.compile(
    r"_norm\.weight|ffn_gate_inp|altup|laurel|per_layer_model_proj|ssm_conv1d|shortconv\.conv|time_mix_|attn_rel_b"
    r"|position_embd|token_types|indexer\.[kq]_proj"
)
LAYER = re.compile(r"blk\.(\d+)\.(.+)\.weight")
CHUNK = 1 << 18  # values that a thread rounds at a time
MEASURED_TOKENS = 4096  # at a time
# Added to the importance of each column, relative to the mean: blocks of unused columns would be stored as zeros.
LEAST_IMPORTANCE = 1e-3


def _fixed(stored: Quantization) -> Rule:
    return lambda index, count, shared: stored


def _raised(index: int, count: int, shared: bool) -> Quantization | None:
    """Raise the first and the last eighth of the layers, and every third between them."""
    first = count // 8
    return Q.Q6_K if index < first or index >= 7 * count // 8 or (index - first) % 3 == 2 else None


@dataclass(frozen=True, slots=True)
class Mixture:
    """A file type of llama.cpp: the type of matrices, and rules for tensors that need more bits or fewer."""

    matrices: Quantization
    file_type: gguf.LlamaFileType
    rules: Mapping[str, Rule] = field(default_factory=dict)
    output: Quantization = Q.Q6_K  # of the output layer, which may be the embedding
    unmeasured: Mapping[str, Rule] = field(default_factory=dict)  # further rules without an importance matrix


_F = gguf.LlamaFileType
_SHARED = {"attn_v": lambda index, count, shared: Q.Q5_K if shared else None}
_FIRST = {"ffn_down": lambda index, count, shared: Q.Q5_K if index < count // 8 else None}
# By llama.cpp's names in lower case, the finest first. With an importance matrix, llama.cpp stores the first layers of
# `q4_0` as Q4_1, which it has answered with invalid output (docs/how-to/export.md); here they stay Q4_0.
MIXTURES: dict[str, Mixture] = {
    "q8_0": Mixture(Q.Q8_0, _F.MOSTLY_Q8_0, output=Q.Q8_0),
    "q6_k": Mixture(Q.Q6_K, _F.MOSTLY_Q6_K),
    "q5_k_m": Mixture(Q.Q5_K, _F.MOSTLY_Q5_K_M, {"attn_v": _raised, "ffn_down": _raised, "attn_qkv": _fixed(Q.Q6_K)}),
    "q4_k_m": Mixture(Q.Q4_K, _F.MOSTLY_Q4_K_M, {"attn_v": _raised, "ffn_down": _raised, "attn_qkv": _fixed(Q.Q5_K)}),
    "iq4_nl": Mixture(Q.IQ4_NL, _F.MOSTLY_IQ4_NL, _SHARED, unmeasured=_FIRST),
    "q4_0": Mixture(Q.Q4_0, _F.MOSTLY_Q4_0),
    "iq4_xs": Mixture(Q.IQ4_XS, _F.MOSTLY_IQ4_XS, _SHARED, unmeasured=_FIRST),
    "q3_k_m": Mixture(
        Q.Q3_K, _F.MOSTLY_Q3_K_M,
        {
            "attn_v": lambda index, count, shared: Q.Q5_K if index < 2 else Q.Q4_K,
            "ffn_down": lambda index, count, shared: Q.Q5_K if index < count // 16 else Q.Q4_K,
            **dict.fromkeys(("attn_output", "attn_qkv"), _fixed(Q.Q4_K)),
        },
    ),
    "q2_k": Mixture(
        Q.Q2_K, _F.MOSTLY_Q2_K,
        {
            "attn_v": lambda index, count, shared: Q.Q4_K if shared else Q.Q3_K,
            **dict.fromkeys(("ffn_down", "attn_output"), _fixed(Q.Q3_K)),
        },
    ),
}  # fmt: skip
# Types that need no kernel of llama.cpp, for builds that do not export it.
WITHOUT_KERNELS = ("q8_0", "q4_0")


class GgufWeights:
    """The weights of a GGUF file in f16 or f32, which are quantized tensor by tensor.

    The file stays mapped, which on Windows protects it from removal, until the end of a `with` block.
    """

    def __init__(self, file: Path) -> None:
        self._reader: Any = gguf.GGUFReader(file)
        self._arch = str(self._value("general.architecture"))
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        # The tensors that may be quantized with their shapes [..., R, C].
        self.shapes = {
            name: tuple(map(int, tensor.shape[::-1]))
            for name, tensor in self._tensors.items()
            if len(tensor.shape) > 1 and name.endswith("weight") and not UNQUANTIZED.search(name)
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader, self._tensors = None, {}  # numpy unmaps the file with the last array in it
        gc.collect()

    def _value(self, key: str) -> Any:
        found = self._reader.get_field(key.format(arch=getattr(self, "_arch", "")))
        return None if found is None else found.contents()

    def bits(self, types: Types) -> float:
        """Return the bits per weight of a file with these types."""
        stored = [(prod(map(int, t.shape)), types.get(name, t.tensor_type)) for name, t in self._tensors.items()]
        return 8 * sum(stored_bytes((n,), of) for n, of in stored) / sum(n for n, _ in stored)

    def types(self, name: str, *, importance: bool = True) -> dict[str, Quantization]:
        """Return the type of each tensor in one of MIXTURES, with or without an importance matrix."""
        mixture = MIXTURES[name]
        rules = mixture.rules if importance else {**mixture.rules, **mixture.unmeasured}
        heads, values = (self._value(f"{{arch}}.attention.head_count{part}") for part in ("", "_kv"))
        heads, values = (max(one) if isinstance(one, list) else one for one in (heads, values or heads))
        shared = bool(values) and heads // values >= 4
        layers: dict[str, list[int]] = {}  # that have a tensor
        for place in filter(None, map(LAYER.fullmatch, self.shapes)):
            layers.setdefault(place[2], []).append(int(place[1]))
        output = "output.weight" if "output.weight" in self.shapes else "token_embd.weight"
        types = {}
        for tensor, shape in self.shapes.items():
            stored = mixture.matrices
            if tensor == output:  # 8 bits where blocks of the other matrices do not fit
                stored = mixture.output if fitting(stored, shape[-1]) == stored else Q.Q8_0
            elif (found := LAYER.fullmatch(tensor)) and (rule := rules.get(found[2])):
                places = sorted(layers[found[2]])
                stored = rule(places.index(int(found[1])), len(places), shared) or stored
            types[tensor] = fitting(stored, shape[-1])
        return types

    def parameters(self, network: Any) -> dict[str, str]:
        """Return the parameter of a transformers network that each tensor was written from, if that is known.

        A parameter has the columns of its tensor, and its rows in any order, so both are rounded to the same values.
        Weights that are transposed (GPT-2), merged or of experts have no tensor of their own, or another one.
        """
        arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == self._arch)
        names = gguf.get_tensor_name_map(arch, int(self._value("{arch}.block_count")))
        plain = (torch.nn.Linear, torch.nn.Embedding)
        found = [f"{name}.weight" for name, module in network.named_modules() if isinstance(module, plain)]
        titles = {names.get_name(name, (".weight",)) or "": name for name in found}
        return {
            tensor: titles[tensor]
            for tensor, shape in self.shapes.items()
            if tensor in titles and tuple(network.get_parameter(titles[tensor]).shape) == shape
        }

    def write(
        self, out: Path, types: Types, importance: Mapping[str, FloatArray], *, file_type: gguf.LlamaFileType
    ) -> None:
        """Write the file with quantized tensors, one after the other.

        Args:
            out: the file to write.
            types: of the tensors in `shapes`.
            importance: of the columns by tensor, [C]; columns of other tensors weigh the same.
            file_type: what the file states, for programs that show it.
        """
        writer = gguf.GGUFWriter(out, self._arch)
        stated = ("general.architecture", "general.file_type", "general.quantization_version")
        for key, entry in self._reader.fields.items():
            if key not in stated and not key.startswith("GGUF."):
                sub = entry.types[-1] if entry.types[0] == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(key, entry.contents(), entry.types[0], sub_type=sub)
        writer.add_file_type(file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for name, tensor in self._tensors.items():
            shape, stored = tuple(map(int, tensor.shape[::-1])), types.get(name, tensor.tensor_type)
            writer.add_tensor_info(name, shape, np.dtype(np.float32), stored_bytes(shape, stored), stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in track(self._tensors.items(), "quantizing", unit="tensors", total=len(self._tensors)):
            data, stored = tensor.data, types.get(name, tensor.tensor_type)
            if stored != tensor.tensor_type:
                data = quantize(dequantize(data, tensor.tensor_type), stored, importance.get(name))
            writer.write_tensor_data(data)
        writer.close()


def fitting(requested: Quantization, columns: int) -> Quantization:
    """Return the type that is stored where another is requested, because its blocks divide the columns."""
    choices = (requested, FALLBACKS.get(requested, Q.F16))
    return next((stored for stored in choices if columns % gguf.GGML_QUANT_SIZES[stored][0] == 0), Q.F16)


def stored_bytes(shape: Sequence[int], stored: Quantization) -> int:
    """Return the bytes of a tensor of a shape [..., C] in a type."""
    block, size = gguf.GGML_QUANT_SIZES[stored]
    return prod(shape) // block * size


def quantize(values: FloatArray, stored: Quantization, importance: FloatArray | None = None) -> NDArray[np.uint8]:
    """Round a weight [..., R, C] by llama.cpp's kernel of a type, to bytes [..., R, bytes of a row].

    Args:
        values: the weight.
        stored: a type whose blocks divide C.
        importance: weights of the rounding errors of the columns, [C]; None: all the same.

    Raises:
        ModelError: a value is not finite, or a kernel does not do what it is expected to.
    """
    library = _kernels()
    if library is None or stored in (Q.F32, Q.F16):
        plain: NDArray[np.uint8] = gguf.quants.quantize(values, stored)
        return plain
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, values.shape[-1])
    out = np.empty((len(flat), stored_bytes(flat.shape[1:], stored)), np.uint8)
    weights = None if importance is None else _column_weights(importance, flat.shape[1])
    if not np.isfinite(flat).all():
        raise ModelError("a weight is not finite, or too large for 16 bits; check the run, or export it as merged")
    rows = max(1, CHUNK // flat.shape[1])
    library.ggml_quantize_init(int(stored))  # tables that the threads share

    def chunk(start: int) -> int:
        part, target = flat[start : start + rows], out[start : start + rows]
        pointer = None if weights is None else weights.ctypes.data
        return int(
            library.ggml_quantize_chunk(int(stored), part.ctypes.data, target.ctypes.data, 0, *part.shape, pointer)
        )

    with ThreadPoolExecutor(cores()) as pool:  # ctypes releases Python's lock
        count = sum(pool.map(chunk, range(0, len(flat), rows)))
    if count != out.nbytes:
        raise ModelError(f"llama.cpp wrote {count} bytes of {stored.name} for {out.nbytes}; install another xllamacpp")
    return out.reshape(*values.shape[:-1], -1)


def _column_weights(importance: FloatArray, columns: int) -> FloatArray | None:
    """Return the importance [C] relative to its mean, plus LEAST_IMPORTANCE; None if the mean is 0 or not finite."""
    if importance.shape != (columns,):
        raise ValueError(f"importance of {importance.shape} columns for {columns}")
    mean = float(importance.mean(dtype=np.float64))
    if not 0 < mean < np.inf:
        return None
    return np.ascontiguousarray(importance / mean + LEAST_IMPORTANCE, dtype=np.float32)


def rounded(weight: torch.Tensor, stored: Quantization, importance: FloatArray | None) -> torch.Tensor:
    """Return a weight [R, C] with the values that a program reads from a file, float32; arguments as in `quantize`."""
    half = weight.detach().half().cpu().numpy()  # what the file is quantized from
    if stored in (Q.F16, Q.F32):
        return torch.from_numpy(half).float()
    return torch.from_numpy(dequantize(quantize(half.astype(np.float32), stored, importance), stored))


@torch.no_grad()
def measure_importance(policy: Policy, parameters: Mapping[str, str], rows: Sequence[Encoded]) -> dict[str, FloatArray]:
    """Measure how much linear layers use each of their inputs: the mean of its square over all tokens.

    Args:
        policy: the model.
        parameters: the parameter of its network for each tensor.
        rows: what it reads.

    Returns:
        Importance of the columns, [C], by tensor; of embedding and output, and of layers that no token passes, none.

    Source: github.com/ggml-org/llama.cpp, tools/imatrix, which measures the same over a text.
    """
    sums: dict[str, torch.Tensor] = {}
    tokens = dict.fromkeys(parameters, 0)

    def watch(tensor: str, layer: torch.nn.Module) -> Any:
        def add(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            states = inputs[0].float().flatten(0, -2)
            sums[tensor] = sums.get(tensor, 0) + states.square().sum(0)
            tokens[tensor] += len(states)

        return layer.register_forward_pre_hook(add)

    layers = {tensor: policy.network.get_submodule(name.removesuffix(".weight")) for tensor, name in parameters.items()}
    handles = [watch(tensor, layer) for tensor, layer in layers.items() if isinstance(layer, torch.nn.Linear)]
    at_once = MEASURED_TOKENS if policy.packs else 1  # otherwise rows are padded, and no padding counts
    lengths = [row.length for row in rows]
    batches = split_by_tokens(sorted(range(len(rows)), key=lambda i: -lengths[i]), lengths, at_once)
    try:
        for batch in track(batches, "measuring the importance matrix", unit="batches"):
            policy.states(collate([rows[i] for i in batch], share=False, whole=True).to(policy.device))
    finally:
        for handle in handles:
            handle.remove()
    return {tensor: (total / tokens[tensor]).cpu().numpy() for tensor, total in sums.items()}


def check_quantizer(name: str) -> None:
    """Raise ModelError if one of MIXTURES cannot be written on this machine."""
    if _kernels() is None and name not in WITHOUT_KERNELS:
        raise ModelError(
            f"export: {name} needs llama.cpp's quantizer, which this build of xllamacpp does not export, or in another "
            "version; use --dtype q8_0"
        )


@cache
def _kernels() -> Any | None:
    """Return the library with llama.cpp's kernels, None if it does not export those known. Raises ModelError."""
    try:
        import xllamacpp.xllamacpp as extension
    except ImportError:
        raise ModelError(EXTRA) from None
    library = ctypes.CDLL(str(extension.__file__))
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    try:
        library.ggml_type_size.restype, library.ggml_blck_size.restype = ctypes.c_size_t, number
        library.ggml_quantize_init.argtypes, library.ggml_quantize_init.restype = [ctypes.c_int], None
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
        library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
        # Types are passed by number: those of another version would write beyond the end of a buffer.
        same = all(
            (library.ggml_blck_size(int(one)), library.ggml_type_size(int(one))) == gguf.GGML_QUANT_SIZES[one]
            for one in {*FALLBACKS, *FALLBACKS.values(), *(mixture.matrices for mixture in MIXTURES.values())}
        )
    except AttributeError:
        return None
    return library if same else None
