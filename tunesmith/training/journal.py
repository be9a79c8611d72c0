"""The training log of a run, `journal.jsonl`, and other files that grow by a line: one JSON object with a checksum."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.data.files import write_whole, writing
from tunesmith.errors import CheckpointError

T = TypeVar("T")
# Key of a record that a resumed run keeps, whatever step it begins at.
KEPT_KEY = "kept"
# Key of the checksum of the other values, at the end of each line. Lines of earlier versions have none.
SUM_KEY = "crc32"
# Key of the result of a call, in files that keep the results of calls.
CALL_KEY = "call"


class Journal:
    """The records of one run; each is on disk when `write` returns.

    Args:
        path: the file, created by the first record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record."""
        with writing(self.path), self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(_line(record))

    def read(self) -> list[dict[str, Any]]:
        """Return all records but a last one that a crash truncated; raise CheckpointError if a line was changed."""
        return _records(self.path, "step")

    def rewind(self, step: int) -> None:
        """Drop the records after `step`, because a resumed run repeats these steps, but not why it had to resume."""
        kept = [record for record in self.read() if record["step"] <= step or record.get(KEPT_KEY)]
        write_whole(self.path, "".join(map(_line, kept)))


def append_call(path: Path, result: Any) -> None:
    """Append the result of a call, such as 16 texts, to a file that keeps them for a resumed run."""
    with writing(path), path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(_line({CALL_KEY: result}))


def finished_calls(path: Path, shape: type[T]) -> list[T]:
    """Return the results of every call before an interruption, and drop a truncated last line from the file.

    Args:
        path: the file. Lines of earlier versions are results without a key and a checksum.
        shape: type of a result.

    Raises:
        CheckpointError: a line was changed since it was written.
    """
    from pydantic import TypeAdapter, ValidationError

    if not path.exists():
        return []
    records = _records(path, CALL_KEY, bare=True)
    try:
        results = [TypeAdapter(shape).validate_python(record[CALL_KEY]) for record in records]
    except ValidationError:
        raise CheckpointError(f"{path}: changed since it was written; restore it or run again") from None
    write_whole(path, "".join(map(_line, records)))
    return results


def _records(path: Path, key: str, *, bare: bool = False) -> list[dict[str, Any]]:
    """Return all records of a file but a last one that a crash truncated; raise CheckpointError if a line was changed.

    Args:
        path: the file.
        key: a key of each record.
        bare: lines of earlier versions have only the value of `key`.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    *lines, rest = text.split("\n")
    summed = f'"{SUM_KEY}": ' in text  # never within a text, where quotation marks are escaped
    records, decoder = [], json.JSONDecoder()
    for number, line in enumerate(filter(None, (*lines, rest)), 1):
        try:
            record, end = decoder.raw_decode(line)
        except ValueError:
            if line is rest:
                break
            record, end = {}, 0
        if bare and not summed and isinstance(record, list):
            record = {key: record}
        whole = isinstance(record, dict) and (record.pop(SUM_KEY, None) == _sum(record) or not summed) and key in record
        if end < len(line) or not whole:
            raise CheckpointError(f"{path}:{number}: changed since it was written; restore it or run again")
        records.append(record)
    return records


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps({**record, SUM_KEY: _sum(record)}) + "\n"


def _sum(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record).encode())
