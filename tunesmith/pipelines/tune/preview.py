"""Preview of a run: the first rows as the loss sees them, and statistics of all rows. Nothing is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from tunesmith.config import Recipe
from tunesmith.data.examples.stored import StoredExamples
from tunesmith.data.examples.types import Example
from tunesmith.data.files import function_in
from tunesmith.data.splits.split import PARTS
from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.data.tokenization.masking import Masking
from tunesmith.display import Display, Displayed
from tunesmith.events import ignore
from tunesmith.pipelines.plan.forecast import RunForecast
from tunesmith.pipelines.plan.predict_run import predicted
from tunesmith.pipelines.plan.report import CostPrediction
from tunesmith.pipelines.plan.verdict_rows import rows_of_verdict
from tunesmith.training.prepare import TrainingContext, masking_of, max_length_note, prepare

# Locations of rows that are listed; further ones are only counted.
LISTED = 20


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive tokens of a row that are all learned or all not, decoded to text."""

    text: str
    learned: bool
    side: str = ""  # of a preference pair: which completion it belongs to


@dataclass(frozen=True, slots=True)
class RowPreview:
    """One row as the loss sees it."""

    where: str
    pieces: tuple[Stretch, ...]
    tokens: int
    label: str = ""  # the target of a linear head


@dataclass(frozen=True, slots=True)
class Places:
    """A number of rows, and the locations of the first of them."""

    count: int
    first: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PreviewFacts:
    """Statistics of all training rows. `end` and `learned_share` are None if a linear head is trained."""

    rows: int
    bos: str
    end: str | None
    truncated: Places
    zero_label: Places
    p50: int  # tokens per row
    p95: int
    longest: int
    learned_share: float | None


@dataclass(frozen=True, slots=True, repr=False)
class Preview(Displayed):
    """The first training rows, statistics of all, and the recipe with all detected values."""

    recipe: Recipe
    rows: tuple[RowPreview, ...]
    facts: PreviewFacts
    notes: tuple[str, ...]
    limit: str  # the setting that limits the length of a row
    cost: CostPrediction | None = None  # None for `rl`, whose completions have an unknown length
    forecast: RunForecast | None = None  # of the whole run
    # Of train, validation and test: `rows`, `groups` and the rows of the `largest`; no groups of a large file.
    parts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def problems(self) -> tuple[str, ...]:
        """Return warnings about what should be fixed before tuning."""
        facts = self.facts
        problems = [text for text in (facts.bos, facts.end) if text and text.startswith("warning")]
        for places, finding in (
            (facts.truncated, f"shortened to fit {self.limit}"),
            (facts.zero_label, "without a learned token"),
        ):
            if places.count:
                more = f" and {places.count - len(places.first)} more" if places.count > len(places.first) else ""
                problems.append(f"warning: {places.count} rows {finding}: {', '.join(places.first)}{more}")
        return tuple(problems)

    def display(self) -> Display:
        """Show statistics and problems; the first rows with their learned text marked in a table."""
        facts = self.facts
        rows = [
            (row.where, "".join(f"[{piece.text}]" if piece.learned else piece.text for piece in row.pieces), row.label)
            for row in self.rows
        ]
        return Display(
            f"Preview: {facts.rows} training rows, median {facts.p50} tokens, longest {facts.longest}",
            (*self.problems, *self.notes),
            ("row", "text, learned parts in brackets", "label"),
            rows,
        )


def preview(recipe: Recipe, *, offline: bool = False, rows: int = 3) -> Preview:
    """Show the first training rows with their learned tokens, and statistics of all rows; nothing is trained.

    Args:
        recipe: the recipe.
        offline: do not access the network.
        rows: number of rows per task.
    """
    prepared = prepare(recipe, on_event=ignore, offline=offline)
    tasks = [
        (task, masking_of(task.recipe.objective, task.template, task.recipe.seed)) for task in prepared.tasks.values()
    ]
    shown = tuple(_row_preview(row, task, masking) for task, masking in tasks for row in task.train[:rows])
    longest = prepared.recipe.data.max_tokens
    by_model = longest < recipe.data.max_tokens
    code = ", ".join(name for name in recipe.objective.rewards if function_in(name)[1])
    scored = rows_of_verdict(prepared)
    notes = (
        prepared.machine.why,
        *([max_length_note(prepared.recipe)] if by_model else []),
        *([f"imported to check it, which runs its code: {code}"] if code else []),
        *prepared.facts.notes,
        *([scored.note] if scored.note else []),
    )
    limit = f"the {longest} tokens of the context" if by_model else f"data.max_tokens ({longest})"
    statistics = _statistics(prepared, tasks)
    cost, forecast = (None, None) if prepared.recipe.objective.samples_completions else predicted(scored.of(prepared))
    parts = {part: _part([getattr(task.loaded.split, part) for task, _ in tasks]) for part in PARTS}
    return Preview(prepared.recipe, shown, statistics, notes, limit, cost, forecast, parts)


