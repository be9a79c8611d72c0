"""Resolve a recipe, a recipe file or a data file to a complete recipe, with notes on what was filled in."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.config import Recipe, load_recipe, make_recipe
from tunesmith.config.aliases import ALIASES, changed_keys
from tunesmith.config.model_choice import DECODER, ENCODER, pick_by_rule
from tunesmith.data.examples.preferences import written
from tunesmith.data.examples.types import Chat, Example, Text
from tunesmith.data.files import is_recipe
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import Row, as_word, keep
from tunesmith.data.schema.columns import LOOKED_AT
from tunesmith.data.schema.formats import Format, detect
from tunesmith.errors import RowError
from tunesmith.objectives import OBJECTIVES, Domain, Instruct
from tunesmith.objectives.base import Objective
from tunesmith.objectives.domain import text_column

# Common names of group columns; the first one present is used.
GROUP_COLUMNS = ("group", "thread", "doc_id", "source_id")
# With fewer groups, a split by group could leave a split empty.
ENOUGH_GROUPS = 10
BATCH_ROWS = 16
# Validations of a run, and the fewest where that many would cost more than a share of training (bench/NOTES.md, fewer
# validations).
VALIDATIONS = 6
FEWEST_VALIDATIONS = 3
VALIDATION_SHARE = 0.1
# Rows that are read in the time of one that is trained on: the backward pass takes twice the time of the forward pass.
TRAINED_ROW = 3
# About one token of European text, and one letter of Chinese.
BYTES_A_TOKEN = 3
BYTES_PER_LISTED_TOKEN = 2  # of label lists, which take more tokens than running text
# Limits of the length of rows, in tokens.
CHAT_TOKENS = 48  # of the chat template and a short instruction
ROUND_TO = 64
LARGEST_LIMIT = 2_048
# Sections of the small encoder: all parameters are trained, and `compare` prompts the decoder.
FOR_ENCODER: Mapping[str, Any] = {"technique": {"kind": "full"}, "compare": {"model": DECODER}}
# Settings of objectives that name columns; if none is set, columns are detected.
COLUMN_KEYS = {key for each in OBJECTIVES for key in each.column_keys}


@dataclass(frozen=True, slots=True)
class ResolvedRecipe:
    """A recipe, and one note for each setting that was translated, detected or chosen."""

    recipe: Recipe
    notes: tuple[str, ...]


def resolve_recipe(
    source: str | Path | Recipe,
    *,
    changes: Sequence[str] = (),
    offline: bool = False,
    check: Callable[[Recipe], None] | None = None,
) -> ResolvedRecipe:
    """Return the complete recipe of a run.

    Args:
        source: a recipe, a recipe file, or a data file that is tuned on with defaults.
        changes: `key=value` changes, applied in order.
        offline: do not access the network.
        check: called with the recipe, if possible before its rows are read; may raise TunesmithError.

    Raises:
        RecipeError: a key or value is invalid.
        DataError: the rows cannot be read.
    """
    if isinstance(source, Recipe):
        recipe, notes = make_recipe(source.model_dump(mode="json"), place="recipe", changes=changes)
    elif is_recipe(Path(source)):
        recipe, notes = load_recipe(source, changes=changes)
    else:
        resolved = _for_rows(str(source), changes, offline=offline)
        if check:
            check(resolved.recipe)
        return resolved
    if check:
        check(recipe)
    return ResolvedRecipe(recipe, (*notes, *_mapping(recipe, offline=offline)))


def as_changes(settings: Mapping[str, Any], *, under: str = "") -> list[str]:
    """Return keyword settings as `key=value` changes, without those that are None.

    A mapping becomes one change per key, unless it has a `kind`, is named like in another trainer, or has keys that
    are not names.
    """
    changes: list[str] = []
    for name, value in settings.items():
        key = f"{under}{name}"
        if isinstance(value, Mapping) and _is_section(key, value):
            changes += as_changes(value, under=f"{key}.")
        elif value is not None:
            changes.append(f"{key}={json.dumps(value, default=str)}")
    return changes


def _is_section(key: str, value: Mapping[str, Any]) -> bool:
    """Return whether each key of the mapping is a separate setting."""
    if key in ("objective.reward", "data.where"):  # replaced as a whole
        return False
    return "kind" not in value and key not in ALIASES and not any({".", "="} & set(str(inner)) for inner in value)


def default_epochs(objective: Objective, rows: int) -> tuple[int, int]:
    """Return the default number of epochs for a data set, held-out rows included, and the approximate steps."""
    trained = max(1, round(0.7 * rows))
    epochs = min(objective.most_epochs, max(1, math.ceil(objective.least_steps * BATCH_ROWS / trained)))
    return epochs, math.ceil(epochs * trained / BATCH_ROWS)


def default_validations(trained: int, read: int) -> int:
    """Return how often a run is validated by default.

    Args:
        trained: training rows, in all epochs together.
        read: validation rows.
    """
    affordable = int(VALIDATION_SHARE * TRAINED_ROW * trained / max(1, read))
    return min(VALIDATIONS, max(FEWEST_VALIDATIONS, affordable))


def windows(sizes: Iterable[int], limit: int) -> int:
    """Estimate from their sizes in bytes into how many windows of `limit` tokens texts are cut."""
    return sum(math.ceil(max(1, size) / BYTES_A_TOKEN / limit) for size in sizes)


def size_of(example: Example) -> int:
    """Return the size of a row in bytes, tool definitions included; see `BYTES_A_TOKEN`."""
    tools = sum(len(m.tools.encode()) for m in example.messages) if isinstance(example, Chat) else 0
    return len(written(example).encode()) + tools


def learned_rows(examples: Sequence[Example], limit: int) -> int:
    """Return the number of training rows; for texts, an estimate of their windows."""
    return windows(map(size_of, examples), limit) if isinstance(examples[0], Text) else len(examples)


def _learned(recipe: Recipe, rows: Sequence[Row]) -> int:
    """Return the number of training rows before parsing; for texts, an estimate of their windows."""
    if not isinstance(recipe.objective, Domain):
        return len(rows)
    column = recipe.objective.text or text_column(rows)
    texts = (str(row.fields.get(column) or "") for row in rows)
    return windows((len(text.encode(errors="surrogatepass")) for text in texts), recipe.data.max_tokens)


def _for_rows(source: str, changes: Sequence[str], *, offline: bool) -> ResolvedRecipe:
    """Return the default recipe for a data file."""
    rows = read_rows(source, offline=offline)
    named = changed_keys(changes)
    raw: dict[str, Any] = {"data": {"train": source}, "technique": {"kind": "lora"}}
    notes: list[str] = []
    if not named & {"objective", "objective.kind"}:
        detected = detect(rows)
        raw["objective"] = {"kind": detected.objective, **detected.settings}
        if detected.objective == Instruct().kind:
            notes += _fit_chats(raw, rows, named)
    if "data.group" not in named and (column := _group_column(rows)):
        raw["data"]["group"] = column
        notes.append(f"rows with the same {column!r} stay in one split (--set data.group= for no groups)")
    recipe, translated = make_recipe(raw, place=source, changes=changes)
    if recipe.objective.prefers_encoder and "model" not in named:
        pick = pick_by_rule(recipe.objective, named)
        raw |= {"model": pick.model, **(FOR_ENCODER if pick.model == ENCODER else {})}
        if any(name.partition(".")[0] == "technique" for name in named):
            raw["technique"] = {"kind": "lora"}  # its options were set for the former default, or it is replaced
        recipe, translated = make_recipe(raw, place=source, changes=changes)
        notes.append(f"model: {pick.model}: {pick.reason}")
    if not any(name.partition(".")[0] == "schedule" for name in named):
        epochs, steps = default_epochs(recipe.objective, _learned(recipe, rows))
        recipe, _ = make_recipe(raw | {"schedule": {"epochs": epochs}}, place=source, changes=changes)
        notes.append(f"epochs: {epochs}, about {steps} steps (change with --set schedule.epochs=N)")
    mapping = [] if _names_columns(recipe) else [_explained(recipe, rows)]
    return ResolvedRecipe(recipe, (*translated, *mapping, *notes))


def _fit_chats(raw: dict[str, Any], rows: Sequence[Row], named: set[str]) -> list[str]:
    """Set the metric and the length limit that the first rows need, in place, and return a note on each.

    Rows that cannot be read are reported when all of them are.
    """
    notes: list[str] = []
    try:
        examples = Instruct().examples(rows[:LOOKED_AT], group="")
    except RowError:
        return notes
    if "objective.metric" not in named and (why := why_tool_calls(examples)):
        raw["objective"]["metric"] = "tool_calls"
        notes.append(f"metric: tool_calls: {why}")
    typical = typical_tokens(examples, instruction="")
    limit = limit_for(typical)
    if not named & {"data", "data.max_tokens"} and limit > Recipe.model_fields["data"].default.max_tokens:
        raw["data"]["max_tokens"] = limit
        notes.append(f"max_tokens: {limit}: 99 % of the rows have at most about {typical:.0f} tokens")
    return notes


def typical_tokens(examples: Sequence[Example], *, instruction: str) -> float:
    """Estimate how many tokens 99 % of the rows have at most, with the instruction, without the chat template."""
    typical = float(np.percentile([size_of(example) for example in examples], 99)) / BYTES_A_TOKEN
    # CHAT_TOKENS covers a short instruction; a long list of labels needs more.
    return typical + max(0.0, len(instruction.encode()) / BYTES_PER_LISTED_TOKEN - CHAT_TOKENS)


def limit_for(typical: float) -> int:
    """Return the least limit in multiples of ROUND_TO for rows of `typical` tokens and the chat template."""
    needed = ROUND_TO * math.ceil((typical + CHAT_TOKENS) / ROUND_TO)
    return min(LARGEST_LIMIT, max(2 * ROUND_TO, needed))


def why_tool_calls(examples: Sequence[Example]) -> str:
    """Return why answers are compared as tool calls, in a few words; empty if they are not."""
    chats = [example for example in examples if isinstance(example, Chat)]
    calling = sum(any(turn.calling for turn in chat.messages) for chat in chats)
    offered = sum(bool(chat.messages[0].tools) for chat in chats)
    if calling > 0.5 * len(examples) or (calling and offered > 0.5 * len(examples)):
        what = f"{calling} of {len(examples)} rows call a tool"
        return f"{what}: name and arguments are compared; without a due call none is right"
    return ""


def _group_column(rows: Sequence[Row]) -> str:
    """Return the first common group column without blanks and with enough groups to split; empty if none."""
    for column in GROUP_COLUMNS:
        groups = [(as_word(row.fields.get(column)) or "").strip() for row in rows]
        if all(groups) and ENOUGH_GROUPS <= len(set(groups)) < len(rows):
            return column
    return ""


def _mapping(recipe: Recipe, *, offline: bool) -> list[str]:
    """Describe the detected columns of each task whose recipe names none."""
    notes = []
    for name, part in recipe.tasks.items():
        if not _names_columns(part):
            rows = keep(read_rows(part.data.train, offline=offline), part.data.where)
            notes.append(f"{name}: {_explained(part, rows)}" if name else _explained(part, rows))
    return notes


def _explained(recipe: Recipe, rows: Sequence[Row]) -> str:
    """Describe the detected columns in one line."""
    if isinstance(recipe.objective, Domain):
        return f"detected texts: {text_column(rows)} -> text"
    if recipe.objective.samples_completions:  # a file of prompts alone has no known format
        return Format("prompts", recipe.objective.kind, recipe.objective.columns(rows)).explain()
    return detect(rows).explain()


def _names_columns(recipe: Recipe) -> bool:
    return any(recipe.objective.model_dump(include=COLUMN_KEYS).values())
