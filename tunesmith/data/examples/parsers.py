"""The parsers that make typed examples of the rows of one file.

Each parser checks all rows before it reports errors: a DataError if a column is missing or no row is valid, a RowError
if some rows are invalid. `group` is the column with the source of a row; it may be empty.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from tunesmith.data.examples.types import (
    Chat,
    Example,
    LabelledText,
    Pair,
    Query,
    RatedText,
    Text,
    TextExample,
    UnpairedPreference,
)
from tunesmith.data.readers.row import Row, as_word, file_of, missing_column, refuse
from tunesmith.data.schema.accepted import UNANSWERABLE, accepted_answers, lists_answers
from tunesmith.data.schema.cells import PLUS, cell, flag_of, has_column, label_cell
from tunesmith.data.schema.choices import FROM_ZERO, Positions, choices_of, named_choice, positions_in
from tunesmith.data.schema.values import is_array, is_nothing, label_items, label_separator, listed, number_of
from tunesmith.data.text.words import folded
from tunesmith.data.tokenization.messages import (  # re-exported: part of the public path `tunesmith.data.examples`
    Message,
    check_order,
    instructed,
    refuse_unlearned,
    separated,
    short,
    turn_of,
    turns_in,
    unworded,
    whole,
)
from tunesmith.data.tokenization.thinking import MODES
from tunesmith.data.tokenization.tool_calls import read_tools
from tunesmith.errors import DataError, RowError

E = TypeVar("E")
# With fewer contexts, a split by context could leave a part empty.
FEWEST_CONTEXTS = 10
DIALOGUES = ("messages", "conversations")
DIALOGUE_PARTS = {*DIALOGUES, "system", "tools"}
PAIR_PARTS = {"prompt", "context", "choices", "answer", "input", "history", "system", "tools", "thoughts"}


def texts(rows: Sequence[Row], *, text: str, group: str = "") -> list[Text]:
    """Parse one Text per row; arguments as in `labelled`."""
    need(rows, text, group)
    return parsed(rows, lambda row: Text(row.where, text_of(row, text), group_of(row, group)))


def labelled(
    rows: Sequence[Row], *, text: str, label: str, group: str = "", known: Collection[str] = ()
) -> list[LabelledText]:
    """Parse one LabelledText per row. If any row has a list of labels, all rows are multi-label.

    Args:
        rows: rows of one file.
        text: column with the text.
        label: column with the label or the list of labels.
        group: column with the source of a row; may be empty.
        known: labels of the training file or of the model, by which several labels in one text are recognized.

    Raises:
        DataError: if a column is missing or no row is valid.
        RowError: if some rows are invalid.
    """
    need(rows, text, label, group)
    separator = label_separator(rows, label, known)
    multi = bool(separator) or any(label_items(value := label_cell(row, label)) != [value] for row in rows)

    def parse(row: Row) -> LabelledText:
        labels = _labels(row, label, separator)
        return LabelledText(row.where, text_of(row, text), labels, group_of(row, group), multi)

    return parsed(rows, parse)


def rated(rows: Sequence[Row], *, text: str, target: str, group: str = "") -> list[RatedText]:
    """Parse one RatedText per row, with the number of the column `target`; other arguments as in `labelled`."""
    need(rows, text, target, group)

    def parse(row: Row) -> RatedText:
        number = number_of(cell(row, target))
        if number is None:
            raise row_error(row, target, "must be a finite number, with a point before decimals")
        return RatedText(row.where, text_of(row, text), number, group_of(row, group))

    return parsed(rows, parse)


def queries(rows: Sequence[Row], *, columns: Mapping[str, str], group: str = "") -> list[Query]:
    """Parse one Query per row; passages whose relevance is 0 become negatives of the rows with the same query.

    Args:
        rows: rows of one file.
        columns: {"query": ..., "passage": ...}, optionally `negative` (a text, a list, or columns joined by ` + `),
            `evidence`, `score`, and `relevance`, which is 1 or 0.
        group: column with the source of a row; may be empty.

    Raises:
        DataError: if a column is missing, no row is valid, or no passage answers its query.
        RowError: if some rows are invalid.
    """
    relevance = columns.get("relevance", "")
    negative, score = columns.get("negative", ""), columns.get("score", "")
    negatives = [negative] if any(negative in row.fields for row in rows) else [n.strip() for n in negative.split(PLUS)]
    need(rows, columns["query"], columns["passage"], score, relevance, group)

    def parse(row: Row) -> Query:
        if relevance and flag_of(cell(row, relevance)) is None:
            raise row_error(row, relevance, "must be 1 if the passage answers the query, otherwise 0")
        number = number_of(cell(row, score)) if score else None
        if score and number is None:
            raise row_error(row, score, "must be a finite number, with a point before decimals")
        cells = [listed(cell(row, name)) or [cell(row, name)] for name in negatives if name]
        texts = [item.strip() for items in cells for item in items if isinstance(item, str) and item.strip()]
        return Query(
            row.where,
            text_of(row, columns["query"]),
            text_of(row, columns["passage"]),
            group_of(row, group),
            negatives=tuple(dict.fromkeys(texts)),
            evidence=_optional(row, columns.get("evidence", "")),
            score=number,
        )

    found = parsed(rows, parse)
    return _with_negatives(found, [bool(flag_of(cell(row, relevance))) for row in rows]) if relevance else found


def _with_negatives(rows: Sequence[Query], answers: Sequence[bool]) -> list[Query]:
    """Return the rows whose passage answers the query, with the other passages of the query as negatives."""
    right, wrong = defaultdict[str, set[str]](set), defaultdict[str, list[str]](list)
    for row, answered in zip(rows, answers, strict=True):
        if answered:
            right[folded(row.text)].add(folded(row.passage))
        else:
            wrong[folded(row.text)].append(row.passage)
    if rows and not right:
        raise DataError(
            f"{rows[0].where.rpartition(':')[0]}: the relevance is 0 in all rows; give passages with 1, too"
        )

    def negatives(key: str, own: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*own, *(text for text in wrong[key] if folded(text) not in right[key])]))

    return [
        replace(row, negatives=negatives(folded(row.text), row.negatives))
        for row, answered in zip(rows, answers, strict=True)
        if answered
    ]


def chats(
    rows: Sequence[Row],
    *,
    columns: Mapping[str, str],
    instruction: str = "",
    group: str = "",
    unanswerable: str = UNANSWERABLE,
) -> list[Chat]:
    """Parse one Chat per row, from a column of turns or from a prompt and an answer.

    Args:
        rows: rows of one file.
        columns: {"messages": ...}, {"conversations": ...} or {"prompt": ..., "answer": ...}; optionally `system` and
            `tools`, and with a prompt `context`, `input`, `history` and `thoughts`. An answer may be a list of accepted
            ones. The key `thinking` of a row, if it is one of `MODES`, says what happens to its thoughts.
        instruction: text before the first user turn.
        group: without one, rows with the same context are a group.
        unanswerable: answer of a row whose list of accepted answers is empty.
    """
    dialogue = next((columns[part] for part in DIALOGUES if part in columns), "")
    if set(columns) - (DIALOGUE_PARTS if dialogue else PAIR_PARTS) or not (
        dialogue or {"prompt", "answer"} <= set(columns)
    ):
        fix = "name the columns in objective.prompt and objective.answer"
        if "label" in columns:
            fix = f"use objective: classify for rows with labels, or {fix}"
        got = ", ".join(f"{column} ({part})" for part, column in columns.items())
        raise DataError(f"{file_of(rows)}: expected columns of a chat, or of a prompt and an answer, got {got}; {fix}")
    need(rows, *(column for part, column in columns.items() if part not in ("tools", "thoughts")), group)

    choices = columns.get("choices", "")
    several = not dialogue and not choices and lists_answers(rows, columns["answer"])
    positions = positions_in(rows, choices, columns["answer"]) if choices else FROM_ZERO
    by_context = "" if group or dialogue else _context_group(rows, columns.get("context", ""))

    def parse(row: Row) -> Chat:
        accepted = accepted_answers(row, columns["answer"]) if several else None
        if choices:
            accepted = _choice_answers(row, columns, positions)
        if dialogue:
            turns = _dialogue(row, dialogue)
        elif accepted is not None:
            answer = accepted[0] if accepted else unanswerable
            turns = [*asked(row, columns, read=turns_of), Message("assistant", whole(answer, row.where))]
        else:
            turns = [*asked(row, columns, read=turns_of), *turns_of(row, columns["answer"], "assistant")]
        if not dialogue:
            check_order(turns, row.where)
            turns = _with_thoughts(turns, row, columns.get("thoughts", ""))
        turns = with_system(turns, row, columns.get("system", ""))
        tools = read_tools(cell(row, columns.get("tools", "")), row.where)
        # If the chat offers no tools, an answer of plain JSON is not a call.
        turns = [unworded(turn, bare=bool(tools)) for turn in turns]
        if tools:
            turns = [replace(turns[0], tools=tools), *turns[1:]]
        source = text_key(_optional(row, by_context)) if by_context else group_of(row, group)
        mode = row.fields.get("thinking")
        thinking = mode if isinstance(mode, str) and mode in MODES else ""
        return Chat(row.where, tuple(instructed(turns, instruction)), source, accepted=accepted, thinking=thinking)

    return parsed(rows, parse)


def _with_thoughts(turns: Sequence[Message], row: Row, column: str) -> list[Message]:
    """Return the turns of a prompt and its answer with thoughts apart; the last answer gets those of the column."""
    separate = [separated(turn) for turn in turns]
    thoughts = _optional(row, column).strip()
    last = separate[-1]
    if last.role == "assistant":
        if thoughts and thoughts not in MODES and not last.thoughts:
            separate[-1] = replace(last, thoughts=thoughts)
        refuse_unlearned(separate[-1], row.where)
    return separate


def with_system(turns: Sequence[Message], row: Row, column: str) -> list[Message]:
    """Prepend the row's system column, unless it is blank or the turns begin with a system turn."""
    system = _optional(row, column)
    return [Message("system", system), *turns] if system and turns[0].role != "system" else list(turns)


