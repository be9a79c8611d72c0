"""Weight files of a model folder: checked before anything reads them, and identified by a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tunesmith.errors import ModelError, TunesmithError, briefly, out_of_memory

if TYPE_CHECKING:
    from torch import Tensor, nn

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Formats that are Python pickles inside: reading one runs whatever code its author put there.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
CONVERT = (
    "convert it to safetensors if you trust it: "
    'python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
    '[one.from_pretrained(FOLDER).save_pretrained(NEW) for one in (M, T)]" (AutoModel as M for an encoder)'
)
ADAPTER = "this is an adapter, not a whole model; name its base model here, and evaluate or ask the adapter"
_AGAIN = "check or download it again"
# Entries of config.json that are part of the fingerprint.
SHAPE_KEYS = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
# Entries of config.json that are compared with the weights: layers with their count, widths with their shapes.
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTH_KEYS = ("hidden_size", "vocab_size", "intermediate_size", "n_embd", "dim", "num_attention_heads", "n_head")
# Values of each tensor that are part of it.
SAMPLE = 16

# A tensor's name, its shape and its first values.
Glimpse: TypeAlias = "tuple[str, tuple[int, ...], Tensor]"


def read_json(path: Path, *, where: str) -> dict[str, Any]:
    """Read the object in a JSON file.

    Args:
        path: the file.
        where: the model's name, for messages.

    Raises:
        ModelError: if it is missing or not a JSON object.
    """
    try:
        if path.exists() and not path.is_file():  # reading a named pipe waits for a writer
            raise OSError("not a file")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{where}: {path.name} is missing; name the folder of a model") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{where}: {path.name} cannot be read ({error}); download it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{where}: {path.name}: expected a JSON object; download it again")
    return value


@contextmanager
def reading(where: str, problem: str = "transformers cannot read it", *, fix: str = _AGAIN) -> Iterator[None]:
    """Enter a context in which any error that a library raises over foreign files becomes one line for the user.

    A damaged configuration can make a library raise any exception, so only library calls belong in this context.

    Args:
        where: the model's name.
        problem: what its files did not allow.
        fix: what to do.
    """
    try:
        yield
    except TunesmithError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise ModelError(f"{where}: does not fit into memory; use a smaller model, or quantize: nf4") from error
        raise ModelError(f"{where}: {problem} ({briefly(error)}); {fix}") from error


def weight_files(folder: Path, *, where: str) -> list[Path]:
    """Return the safetensors files of a folder, after checking the header of each.

    Raises ModelError for any other format, and for missing or truncated files.
    """
    files = sorted({*_shards(folder, where=where).values()}) if (folder / INDEX).is_file() else [folder / SINGLE]
    if not (folder / INDEX).is_file() and not files[0].is_file():
        raise ModelError(f"{where}: {_no_weights(folder)}")
    tensors = largest = 0
    for file in files:
        with open_safetensors(file, where=where) as opened:
            for name in opened.keys():  # noqa: SIM118 - it is not a dict
                tensors += 1
                largest = max(largest, *opened.get_slice(name).get_shape(), 0)
    check_sizes(read_json(folder / "config.json", where=where), tensors=tensors, largest=largest, where=where)
    return files


def check_sizes(config: Mapping[str, Any], *, tensors: int, largest: int, where: str) -> None:
    """Raise ModelError if a configuration is of a network that is far larger than its files.

    transformers builds the network before it compares: a million layers take hours.

    Args:
        config: the content of config.json.
        tensors: number of tensors in the files.
        largest: the greatest size of any of their dimensions.
        where: the model's name, for messages.
    """
    bounds = dict.fromkeys(LAYER_KEYS, max(tensors, 1024)) | dict.fromkeys(WIDTH_KEYS, 4 * largest)
    for key, value in config.items():
        if isinstance(value, dict):
            check_sizes(value, tensors=tensors, largest=largest, where=where)
        elif key in bounds and isinstance(value, int | float) and not value <= bounds[key]:
            raise ModelError(
                f"{where}: config.json: {key} is {str(value)[:40]}, far more than its files have; download it again"
            )


def weight_map(folder: Path, *, where: str) -> dict[str, Path]:
    """Return the safetensors file of every tensor in a folder; of several files, none is opened.

    Args:
        folder: a model folder.
        where: its name, for messages.

    Raises:
        ModelError: if the weights are in another format, or the index or the only file is damaged.
    """
    if (folder / INDEX).is_file():
        return _shards(folder, where=where)
    if not (folder / SINGLE).is_file():
        raise ModelError(f"{where}: {_no_weights(folder)}")
    with open_safetensors(folder / SINGLE, where=where) as opened:
        return dict.fromkeys(opened.keys(), folder / SINGLE)


def open_safetensors(file: Path, *, where: str) -> AbstractContextManager[Any]:
    """Open a safetensors file for lazy reading.

    Args:
        file: the file.
        where: the model's name, for messages.

    Raises:
        ModelError: if it is missing, truncated or something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        opened: AbstractContextManager[Any] = safe_open(file, framework="pt")
    except FileNotFoundError:  # safetensors raises it also where the file may not be read
        if file.exists():
            raise ModelError(f"{where}: {file.name} may not be read by this user; change its permissions") from None
        raise ModelError(f"{where}: {file.name} is missing, but {INDEX} lists it; download it again") from None
    except (SafetensorError, OSError, ValueError) as error:
        pointer = file.stat().st_size < 1024 and file.read_bytes().startswith(b"version https://git-lfs")
        problem = "a Git LFS pointer, not the weights" if pointer else f"cut short or damaged ({error})"
        raise ModelError(f"{where}: {file.name} is {problem}; download it again") from error
    return opened


