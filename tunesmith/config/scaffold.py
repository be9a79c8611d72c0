"""Write a recipe for a data file, with the reason for every line."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.config import AnyObjective, Recipe, check_pair, make_recipe
from tunesmith.config.aliases import changed_keys
from tunesmith.config.annotated_yaml import AnnotatedRecipe
from tunesmith.config.commands import collect_passages, columns_set, with_audit_fix
from tunesmith.config.model_choice import DECODER, ENCODER, ModelPick, pick_by_rule
from tunesmith.config.recipe import REPLAY_FAR, REPLAY_NEAR
from tunesmith.config.resolve import (
    BATCH_ROWS,
    as_changes,
    default_epochs,
    learned_rows,
    limit_for,
    typical_tokens,
    why_tool_calls,
)
from tunesmith.data.examples.types import Chat, Example, LabelledText, RatedText, Text
from tunesmith.data.examples.usable import usable
from tunesmith.data.readers.read import read_file
from tunesmith.data.readers.row import Row, as_word, columns_of, keep
from tunesmith.data.schema.formats import Format, detect, detect_or_guess
from tunesmith.data.schema.guess import Guess, guess
from tunesmith.data.schema.split_names import DEFAULT_SPLIT, split_parts
from tunesmith.errors import DataError, RowError, UnsettledError
from tunesmith.objectives import OBJECTIVES, Classify, Domain, Instruct
from tunesmith.objectives.instruct import has_thoughts, reference
from tunesmith.techniques import Full

# Column names, alone or followed by `_id`, whose values group rows.
SOURCES = (
    "group", "source", "thread", "document", "doc", "conversation", "dialogue", "session", "user", "author",
    "customer", "product", "article", "page", "book", "video", "url", "ticket", "case", "patient", "project",
)  # fmt: skip
# Fewer groups, or a group with a larger fraction of the rows, cannot be split into three parts; a column that is blank
# more often does not name a source.
MIN_GROUPS = 10
MAX_GROUP_SHARE = 0.2
MAX_BLANK_SHARE = 0.1
# (rows, LoRA rank for at most as many); 32 for more rows.
RANKS = ((1_000, 8), (50_000, 16))
HELD_OUT_SHARES = {"validation": 0.1, "test": 0.2}
MAX_HELD_OUT_ROWS = 2_000  # of each part
MIN_ROWS = 10
BY_USER = "set on the command line"
ENCODER_LIMIT, TEXT_WINDOW = 256, 512


@dataclass(frozen=True, slots=True)
class Inspection:
    """A data file that was read, and the start of its recipe."""

    data: str
    changes: tuple[str, ...]
    raw: Mapping[str, Any]  # sections found in the rows
    reasons: Mapping[str, str]  # by dotted key
    recipe: Recipe  # valid, with default sections
    guessed: str  # guessed column roles, as command-line options
    rows: Sequence[Row]
    notes: tuple[str, ...]  # what was skipped, and how the file was read
    examples: Sequence[Example]
    group: str  # column; empty if there is none

    @property
    def named(self) -> set[str]:
        """Return the keys that the user set."""
        return changed_keys(self.changes)

    @property
    def held_out_rows(self) -> dict[str, int]:
        """Return the number of validation and test rows."""
        return {part: _held_out_rows(part, len(self.examples)) for part in HELD_OUT_SHARES}

    def pick(self) -> ModelPick:
        """Return the user's model, or else the one that the rule of the objective names."""
        if "model" in self.named:
            return ModelPick(self.recipe.model, BY_USER)
        return pick_by_rule(self.recipe.objective, self.named)


