"""A cleaned copy of a file, and a log with one line for every row that was changed or dropped."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from tunesmith.data.audit.ask import AuditSource
from tunesmith.data.audit.damage import damage, repaired
from tunesmith.data.audit.mask import masked
from tunesmith.data.audit.run import Cures
from tunesmith.data.audit.stream import chunks, name_of, parsed
from tunesmith.data.files import check_folder, writing
from tunesmith.data.kinds import label_items
from tunesmith.data.rows import as_word
from tunesmith.errors import DataError

# Keys of a turn under which something is said.
SAYING = ("content", "value", "tool_calls", "function_call", "function")
JSON_LINES, TABLES = (".jsonl", ".ndjson"), {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, slots=True)
class CleanedCopy:
    """Where the copy and its log lie, and how many rows were kept, changed (and kept) and dropped."""

    out: Path
    log: Path
    kept: int
    changed: int
    dropped: int


def log_of(out: Path) -> Path:
    """The log beside a cleaned copy."""
    return out.with_name(f"{out.name}.log.jsonl")


def check_out(out: Path) -> None:
    """Nothing for a place that the copy can be written to. Raises DataError."""
    if out.suffix.lower() not in (*JSON_LINES, *TABLES):
        raise DataError(f"{out}: cannot write this kind of file; name it .jsonl, .csv or .tsv")
    for path in (out, log_of(out)):
        if path.exists():
            raise DataError(f"{path}: exists and is left as it is; give --fix another name, or delete it")
    check_folder(out)


def fix(ask: AuditSource, cures: Cures, out: Path, *, offline: bool = False) -> CleanedCopy:
    """Write the cleaned copy and its log. The file itself is not touched. Raises DataError."""
    check_out(out)
    halves = [path.with_name(path.name + ".half") for path in (out, log_of(out))]
    try:
        with writing(out):
            counts = _write(ask, cures, halves, out.suffix.lower(), offline=offline)
        if not counts["kept"]:
            why = next(iter(cures.dropped.values()), ("", "none can be read"))[1]
            finding = f"none of {counts['dropped']} rows would be left in the copy ({why})"
            raise DataError(f"{ask.source}: {finding}; name the columns that are meant: {ask.shape}")
    except BaseException:
        for half in halves:
            with suppress(OSError):
                half.unlink()
        raise
    for half, path in zip(halves, (out, log_of(out)), strict=True):
        half.replace(path)
    return CleanedCopy(out, log_of(out), **counts)


def _write(ask: AuditSource, cures: Cures, halves: Sequence[Path], suffix: str, *, offline: bool) -> dict[str, int]:
    """Write the copy and its log; how many rows were kept, changed and dropped comes back."""
    name, counts = name_of(ask.source), {"kept": 0, "changed": 0, "dropped": 0}
    with ExitStack() as stack:
        files = [stack.enter_context(_open(half)) for half in halves]
        write = _writer(files[0], suffix)
        for chunk in chunks(ask.source, offline=offline):
            for line, raw in zip(chunk.lines, chunk.rows, strict=True):
                before = parsed(raw)
                where = f"{name}:{line}"
                if line in cures.dropped or isinstance(before, str):
                    kind, why = cures.dropped.get(line, ("unreadable", str(before)))
                    _log(files[1], {"where": where, "action": "dropped", "kind": kind, "why": why})
                    counts["dropped"] += 1
                    continue
                after, changes = _cured(before, ask.columns, cures.labels)
                for change in changes:
                    _log(files[1], {"where": where, "action": "changed", **change})
                counts["changed"] += bool(changes)
                counts["kept"] += 1
                write(where, after)
    return counts


def _open(path: Path) -> TextIO:
    # UTF-8 has no bytes for half a surrogate pair in a column that no run reads: JSON's word for it, in a table too.
    return path.open("w", encoding="utf-8", errors="backslashreplace", newline="")


def _cured(
    fields: Mapping[str, object], columns: Mapping[str, str], labels: Mapping[str, str]
) -> tuple[dict[str, object], list[dict[str, object]]]:
    """The row with its texts repaired and masked and its label spelt as most are, and what was changed."""
    after, changes = dict(fields), list[dict[str, object]]()
    for part, column in columns.items():
        if column not in fields:
            continue
        if part == "label":
            after[column] = _spelt(fields[column], labels)
            if after[column] != fields[column]:
                said = {"before": fields[column], "after": after[column]}
                changes.append({"kind": "label_variant", "column": column, **said})
            continue
        found: list[dict[str, object]] = []
        after[column] = _texts(fields[column], lambda text, found=found: _text(text, found))  # type: ignore[misc]
        changes += [{**change, "column": column} for change in found]
    return after, changes


def _text(text: str, found: list[dict[str, object]]) -> str:
    """A text repaired and masked; what was masked is not told on."""
    if damage(text):
        sound = repaired(text)
        if sound != text:
            found.append({"kind": "encoding_damage", "before": masked(text)[0], "after": masked(sound)[0]})
        text = sound
    hidden, words = masked(text)
    for kind in ("secret", "personal_data"):
        if mine := [word for word in words if (word == "secret") == (kind == "secret")]:
            found.append({"kind": kind, "masked": mine})
    return hidden


def _texts(value: Any, change: Callable[[str], str]) -> Any:
    """The value with every text in it changed, in turns and in what they call too; roles and names stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_texts(item, change) for item in value]
    if isinstance(value, dict):
        saying = (*SAYING, "text") if value.get("type") == "text" else SAYING
        known = {"arguments": _arguments, **dict.fromkeys(saying, _texts)}
        return {key: known[key](item, change) if key in known else item for key, item in value.items()}
    return value