def group_of(row: Row, column: str) -> str:
    """Return the row's source from the group column; blank if there is none."""
    value = cell(row, column) if column else None
    word = "" if value is None else as_word(value)
    if word is None:
        raise row_error(row, column, "must contain the source of the row")
    return word.strip()


def fingerprint(example: Example) -> str:
    """Return the whole content, normalized for letter case and spacing: equal for exact duplicates."""
    if isinstance(example, TextExample):
        return "\x1e".join([folded(example.text), *sorted(map(folded, example.target))])
    if isinstance(example, Pair):
        return "\x1e".join([_turns_plain(example.prompt), folded(example.chosen), folded(example.rejected)])
    if isinstance(example, UnpairedPreference):
        return "\x1e".join([_turns_plain(example.prompt), folded(example.answer), str(example.good)])
    return _turns_plain(example.messages) if isinstance(example, Chat) else folded(example.text)


def question(example: Example) -> str:
    """Return the prompt, normalized for letter case and spacing: equal for rows that must not be in two splits.

    It is the text; for scored pairs both texts, sorted; for chats the turns before the last answer; for preferences
    the prompt and the sorted completions, because the answer to learn is the judgement.
    """
    if isinstance(example, Pair):
        return "\x1e".join([prompt_of(example), *sorted(map(folded, (example.chosen, example.rejected)))])
    if isinstance(example, UnpairedPreference):
        return "\x1e".join([prompt_of(example), folded(example.answer)])
    if isinstance(example, Query) and example.score is not None:  # (A, B) is (B, A)
        return "\x1e".join(sorted(map(folded, (example.text, example.passage))))
    if not isinstance(example, Chat):
        return folded(example.text)
    if example.reference_index == len(example.messages):  # the chat ends with the prompt
        return _turns_plain(example.messages)
    answers = [index for index, message in enumerate(example.messages) if message.role == "assistant"]
    return _turns_plain(example.messages[: answers[-1]] if answers else example.messages)