def inspect_rows(data: str, *, changes: Sequence[str] = (), offline: bool = False) -> Inspection:
    """Read a data file and find its objective, columns and groups.

    Args:
        data: the data file.
        changes: `key=value` changes of the recipe.
        offline: do not access the network.

    Raises:
        DataError: the rows cannot be read, or the roles of their columns cannot be guessed.
        RecipeError: a change is invalid.
    """
    file = read_file(data, offline=offline)
    rows = file.rows
    reasons: dict[str, str] = {}
    named = changed_keys(changes)
    detected = None if named & {"objective", "objective.kind"} else detect_or_guess(rows)
    raw: dict[str, Any] = {"data": {"train": data}}
    if detected is not None:
        raw["objective"] = _objective(detected, reasons)
    recipe, _ = make_recipe(raw, place=f"init {data}", changes=changes)
    if detected is None and (fits := _guess_for(rows, recipe.objective.kind)):
        detected, raw["objective"] = fits, _objective(fits, reasons)
        kinds = {f"objective={fits.objective}", *as_changes({"objective": fits.objective})}  # --set and --objective
        changes = [change for change in changes if change not in kinds]
        recipe, _ = make_recipe(raw, place=f"init {data}", changes=changes)
    kept = keep(rows, recipe.data.where)
    kept, skipped = usable(kept, recipe.objective.columns(kept))
    used = {value for value in recipe.objective.model_dump().values() if isinstance(value, str)}
    group = recipe.data.group or _group(kept, used)
    guessed = detected.change() if isinstance(detected, Guess) else ""
    return Inspection(
        data=data,
        changes=tuple(changes),
        raw=raw,
        reasons=reasons,
        recipe=recipe,
        guessed=guessed,
        rows=kept,
        notes=(*file.notes, *skipped),
        examples=_examples(recipe, kept, group, guessed or columns_set(recipe.objective)),
        group=group,
    )


def draft_recipe(seen: Inspection, pick: ModelPick) -> AnnotatedRecipe:
    """Draft a recipe for rows that were inspected.

    Args:
        seen: the rows.
        pick: the model, which the changes of the user override.

    Raises:
        DataError: the labels cannot be learned.
        RecipeError: a change is invalid.
    """
    place = f"init {seen.data}"
    raw, reasons, examples = copy.deepcopy(dict(seen.raw)), dict(seen.reasons), seen.examples
    raw = {"model": pick.model, **raw}
    family = "encoder" if pick.model == ENCODER else "decoder"
    bound = seen.recipe.objective.bind(examples, family)
    instruction = _instruction(bound, reasons)
    own_parts = split_parts(row.fields.get(DEFAULT_SPLIT) for row in seen.rows)
    raw["data"] |= _data(
        examples,
        seen.group,
        own_parts=own_parts,
        instruction=instruction.get("instruction", ""),
        model=pick.model,
        reasons=reasons,
    )
    _keep_own_split(own_parts, raw["data"], reasons)
    listed = ", ".join(filter(str.strip, columns_of(seen.rows)))
    reasons["data.train"] = f"{len(seen.rows)} rows with the columns {listed}"
    reasons["data.train"] += "".join(f"; {note}" for note in seen.notes)
    raw.setdefault("objective", {"kind": bound.kind})
    raw["objective"] |= instruction
    if isinstance(bound, Classify | Instruct) and "metric" not in raw["objective"]:
        raw["objective"]["metric"] = _metric(bound, examples, reasons)
    if isinstance(bound, Instruct) and (count := sum(isinstance(e, Chat) and has_thoughts(e) for e in examples)):
        raw["objective"]["thinking"] = bound.thinking
        reasons["objective.thinking"] = (
            f"{count} of {len(examples)} rows have thoughts; auto: learned if the chat template of the model has "
            "thoughts, else dropped; mask: only the answers behind them are learned"
        )
    raw |= _training(pick.model, bound, learned_rows(examples, raw["data"]["max_tokens"]), reasons)
    raw |= _general_rows(seen.recipe, family, reasons)
    if pick.model == ENCODER and isinstance(bound, Classify):
        raw["compare"] = {"model": DECODER}
        reasons["compare"] = "`tunesmith compare` also asks a decoder, which this model is not"
    if seen.named & {"technique", "technique.kind"}:
        del raw["technique"]  # its options may not exist for the technique of the command line
    reasons["model"] = pick.reason
    recipe, _ = make_recipe(raw | {"seed": 0}, place=place, changes=seen.changes)
    check_pair(recipe, family)
    explained = {key: _reason(key, why, seen.named) for key, why in reasons.items()}
    return AnnotatedRecipe(recipe, explained, {}, seen.guessed)


def _examples(recipe: Recipe, rows: Sequence[Row], group: str, guessed: str) -> Sequence[Example]:
    """Parse the rows. Raises DataError with the command that drops invalid rows."""
    try:
        examples = recipe.objective.examples(rows, group=group)
    except RowError as error:
        raise with_audit_fix(error, recipe.data.train, guessed) from error
    if len(examples) < MIN_ROWS and not isinstance(recipe.data.test, str):
        fix = f"give {MIN_ROWS} or more" + f", or split them: `{collect_passages(recipe.data.train)}`" * isinstance(
            examples[0], Text
        )
        raise DataError(f"{recipe.data.train}: {len(examples)} rows are too few for a test split; {fix}")
    return examples


