"""From a file of rows to a recipe in which every line says why it is there."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tunesmith.config import AnyObjective, Recipe, check_pair, make_recipe
from tunesmith.config.aliases import changed_keys
from tunesmith.config.annotated_yaml import AnnotatedRecipe
from tunesmith.config.recipe import REPLAY_FAR, REPLAY_NEAR
from tunesmith.config.resolve import BATCH_ROWS, BYTES_A_TOKEN, COLUMN_KEYS, default_epochs, learned_rows, size_of
from tunesmith.data.examples.types import Chat, Example, LabelledText, Text
from tunesmith.data.readers.document_folder import passed_over
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import Row, as_word, columns_of, keep
from tunesmith.data.schema.formats import LANGUAGES, Format, detect
from tunesmith.data.schema.guess import Guess, guess
from tunesmith.data.splits.split import PASSAGES
from tunesmith.errors import DataError, RowError, UnsettledError
from tunesmith.objectives import OBJECTIVES, Classify, Domain, Instruct
from tunesmith.objectives.instruct import reference
from tunesmith.techniques import Full

# Words for the source of a row; with these alone or before `_id`, rows that share a value belong together.
SOURCES = (
    "group", "source", "thread", "document", "doc", "conversation", "dialogue", "session", "user", "author",
    "customer", "product", "article", "page", "book", "video", "url", "ticket", "case", "patient", "project",
)  # fmt: skip
# Fewer groups than this, or one with more than a fifth of the rows, cannot be cut into three parts; and a
# column that is often blank is no source.
FEWEST_GROUPS, LARGEST_GROUP, MOST_BLANK = 10, 0.2, 0.1
# Training rows below which the rank of an update is enough; beyond the last: 32.
RANKS = ((1_000, 8), (50_000, 16))
MOST_TEST_ROWS, FEWEST_ROWS = 2_000, 10
AROUND, ROUND_TO, DEFAULT_MAX_TOKENS, BYTES_A_LISTED_TOKEN = 48, 64, 2_048, 2
SMALL_ENCODER = "minilm-l6"
ENCODER_LIMIT, TEXT_WINDOW = 256, 512


def draft(data: str, *, changes: Sequence[str] = (), offline: bool = False) -> AnnotatedRecipe:
    """A recipe for a file of rows, with the reason for everything in it.

    Raises DataError for rows that cannot be read or whose columns give no guess, RecipeError for a wrong change.
    """
    rows = read_rows(data, offline=offline)
    reasons: dict[str, str] = {}
    named = changed_keys(changes)
    found = None if named & {"objective", "objective.kind"} else _found(rows)
    raw: dict[str, Any] = {"model": "smollm2-135m", "data": {"train": data}}
    if found is not None:
        raw["objective"] = _objective(found, reasons)
    recipe, _ = make_recipe(raw, place=f"init {data}", changes=changes)
    if found is None and (fits := _fitting(rows, recipe.objective.kind)):
        found, raw["objective"] = fits, _objective(fits, reasons)
        changes = [change for change in changes if change != f"objective={fits.objective}"]
        recipe, _ = make_recipe(raw, place=f"init {data}", changes=changes)
    kept = keep(rows, recipe.data.where)
    used = {value for value in recipe.objective.model_dump().values() if isinstance(value, str)}
    group = recipe.data.group or _group(kept, used)
    guessed = found.change() if isinstance(found, Guess) else ""
    examples = _examples(recipe, kept, group, guessed or _as_named(recipe))
    family = "encoder" if recipe.model == SMALL_ENCODER else "decoder"
    bound = recipe.objective.bind(examples, family)
    asked = _instruction(bound, reasons)
    raw["data"] |= _data(examples, group, asked=asked.get("instruction", ""), model=recipe.model, reasons=reasons)
    reasons["data.train"] = f"{len(kept)} rows with the columns {', '.join(filter(str.strip, columns_of(kept)))}"
    reasons["data.train"] += f"; {left}" if (left := passed_over(data)) else ""
    raw.setdefault("objective", {"kind": bound.kind})
    raw["objective"] |= asked
    if isinstance(bound, Classify | Instruct) and "metric" not in raw["objective"]:
        raw["objective"]["metric"] = _metric(bound, examples, reasons)
    raw |= _training(recipe.model, learned_rows(examples, raw["data"]["max_tokens"]), reasons)
    raw |= _general_rows(recipe, family, reasons)
    if named & {"technique", "technique.kind"}:
        del raw["technique"]  # its options may not be those of the technique that was asked for
    reasons["model"] = _about(recipe.model)
    recipe, _ = make_recipe(raw | {"seed": 0}, place=f"init {data}", changes=changes)
    check_pair(recipe, family)
    return AnnotatedRecipe(recipe, {key: _said(key, why, named) for key, why in reasons.items()}, {}, guessed)


def _examples(recipe: Recipe, rows: Sequence[Row], group: str, guessed: str) -> Sequence[Example]:
    """The rows as the objective reads them. Raises DataError, with the way to drop those that it cannot read."""
    try:
        examples = recipe.objective.examples(rows, group=group)
    except RowError as error:
        audit = " ".join(
            ["tunesmith", "audit", shlex.quote(recipe.data.train), *filter(None, [guessed]), "--fix", "OUT"]
        )
        raise DataError(f"{error}; to drop such rows: `{audit}`") from error
    if len(examples) < FEWEST_ROWS and not isinstance(recipe.data.test, str):
        cure = f"give {FEWEST_ROWS} or more" + f", or cut them: `{PASSAGES}`" * isinstance(examples[0], Text)
        raise DataError(f"{recipe.data.train}: {len(examples)} rows are too few to hold some of them out; {cure}")
    return examples


def _as_named(recipe: Recipe) -> str:
    """The objective and its columns for a command line, where the recipe names some."""
    columns = {key: value for key, value in recipe.objective.model_dump(include=COLUMN_KEYS).items() if value}
    return Guess(recipe.objective.kind, columns).change() if columns else ""


def _said(key: str, why: str, named: set[str]) -> str:
    """The reason, unless the command line was it."""
    return "as asked" if any(name.removesuffix(".kind") in (key, key.partition(".")[0]) for name in named) else why


def _found(rows: Sequence[Row]) -> Format | Guess:
    """What the rows are, or what they may be where no known names say it."""
    try:
        return detect(rows)
    except UnsettledError:
        raise
    except DataError:
        if (guessed := guess(rows)) is None:
            raise
        return guessed


def _fitting(rows: Sequence[Row], kind: str) -> Guess | None:
    """The guess at columns of no known names, if it is of the objective that was asked for."""
    try:
        detect(rows)
    except UnsettledError:
        return None
    except DataError:
        guessed = guess(rows)
        return guessed if guessed and guessed.objective == kind else None
    return None


def _objective(found: Format | Guess, reasons: dict[str, str]) -> dict[str, Any]:
    """The objective that the columns call for; columns that its settings can name are named."""
    if isinstance(found, Guess):
        reasons["objective"] = f"guessed from names and values, so look at it: {found.explain()}"
        return {"kind": found.objective, **found.columns}
    reasons["objective"] = found.explain()
    kind = next((part for part in OBJECTIVES if part().kind == found.objective), None)
    fields = {} if kind is None else kind.model_fields
    columns = {"messages" if part == "conversations" else part: name for part, name in found.columns.items()}
    # Where a part has no setting of its own (alpaca's input), detection at every start finds all of them.
    named = columns if set(columns) <= set(fields) else {}
    return {"kind": found.objective, **named, **_translation(found, reasons)}


def _translation(found: Format, reasons: dict[str, str]) -> dict[str, str]:
    """What columns named after two languages ask for; nothing for others."""
    if found.name != "translation":
        return {}
    reasons["objective.metric"] = "translations are compared letter by letter, 0 to 100, as sacrebleu does"
    reasons["objective.instruction"] = "asked before every text; exchange prompt and answer for the other direction"
    language = LANGUAGES[found.columns["answer"].strip().lower()]
    return {"instruction": f"Translate into {language}:", "metric": "chrf"}


def _group(rows: Sequence[Row], used: set[str]) -> str:
    """A column that by its name and values tells which rows come from one source; else nothing."""
    for column in columns_of(rows):
        word = column.strip().lower().removesuffix("_id").removesuffix(" id")
        if word not in SOURCES or column in used:
            continue
        values = Counter((as_word(row.fields.get(column)) or "").strip() for row in rows)
        blank = values.pop("", 0)
        many = FEWEST_GROUPS <= len(values) < len(rows) - blank and blank <= MOST_BLANK * len(rows)
        if many and values.most_common(1)[0][1] <= LARGEST_GROUP * len(rows):
            return column
    return ""


def _data(
    examples: Sequence[Example], group: str, *, asked: str, model: str, reasons: dict[str, str]
) -> dict[str, Any]:
    """How the rows are cut and how long they may be."""
    share = min(0.2, round(MOST_TEST_ROWS / len(examples), 3))
    test = max(1, round(share * len(examples)))
    points = 98 / math.sqrt(test)
    known = f"{test} rows never trained on: they tell an accuracy to about {points:.0f} points either way"
    if isinstance(examples[0], Text):
        known = f"{test} documents never trained on, nor any that is nearly the same"
    reasons["data.validation"] = "the best checkpoint is chosen on these"
    found: dict[str, Any] = {"validation": min(0.1, share), "test": share}
    if group:
        groups = len({example.group for example in examples} - {""})
        reasons["data.group"] = f"{groups} values for {len(examples)} rows: rows of one {group} stay on one side"
        found["group"] = group
    else:
        known += "; if some rows share a source, name the column that says so as `group`"
    reasons["data.test"] = known
    sizes = [size_of(example) for example in examples]
    typical = float(np.percentile(sizes, 99)) / BYTES_A_TOKEN
    # A question of usual length is in what stands around; names in a long list take more tokens than running text.
    typical += max(0.0, len(asked.encode()) / BYTES_A_LISTED_TOKEN - AROUND)
    wanted = ROUND_TO * math.ceil((typical + AROUND) / ROUND_TO)
    limit = ENCODER_LIMIT if model == SMALL_ENCODER else DEFAULT_MAX_TOKENS
    found["max_tokens"] = min(limit, max(2 * ROUND_TO, wanted))
    reasons["data.max_tokens"] = (
        f"99 % of the rows have at most about {typical:.0f} tokens, and a chat adds some; longer prompts are shortened"
    )
    if isinstance(examples[0], Text):
        found["max_tokens"] = min(limit, max(2 * ROUND_TO, wanted), TEXT_WINDOW)
        reasons["data.max_tokens"] = "documents are cut into windows of so many tokens; nothing of them is left out"
    return found


def _metric(objective: Classify | Instruct, examples: Sequence[Example], reasons: dict[str, str]) -> str:
    """The headline that fits the labels or the answers."""
    if isinstance(objective, Classify):
        counts = Counter(label for example in examples if isinstance(example, LabelledText) for label in example.labels)
        listed = ", ".join(f"{label} {count}" for label, count in counts.most_common(8))
        why = {
            "accuracy": "the labels are not far from even",
            "macro_f1": "some labels are rare, and accuracy would hide how they fare",
            "sample_f1": "a row may have several labels",
        }
        reasons["objective.metric"] = f"{why[objective.metric]}: {listed}"
        return objective.metric
    answers = [reference(example) for example in examples]
    words = float(np.median([len(answer.split()) for answer in answers]))
    foreign = sum(any(c.isalpha() and not c.isascii() for c in a) for a in answers) / len(answers)
    if np.mean([_calls(example) for example in examples]) > 0.5:
        metric, why_so = "tool_calls", "most rows call a tool: its name and its arguments are compared"
    elif words <= 3 and len(set(answers)) < 0.5 * len(answers):
        metric, why_so = "exact_match", "most answers are a few words that come again: right or wrong"
    elif foreign > 0.5:
        metric, why_so = "chrf", "most answers have letters beyond English: compared letter by letter"
    else:
        metric, why_so = "rouge_l", f"answers of about {words:.0f} words: how much of the wanted wording is there"
    reasons["objective.metric"] = why_so
    return metric


def _calls(example: Example) -> bool:
    """Whether an answer of a chat calls a tool."""
    assert isinstance(example, Chat)
    return any(turn.calling for turn in example.messages)


def _instruction(objective: AnyObjective, reasons: dict[str, str]) -> dict[str, str]:
    """What a decoder is asked before every text, for people to put in better words."""
    if not isinstance(objective, Classify) or objective.output != "words":
        return {}
    reasons["objective.instruction"] = "asked before every text; say it in the words of your field"
    return {"instruction": objective.messages("")[0].content.strip()}


def _training(model: str, rows: int, reasons: dict[str, str]) -> dict[str, Any]:
    """The technique and the number of passes."""
    epochs, steps = default_epochs(rows)
    reasons["schedule.epochs"] = (
        f"about {steps} steps of {BATCH_ROWS} rows; "
        "the best checkpoint on validation is kept, so a pass too many costs only time"
    )
    if model == SMALL_ENCODER:
        reasons["technique"] = "22 million numbers are few enough to move them all, on any machine"
        return {"technique": {"kind": "full"}, "schedule": {"epochs": epochs}}
    rank = next((rank for most, rank in RANKS if rows <= most), 32)
    reasons["technique"] = (
        f"{_machine()}; LoRA moves a few numbers in a hundred and learns as much as full tuning does from rows "
        f"such as these (arXiv 2106.09685); rank {rank} holds what {rows} rows can teach"
    )
    return {"technique": {"kind": "lora", "rank": rank}, "schedule": {"epochs": epochs}}


def _general_rows(recipe: Recipe, family: str, reasons: dict[str, str]) -> dict[str, Any]:
    """General text among the rows of a decoder that learns the language of a field."""
    if not isinstance(recipe.objective, Domain) or family == "encoder":
        return {}
    share = REPLAY_FAR if isinstance(recipe.technique, Full) else REPLAY_NEAR
    reasons["replay"] = (
        "rows that the base writes by itself, so that less of what it knew is lost; an alarm asks for more"
    )
    return {"replay": {"share": share}}


def _machine() -> str:
    """What there is to compute on, in a few words."""
    import torch

    from tunesmith.data.cpu_count import cores

    if torch.cuda.is_available():
        return f"this machine has a GPU ({torch.cuda.get_device_name()})"
    return f"this machine has {cores()} cores and no GPU"


def _about(model: str) -> str:
    if model == "smollm2-135m":
        return f"always there, and small enough for a laptop; for labels alone {SMALL_ENCODER} is quicker"
    return "as asked"
