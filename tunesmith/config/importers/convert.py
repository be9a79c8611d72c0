"""Convert the configuration of axolotl or LLaMA-Factory to a recipe; keys without a counterpart are listed with why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from tunesmith.config import make_recipe
from tunesmith.config.aliases import ACCUMULATION, ALIASES, PER_PASS, translate
from tunesmith.config.annotated_yaml import AnnotatedRecipe
from tunesmith.config.importers.axolotl import axolotl
from tunesmith.config.importers.common import Conversion, number
from tunesmith.config.importers.llama_factory import factory
from tunesmith.config.unsupported import UNKNOWN, why_left_out
from tunesmith.data.bounded_yaml import parse_yaml
from tunesmith.data.files import refuse_pipe
from tunesmith.errors import RecipeError
from tunesmith.techniques import SHORTHANDS


def convert(path: Path, *, data: str = "", changes: Sequence[str] = ()) -> AnnotatedRecipe:
    """Convert a configuration file.

    Args:
        path: YAML file of axolotl or LLaMA-Factory.
        data: data file to use instead of its data set.
        changes: `key=value` changes of the recipe.

    Raises:
        RecipeError: the file is of neither trainer, or uses something unsupported.
    """
    raw = _read(path)
    tool = next((tool for tool, (marks, _) in TOOLS.items() if marks & set(raw)), None)
    if tool is None:
        fix = "give a file with base_model and datasets, or with model_name_or_path and dataset"
        raise RecipeError(f"{path}: not a configuration of {' or '.join(TOOLS)}; {fix}")
    work = Conversion({key: value for key, value in raw.items() if value is not None}, path.parent, str(path))
    if data:
        work.put("data", "train", data, "given on the command line")
    TOOLS[tool][1](work)
    _common(work)
    known = {*ALIASES, "seed", *([ACCUMULATION] if set(PER_PASS) & set(work.raw) else [])}
    kept = {name: work.raw[name] for name in work.raw if name in known}
    for name in sorted(set(work.raw) - set(kept)):
        work.dropped[name] = why_left_out(name) or UNKNOWN
    try:
        values, notes = translate({**work.ours, **kept})
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    for note in notes:
        name, _, became = note.partition(" -> ")
        work.reasons[became.partition(":")[0]] = f"was {name}"
    recipe, _ = make_recipe(values, place=str(path), changes=changes)
    return AnnotatedRecipe(recipe, work.reasons, work.dropped)


def _read(path: Path) -> dict[str, Any]:
    refuse_pipe(path, RecipeError)
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: invalid YAML ({' '.join(str(error).split())}); fix this line") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: expected a mapping of keys, got {type(raw).__name__}; check the file name")
    if odd := [key for key in raw if not isinstance(key, str)]:
        raise RecipeError(f"{path}: the key {odd[0]!r} is not a name; quote or remove it")
    return raw


def _common(work: Conversion) -> None:
    """Convert keys that both trainers have."""
    technique = work.ours["technique"]
    if technique["kind"] == "qlora" and "qlora" not in SHORTHANDS:
        work.put("technique", "kind", "lora", "qlora")
        work.dropped["qlora"] = "4-bit quantization is not available; the base is loaded in full precision"
    if technique["kind"] == "full":
        for name in [
            key for key in work.raw if key.startswith("lora_") or ALIASES.get(key, "").startswith("technique.")
        ]:
            work.dropped[name] = "LoRA only; full tuning trains all parameters"
            work.take(name)
        work.ours["technique"] = {"kind": "full"}
    targets = work.raw.get("lora_target")
    if isinstance(targets, str) and targets != "all":
        work.raw["lora_target"] = [name.strip() for name in targets.split(",")]
    _validation(work)
    if work.raw.get("max_grad_norm") == 0:
        work.dropped["max_grad_norm"] = f"{work.take('max_grad_norm')}: gradients are always clipped (schedule.clip)"
    for name in ("save_steps", "eval_steps"):
        if name in work.raw and (not isinstance(work.raw[name], int) or work.raw[name] < 1):
            work.dropped[name] = (
                f"{work.take(name)}: must be a number of steps; the default depends on the length of the run"
            )


def _validation(work: Conversion) -> None:
    """Convert the size of the validation split; only a fraction has a counterpart."""
    for name in ("val_size", "val_set_size"):
        share = number(work.raw.get(name, 0))
        if share is None:
            work.dropped[name] = f"{work.take(name)}: the validation split is a fraction or a file"
        elif share >= 1:
            work.dropped[name] = f"{work.take(name)} rows: the validation split is a fraction or a file"
        elif name in work.raw and isinstance(work.ours["data"].get("validation"), str):
            work.dropped[name] = "a validation file is used"
            work.take(name)


# Trainer -> keys that only its files have, and the converter.
TOOLS: dict[str, tuple[set[str], Callable[[Conversion], None]]] = {
    "axolotl": ({"base_model", "datasets", "micro_batch_size", "sequence_len"}, axolotl),
    "LLaMA-Factory": ({"dataset", "finetuning_type", "stage", "cutoff_len", "dataset_dir"}, factory),
}