def _reason(key: str, why: str, named: set[str]) -> str:
    """Return the comment of a key; keys of the command line have no other reason."""
    return (
        "set on the command line"
        if any(name.removesuffix(".kind") in (key, key.partition(".")[0]) for name in named)
        else why
    )


def _guess_for(rows: Sequence[Row], kind: str) -> Guess | None:
    """Guess the columns if their names are unknown and the guess has the requested objective."""
    try:
        detect(rows)
    except UnsettledError:
        return None
    except DataError:
        guessed = guess(rows)
        return guessed if guessed and guessed.objective == kind else None
    return None


def _objective(detected: Format | Guess, reasons: dict[str, str]) -> dict[str, Any]:
    """Return the section `objective` for the detected or guessed columns, which are named if it has keys for them."""
    if isinstance(detected, Guess):
        reasons["objective"] = f"guessed from column names and values; check it: {detected.explain()}"
        return {"kind": detected.objective, **detected.columns}
    reasons["objective"] = detected.explain()
    kind = next((part for part in OBJECTIVES if part().kind == detected.objective), None)
    fields = {} if kind is None else kind.model_fields
    columns = {"messages" if part == "conversations" else part: name for part, name in detected.columns.items()}
    # If a role has no key (the input of alpaca), all columns are detected at the start of every run.
    named = columns if set(columns) <= set(fields) else {}
    section = {"kind": detected.objective, **named}
    section |= detected.settings
    if detected.name == "multiple_choice":
        reasons["objective.metric"] = "the answer is the letter of a choice"
    if detected.name == "translation":
        reasons["objective.metric"] = (
            "character n-gram F-score, 0 to 100, as in sacrebleu; the usual one for translation"
        )
        reasons["objective.instruction"] = "put before every text; swap prompt and answer for the other direction"
    return section


def _group(rows: Sequence[Row], used: set[str]) -> str:
    """Return a column whose name and values group rows by source; empty if none."""
    for column in columns_of(rows):
        word = column.strip().lower().removesuffix("_id").removesuffix(" id")
        if word not in SOURCES or column in used:
            continue
        values = Counter((as_word(row.fields.get(column)) or "").strip() for row in rows)
        blank = values.pop("", 0)
        many = MIN_GROUPS <= len(values) < len(rows) - blank and blank <= MAX_BLANK_SHARE * len(rows)
        if many and values.most_common(1)[0][1] <= MAX_GROUP_SHARE * len(rows):
            return column
    return ""


def _data(
    examples: Sequence[Example],
    group: str,
    *,
    own_parts: Mapping[str, int],
    instruction: str,
    model: str,
    reasons: dict[str, str],
) -> dict[str, Any]:
    """Return the section `data` with splits, groups and the length limit."""
    rows = own_parts.get("train") or len(examples)  # rows that are split
    test = _held_out_rows("test", rows)
    points = 98 / math.sqrt(test)
    description = f"{test} held-out rows: the 95 % interval of an accuracy is about ±{points:.0f} points"
    if isinstance(examples[0], RatedText):
        # Of Fisher's transformation, at a correlation of 0, where it is widest.
        description = f"{test} held-out rows: the 95 % interval of a correlation is at most ±{points / 50:.2f}"
    if isinstance(examples[0], Text):
        description = f"{test} held-out documents; near-duplicates of them are removed from training"
    reasons["data.validation"] = "used to select the best checkpoint"
    section: dict[str, Any] = {part: _held_out_size(part, rows) for part in HELD_OUT_SHARES}
    if group:
        groups = len({example.group for example in examples} - {""})
        reasons["data.group"] = f"{groups} values in {len(examples)} rows: rows with the same {group} stay in one split"
        section["group"] = group
    else:
        description += "; if rows share a source, name its column as `group`"
    reasons["data.test"] = description
    typical = typical_tokens(examples, instruction=instruction)
    limit = limit_for(typical)
    section["max_tokens"] = min(limit, ENCODER_LIMIT) if model == ENCODER else limit
    reasons["data.max_tokens"] = (
        f"99 % of the rows have at most about {typical:.0f} tokens plus the chat template; longer ones are shortened"
    )
    if isinstance(examples[0], Text):
        section["max_tokens"] = min(section["max_tokens"], TEXT_WINDOW)
        reasons["data.max_tokens"] = "documents are split into windows of this many tokens; no text is dropped"
    return section


