"""Answers that people judged: pairs of which one is preferred, and single answers with a thumb up or down."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from tunesmith.data.examples import (
    Chat,
    Example,
    Message,
    Pair,
    Thumb,
    fault,
    group_of,
    need,
    parsed,
    text_of,
    with_system,
)
from tunesmith.data.rows import Row, as_word
from tunesmith.data.turns import check_order, instructed, turn_of
from tunesmith.errors import DataError

# What a thumb is called in small letters, and whether it is up.
UP = ("true", "1", "good", "up", "thumbs up", "thumbs_up", "+1", "positive", "like", "👍")
DOWN = ("false", "0", "bad", "down", "thumbs down", "thumbs_down", "-1", "negative", "dislike", "👎")
GOOD = {**dict.fromkeys(UP, True), **dict.fromkeys(DOWN, False)}
# How Anthropic's files write turns into one text.
SPOKEN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def pairs(rows: Sequence[Row], *, columns: Mapping[str, str], instruction: str = "", group: str = "") -> list[Pair]:
    """One Pair for each row; `chosen_cut` and `rejected_cut` may say that an answer was cut off.

    `columns` names `chosen` and `rejected`, each an answer or a whole chat, and may name `prompt`,
    `system` and `margin`. Where the two are whole chats, all turns before their last answers must be the same ones.
    """
    need(rows, *columns.values(), group)

    def parse(row: Row) -> Pair:
        given = _prompt(row, columns.get("prompt", ""))
        (one, chosen), (other, rejected) = (_answer(row, columns[side], given) for side in ("chosen", "rejected"))
        if one != other:
            cure = "an answer is preferred to another one to the same turns; cut both chats behind the turns they share"
            raise DataError(f"{row.where}: the turns before the two answers differ; {cure}")
        if " ".join(chosen.split()) == " ".join(rejected.split()):
            raise DataError(
                f"{row.where}: chosen and rejected are the same answer, which prefers nothing; drop the row, "
                "or `tunesmith audit DATA --fix OUT` does"
            )
        prompt = tuple(instructed(with_system(one, row, columns.get("system", "")), instruction))
        margin = _margin(row, columns.get("margin", ""))
        cut = (row.fields.get("chosen_cut") is True, row.fields.get("rejected_cut") is True)
        return Pair(row.where, prompt, chosen, rejected, group_of(row, group), margin, cut)

    return parsed(rows, parse)


def thumbs(rows: Sequence[Row], *, columns: Mapping[str, str], instruction: str = "", group: str = "") -> list[Thumb]:
    """One Thumb for each row; `columns` names `prompt`, `answer` and `label`, one of GOOD, and may name `system`."""
    need(rows, *columns.values(), group)

    def parse(row: Row) -> Thumb:
        prompt, answer = _answer(row, columns["answer"], _prompt(row, columns["prompt"]))
        good = GOOD.get((as_word(row.fields.get(columns["label"])) or "").strip().lower())
        if good is None:
            raise fault(row, columns["label"], "must be true or false, 1 or 0, good or bad, up or down")
        asked = instructed(with_system(prompt, row, columns.get("system", "")), instruction)
        return Thumb(row.where, tuple(asked), answer, good, group_of(row, group), row.fields.get("cut") is True)

    return parsed(rows, parse)


def written(example: Example) -> str:
    """All text of an example as it is written, a turn after the other; of a pair the prompt once."""
    if isinstance(example, Pair | Thumb):
        answers = (example.chosen, example.rejected) if isinstance(example, Pair) else (example.answer,)
        return "\n".join([*(message.content for message in example.prompt), *answers])
    if isinstance(example, Chat):
        return "\n".join(message.said for message in example.messages)
    return example.text


def _prompt(row: Row, column: str) -> list[Message]:
    """The turns that were answered, as far as they have a column of their own."""
    if not column:
        return []
    turns = _turns(row, column, "user")
    if turns[-1].role == "assistant":
        raise DataError(f"{row.where}: column {column!r} ends with an answer; end it with what was asked")
    check_order(turns, row.where)
    return turns


def _answer(row: Row, column: str, prompt: Sequence[Message]) -> tuple[list[Message], str]:
    """What was answered, and the answer: the last turn of a whole chat, or all of a text."""
    *before, last = _turns(row, column, "assistant")
    if last.role != "assistant" or not last.content.strip():
        raise fault(row, column, "must end with an answer that is not blank")
    if not before and not prompt:
        cure = "name the column with what was asked as objective.prompt"
        raise DataError(f"{row.where}: column {column!r} is an answer alone; {cure}")
    if before and prompt and before[-1].content.strip() != prompt[-1].content.strip():
        cure = "make them the same, or leave one of them out"
        raise DataError(f"{row.where}: the prompt and the last question in column {column!r} differ; {cure}")
    asked = before or list(prompt)
    check_order([*asked, last], row.where)
    return asked, last.content


def _turns(row: Row, column: str, role: str) -> list[Message]:
    """The turns of a chat; a text is a turn of this role, or several where it says who speaks."""
    value = row.fields.get(column)
    if isinstance(value, list | tuple) and value:
        return [turn_of(item, f"{row.where}: {column} turn {number}") for number, item in enumerate(value, 1)]
    text = text_of(row, column)
    if not SPOKEN.match(text):
        return [Message(role, text)]
    _, *spoken = SPOKEN.split(text)
    names = {"Human": "user", "Assistant": "assistant"}
    return [Message(names[who], said.strip()) for who, said in zip(spoken[::2], spoken[1::2], strict=True)]


def _margin(row: Row, column: str) -> float:
    """By how much the chosen answer is better, 0 where nobody says."""
    value = row.fields.get(column) if column else None
    if value is None or value == "":
        return 0.0
    try:
        margin = float(str(value))
    except ValueError:
        margin = math.nan
    if not math.isfinite(margin):
        raise fault(row, column, "must be a number")
    return margin
