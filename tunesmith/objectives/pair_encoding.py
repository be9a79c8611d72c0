"""What objectives over judged answers share: their columns, and two answers behind one prompt as ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunesmith.data.readers.row import Row, file_of
from tunesmith.data.schema.columns import beside
from tunesmith.data.schema.formats import SYSTEMS, detect
from tunesmith.data.tokenization.chat_template import Template, Tokens
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError


def columns_of(rows: Sequence[Row], named: Mapping[str, str]) -> Mapping[str, str]:
    """Which column plays which part: those that are named over those that the rows show.

    Raises DataError where the rows hold no judgement.
    """
    named = {part: column for part, column in named.items() if column}
    if {"chosen", "rejected"} <= named.keys() or {"prompt", "answer", "label"} <= named.keys():
        return {**named, **beside(rows, named.values(), system=SYSTEMS, margin=["margin"])}
    found = detect(rows)
    if found.objective != "preference":
        cure = "name objective.chosen and objective.rejected, or tune with objective: " + found.objective
        raise DataError(f"{file_of(rows)}: these are rows of {found.name}, and nobody judged an answer in them; {cure}")
    return {**found.columns, **named}


def answered(
    prompt: Sequence[Message], answers: Sequence[str], template: Template, *, limit: int
) -> tuple[list[Tokens], bool]:
    """Each answer behind the same prompt, of which the answer alone is learned, and whether something was shortened.

    The prompt gives way as far as the longest answer needs it to; an answer that is too long alone loses its end.
    """
    longest = max(
        answers, key=lambda text: len(template.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    )
    fitted, shortened = template.fit([*prompt, Message("assistant", longest)], limit)
    start = len(template.prompt(fitted[:-1]))
    rows = []
    for answer in answers:
        tokens = template.chat([*fitted[:-1], Message("assistant", answer)])
        learn = [last and place >= start for place, last in enumerate(tokens.learn)]
        rows.append(Tokens(tokens.ids[:limit], learn[:limit]))
        shortened |= len(tokens.ids) > limit
    return rows, shortened
