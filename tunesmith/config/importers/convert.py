"""Another trainer's configuration as a recipe: what has a counterpart is carried over, the rest is named with why."""

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
from tunesmith.errors import RecipeError
from tunesmith.techniques import SHORTHANDS


def convert(path: Path, *, data: str = "", changes: Sequence[str] = ()) -> AnnotatedRecipe:
    """The recipe that an axolotl or LLaMA-Factory file amounts to; `data` stands in for its data set.

    Raises RecipeError for a file that is neither, and for what cannot be done here.
    """
    raw = _read(path)
    tool = next((tool for tool, (marks, _) in TOOLS.items() if marks & set(raw)), None)
    if tool is None:
        cure = "give a file with base_model and datasets, or with model_name_or_path and dataset"
        raise RecipeError(f"{path}: neither of {' and '.join(TOOLS)}; {cure}")
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
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML ({' '.join(str(error).split())}); mend that line") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: found {type(raw).__name__}, not a mapping of keys; is this the right file?")
    return raw


def _common(work: Conversion) -> None:
    """What both say alike and we say otherwise."""
    technique = work.ours["technique"]
    if technique["kind"] == "qlora" and "qlora" not in SHORTHANDS:
        work.put("technique", "kind", "lora", "qlora")
        work.dropped["qlora"] = "the base is read in full precision"
    if technique["kind"] == "full":
        for name in [
            key for key in work.raw if key.startswith("lora_") or ALIASES.get(key, "").startswith("technique.")
        ]:
            work.dropped[name] = "only for LoRA, and every number moves here"
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
            work.dropped[name] = f"{work.take(name)}: counted in steps, by default by the length of the run"


def _validation(work: Conversion) -> None:
    """How much is held out while learning: a share is carried over."""
    for name in ("val_size", "val_set_size"):
        share = number(work.raw.get(name, 0))
        if share is None:
            work.dropped[name] = f"{work.take(name)}: the validation part is a share or a file"
        elif share >= 1:
            work.dropped[name] = f"{work.take(name)} rows: the validation part is a share or a file"
        elif name in work.raw and isinstance(work.ours["data"].get("validation"), str):
            work.dropped[name] = "a validation file is given"
            work.take(name)


# Tool -> keys that only its files have, and what reads them.
TOOLS: dict[str, tuple[set[str], Callable[[Conversion], None]]] = {
    "axolotl": ({"base_model", "datasets", "micro_batch_size", "sequence_len"}, axolotl),
    "LLaMA-Factory": ({"model_name_or_path", "finetuning_type", "stage", "cutoff_len", "dataset_dir"}, factory),
}
