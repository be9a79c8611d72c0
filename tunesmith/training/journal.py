"""The training log of a run, `journal.jsonl`, and other files that grow by a line: one JSON object with a checksum."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.data.files import write_whole, writing
from tunesmith.data.record_lines import line_of, records_of
from tunesmith.errors import CheckpointError

T = TypeVar("T")
# Key of a record that a resumed run keeps, whatever step it begins at.
KEPT_KEY = "kept"
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
            file.write(line_of(record))

    def read(self) -> list[dict[str, Any]]:
        """Return all records but a last one that a crash truncated; raise CheckpointError if a line was changed."""
        return records_of(self.path, "step")

    def rewind(self, step: int) -> None:
        """Drop the records after `step`, because a resumed run repeats these steps, but not why it had to resume."""
        kept = [record for record in self.read() if record["step"] <= step or record.get(KEPT_KEY)]
        write_whole(self.path, "".join(map(line_of, kept)))


def append_call(path: Path, result: Any) -> None:
    """Append the result of a call, such as 16 texts, to a file that keeps them for a resumed run."""
    with writing(path), path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(line_of({CALL_KEY: result}))


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
    records = records_of(path, CALL_KEY, bare=True)
    try:
        results = [TypeAdapter(shape).validate_python(record[CALL_KEY]) for record in records]
    except ValidationError:
        raise CheckpointError(f"{path}: changed since it was written; restore it or run again") from None
    write_whole(path, "".join(map(line_of, records)))
    return results
