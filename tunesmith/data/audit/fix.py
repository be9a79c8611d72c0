"""Write a cleaned copy of a file, and a log with one line per changed or dropped row."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from tunesmith.data.audit.checks.mojibake import damage, repaired, repairs
from tunesmith.data.audit.checks.secrets import masked, masks
from tunesmith.data.audit.chunks import chunks, name_of, parsed
from tunesmith.data.audit.edits import Edit, moved
from tunesmith.data.audit.options import AuditSource
from tunesmith.data.audit.run import Fixes
from tunesmith.data.examples.spans import tagged
from tunesmith.data.files import check_folder, move, writing
from tunesmith.data.readers.row import Row, as_word, changed_at
from tunesmith.data.schema.cells import names_in
from tunesmith.data.schema.values import label_items, listed
from tunesmith.errors import DataError

# Keys of a turn that contain text.
SAYING = ("content", "value", "tool_calls", "function_call", "function")
JSON_LINES, TABLES = (".jsonl", ".ndjson"), {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, slots=True)
class CleanedCopy:
    """The files written and the number of rows."""

    out: Path  # the cleaned copy
    log: Path  # its log
    kept: int  # rows in the copy, changed ones included
    changed: int  # rows changed
    dropped: int  # rows dropped


def log_of(out: Path) -> Path:
    """Return the path of the log of a cleaned copy."""
    return out.with_name(f"{out.name}.log.jsonl")


def check_out(out: Path) -> None:
    """Raise DataError if the copy cannot be written: an unsupported type, an existing file, or a missing folder."""
    if out.suffix.lower() not in (*JSON_LINES, *TABLES):
        raise DataError(f"{out}: unsupported file type; use .jsonl, .csv or .tsv")
    for path in (out, log_of(out)):
        if path.exists():
            raise DataError(f"{path}: exists and is not overwritten; give --fix another name, or delete it")
    check_folder(out)


def fix(ask: AuditSource, fixes: Fixes, out: Path, *, offline: bool = False) -> CleanedCopy:
    """Write the cleaned copy and its log. The source is not changed.

    Args:
        ask: the audited file.
        fixes: rows to drop and label spellings, from `audit`.
        out: path of the copy; its suffix decides the format.
        offline: do not download datasets.

    Raises:
        DataError: if a file cannot be written or no row would be kept.
    """
    check_out(out)
    files = (log_of(out), out)  # the copy last: there is none without its log, even after a kill
    halves = [path.with_name(path.name + ".half") for path in files]
    try:
        with writing(out):
            counts = _write(ask, fixes, halves, out.suffix.lower(), offline=offline)
        if not counts["kept"]:
            why = next(iter(fixes.dropped.values()), ("", "no row can be read"))[1]
            problem = f"the copy would contain none of {counts['dropped']} rows ({why})"
            raise DataError(f"{ask.source}: {problem}; check the columns: {ask.shape}")
    except BaseException:
        for half in halves:
            with suppress(OSError):
                half.unlink()
        raise
    for half, path in zip(halves, files, strict=True):
        move(half, path)
    return CleanedCopy(out, log_of(out), **counts)


def _write(ask: AuditSource, fixes: Fixes, halves: Sequence[Path], suffix: str, *, offline: bool) -> dict[str, int]:
    """Write the copy and its log; return the number of rows kept, changed and dropped."""
    name, counts = name_of(ask.source), {"kept": 0, "changed": 0, "dropped": 0}
    with ExitStack() as stack:
        log, copy = (stack.enter_context(_open(half)) for half in halves)
        write = _writer(copy, suffix)
        for chunk in chunks(ask.source, offline=offline):
            for line, raw in zip(chunk.lines, chunk.rows, strict=True):
                before = parsed(raw)
                where = f"{name}:{line}"
                if line in fixes.dropped or isinstance(before, str):
                    kind, why = fixes.dropped.get(line, ("unreadable", str(before)))
                    _log(log, {"where": where, "action": "dropped", "kind": kind, "why": why})
                    counts["dropped"] += 1
                    continue
                after, changes = _cured(before, ask, fixes.labels)
                if changes and (why := _misplaced(Row(where, after), ask.columns)):
                    _log(log, {"where": where, "action": "dropped", "kind": "unreadable", "why": why})
                    counts["dropped"] += 1
                    continue
                for change in changes:
                    _log(log, {"where": where, "action": "changed", "row": counts["kept"] + 1, **change})
                counts["changed"] += bool(changes)
                counts["kept"] += 1
                write(where, after)
    return counts


def _open(path: Path) -> TextIO:
    # A column that runs do not read may contain a lone surrogate, which UTF-8 cannot encode: write its JSON escape.
    return path.open("w", encoding="utf-8", errors="backslashreplace", newline="")


def _cured(
    fields: Mapping[str, object], ask: AuditSource, labels: Mapping[str, str]
) -> tuple[dict[str, object], list[dict[str, object]]]:
    """Return the row with repaired and masked texts and the common label spelling, and the list of changes."""
    after, changes = dict(fields), list[dict[str, object]]()
    cells = [(part, name) for part, column in ask.columns.items() for name in names_in(column, fields)]
    for part, column in cells:
        if part == "label":
            spelt = _spelt(fields[column], labels, ask.separator)
            after = changed_at(after, column, lambda value: _spelt(value, labels, ask.separator))
            if spelt != fields[column]:
                values = {"before": fields[column], "after": spelt}
                changes.append({"kind": "label_variant", "column": column, **values})
            continue
        if part == "spans":
            continue  # moved with the text
        texts: list[dict[str, object]] = []
        change = partial(_text, changes=texts)
        after = changed_at(after, column, partial(_texts, change=change))
        changes += [{**change, "column": column} for change in texts]
    text = fields.get(ask.columns.get("text", ""))
    if changes and "spans" in ask.columns and isinstance(text, str):
        move = partial(_moved, passes=_edits(text), text=_text(text, []))
        after = changed_at(after, ask.columns["spans"], move)
    return after, changes


def _edits(text: str) -> list[list[Edit]]:
    """Return the replacements of `_text`, pass by pass."""
    if not damage(text):
        return [masks(text)]
    return [*repairs(text), masks(repaired(text))]


def _moved(value: object, passes: Sequence[Sequence[Edit]], text: str) -> object:
    """Return a cell with spans at their places in the text after replacements, with the parts of it that they copy."""
    if isinstance(value, str):
        return json.dumps(_moved(spans, passes, text), ensure_ascii=False) if (spans := listed(value)) else value
    if isinstance(value, list | tuple):
        if len(value) == 3 and [*map(type, value[:2])] == [int, int]:
            return [*moved(value[0], value[1], passes), value[2]]
        return [_moved(item, passes, text) for item in value]
    if not isinstance(value, dict):
        return value
    if type(value.get("start")) is int and type(value.get("end")) is int:
        start, end = moved(value["start"], value["end"], passes)
        copied = {"text": text[start:end]} if isinstance(value.get("text"), str) else {}
        return {**value, "start": start, "end": end, **copied}
    inner = ("result", "value")  # of an annotation of Label Studio, and of its result
    return {key: _moved(item, passes, text) if key in inner else item for key, item in value.items()}


def _misplaced(row: Row, columns: Mapping[str, str]) -> str:
    """Return why the spans of a changed row do not fit its text; empty if they do, or it has none."""
    if "spans" not in columns:
        return ""
    if columns["text"] not in row.fields:
        return "its spans count characters of several columns, and one was repaired or masked"
    try:
        tagged([row], columns=columns)
    except DataError as error:
        return f"after repair or masking, {str(error).removeprefix(f'{row.where}: ')}"
    return ""


def _text(text: str, changes: list[dict[str, object]]) -> str:
    """Return a text repaired and masked; append the changes, without the masked content."""
    if damage(text):
        repaired_text = repaired(text)
        if repaired_text != text:
            changes.append({"kind": "encoding_damage", "before": masked(text)[0], "after": masked(repaired_text)[0]})
        text = repaired_text
    hidden, words = masked(text)
    for kind in ("secret", "personal_data"):
        if labels := [word for word in words if (word == "secret") == (kind == "secret")]:
            changes.append({"kind": kind, "masked": labels})
    return hidden


def _texts(value: Any, change: Callable[[str], str]) -> Any:
    """Apply `change` to every text of a value, in turns and tool calls too; roles and names are unchanged."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_texts(item, change) for item in value]
    if isinstance(value, dict):
        keys = (*SAYING, "text") if value.get("type") == "text" else SAYING
        handlers = {"arguments": _arguments, **dict.fromkeys(keys, _texts)}
        return {key: handlers[key](item, change) if key in handlers else item for key, item in value.items()}
    return value