def _shards(folder: Path, *, where: str) -> dict[str, Path]:
    """Return the shard of each tensor in the index; a name that leads out of the folder is refused."""
    listed = read_json(folder / INDEX, where=where).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ModelError(f"{where}: {INDEX} lists no weights; download it again")
    for name in sorted({str(name) for name in listed.values()}):
        if name != Path(name).name or "\\" in name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{where}: {INDEX} names the file {name!r}, which is not a .safetensors file in this folder; "
                "do not use this model"
            )
    return {tensor: folder / str(name) for tensor, name in listed.items()}


def _no_weights(folder: Path) -> str:
    """Return what the folder contains instead of weights, and what to do."""
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        return f"{pickles[0]} is a pickle and may run code; {CONVERT}"
    if (folder / "adapter_config.json").is_file():
        return ADAPTER
    if (folder / "model" / "config.json").is_file():
        return f"no {SINGLE} here; did you mean {folder / 'model'}?"
    return f"no {SINGLE} here; choose a model in safetensors format, or write it with save_pretrained"


def glimpses_of_files(files: Iterable[Path], *, only: Container[str] | None = None) -> Iterator[Glimpse]:
    """Yield name, shape and first values of every tensor in safetensors files, without reading the rest.

    Args:
        files: the files.
        only: names of the tensors; None for all.
    """
    from safetensors import safe_open

    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is not a dict
                if only is not None and name not in only:
                    continue
                part = opened.get_slice(name)
                shape = tuple(part.get_shape())
                yield (
                    name,
                    shape,
                    part[: 1 if len(shape) > 1 else SAMPLE] if shape else opened.get_tensor(name),
                )


def glimpses_of_network(network: nn.Module) -> Iterator[Glimpse]:
    """Yield name, shape and first values of every parameter; tied ones once, as in a safetensors file."""
    for name, value in network.named_parameters():
        yield name, tuple(value.shape), value.detach()[: 1 if value.dim() > 1 else SAMPLE]


def fingerprint(config: Mapping[str, Any], glimpses: Iterable[Glimpse]) -> str:
    """Return 16 hex digits that differ between bases and do not depend on how or where the weights are loaded.

    Covers the first values of every tensor, because a merged adapter changes all layers but often not the embedding.
    They are rounded to bfloat16, so a float32 copy of bfloat16 weights has the same fingerprint.
    """
    import torch

    digest = hashlib.sha256(json.dumps([config.get(key) for key in SHAPE_KEYS]).encode())
    # Sorted by name: files and networks list their tensors in different orders.
    for name, shape, part in sorted(glimpses, key=lambda glimpse: glimpse[0]):
        values = part.flatten()[:SAMPLE].cpu().to(torch.float32).to(torch.bfloat16)
        digest.update(f"{name}{shape}".encode())
        digest.update(values.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_complete(info: Mapping[str, Any], *, family: str, where: str) -> None:
    """Raise ModelError unless every weight came from the files; transformers initializes missing ones randomly."""
    for name, actual, expected in sorted(info["mismatched_keys"]):
        raise ModelError(
            f"{where}: {name} is {tuple(actual)} in the files and {tuple(expected)} by config.json; "
            "the two are of different models: download both again"
        )
    # An encoder's pooler is never used: rows are pooled by the mean of the last states.
    missing = sorted(key for key in info["missing_keys"] if family == "decoder" or "pooler" not in key)
    if missing:
        raise ModelError(
            f"{where}: {len(missing)} weights are missing from the files, {missing[0]} among them, and would be "
            f"random; choose the full checkpoint of a model that can be loaded as {family}"
        )


def check_finite(network: nn.Module, *, where: str) -> None:
    """Raise ModelError, naming the parameter, if a weight is NaN or infinite."""
    import torch

    for name, value in network.named_parameters():
        # A finite sum, 40 times as quick, has finite terms; that of finite ones may still exceed its dtype.
        if not value.is_floating_point() or bool(torch.isfinite(value.sum())):
            continue
        if not bool(torch.isfinite(value).all()):
            raise ModelError(f"{where}: {name} contains NaN or infinity; download it again, or use dtype bfloat16")
