"""A reader: the tables `[[rows]]` of a TOML file."""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path


def read_toml(path: Path) -> Iterator[Mapping[str, object]]:
    """Yield the rows of a file, each a mapping of column to value."""
    yield from tomllib.loads(path.read_text(encoding="utf-8")).get("rows", [])