def _arguments(value: Any, change: Callable[[str], str]) -> Any:
    """Apply `change` to every text of a call's arguments; JSON inside a text stays JSON."""
    if isinstance(value, dict):
        return {key: _arguments(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_arguments(item, change) for item in value]
    if not isinstance(value, str):
        return value
    try:
        parsed_value = json.loads(value)
    except ValueError:
        return change(value)
    after = _arguments(parsed_value, change) if isinstance(parsed_value, dict | list) else parsed_value
    return value if after == parsed_value else json.dumps(after, ensure_ascii=False)


def _spelt(value: object, labels: Mapping[str, str], separator: str = "") -> object:
    """Return the label, or list of labels, in the common spelling."""
    if separator and isinstance(value, str):
        parts = label_items(value, separator)
        common = list(dict.fromkeys(labels.get(part, part) for part in parts))
        spaced = f"{separator} " if f"{separator} " in value else separator
        return value if common == parts else spaced.join(common)
    if isinstance(value, list):
        return list(dict.fromkeys(_spelt(item, labels) for item in value))
    if (items := label_items(value)) != [value]:  # a list in a table cell is text
        corrected = _spelt(items, labels)
        return value if corrected == items else json.dumps(corrected, ensure_ascii=False)
    return labels.get((as_word(value) or "").strip(), value)


def _writer(file: TextIO | TextIOWrapper, suffix: str) -> Callable[[str, Mapping[str, object]], None]:
    """Return a function that writes a row: as JSON lines, or to a table with the columns of the first row."""
    if suffix in JSON_LINES:
        return lambda where, row: _log(file, row)
    # The csv module quotes cells with a carriage return only if it is part of the line terminator.
    table = csv.writer(file, delimiter=TABLES[suffix], lineterminator="\r\n")
    header: list[str] = []

    def write(where: str, row: Mapping[str, object]) -> None:
        if not header:
            header.extend(row)
            table.writerow(header)
        if extra := sorted(set(row) - set(header)):
            raise DataError(
                f"{where}: columns {extra} are missing in the first row; write the copy as .jsonl, not {suffix}"
            )
        if nested := [column for column in header if isinstance(row.get(column), list | dict)]:
            raise DataError(f"{where}: column {nested[0]!r} contains a list; write the copy as .jsonl, not {suffix}")
        table.writerow([row.get(column, "") for column in header])

    return write


def _log(file: TextIO | TextIOWrapper, line: Mapping[str, object]) -> None:
    file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
