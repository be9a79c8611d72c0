"""What a run would learn, before it runs: the first rows as the loss sees them, and what to know about all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from tunesmith.config import Recipe
from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.data.tokenization.masking import Masking
from tunesmith.events import ignore
from tunesmith.training.prepare import TrainingContext, masking_of, max_length_note, prepare

SIDES = ("preferred", "other")
NAMED = 20  # places of rows that are listed before they are only counted


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of a row that is learned, or is not, as it would be read back from its ids.

    Of two answers that are compared, `side` says which one it belongs to.
    """

    text: str
    learned: bool
    side: str = ""


@dataclass(frozen=True, slots=True)
class RowPreview:
    """One row as the loss sees it; `label` is what a head of its own is to say."""

    where: str
    pieces: tuple[Stretch, ...]
    tokens: int
    label: str = ""


@dataclass(frozen=True, slots=True)
class Places:
    """How many rows, and where the first of them stand."""

    count: int
    first: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PreviewFacts:
    """What is true of all training rows; `end` and `learned_share` are None where a head learns, not words."""

    rows: int
    bos: str
    end: str | None
    truncated: Places
    zero_label: Places
    p50: int
    p95: int
    longest: int
    learned_share: float | None


@dataclass(frozen=True, slots=True)
class Preview:
    """The first training rows, facts about all, and the recipe with what only the data could tell."""

    recipe: Recipe
    rows: tuple[RowPreview, ...]
    facts: PreviewFacts
    notes: tuple[str, ...]
    limit: str  # what says how long a row may be

    @property
    def problems(self) -> tuple[str, ...]:
        """What should be mended before tuning."""
        facts = self.facts
        found = [text for text in (facts.bos, facts.end) if text and text.startswith("warning")]
        for places, finding in (
            (facts.truncated, f"shortened to fit {self.limit}"),
            (facts.zero_label, "with nothing to learn"),
        ):
            if places.count:
                more = f" and {places.count - len(places.first)} more" if places.count > len(places.first) else ""
                found.append(f"warning: {places.count} rows {finding}: {', '.join(places.first)}{more}")
        return tuple(found)


def preview(recipe: Recipe, *, offline: bool = False, rows: int = 3) -> Preview:
    """The first training rows with what is learned in them, and facts about all; nothing is trained."""
    prepared = prepare(recipe, on_event=ignore, offline=offline)
    tasks = [(one, _masking(one)) for one in prepared.tasks.values()]
    shown = tuple(_shown(row, one, masking) for one, masking in tasks for row in one.train[:rows])
    longest = prepared.recipe.data.max_tokens
    by_model = longest < recipe.data.max_tokens
    notes = (prepared.machine.why, *([max_length_note(prepared.recipe)] if by_model else []), *prepared.facts.notes)
    limit = f"the {longest} tokens that the model holds" if by_model else f"data.max_tokens ({longest})"
    return Preview(prepared.recipe, shown, _facts(prepared, tasks), notes, limit)


def _masking(prepared: TrainingContext) -> Masking | None:
    """How words are hidden from the rows of one task."""
    return masking_of(prepared.recipe.objective, prepared.template, prepared.recipe.seed)


def _shown(row: Encoded, prepared: TrainingContext, masking: Masking | None) -> RowPreview:
    """A row in pieces; of a pair, one sequence after the other."""
    seen = _seen(row, masking)
    sides = SIDES if prepared.recipe.objective.kind in ("preference", "reward") and len(seen) == 2 else [""] * len(seen)
    pieces = tuple(
        replace(piece, side=side)
        for tokens, side in zip(seen, sides, strict=True)
        for piece in pieces_of(tokens, prepared.template)
    )
    names = prepared.recipe.objective.labels if prepared.recipe.objective.kind == "classify" else ()
    label = ", ".join(name for name, yes in zip(names, row.label, strict=False) if yes)
    return RowPreview(row.where, pieces, row.length, label)


def _seen(row: Encoded, masking: Masking | None) -> tuple[Tokens, ...]:
    """The row as the first pass over the rows sees it: words hidden as they are then, and marked as learned."""
    if masking is None:
        return row.sequences
    hidden = masking.hide(row, 0)
    places = {place for place, _ in hidden.hidden}
    return tuple(Tokens(one.ids, [i in places for i in range(len(one.ids))]) for one in hidden.sequences)


def pieces_of(tokens: Tokens, template: Template) -> Iterator[Stretch]:
    """Runs of learned and of other ids as text, special tokens included; together they are the whole row."""
    start, before = 0, ""
    for learned, run in groupby(tokens.learn):
        start += len(list(run))
        # Decoded from the row's beginning: a stretch alone would lose the space in front of its first word.
        text = _text(tokens.ids[:start], template)
        yield Stretch(text[len(before) :], learned)
        before = text


def _text(ids: Sequence[int], template: Template) -> str:
    """The exact text of ids, special tokens and spaces as they are."""
    return str(template.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _facts(prepared: TrainingContext, tasks: Sequence[tuple[TrainingContext, Masking | None]]) -> PreviewFacts:
    """Counts over all training rows, of every task, that teach something."""
    train, facts = prepared.train, prepared.facts
    sequences = [tokens for one, masking in tasks for row in one.train for tokens in _seen(row, masking)]
    texts = any(one.recipe.objective.kind == "domain" for one, _ in tasks)  # most windows of a document end inside it
    lengths = [len(tokens.ids) for tokens in sequences]
    learned = sum(tokens.learned for tokens in sequences)
    p50, p95 = (int(np.percentile(lengths, part)) for part in (50, 95))
    return PreviewFacts(
        rows=len(train),
        bos=_beginnings(sequences, prepared.template),
        end=_endings(sequences, prepared.template) if learned and not texts else None,
        truncated=Places(len(facts.truncated), facts.truncated[:NAMED]),
        zero_label=Places(len(facts.zero_label), facts.zero_label[:NAMED]),
        p50=p50,
        p95=p95,
        longest=max(lengths),
        learned_share=learned / sum(lengths) if learned else None,
    )


def _beginnings(sequences: Sequence[Tokens], template: Template) -> str:
    """Whether every row begins with the beginning token as often as the model knows it: once, or never."""
    name = template.tokenizer.bos_token or template.tokenizer.cls_token
    if name is None:
        return "no beginning token: this model has none"
    bos = template.tokenizer.convert_tokens_to_ids(name)
    twice = sum(tokens.ids[:2] == [bos, bos] for tokens in sequences)
    if twice:
        return f"warning: {twice} rows begin with two {name}; mend the chat template"
    once = sum(tokens.ids[:1] == [bos] for tokens in sequences)
    if once == len(sequences):
        return f"every row begins with exactly one {name}"
    if template.tokenizer("a")["input_ids"][:1] == [bos]:
        return f"warning: {len(sequences) - once} rows do not begin with {name}; mend the chat template"
    if once:
        return f"{once} rows begin with {name}, as chats do by their template; of the others none, as this model has it"
    return f"no row begins with {name}: this model puts none"


def _endings(sequences: Sequence[Tokens], template: Template) -> str:
    """Whether every answer is learned to its end token, so that the model learns to stop."""
    ends = [tokens.ids[max(i for i, yes in enumerate(tokens.learn) if yes)] for tokens in sequences if tokens.learned]
    learned = sum(end in template.stop_ids for end in ends)
    if learned == len(ends):
        return "the end token is learned in every row: the model learns to stop"
    return f"warning: in {len(ends) - learned} of {len(ends)} rows no end token is learned; raise data.max_tokens"
