"""Files that grow by a line: one JSON object with a checksum in each."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import CheckpointError

# Key of the checksum of the other values, at the end of each line. Lines of earlier versions have none.
SUM_KEY = "crc32"


def records_of(path: Path, key: str, *, bare: bool = False) -> list[dict[str, Any]]:
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


def line_of(record: Mapping[str, Any]) -> str:
    """Return a record as a line with its checksum."""
    return json.dumps({**record, SUM_KEY: _sum(record)}) + "\n"


def _sum(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record).encode())