def _arguments(value: Any, change: Callable[[str], str]) -> Any:
    """What a call hands over, each text in it changed; JSON in a text stays JSON."""
    if isinstance(value, dict):
        return {key: _arguments(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_arguments(item, change) for item in value]
    if not isinstance(value, str):
        return value
    try:
        read = json.loads(value)
    except ValueError:
        return change(value)
    after = _arguments(read, change) if isinstance(read, dict | list) else read
    return value if after == read else json.dumps(after, ensure_ascii=False)


def _spelt(value: object, labels: Mapping[str, str]) -> object:
    if isinstance(value, list):
        return list(dict.fromkeys(_spelt(item, labels) for item in value))
    if (items := label_items(value)) != [value]:  # a list in a table is a text
        spelt = _spelt(items, labels)
        return value if spelt == items else json.dumps(spelt, ensure_ascii=False)
    return labels.get((as_word(value) or "").strip(), value)


def _writer(file: TextIO | TextIOWrapper, suffix: str) -> Callable[[str, Mapping[str, object]], None]:
    """What writes a row and its place to the copy: JSON lines, or a table whose header is the first row's columns."""
    if suffix in JSON_LINES:
        return lambda where, row: _log(file, row)
    # A cell with a carriage return is quoted only where that may end a line.
    table = csv.writer(file, delimiter=TABLES[suffix], lineterminator="\r\n")
    header: list[str] = []

    def write(where: str, row: Mapping[str, object]) -> None:
        if not header:
            header.extend(row)
            table.writerow(header)
        if more := sorted(set(row) - set(header)):
            raise DataError(f"{where}: columns {more} that the first row lacks; name the copy .jsonl, not {suffix}")
        if nested := [column for column in header if isinstance(row.get(column), list | dict)]:
            raise DataError(
                f"{where}: column {nested[0]!r} holds a list, no table can; name the copy .jsonl, not {suffix}"
            )
        table.writerow([row.get(column, "") for column in header])

    return write


def _log(file: TextIO | TextIOWrapper, line: Mapping[str, object]) -> None:
    file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
