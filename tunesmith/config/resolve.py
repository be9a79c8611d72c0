"""What a person asked for, a recipe or just a file of rows, as a recipe and notes on what was filled in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config import Recipe, load_recipe, make_recipe
from tunesmith.config.aliases import ALIASES, changed_keys
from tunesmith.data.examples.preferences import written
from tunesmith.data.examples.types import Chat, Example, Text
from tunesmith.data.files import is_recipe
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import Row, as_word, keep
from tunesmith.data.schema.formats import detect
from tunesmith.objectives import Domain
from tunesmith.objectives.domain import text_column

# Columns whose rows belong together in the data sets people bring; the first that is there is used.
GROUP_COLUMNS = ("group", "thread", "doc_id", "source_id")
# With fewer groups than this a split by group could leave a part empty.
ENOUGH_GROUPS = 10
# Of few rows several passes, so that there are this many steps; no more passes than this, which only repeat.
STEPS_WANTED, BATCH_ROWS, MOST_EPOCHS = 200, 16, 5
# Three bytes make about a token of European text, and one letter of Chinese.
BYTES_A_TOKEN = 3
# Keys by which an objective names columns; one that names none has them detected.
COLUMN_KEYS = {"text", "label", "prompt", "answer", "messages", "chosen", "rejected", "margin"}


@dataclass(frozen=True, slots=True)
class ResolvedRecipe:
    """A recipe, and one line for each thing in it that was translated, detected or chosen."""

    recipe: Recipe
    notes: tuple[str, ...]


def resolve_recipe(
    source: str | Path | Recipe, *, changes: Sequence[str] = (), offline: bool = False
) -> ResolvedRecipe:
    """The recipe that a recipe, a recipe file or a file of rows stands for, with `key=value` changes applied.

    Raises RecipeError, and DataError for rows that cannot be read.
    """
    if isinstance(source, Recipe):
        recipe, notes = make_recipe(source.model_dump(mode="json"), place="recipe", changes=changes)
    elif is_recipe(Path(source)):
        recipe, notes = load_recipe(source, changes=changes)
    else:
        return _for_rows(str(source), changes, offline=offline)
    return ResolvedRecipe(recipe, (*notes, *_mapping(recipe, offline=offline)))


def as_changes(settings: Mapping[str, Any], *, under: str = "") -> list[str]:
    """The settings as `key=value` changes: sections opened, None left out; whole is a mapping with a kind, one under
    another tool's name, and one whose own keys are no names."""
    changes: list[str] = []
    for name, value in settings.items():
        key = f"{under}{name}"
        if isinstance(value, Mapping) and _opens(key, value):
            changes += as_changes(value, under=f"{key}.")
        elif value is not None:
            changes.append(f"{key}={json.dumps(value, default=str)}")
    return changes


def _opens(key: str, value: Mapping[str, Any]) -> bool:
    """Whether a setting is a section, each of its keys a setting of its own."""
    if key in ("objective.reward", "data.where"):  # what stands there takes the place of all that stood there
        return False
    return "kind" not in value and key not in ALIASES and not any({".", "="} & set(str(inner)) for inner in value)


def default_epochs(rows: int) -> tuple[int, int]:
    """Passes over so many rows, a part of them held out, that make enough steps; and about how many steps."""
    trained = max(1, round(0.7 * rows))
    epochs = min(MOST_EPOCHS, max(1, math.ceil(STEPS_WANTED * BATCH_ROWS / trained)))
    return epochs, math.ceil(epochs * trained / BATCH_ROWS)


def windows(sizes: Iterable[int], limit: int) -> int:
    """About how many windows of so many tokens texts are cut into, by their bytes."""
    return sum(math.ceil(max(1, size) / BYTES_A_TOKEN / limit) for size in sizes)


def size_of(example: Example) -> int:
    """Bytes of a row, tools among them: three make about a token of European text, and one letter of Chinese."""
    tools = sum(len(m.tools.encode()) for m in example.messages) if isinstance(example, Chat) else 0
    return len(written(example).encode()) + tools


def learned_rows(examples: Sequence[Example], limit: int) -> int:
    """How many rows are learned, of texts about how many windows."""
    return windows(map(size_of, examples), limit) if isinstance(examples[0], Text) else len(examples)


def _learned(recipe: Recipe, rows: Sequence[Row]) -> int:
    """How many rows are learned, of texts about how many windows."""
    if not isinstance(recipe.objective, Domain):
        return len(rows)
    column = recipe.objective.text or text_column(rows)
    texts = (str(row.fields.get(column) or "") for row in rows)
    return windows((len(text.encode(errors="surrogatepass")) for text in texts), recipe.data.max_tokens)


def _for_rows(source: str, changes: Sequence[str], *, offline: bool) -> ResolvedRecipe:
    """The default recipe for a file of rows."""
    rows = read_rows(source, offline=offline)
    named = changed_keys(changes)
    raw: dict[str, Any] = {"data": {"train": source}, "technique": {"kind": "lora"}}
    notes: list[str] = []
    if not named & {"objective", "objective.kind"}:
        found = detect(rows)
        raw["objective"] = {"kind": found.objective}
    if "data.group" not in named and (column := _group_column(rows)):
        raw["data"]["group"] = column
        notes.append(f"rows with the same {column!r} stay on one side of the split (--set data.group= for no groups)")
    recipe, translated = make_recipe(raw, place=source, changes=changes)
    if not any(name.partition(".")[0] == "schedule" for name in named):
        epochs, steps = default_epochs(_learned(recipe, rows))
        recipe, _ = make_recipe(raw | {"schedule": {"epochs": epochs}}, place=source, changes=changes)
        notes.append(
            f"passes over the training rows: {epochs}, about {steps} steps (--set schedule.epochs=N for others)"
        )
    mapping = [] if _names_columns(recipe) else [_explained(recipe, rows)]
    return ResolvedRecipe(recipe, (*translated, *mapping, *notes))


def _group_column(rows: Sequence[Row]) -> str:
    """The first well-known group column that every row fills, with enough groups to cut; else nothing."""
    for column in GROUP_COLUMNS:
        groups = [(as_word(row.fields.get(column)) or "").strip() for row in rows]
        if all(groups) and ENOUGH_GROUPS <= len(set(groups)) < len(rows):
            return column
    return ""


def _mapping(recipe: Recipe, *, offline: bool) -> list[str]:
    """Which column plays which part, where the recipe leaves that to detection."""
    found = []
    for name, one in (recipe.parts or {"": recipe}).items():
        if not _names_columns(one):
            rows = keep(read_rows(one.data.train, offline=offline), one.data.where)
            found.append(f"{name}: {_explained(one, rows)}" if name else _explained(one, rows))
    return found


def _explained(recipe: Recipe, rows: Sequence[Row]) -> str:
    """One line that shows what was detected; of texts alone only their column counts."""
    if isinstance(recipe.objective, Domain):
        return f"detected texts: {text_column(rows)} -> what is read"
    return detect(rows).explain()


def _names_columns(recipe: Recipe) -> bool:
    return any(recipe.objective.model_dump(include=COLUMN_KEYS).values())
