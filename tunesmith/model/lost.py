"""What four bits lost of a base's weights, given back by the low-rank updates beside them as far as their rank goes.

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

from tunesmith.model.families import positions_of
from tunesmith.model.weights import weight_files

Updates = Mapping[str, Any]  # PEFT's layers by the name of the layer that each stands beside
NOT_ITS_OWN = 0.5  # of a weight's length: NF4 loses a tenth; what is further away is another layer's, or turned round
HEARD = 512  # tokens of the text; 13 tell nearly what a thousand do (bench/NOTES.md)
LEAST = 1e-2  # of the mean input: what never speaks in the text is not known to be silent


@torch.no_grad()
def give_back(network: Any, ids: Sequence[int]) -> None:
    """Begin half of each update with the best of that rank for what the layer's output lost, to the text `ids` [T].

    That is the error's largest directions, its columns weighed by the root mean square of the inputs (Zhang et al.
    2024, arXiv 2410.06040, theorem 2). A's rows are as long as LoRA draws them, so that its learning rate fits. The
    other half begins as LoRA's does, B at zero: rows that look where the error is hear little of loud inputs, and with
    all of the rank labels were learned worse (bench/NOTES.md). So do layers whose whole weight lies in no file.
    """
    from peft.tuners.lora.bnb import Linear4bit  # there only beside bitsandbytes

    updates: Updates = {name: one for name, one in network.named_modules() if isinstance(one, Linear4bit)}
    text = list(ids)[: min(HEARD, positions_of(network.config.to_dict()) or HEARD)]
    inputs = _inputs(network, updates, torch.tensor([text], device=network.device))
    for name, error in _errors(network, updates):
        if name not in inputs:  # such as attention to an encoder that is not there
            continue
        layer = updates[name]
        a, b = (factors["default"].weight for factors in (layer.lora_A, layer.lora_B))
        heard = inputs[name].clamp_min(LEAST * inputs[name].mean())  # [I]
        rank = min(a.shape[0] // 2, *error.shape)
        left, sizes, right = torch.svd_lowrank(error * heard, q=min(rank + 8, *error.shape), niter=4)
        rows = right[:, :rank].T / heard  # [R, I]
        length = rows.norm(dim=1, keepdim=True) / a[:rank].norm(dim=1, keepdim=True)
        a[:rank] = rows / length
        b[:, :rank] = left[:, :rank] * sizes[:rank] * length.T / layer.scaling["default"]


def _inputs(network: Any, updates: Updates, ids: Tensor) -> dict[str, Tensor]:
    """The root mean square of each layer's inputs [I] while the network reads the text [1, T], over all its calls."""
    squares: dict[str, Tensor] = {}
    tokens = Counter[str]()

    def keep(name: str) -> Any:
        def hook(_: Any, inputs: tuple[Tensor, ...]) -> None:
            heard = inputs[0].flatten(end_dim=-2).float()
            squares[name] = squares.get(name, torch.zeros((), device=heard.device)) + heard.square().sum(dim=0)
            tokens[name] += len(heard)

        return hook

    hooks = [module.register_forward_pre_hook(keep(name)) for name, module in updates.items()]
    network.base_model(input_ids=ids)  # no logits
    for hook in hooks:
        hook.remove()
    return {name: (total / tokens[name]).sqrt() for name, total in squares.items()}


def _errors(network: Any, updates: Updates) -> Iterator[tuple[str, Tensor]]:
    """Whole weight less packed one [O, I], for each layer whose whole weight the base's files hold, one at a time."""
    prefix = f"{network.base_model_prefix}."
    for file in weight_files(Path(network.name_or_path), where=network.name_or_path):
        with safe_open(file, framework="pt") as kept:
            there = set(kept.keys())
            for name, layer in updates.items():
                names = {f"{name}.weight", f"{prefix}{name}.weight", f"{name.removeprefix(prefix)}.weight"}
                for key in names & there:
                    packed = dequantize_module_weight(layer.base_layer).float()
                    whole = kept.get_tensor(key).to(packed)
                    for seen in (whole, whole.T):  # GPT-2's are kept turned round
                        if seen.shape == packed.shape and (seen - packed).norm() < NOT_ITS_OWN * packed.norm():
                            yield name, seen - packed
                            break
