"""Answers that people judged: pairs of which one is preferred, and single answers with a thumb up or down."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tunesmith.data.examples import (
    DIALOGUES,
    Chat,
    Example,
    Message,
    Pair,
    Thumb,
    asked,
    fault,
    group_of,
    need,
    parsed,
    turns_of,
    with_system,
)
from tunesmith.data.kinds import thumb_of
from tunesmith.data.rows import Row
from tunesmith.data.turns import check_order, instructed, turns_in
from tunesmith.errors import DataError

# How Anthropic's files write turns into one text.
SPOKEN = re.compile(r"(?:^|\r?\n\r?\n)(Human|Assistant):")


def pairs(rows: Sequence[Row], *, columns: Mapping[str, str], instruction: str = "", group: str = "") -> list[Pair]:
    """One Pair for each row; `chosen_cut` and `rejected_cut` may say that an answer was cut off.

    `columns` names `chosen` and `rejected`, each an answer or a whole chat, and may name `prompt`, beside it `input`
    and `history`, and `system` and `margin`. Where the two are whole chats, all turns before their last answers must
    be the same ones.
    """
    need(rows, *columns.values(), group)

    def parse(row: Row) -> Pair:
        given = _prompt(row, columns)
        (one, chosen), (other, rejected) = (_answer(row, columns[side], given) for side in ("chosen", "rejected"))
        if _stripped(one) != _stripped(other):
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
    """One Thumb for each row.

    `columns` names `label`, a thumb, and a chat that ends with the answer (`messages` or `conversations`) or `prompt`
    and `answer`, and may name `system` and, beside a prompt, `input` and `history`.
    """
    need(rows, *columns.values(), group)
    dialogue = next((columns[part] for part in DIALOGUES if part in columns), "")

    def parse(row: Row) -> Thumb:
        given = [] if dialogue else _prompt(row, columns)
        before, answer = _answer(row, dialogue or columns["answer"], given)
        good = thumb_of(row.fields.get(columns["label"]))
        if good is None:
            raise fault(row, columns["label"], "must be true or false, 1 or 0, yes or no, good or bad, up or down")
        prompt = instructed(with_system(before, row, columns.get("system", "")), instruction)
        return Thumb(row.where, tuple(prompt), answer, good, group_of(row, group), row.fields.get("cut") is True)

    return parsed(rows, parse)


def written(example: Example) -> str:
    """All text of an example as it is written, a turn after the other; of a pair the prompt once."""
    if isinstance(example, Pair | Thumb):
        answers = (example.chosen, example.rejected) if isinstance(example, Pair) else (example.answer,)
        return "\n".join([*(message.content for message in example.prompt), *answers])
    if isinstance(example, Chat):
        return "\n".join(message.said for message in example.messages)
    return example.text


def holds_turns(text: str) -> bool:
    """Whether a text alone in a column is read as turns; one that must stay whole is written as a turn itself."""
    try:
        return bool(SPOKEN.match(text) or turns_in(text, ""))
    except DataError:
        return True


def _prompt(row: Row, columns: Mapping[str, str]) -> list[Message]:
    """The turns that were answered, as far as they have columns of their own."""
    column = columns.get("prompt", "")
    if not column:
        return []
    turns = asked(row, columns, read=_turns)
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
    answered = _together(before, prompt)
    if answered is None:
        cure = "make them the same, or leave one of them out"
        raise DataError(f"{row.where}: the prompt and column {column!r} say different things before the answer; {cure}")
    check_order([*answered, last], row.where)
    return answered, last.content


def _together(before: Sequence[Message], prompt: Sequence[Message]) -> list[Message] | None:
    """The turns that were answered, of a chat with what stands beside it; None where the two say different things."""
    if not (before and prompt):
        return [*before, *prompt]
    if before[0] == prompt[0] and before[0].role == "system":
        rest = _together(before[1:], prompt[1:])
        return None if rest is None else [before[0], *rest]
    chat, asked_ = ([(turn.role, turn.content.strip()) for turn in turns] for turns in (before, prompt))
    for shared in range(min(len(chat), len(asked_)), 0, -1):
        if asked_[-shared:] == chat[:shared]:  # the chat goes on where the prompt ends
            return [*prompt[:-shared], *before]
        if asked_ == chat[-shared:]:
            return list(before)
    first = next((turn for turn in chat if turn[0] == "user"), None)  # of many turns it may stand alone beside them
    return list(before) if asked_ == [first] else None


def _turns(row: Row, column: str, role: str) -> list[Message]:
    """The turns of a chat; a text is a turn of this role, or several where it says who speaks."""
    first, *others = turns_of(row, column, role)
    if others or not SPOKEN.match(first.content) or turns_in(row.fields[column], ""):
        return [first, *others]
    _, *spoken = SPOKEN.split(first.content)
    names = {"Human": "user", "Assistant": "assistant"}
    turns = [Message(names[who], said.strip()) for who, said in zip(spoken[::2], spoken[1::2], strict=True)]
    opened = role == "user" and len(turns) > 1 and turns[-1] == Message("assistant", "")
    return turns[:-1] if opened else turns  # a prompt may end with the name of who is to speak


def _stripped(turns: Sequence[Message]) -> list[Message]:
    return [replace(turn, content=turn.content.strip()) for turn in turns]


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
