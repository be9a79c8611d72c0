"""A run's metrics as JSON lines; the console, the report and the trackers are readers of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.data.files import write_whole


class Journal:
    """Append-only records of one run, each on disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one record."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All records; a line that a crash cut short is left out."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        return records

    def rewind(self, step: int) -> None:
        """Forget what was recorded after `step`, because it is about to happen again."""
        kept = [record for record in self.read() if record["step"] <= step]
        write_whole(self.path, "".join(json.dumps(record) + "\n" for record in kept))
