"""Rows kept by columns and types: Parquet files, and data sets of the Hub."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tunesmith.data.rows import Row, numbered, reason
from tunesmith.errors import DataError


def read_parquet(path: Path) -> list[Row]:
    """Every row of a Parquet file. Raises DataError for what is none."""
    arrow, parquet = _library("pyarrow", path.name), _library("pyarrow.parquet", path.name)
    try:
        values = parquet.read_table(str(path)).to_pylist()
    except OverflowError as error:
        raise DataError(
            f"{path.name}: a date beyond the year 9999 ({reason(error)}); write its column as text"
        ) from error
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path.name}: not Parquet ({reason(error)}); write it as jsonl") from error
    return numbered(map(_widened, values), path.name)


def _widened(fields: Mapping[str, object]) -> dict[str, object]:
    """A row of a table that gives every object inside a cell the keys of all others: those without a value go."""
    return {column: _filled(value) for column, value in fields.items()}


def _filled(value: object) -> object:
    if isinstance(value, dict):
        return {key: _filled(item) for key, item in value.items() if item is not None}
    return [_filled(item) for item in value] if isinstance(value, list) else value


def read_hub(source: str, name: str, split: str) -> list[Row]:
    """Every row of a split of a data set, which the library fetches or has. Raises DataError where it has none."""
    hub = _library("datasets", source)
    # Before version 4 the library could run a script that came with the data.
    if int(hub.__version__.partition(".")[0]) < 4:
        raise DataError(f"{source}: this 'datasets' may run remote code; pip install 'datasets>=4.7'")
    try:
        # The split is part of the place: rows of two splits are told apart by it.
        return numbered(_named(hub.load_dataset(name, split=split), hub), source)
    except (hub.exceptions.DatasetsError, OSError, ValueError) as error:
        cure = f"check the name and the network, or write '{name}:SPLIT'"
        raise DataError(f"{name}: cannot get its {split!r} split ({reason(error)}); {cure}") from error


def _named(rows: Any, hub: ModuleType) -> Iterator[dict[str, object]]:
    """Rows of the Hub with the names of their classes, which are kept as numbers; -1 stands for none."""
    kinds = rows.features.items()
    names = {column: kind.names for column, kind in kinds if isinstance(kind, hub.ClassLabel)}
    inner = {column: kind.feature for column, kind in kinds if isinstance(kind, hub.List)}
    several = {column: kind.names for column, kind in inner.items() if isinstance(kind, hub.ClassLabel)}
    for fields in rows:
        known = {column: listed[fields[column]] for column, listed in names.items() if fields[column] not in (None, -1)}
        lists = {column: fields[column] for column in several if fields[column] is not None}
        found = {
            column: [several[column][one] for one in items if one not in (None, -1)] for column, items in lists.items()
        }
        yield {**_widened(fields), **dict.fromkeys(names), **known, **found}


def _library(name: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        library = name.partition(".")[0]
        raise DataError(f"{where}: needs {library!r}; pip install {library}, or give a jsonl file") from error