def _part(tasks: Sequence[Sequence[Example]]) -> Mapping[str, int]:
    """Return the size of one part of the split over all tasks."""
    small = ((n, examples) for n, examples in enumerate(tasks) if not isinstance(examples, StoredExamples))
    groups = Counter((n, example.group) for n, examples in small for example in examples if example.group)
    return {"rows": sum(map(len, tasks)), "groups": len(groups), "largest": max(groups.values(), default=0)}


def _row_preview(row: Encoded, task: TrainingContext, masking: Masking | None) -> RowPreview:
    """Return a row in stretches; of a pair, one sequence after the other."""
    objective, sequences = task.recipe.objective, _first_epoch(row, masking)
    sides = objective.sides(len(sequences)) if masking is None else [""] * len(sequences)
    pieces = tuple(
        replace(piece, side=side)
        for number, (tokens, side) in enumerate(zip(sequences, sides, strict=True))
        # Before negatives are mined, the passage of the row stands for them.
        if objective.searching is None or tokens not in sequences[:number]
        for piece in pieces_of(tokens, task.template)
    )
    label = ", ".join(name for name, yes in zip(objective.known_labels, row.label, strict=False) if yes)
    if objective.produces == "number":
        label = f"{row.label[0]:g}"
    return RowPreview(row.where, pieces, row.length, label)


def _first_epoch(row: Encoded, masking: Masking | None) -> tuple[Tokens, ...]:
    """Return the row as the first epoch sees it: its words masked, and the masked tokens marked as learned."""
    if masking is None:
        return row.sequences
    masked = masking.hide(row, 0)
    positions = {position for position, _ in masked.hidden}
    return tuple(Tokens(tokens.ids, [i in positions for i in range(len(tokens.ids))]) for tokens in masked.sequences)


def pieces_of(tokens: Tokens, template: Template) -> Iterator[Stretch]:
    """Yield a row as stretches of text that are learned or not, special tokens included."""
    end, before = 0, ""
    for learned, run in groupby(tokens.learn):
        end += len(list(run))
        # Decoded together with the tokens before it: a stretch by itself would lose the space before its first word.
        ids = tokens.ids[:end]
        text = str(template.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        yield Stretch(text[len(before) :], learned)
        before = text


def _statistics(prepared: TrainingContext, tasks: Sequence[tuple[TrainingContext, Masking | None]]) -> PreviewFacts:
    """Return statistics of the training rows of all tasks."""
    facts = prepared.facts
    sequences = [tokens for task, masking in tasks for row in task.train for tokens in _first_epoch(row, masking)]
    lengths = [len(tokens.ids) for tokens in sequences]
    learned = sum(tokens.learned for tokens in sequences)
    p50, p95 = (int(np.percentile(lengths, percent)) for percent in (50, 95))
    # Most windows of a document end inside it, so documents need no end token.
    documents = any(task.recipe.objective.produces == "likelihood" for task, _ in tasks)
    return PreviewFacts(
        rows=len(prepared.train),
        bos=check_beginnings(sequences, prepared.template),
        end=check_ends(sequences, prepared.template) if learned and not documents else None,
        truncated=Places(len(facts.truncated), facts.truncated[:LISTED]),
        zero_label=Places(len(facts.zero_label), facts.zero_label[:LISTED]),
        p50=p50,
        p95=p95,
        longest=max(lengths),
        learned_share=learned / sum(lengths) if learned else None,
    )


def check_beginnings(sequences: Sequence[Tokens], template: Template) -> str:
    """Check that every row begins with the beginning token as often as the model expects it: once, or never.

    Returns a sentence, which starts with `warning` if the rows spoil training.
    """
    name = template.tokenizer.bos_token or template.tokenizer.cls_token
    if name is None:
        return "no beginning token: the model does not use one"
    bos = template.tokenizer.convert_tokens_to_ids(name)
    twice = sum(tokens.ids[:2] == [bos, bos] for tokens in sequences)
    if twice:
        return f"warning: {twice} rows begin with two {name}; fix the chat template"
    once = sum(tokens.ids[:1] == [bos] for tokens in sequences)
    if once == len(sequences):
        return f"every row begins with exactly one {name}"
    if template.tokenizer("a")["input_ids"][:1] == [bos]:
        return f"warning: {len(sequences) - once} rows do not begin with {name}; fix the chat template"
    if once:
        return f"{once} rows begin with {name}, by the chat template; the others do not, as the tokenizer adds none"
    return f"no row begins with {name}: the tokenizer adds none"


def check_ends(sequences: Sequence[Tokens], template: Template) -> str:
    """Check that the end token of every answer is learned, so that the model learns to stop.

    Returns a sentence, which starts with `warning` if an end token is not learned.
    """
    last = [tokens.ids[max(i for i, yes in enumerate(tokens.learn) if yes)] for tokens in sequences if tokens.learned]
    ended = sum(token in template.stop_ids for token in last)
    if ended == len(last):
        return "the end token is learned in every row: the model learns to stop"
    return f"warning: in {len(last) - ended} of {len(last)} rows no end token is learned; raise data.max_tokens"