def prompt_of(example: Pair | UnpairedPreference) -> str:
    """Return the prompt of a preference example, normalized for letter case and spacing."""
    return _turns_plain(example.prompt)


def _turns_plain(messages: Sequence[Message]) -> str:
    return "\x1e".join(f"{message.role}\x1f{folded(message.said)}" for message in messages)


def parsed(rows: Sequence[Row], parse: Callable[[Row], E]) -> list[E]:
    """Apply `parse` to every row and report the errors of all rows together."""
    examples, errors = [], []
    for row in rows:
        try:
            examples.append(parse(row))
        except DataError as error:
            errors.append(str(error))
    # If every row fails, the columns are wrong; RowError would suggest to drop the rows.
    return examples if not errors else refuse(errors, kind=RowError if examples else DataError)


def need(rows: Sequence[Row], *columns: str) -> None:
    """Raise one DataError for columns that no row has, instead of one error per row."""
    absent = [column for column in columns if column and not has_column(rows, column)]
    if rows and absent:
        refuse([missing_column(rows, column) for column in dict.fromkeys(absent)])


def row_error(row: Row, column: str, must: str) -> DataError:
    """Return an error about the value of a row in a column."""
    value = short(cell(row, column))
    return DataError(f"{row.where}: column {column!r} {must}, got {value}; columns here: {list(row.fields)}")


def text_of(row: Row, column: str) -> str:
    """Return the text of a column, which must not be blank."""
    value = cell(row, column)
    if not isinstance(value, str):
        raise row_error(row, column, "must be text")
    if not value.strip():
        raise DataError(f"{row.where}: column {column!r} is blank; fill it or drop the row")
    return whole(value, f"{row.where}: column {column!r}")


def _optional(row: Row, column: str) -> str:
    """Return the text of a column that may be blank."""
    value = cell(row, column) if column else None
    if isinstance(value, list | dict) and value:
        raise row_error(row, column, "must be one text (join its parts, or set objective.prompt and objective.answer)")
    return "" if is_nothing(value) or (isinstance(value, str) and not value.strip()) else text_of(row, column)


