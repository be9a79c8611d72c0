"""Rows of columnar formats: Parquet files and datasets of the Hugging Face Hub."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from tunesmith.data.files import quoted
from tunesmith.data.readers.row import Row, numbered, reason
from tunesmith.errors import DataError

ROWS_AT_ONCE = 10_000


def read_parquet(path: Path, start: int = 0) -> Iterator[Row]:
    """Yield the rows of a Parquet file from a row on, a batch at a time. Raise DataError if it is not one."""
    return numbered(map(_widened, _batches(path, start)), path.name, start + 1)


def parquet_rows(path: Path) -> int:
    """Return the number of rows of a Parquet file that `read_parquet` has opened."""
    return int(_library("pyarrow.parquet", path.name).read_metadata(str(path)).num_rows)


def _batches(path: Path, start: int) -> Iterator[dict[str, object]]:
    arrow, parquet = _library("pyarrow", path.name), _library("pyarrow.parquet", path.name)
    try:
        with parquet.ParquetFile(str(path)) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE):
                yield from batch.slice(min(start, batch.num_rows)).to_pylist()
                start = max(0, start - batch.num_rows)
    except OverflowError as error:
        raise DataError(
            f"{path.name}: date after the year 9999 ({reason(error)}); store this column as text"
        ) from error
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path.name}: invalid Parquet file ({reason(error)}); convert it to jsonl") from error


def _widened(fields: Mapping[str, object]) -> dict[str, object]:
    """Return fields as jsonl would have them: texts stored as bytes are decoded.

    Nested objects lose the keys without a value that a columnar format adds to give all of them the same keys.
    """
    return {column: _filled(value) for column, value in fields.items()}


def _filled(value: object) -> object:
    if isinstance(value, dict):
        return {key: _filled(item) for key, item in value.items() if item is not None}
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return value.decode()
    return [_filled(item) for item in value] if isinstance(value, list) else value


def read_hub(source: str, name: str, split: str) -> list[Row]:
    """Load one split of a Hub dataset from the cache or the network. Raise DataError if it is unavailable."""
    hub = _library("datasets", source)
    # Before version 4, `datasets` could execute a script from the dataset repository.
    if int(hub.__version__.partition(".")[0]) < 4:
        raise DataError(
            f"{source}: this version of 'datasets' can run remote code; pip install {quoted('datasets>=4.7')}"
        )
    try:
        # The split is part of the location, so that rows of two splits have different ones.
        return list(numbered(_named(hub.load_dataset(name, split=split), hub), source))
    except (hub.exceptions.DatasetsError, OSError, ValueError) as error:
        fix = f"check the name and the network, or write '{name}:SPLIT'"
        raise DataError(f"{name}: cannot load the {split!r} split ({reason(error)}); {fix}") from error


def _named(rows: Any, hub: ModuleType) -> Iterator[dict[str, object]]:
    """Yield rows with class names in place of class indices; -1 means no label."""
    features = rows.features.items()
    names = {column: feature.names for column, feature in features if isinstance(feature, hub.ClassLabel)}
    items = {column: feature.feature for column, feature in features if isinstance(feature, hub.List)}
    list_names = {column: item.names for column, item in items.items() if isinstance(item, hub.ClassLabel)}
    for fields in rows:
        labels = {column: known[fields[column]] for column, known in names.items() if fields[column] not in (None, -1)}
        lists = {
            column: [known[index] for index in fields[column] if index not in (None, -1)]
            for column, known in list_names.items()
            if fields[column] is not None
        }
        yield {**_widened(fields), **dict.fromkeys(names), **labels, **lists}


def _library(name: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        library = name.partition(".")[0]
        raise DataError(f"{where}: requires {library!r}; pip install {library}, or give a jsonl file") from error