def _keep_own_split(counts: Mapping[str, int], section: dict[str, Any], reasons: dict[str, str]) -> None:
    """Write the split column of a file, in place, instead of the sizes of the parts that it names."""
    if not counts:
        return
    section["split"] = DEFAULT_SPLIT
    listed = ", ".join(f"{part} {count}" for part, count in counts.items())
    reasons["data.split"] = f'the file names its parts: {listed} rows; "" to split by row or group instead'
    for part in counts.keys() & section.keys() - {"train"}:
        del section[part]
        reasons.pop(f"data.{part}", None)


def _held_out_size(part: str, rows: int) -> float:
    """Return the size of validation or test as recipes write it: a fraction of the rows, or a number of many rows."""
    share = HELD_OUT_SHARES[part]
    return MAX_HELD_OUT_ROWS if share * rows > MAX_HELD_OUT_ROWS else share


def _held_out_rows(part: str, rows: int) -> int:
    """Return the number of rows of validation or test."""
    return min(MAX_HELD_OUT_ROWS, max(1, round(HELD_OUT_SHARES[part] * rows)))


def _metric(objective: Classify | Instruct, examples: Sequence[Example], reasons: dict[str, str]) -> str:
    """Choose the main metric for the labels or answers."""
    if isinstance(objective, Classify):
        counts = Counter(label for example in examples if isinstance(example, LabelledText) for label in example.labels)
        listed = ", ".join(f"{label} {count}" for label, count in counts.most_common(8))
        why = {
            "accuracy": "the labels are balanced",
            "macro_f1": "some labels are rare, and accuracy would hide errors on them",
            "sample_f1": "a row may have several labels",
        }
        reasons["objective.metric"] = f"{why[objective.metric]}: {listed}"
        return objective.metric
    answers = [reference(example) for example in examples]
    words = float(np.median([len(answer.split()) for answer in answers]))
    foreign = sum(any(c.isalpha() and not c.isascii() for c in a) for a in answers) / len(answers)
    if calls := why_tool_calls(examples):
        metric, reason = "tool_calls", calls
    elif words <= 3 and len(set(answers)) < 0.5 * len(answers):
        metric, reason = "exact_match", "most answers are a few words that recur"
    elif foreign > 0.5:
        metric, reason = "chrf", "most answers are not in English: character n-grams are compared"
    else:
        metric, reason = "rouge_l", f"answers have about {words:.0f} words: overlap with the reference answer"
    reasons["objective.metric"] = reason
    return metric


def _instruction(objective: AnyObjective, reasons: dict[str, str]) -> dict[str, str]:
    """Return the instruction of a classifying decoder, for the user to improve."""
    if not isinstance(objective, Classify) or objective.output != "words":
        return {}
    reasons["objective.instruction"] = "put before every text; adapt it to your domain"
    return {"instruction": objective.messages("")[0].content.strip()}


def _training(model: str, objective: AnyObjective, rows: int, reasons: dict[str, str]) -> dict[str, Any]:
    """Choose the technique and the number of epochs."""
    epochs, steps = default_epochs(objective, rows)
    reasons["schedule.epochs"] = (
        f"about {steps} steps of {BATCH_ROWS} rows; "
        "the best checkpoint on validation is kept, so an extra epoch only costs time"
    )
    if model == ENCODER:
        reasons["technique"] = "22 million parameters are few enough to train all of them on any machine"
        return {"technique": {"kind": "full"}, "schedule": {"epochs": epochs}}
    import torch

    from tunesmith.data.cpu_count import cores

    machine = f"this machine has {cores()} core{'s' * (cores() > 1)} and no GPU"
    if torch.cuda.is_available():
        machine = f"this machine has a GPU ({torch.cuda.get_device_name()})"
    rank = next((rank for most, rank in RANKS if rows <= most), 32)
    reasons["technique"] = (
        f"{machine}; LoRA trains a few percent of the parameters and scores as high as full tuning on data of this "
        f"size (arXiv 2106.09685); rank {rank} is enough for {rows} rows"
    )
    return {"technique": {"kind": "lora", "rank": rank}, "schedule": {"epochs": epochs}}


def _general_rows(recipe: Recipe, family: str, reasons: dict[str, str]) -> dict[str, Any]:
    """Return the section `replay` for domain tuning of a decoder; empty for others."""
    if not isinstance(recipe.objective, Domain) or family == "encoder":
        return {}
    share = REPLAY_FAR if isinstance(recipe.technique, Full) else REPLAY_NEAR
    reasons["replay"] = (
        "text sampled from the base model, to reduce forgetting; raise the share if the report warns about forgetting"
    )
    return {"replay": {"share": share}}
