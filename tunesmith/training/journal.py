"""The training log of a run, `journal.jsonl`: one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tunesmith.data.files import write_whole, writing

# Key of a record that a resumed run keeps, whatever step it begins at.
KEPT_KEY = "kept"


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
            file.write(json.dumps(record) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Return all records; a line that a crash truncated or the disk damaged is skipped."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_bytes().splitlines():
            with suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and "step" in record:
                    records.append(record)
        return records

    def rewind(self, step: int) -> None:
        """Drop the records after `step`, because a resumed run repeats these steps, but not why it had to resume."""
        kept = [record for record in self.read() if record["step"] <= step or record.get(KEPT_KEY)]
        write_whole(self.path, "".join(json.dumps(record) + "\n" for record in kept))