def _labels(row: Row, column: str, separator: str = "") -> tuple[str, ...]:
    value = label_cell(row, column)
    if value is None and PLUS in column and column not in row.fields:
        raise row_error(row, column, "must be 0 or 1 in each of the columns")
    if not separator and is_array(value):
        raise row_error(row, column, "must be a word, or a list of labels separated by commas")
    words = [(as_word(item) or "").strip() for item in label_items(value, separator)]
    if not all(words):
        raise row_error(row, column, "must be a word, a whole number or a list of them (write a fraction as a text)")
    # NFC: macOS writes accents as separate characters, which would make two labels of one.
    words = [unicodedata.normalize("NFC", word) for word in words]
    return tuple(dict.fromkeys(whole(word, f"{row.where}: column {column!r}") for word in words))


def turns_of(row: Row, column: str, role: str) -> list[Message]:
    """Return the turns of a column; a plain text is one turn of the given role."""
    items = turns_in(cell(row, column), f"{row.where}: column {column!r}")
    turns = [turn_of(item, f"{row.where}: {column} turn {number}") for number, item in enumerate(items, 1)]
    return turns or [Message(role, text_of(row, column))]


def asked(row: Row, columns: Mapping[str, str], *, read: Callable[[Row, str, str], list[Message]]) -> list[Message]:
    """Return the history, then the prompt as parsed by `read`.

    Its last turn is the context, the question and the input, with blank lines between them.
    """
    turns = [*_earlier(row, columns.get("history", "")), *read(row, columns["prompt"], "user")]
    before, after = (_optional(row, columns.get(part, "")) for part in ("context", "input"))
    options = choices_of(row, columns["choices"]) if "choices" in columns else {}
    listed_options = "\n".join(f"{key}. {text}" for key, text in options.items())
    content = "\n\n".join(filter(None, (before, turns[-1].content, listed_options, after)))
    return [*turns[:-1], replace(turns[-1], content=content)]


def _choice_answers(row: Row, columns: Mapping[str, str], positions: Positions) -> tuple[str, ...]:
    """Return the accepted answers of a question with choices: the key, which is learned, and the text of the choice."""
    key = named_choice(row, columns["choices"], columns["answer"], positions)
    if not key:
        raise row_error(row, columns["answer"], f"must name one of the choices in {columns['choices']!r}")
    text = choices_of(row, columns["choices"])[key]
    return key, f"{key}. {text}", text


def _context_group(rows: Sequence[Row], column: str) -> str:
    """Return the context column if rows share contexts and there are enough of them to split by; else empty."""
    contexts = {str(cell(row, column)) for row in rows} if column else set()
    return column if FEWEST_CONTEXTS <= len(contexts) < len(rows) else ""


def text_key(text: str) -> str:
    """Return a digest of a text, normalized for letter case and spacing; empty for an empty text."""
    return hashlib.blake2b(folded(text).encode(errors="surrogatepass"), digest_size=8).hexdigest() if text else ""


def _earlier(row: Row, column: str) -> list[Message]:
    """Return the turns of a history column, a list of [question, answer]."""
    value = cell(row, column) if column else None
    exchanges = listed(value)
    pairs = all(isinstance(exchange, list) and len(exchange) == 2 for exchange in exchanges)
    if (value and value != "[]" and not exchanges) or not pairs:
        raise row_error(row, column, "must be a list of [question, answer]")
    roles = ("user", "assistant")
    turns = [{"role": role, "content": text} for pair in exchanges for role, text in zip(roles, pair, strict=True)]
    return [turn_of(turn, f"{row.where}: {column} turn {number}") for number, turn in enumerate(turns, 1)]


def _dialogue(row: Row, column: str) -> list[Message]:
    items = turns_in(cell(row, column), f"{row.where}: column {column!r}")
    if not items:
        raise row_error(row, column, "must be a list of turns")
    turns = [turn_of(item, f"{row.where}: turn {number}") for number, item in enumerate(items, 1)]
    check_order(turns, row.where)
    turns = [separated(turn) for turn in turns]
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant" and (turn.content.strip() or turn.calls)]
    if not answers:
        raise DataError(f"{row.where}: no assistant turn with content; add the answer or drop the row")
    if not any(turns[i].weight for i in answers):
        raise DataError(f"{row.where}: all answers are excluded from training; include one, or drop the row")
    end = answers[-1] + 1
    for number, turn in enumerate(turns[:end], 1):
        if turn.role == "assistant":
            refuse_unlearned(turn, f"{row.where}: turn {number}")
    # Turns after the last answer are not trained on; an empty answer among them is dropped.
    turns = turns[:end] + [turn for turn in turns[end:] if turn.role != "assistant"]
    return turns if turns[0].content.strip() else turns[1:]
