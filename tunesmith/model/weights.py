"""A folder's weight files: vetted before anything reads them, and named by a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tunesmith.errors import ModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Formats that are Python pickles inside: reading one runs whatever its writer put there.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
CONVERT = (
    "convert it to safetensors where you trust it: "
    'python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
    '[one.from_pretrained(FOLDER).save_pretrained(NEW) for one in (M, T)]" (AutoModel as M for an encoder)'
)
ADAPTER = "this is an adapter, not a whole model; name its base model here, and evaluate or ask the adapter"
# What a base is recognised by, besides its tensors.
SHAPE_KEYS = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
SAMPLE = 16

# A tensor's name, its shape and its first numbers.
Glimpse = tuple[str, tuple[int, ...], Tensor]


def read_json(path: Path, *, where: str) -> dict[str, Any]:
    """The object in a JSON file; raises ModelError where it is missing or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{where}: {path.name} is missing; is this the folder of a model?") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{where}: {path.name} cannot be read ({error}); download it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{where}: {path.name} holds no JSON object; download it again")
    return value


def weight_files(folder: Path, *, where: str) -> list[Path]:
    """The folder's safetensors files, each with a whole and well-formed header; anything else is refused."""
    if (folder / INDEX).is_file():
        files = [folder / name for name in _shards(folder, where=where)]
    elif (folder / SINGLE).is_file():
        files = [folder / SINGLE]
    else:
        raise ModelError(f"{where}: {_no_weights(folder)}")
    for file in files:
        _check_header(file, where=where)
    return files


def _shards(folder: Path, *, where: str) -> list[str]:
    """Shard names out of the index; a name that leads out of the folder is refused."""
    listed = read_json(folder / INDEX, where=where).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ModelError(f"{where}: {INDEX} lists no weights; download it again")
    names = sorted({str(name) for name in listed.values()})
    for name in names:
        if name != Path(name).name or "\\" in name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{where}: {INDEX} names the file {name!r}, which is no .safetensors file of this folder; "
                "do not use this model"
            )
        if not (folder / name).is_file():
            raise ModelError(f"{where}: {name} is missing, but {INDEX} lists it; download it again")
    return names


def _no_weights(folder: Path) -> str:
    """What the folder has instead of weights, and what to do."""
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        return f"{pickles[0]} is a pickle and may run code; {CONVERT}"
    if (folder / "adapter_config.json").is_file():
        return ADAPTER
    if (folder / "model" / "config.json").is_file():
        return f"no {SINGLE} here; did you mean {folder / 'model'}?"
    return f"no {SINGLE} here; choose a model that is kept as safetensors, or save it so with save_pretrained"


def _check_header(file: Path, *, where: str) -> None:
    """Nothing for a whole file; raises ModelError for one that is cut short or damaged."""
    try:
        with safe_open(file, framework="pt"):
            return
    except (SafetensorError, OSError, ValueError) as error:
        pointer = file.stat().st_size < 1024 and file.read_bytes().startswith(b"version https://git-lfs")
        found = "a Git LFS pointer, not the weights" if pointer else f"cut short or damaged ({error})"
        raise ModelError(f"{where}: {file.name} is {found}; download it again") from error


def glimpses_of_files(files: Iterable[Path]) -> Iterator[Glimpse]:
    """Name, shape and first numbers of every tensor in safetensors files, without reading the rest."""
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no dict
                part = opened.get_slice(name)
                shape = tuple(part.get_shape())
                yield (
                    name,
                    shape,
                    part[: 1 if len(shape) > 1 else SAMPLE] if shape else opened.get_tensor(name),
                )


def glimpses_of_network(network: nn.Module) -> Iterator[Glimpse]:
    """Name, shape and first numbers of every parameter; tied ones once, as in a safetensors file."""
    for name, value in network.named_parameters():
        yield name, tuple(value.shape), value.detach()[: 1 if value.dim() > 1 else SAMPLE]


def fingerprint(config: Mapping[str, Any], glimpses: Iterable[Glimpse]) -> str:
    """16 hex digits that differ between bases, and do not depend on how or where the weights are loaded.

    The first numbers of every tensor are taken: a merged adapter changes all layers but often not
    the embedding. Numbers are rounded to bfloat16, so a float32 copy of bfloat16 weights is the same base.
    """
    digest = hashlib.sha256(json.dumps([config.get(key) for key in SHAPE_KEYS]).encode())
    for name, shape, part in sorted(glimpses, key=lambda glimpse: glimpse[0]):
        numbers = part.flatten()[:SAMPLE].cpu().to(torch.float32).to(torch.bfloat16)
        digest.update(f"{name}{shape}".encode())
        digest.update(numbers.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_complete(info: Mapping[str, Any], *, family: str, where: str) -> None:
    """Nothing when every weight came from the files; transformers fills gaps with random numbers."""
    for name, found, wanted in sorted(info["mismatched_keys"]):
        raise ModelError(
            f"{where}: {name} is {tuple(found)} in the files and {tuple(wanted)} by config.json; "
            "the two are of different models: download both again"
        )
    # An encoder's pooler is not used here: what comes out is the mean over its last states.
    gaps = sorted(key for key in info["missing_keys"] if family == "decoder" or "pooler" not in key)
    if gaps:
        raise ModelError(
            f"{where}: {len(gaps)} weights are missing from the files, {gaps[0]} among them, and would be "
            f"random; choose the full checkpoint of a model that can be loaded as {family}"
        )


def check_finite(network: nn.Module, *, where: str) -> None:
    """Nothing when all weights are numbers; raises ModelError naming the first that holds NaN or infinity."""
    for name, value in network.named_parameters():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(f"{where}: {name} holds NaN or infinity; the file is damaged, or use dtype bfloat16")
