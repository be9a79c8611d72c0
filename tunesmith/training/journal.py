"""The training log of a run, `journal.jsonl`: one JSON object per line."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.data.files import write_whole, writing
from tunesmith.errors import CheckpointError

# Key of a record that a resumed run keeps, whatever step it begins at.
KEPT_KEY = "kept"
# Key of the checksum of the other values, at the end of each line. Lines of earlier versions have none.
SUM_KEY = "crc32"


class Journal:
    """The records of one run; each is on disk when `write` returns.

    Args:
        path: the file, created by the first record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record."""
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(_line(record))

    def read(self) -> list[dict[str, Any]]:
        """Return all records but a last one that a crash truncated; raise CheckpointError if a line was changed."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        *lines, rest = text.split("\n")
        summed = SUM_KEY in text
        records, decoder = [], json.JSONDecoder()
        for number, line in enumerate(filter(None, (*lines, rest)), 1):
            try:
                record, end = decoder.raw_decode(line)
            except ValueError:
                if line is rest:
                    break
                record, end = {}, 0
            whole = (
                isinstance(record, dict)
                and (record.pop(SUM_KEY, None) == _sum(record) or not summed)
                and "step" in record
            )
            if end < len(line) or not whole:
                raise CheckpointError(f"{self.path}:{number}: changed since it was written; restore it or run again")
            records.append(record)
        return records

    def rewind(self, step: int) -> None:
        """Drop the records after `step`, because a resumed run repeats these steps, but not why it had to resume."""
        kept = [record for record in self.read() if record["step"] <= step or record.get(KEPT_KEY)]
        write_whole(self.path, "".join(map(_line, kept)))


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps({**record, SUM_KEY: _sum(record)}) + "\n"


def _sum(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record).encode())
