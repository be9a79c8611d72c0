"""Adapter folders in PEFT's format, of a run or of others: checked before PEFT reads them, and opened in one place."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.models.loading.weight_files import PICKLES, open_safetensors, read_json, reading

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# PEFT methods that modify the layers of the base, so that the base network can be called directly.
INSIDE = frozenset(
    {
        "ADALORA", "BOFT", "BONE", "C3A", "FOURIERFT", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA",
        "MISS", "OFT", "RANDLORA", "ROAD", "SHIRA", "VBLORA", "VERA",
    }
)  # fmt: skip
SOFT = frozenset({"PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"})
# Bounds of a configuration: any whole number, and iterations of an initialization, which PEFT repeats over the base.
MOST = 1_000_000
MOST_ITERATIONS = 100
# Keys whose texts are patterns of module names, and those whose keys are.
PATTERNS = ("target_modules", "exclude_modules", "layers_pattern")
KEYED_BY_PATTERN = ("rank_pattern", "alpha_pattern")
# Repetitions in a row, such as the four `.*?` of patterns in use: matching takes this power of the length of a name.
MOST_REPEATS = 4
MOST_CHOICES = 12
_FIX = "do not use it, or restore the original"


def vet_adapter(folder: Path, *, where: str, kinds: Collection[str] = INSIDE | SOFT) -> dict[str, Any]:
    """Return the configuration of an adapter whose files can be handed to PEFT.

    Args:
        folder: the adapter.
        where: its name, for messages.
        kinds: PEFT methods that can be used.

    Raises:
        ModelError: a file is missing, damaged or a pickle, or a value would run code, compute without end or is not
            one of a saved adapter.
    """
    config = read_json(folder / CONFIG, where=where)
    if not (folder / WEIGHTS).is_file():
        pickles = sorted(path.name for path in folder.glob("adapter_model*") if path.suffix in PICKLES)
        if pickles:
            raise ModelError(
                f"{where}: {pickles[0]} is a pickle and may run code; load it where you trust it and "
                "save it again with save_pretrained(FOLDER, safe_serialization=True)"
            )
        raise ModelError(f"{where}: {WEIGHTS} is missing next to {CONFIG}; download it again")
    if (kind := str(config.get("peft_type"))) not in kinds:
        raise ModelError(
            f"{where}: a {kind[:100]} adapter does not modify the layers of the base; merge it into its base, "
            f"or use one of {', '.join(sorted(INSIDE))}"
        )
    if config.get("megatron_config"):  # PEFT would import whatever module megatron_core names
        raise ModelError(f"{where}: {CONFIG} asks for code from elsewhere (megatron_core); do not use it")
    _vet_values(config, folder, where=where)
    _vet_patterns(config, where=where)
    return config


def shapes_of(folder: Path, *, where: str) -> Mapping[str, list[int]]:
    """Return the shape of each tensor of an adapter; raise ModelError if the file is damaged."""
    with open_safetensors(folder / WEIGHTS, where=where) as opened:
        return {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118 - it is not a dict


def open_adapter(
    tree: Any, folder: Path, *, where: str, fix: str = _FIX, kinds: Collection[str] = INSIDE | SOFT
) -> Any:
    """Return PEFT's model of a network with a saved adapter.

    Args:
        tree: the network in transformers' class.
        folder: the adapter.
        where: its name, for messages.
        fix: what to do if it does not fit the network.
        kinds: PEFT methods that can be used.

    Raises:
        ModelError: as in `vet_adapter`, or the adapter does not fit the network.
    """
    from peft import PeftModel

    vet_adapter(folder, where=where, kinds=kinds)
    with warnings.catch_warnings(record=True) as caught, reading(where, f"does not fit {_name(tree)}", fix=fix):
        warnings.simplefilter("always")
        wrapped = PeftModel.from_pretrained(tree, str(folder))
    if any("missing adapter keys" in str(warning.message) for warning in caught):
        raise ModelError(f"{where}: does not fit {_name(tree)}, some of its weights are missing; {fix}")
    return wrapped


def _name(tree: Any) -> str:
    return f"this {tree.config.model_type}"


def _vet_values(config: Mapping[str, Any], folder: Path, *, where: str) -> None:
    """Raise ModelError if a number of a configuration is not one of a saved adapter."""
    for key, value in _values(config):
        if isinstance(value, float) and not math.isfinite(value) or abs(value) > MOST:
            raise ModelError(f"{where}: {CONFIG}: {key[:100]} is {str(value)[:40]}; {_FIX}")
        if "iter" in key and value > MOST_ITERATIONS:
            raise ModelError(f"{where}: {CONFIG}: {key[:100]} is more than {MOST_ITERATIONS}; {_FIX}")
    init = re.search(r"\d+$", str(config.get("init_lora_weights")))
    if init and (len(init[0]) > 4 or int(init[0]) > MOST_ITERATIONS):
        raise ModelError(f"{where}: {CONFIG}: init_lora_weights iterates more than {MOST_ITERATIONS} times; {_FIX}")
    ranks = _mapping(config, "rank_pattern", where).values()
    if config.get("peft_type") == "LORA":
        widest = max((size for shape in shapes_of(folder, where=where).values() for size in shape), default=0)
        for rank in (config.get("r"), *ranks):
            if type(rank) is not int or not 1 <= rank <= widest:
                raise ModelError(f"{where}: {CONFIG}: r is {str(rank)[:100]}, which its weights do not have; {_FIX}")


def _values(config: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    """Yield all numeric values of a configuration with their keys."""
    if isinstance(config, dict):
        for name, value in config.items():
            yield from _values(value, name)
    elif isinstance(config, list):
        for value in config:
            yield from _values(value, key)
    elif isinstance(config, int | float):
        yield key, config


def _mapping(config: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise ModelError(f"{where}: {CONFIG}: {key} is not an object; {_FIX}")
    return value


def _vet_patterns(config: Mapping[str, Any], *, where: str) -> None:
    """Raise ModelError if PEFT would match a pattern of the configuration for a long time."""
    texts = [config[key] for key in PATTERNS if isinstance(config.get(key), str)]
    if isinstance(layers := config.get("layers_pattern"), list):  # lists of the other two are names
        texts += [pattern for pattern in layers if isinstance(pattern, str)]
    texts += [pattern for key in KEYED_BY_PATTERN for pattern in _mapping(config, key, where)]
    for pattern in texts:
        try:
            parsed = re._parser.parse(pattern)  # type: ignore[attr-defined]
            slow = _repeats(parsed) > MOST_REPEATS or _choices(parsed) > MOST_CHOICES
        except (re.error, RecursionError, OverflowError) as error:
            raise ModelError(f"{where}: {CONFIG}: {pattern[:60]!r} is not a pattern ({error}); {_FIX}") from None
        if slow:
            problem = "is a pattern that takes long to match"
            raise ModelError(f"{where}: {CONFIG}: {pattern[:60]!r} {problem}; {_FIX}")


def _repeats(part: Any, *, inside: bool = False) -> float:
    """Return how many repetitions follow one another in a parsed pattern: the exponent of its time.

    Infinite for a repetition or a choice inside a repetition, whose time grows exponentially.
    """
    count = 0.0
    for operation, value in part:
        if str(operation).endswith("_REPEAT"):
            least, most, body = value
            inner = _repeats(body, inside=inside or most > 1)
            if most > 1:
                count += math.inf if inside or inner else float(least != most)
            else:
                count += inner
        elif str(operation) == "BRANCH":
            count += math.inf if inside else max(_repeats(choice) for choice in value[1])
        else:
            count += sum(_repeats(inner, inside=inside) for inner in _inner(value))
    return count


def _choices(part: Any) -> int:
    """Count the choices and optional parts of a parsed pattern; each may double its time."""
    count = 0
    for operation, value in part:
        optional = str(operation).endswith("_REPEAT") and value[:2] == (0, 1)
        count += (optional or str(operation) == "BRANCH") + sum(_choices(inner) for inner in _inner(value))
    return count


def _inner(value: Any) -> list[Any]:
    """Return the parsed patterns inside an operation."""
    if type(value).__name__ == "SubPattern":
        return [value]
    return [inner for item in value for inner in _inner(item)] if isinstance(value, list | tuple) else []
