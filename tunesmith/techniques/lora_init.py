"""Initialization of LoRA over a 4-bit base from the quantization error, so that training starts closer to the base.

Letters: T tokens, I and O inner and outer width, R rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from safetensors import safe_open
from torch import Tensor

from tunesmith.models.families import positions_of
from tunesmith.models.loading.weight_files import weight_files
from tunesmith.models.sharded import run_body

Updates = Mapping[str, Any]  # PEFT's layers by name
# Relative error up to which a stored weight is taken for the layer's own. NF4 loses a tenth of a weight's norm; what
# differs more belongs to another layer, or is transposed.
MAX_RELATIVE_ERROR = 0.5
# Tokens of the calibration text; 13 give nearly the same as a thousand (bench/NOTES.md).
CALIBRATION_TOKENS = 512
# Smallest input, as a share of the mean: an input that is zero in this text need not be zero in others.
MIN_RELATIVE_INPUT = 1e-2


@torch.no_grad()
def init_lora_from_quantization_error(network: Any, ids: Sequence[int]) -> None:
    """Initialize half of each update to the best approximation of what its layer's output lost by quantization.

    The best approximation of rank R / 2 is made of the error's largest singular directions, with its columns weighted
    by the root mean square of the inputs on the text `ids` [T] (Zhang et al. 2024, arXiv 2410.06040, theorem 2). The
    rows of A keep the length that LoRA gives them, so that its learning rate fits. The other half keeps LoRA's own
    initialization, B at zero: rows that follow the error respond little to large inputs, and with all of the rank on
    the error, classification was learned less well (bench/NOTES.md). So do layers whose full weight is in no file.
    """
    from peft.tuners.lora.bnb import Linear4bit  # exists only if bitsandbytes is installed

    updates: Updates = {name: module for name, module in network.named_modules() if isinstance(module, Linear4bit)}
    text = list(ids)[: min(CALIBRATION_TOKENS, positions_of(network.config.to_dict()) or CALIBRATION_TOKENS)]
    inputs = _input_rms(network, updates, torch.tensor([text], device=network.device))
    for name, error in _quantization_errors(network, updates):
        if name not in inputs:  # a layer that the text does not reach, such as attention to an absent encoder
            continue
        layer = updates[name]
        a, b = (factors["default"].weight for factors in (layer.lora_A, layer.lora_B))
        rms = inputs[name].clamp_min(MIN_RELATIVE_INPUT * inputs[name].mean())  # [I]
        rank = min(a.shape[0] // 2, *error.shape)
        left, singular, right = torch.svd_lowrank(error * rms, q=min(rank + 8, *error.shape), niter=4)
        rows = right[:, :rank].T / rms  # [R / 2, I]
        length = rows.norm(dim=1, keepdim=True) / a[:rank].norm(dim=1, keepdim=True)
        a[:rank] = rows / length
        b[:, :rank] = left[:, :rank] * singular[:rank] * length.T / layer.scaling["default"]


def _input_rms(network: Any, updates: Updates, ids: Tensor) -> dict[str, Tensor]:
    """Return the root mean square [I] of each layer's inputs over the text [1, T], over all calls of the layer."""
    squares: dict[str, Tensor] = {}
    tokens = Counter[str]()

    def recorder(name: str) -> Any:
        def hook(_: Any, inputs: tuple[Tensor, ...]) -> None:
            flat = inputs[0].flatten(end_dim=-2).float()
            squares[name] = squares.get(name, torch.zeros((), device=flat.device)) + flat.square().sum(dim=0)
            tokens[name] += len(flat)

        return hook

    hooks = [module.register_forward_pre_hook(recorder(name)) for name, module in updates.items()]
    run_body(network, input_ids=ids)  # without the output layer
    for hook in hooks:
        hook.remove()
    return {name: (total / tokens[name]).sqrt() for name, total in squares.items()}


def _quantization_errors(network: Any, updates: Updates) -> Iterator[tuple[str, Tensor]]:
    """Yield full weight minus 4-bit weight [O, I] of each layer whose full weight the base's files contain."""
    prefix = f"{network.base_model_prefix}."
    for file in weight_files(Path(network.name_or_path), where=network.name_or_path):
        with safe_open(file, framework="pt") as tensors:
            keys = set(tensors.keys())
            by_block: dict[str, list[str]] = {}  # a checkpoint may put the same blocks below another name
            for key in keys:
                by_block.setdefault(_from_block(key), []).append(key)
            for name, layer in updates.items():
                names = {f"{name}.weight", f"{prefix}{name}.weight", f"{name.removeprefix(prefix)}.weight"}
                # Another tower may have a layer of that name: what is near the 4-bit weight is the layer's own.
                for key in sorted({*(names & keys), *by_block.get(_from_block(f"{name}.weight"), ())}):
                    packed = dequantize_module_weight(layer.base_layer).float()
                    if sorted(tensors.get_slice(key).get_shape()) != sorted(packed.shape):
                        continue
                    stored = tensors.get_tensor(key).to(packed)
                    for full in (stored, stored.T):  # GPT-2 stores transposed weights
                        if full.shape == packed.shape and (full - packed).norm() < MAX_RELATIVE_ERROR * packed.norm():
                            yield name, full - packed
                            break


def _from_block(name: str) -> str:
    """Return the end of a name from its block on, as `layers.0.mlp.up_proj`; the whole name outside of the blocks."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), 1)
    return ".".join(parts[max(number - 1, 0) :])
