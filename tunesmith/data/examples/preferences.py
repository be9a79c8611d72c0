"""Preferences: pairs of a chosen and a rejected completion, and single completions rated good or bad."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tunesmith.data.examples.parsers import DIALOGUES, asked, group_of, need, parsed, row_error, turns_of, with_system
from tunesmith.data.examples.types import Chat, Example, Pair, Query, UnpairedPreference
from tunesmith.data.readers.row import Row
from tunesmith.data.schema.cells import cell
from tunesmith.data.schema.values import thumb_of
from tunesmith.data.schema.winner import side
from tunesmith.data.tokenization.messages import Message, check_order, instructed, turns_in, with_thoughts
from tunesmith.errors import DataError

# Turns in one text, as in Anthropic's HH-RLHF files.
SPOKEN = re.compile(r"(?:^|\r?\n\r?\n)(Human|Assistant):")


def pairs(rows: Sequence[Row], *, columns: Mapping[str, str], instruction: str = "", group: str = "") -> list[Pair]:
    """Parse one Pair per row; `chosen_cut` and `rejected_cut` may mark a truncated completion.

    Args:
        rows: rows of one file.
        columns: `chosen` and `rejected`, each a completion or a whole chat; optionally `prompt`, with it `input` and
            `history`, and `system` and `margin`. With `winner`, that column names the better one of both. Whole chats
            must agree in all turns before their last answers.
        instruction: text before the first user turn.
        group: as in `parsers`, also for errors.
    """
    need(rows, *columns.values(), group)

    def parse(row: Row) -> Pair:
        own_prompt = _prompt(row, columns)
        better, worse = _better_first(row, columns)
        chosen_prompt, chosen = _answer(row, better, own_prompt)
        rejected_prompt, rejected = _answer(row, worse, own_prompt)
        if _stripped(chosen_prompt) != _stripped(rejected_prompt):
            fix = "cut both chats after the turns that they share"
            raise DataError(f"{row.where}: the turns before chosen and rejected differ; {fix}")
        if " ".join(chosen.split()) == " ".join(rejected.split()):
            raise DataError(f"{row.where}: chosen and rejected are the same answer; drop the row")
        prompt = tuple(instructed(with_system(chosen_prompt, row, columns.get("system", "")), instruction))
        margin = _margin(row, columns.get("margin", ""))
        cut = (row.fields.get("chosen_cut") is True, row.fields.get("rejected_cut") is True)
        return Pair(row.where, prompt, chosen, rejected, group_of(row, group), margin, cut)

    return parsed(rows, parse)


def unpaired_preferences(
    rows: Sequence[Row], *, columns: Mapping[str, str], instruction: str = "", group: str = ""
) -> list[UnpairedPreference]:
    """Parse one UnpairedPreference per row.

    Args:
        rows: rows of one file.
        columns: `label`, the rating, and either a chat that ends with the answer (`messages` or `conversations`) or
            `prompt` and `answer`; optionally `system`, and with a prompt `input` and `history`.
        instruction: text before the first user turn.
        group: as in `parsers`, also for errors.
    """
    need(rows, *columns.values(), group)
    dialogue = next((columns[part] for part in DIALOGUES if part in columns), "")

    def parse(row: Row) -> UnpairedPreference:
        own_prompt = [] if dialogue else _prompt(row, columns)
        before, answer = _answer(row, dialogue or columns["answer"], own_prompt)
        good = thumb_of(cell(row, columns["label"]))
        if good is None:
            raise row_error(row, columns["label"], "must be true or false, 1 or 0, yes or no, good or bad, up or down")
        prompt = instructed(with_system(before, row, columns.get("system", "")), instruction)
        return UnpairedPreference(
            row.where, tuple(prompt), answer, good, group_of(row, group), row.fields.get("cut") is True
        )

    return parsed(rows, parse)


def written(example: Example) -> str:
    """Return all text of an example, one turn after the other; of a pair the prompt once."""
    if isinstance(example, Pair | UnpairedPreference):
        answers = (example.chosen, example.rejected) if isinstance(example, Pair) else (example.answer,)
        return "\n".join([*(message.content for message in example.prompt), *answers])
    if isinstance(example, Chat):
        return "\n".join(message.said for message in example.messages)
    return f"{example.text}\n{example.passage}" if isinstance(example, Query) else example.text


def holds_turns(text: str) -> bool:
    """Return whether a plain text in a column would be parsed as turns; to keep it whole, write it as a turn."""
    try:
        return bool(SPOKEN.match(text) or turns_in(text, ""))
    except DataError:
        return True


def _better_first(row: Row, columns: Mapping[str, str]) -> tuple[str, str]:
    """Return the columns of the better and of the other answer."""
    first, second = columns["chosen"], columns["rejected"]
    if "winner" not in columns:
        return first, second
    better = side(cell(row, columns["winner"]), first, second)
    if better not in ("first", "second"):
        raise row_error(row, columns["winner"], f"must name the better one of {first!r} and {second!r}")
    return (first, second) if better == "first" else (second, first)


def _prompt(row: Row, columns: Mapping[str, str]) -> list[Message]:
    """Return the turns of the prompt column; empty if there is none."""
    column = columns.get("prompt", "")
    if not column:
        return []
    turns = asked(row, columns, read=_turns)
    if turns[-1].role == "assistant":
        raise DataError(f"{row.where}: column {column!r} ends with an answer; end it with a user turn")
    check_order(turns, row.where)
    return turns


def _answer(row: Row, column: str, prompt: Sequence[Message]) -> tuple[list[Message], str]:
    """Return the prompt and the completion: the last turn of a whole chat, or all of a text."""
    *before, last = _turns(row, column, "assistant")
    if last.role != "assistant" or not last.content.strip():
        raise row_error(row, column, "must end with a non-blank answer")
    if not before and not prompt:
        fix = "set objective.prompt to the column with the prompt"
        raise DataError(f"{row.where}: column {column!r} is an answer without a prompt; {fix}")
    answered = _together(before, prompt)
    if answered is None:
        fix = "make them equal, or remove one of them"
        raise DataError(f"{row.where}: the prompt differs from the turns before the answer in {column!r}; {fix}")
    check_order([*answered, last], row.where)
    return answered, with_thoughts(last)


def _together(before: Sequence[Message], prompt: Sequence[Message]) -> list[Message] | None:
    """Merge the turns of a chat with those of the prompt column; None if they differ."""
    if not (before and prompt):
        return [*before, *prompt]
    if before[0] == prompt[0] and before[0].role == "system":
        rest = _together(before[1:], prompt[1:])
        return None if rest is None else [before[0], *rest]
    chat, asked_turns = ([(turn.role, turn.content.strip()) for turn in turns] for turns in (before, prompt))
    for shared in range(min(len(chat), len(asked_turns)), 0, -1):
        if asked_turns[-shared:] == chat[:shared]:  # the chat continues the prompt
            return [*prompt[:-shared], *before]
        if asked_turns == chat[-shared:]:
            return list(before)
    # The prompt may repeat only the first user turn of the chat.
    first = next((turn for turn in chat if turn[0] == "user"), None)
    return list(before) if asked_turns == [first] else None


def _turns(row: Row, column: str, role: str) -> list[Message]:
    """Return the turns of a chat; a text is one turn of the given role, or several if it marks its speakers."""
    first, *others = turns_of(row, column, role)
    if others or not SPOKEN.match(first.content) or turns_in(cell(row, column), ""):
        return [first, *others]
    _, *spoken = SPOKEN.split(first.content)
    names = {"Human": "user", "Assistant": "assistant"}
    turns = [Message(names[who], content.strip()) for who, content in zip(spoken[::2], spoken[1::2], strict=True)]
    opened = role == "user" and len(turns) > 1 and turns[-1] == Message("assistant", "")
    return turns[:-1] if opened else turns  # a prompt may end with an empty `Assistant:`


def _stripped(turns: Sequence[Message]) -> list[Message]:
    return [replace(turn, content=turn.content.strip()) for turn in turns]


def _margin(row: Row, column: str) -> float:
    """Return by how much the chosen answer is better, 0 if unknown."""
    value = cell(row, column) if column else None
    if value is None or value == "":
        return 0.0
    try:
        margin = float(str(value))
    except ValueError:
        margin = math.nan
    if not math.isfinite(margin):
        raise row_error(row, column, "must be a number")
    return margin
