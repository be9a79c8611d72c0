"""Read the rows of a user's file, each with its location; all errors of a file are reported together.

Reads jsonl, ndjson, json, csv, tsv, parquet, folders of documents, and datasets of the Hugging Face Hub as
`owner/name` or `owner/name:split`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path

from tunesmith.data.files import is_link, is_there, read_json, refuse_utf16
from tunesmith.data.readers.row import Row, _objects, not_utf8, numbered, reason, unreadable
from tunesmith.errors import DataError

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?::([\w.-]+))?")


def read_rows(source: str | Path, *, offline: bool = False) -> list[Row]:
    """Load all rows of a file, a folder of documents or a Hub dataset.

    Args:
        source: path, or `owner/name[:split]` of a Hub dataset.
        offline: do not download datasets.

    Returns:
        At least one row, in file order.

    Raises:
        DataError: if anything cannot be read; one message lists up to 20 errors of the file.
    """
    path = Path(source)
    there = is_there(path)
    if there and path.is_dir():
        from tunesmith.data.readers.document_folder import read_folder

        return read_folder(path)
    if there and path.suffix.lower() not in READERS:
        from tunesmith.data.documents.convert import READERS as DOCUMENTS

        fix = f"give one of {', '.join(READERS)}"
        if path.suffix.lower() in DOCUMENTS:
            fix = f"give the folder of your documents, or the output of `tunesmith collect {path.name}`"
        raise DataError(f"{path.name}: unsupported file type; {fix}")
    rows = READERS[path.suffix.lower()](path) if there else _from_hub(str(source), offline=offline)
    if not rows:
        raise DataError(f"{path.name}: no rows; give a file with at least one")
    return rows


def _from_hub(source: str, *, offline: bool) -> list[Row]:
    """Load a Hub dataset; raise DataError if the name cannot be one."""
    path, dataset = Path(source), HUB_ID.fullmatch(source)
    if not dataset or path.suffix.lower() in READERS or is_there(path.parent):
        raise DataError(f"{source}: no such file; {_nearest_file(path)}")
    if offline:
        raise DataError(
            f"{source}: no such file, and --offline forbids downloading a dataset; omit --offline or give a file"
        )
    from tunesmith.data.readers.parquet_hub import read_hub

    name, split = dataset.groups("train")
    return read_hub(source, str(name), str(split))


def _nearest_file(path: Path) -> str:
    if not (is_there(path.parent) and path.parent.is_dir()):
        return f"the folder {str(path.parent)!r} does not exist either, check the path"
    if is_link(path):
        return f"it is a broken link to {str(path.readlink())!r}"
    nearest = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"give a file that ends in {', '.join(READERS)}"


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    if not data.removeprefix(b"\xef\xbb\xbf").strip():
        raise DataError(f"{path.name}: empty; give a file with at least one row")
    refuse_utf16(data, path.name)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(not_utf8(path.name, line, error.object[error.start])) from error


def _rows_of_lines(text: str, name: str) -> list[Row]:
    # Only "\n" ends a line: str.splitlines would also split at U+2028 inside a text.
    lines = enumerate(text.split("\n"), 1)
    return _objects(((f"{name}:{number}", line) for number, line in lines if line.strip()), read_json)


def _json_lines(path: Path) -> list[Row]:
    return _rows_of_lines(_read_text(path), path.name)


def _json_file(path: Path) -> list[Row]:
    text, name = _read_text(path), path.name
    fix = 'give an array of objects, {"data": [...]}, or one object per line'
    try:
        value = read_json(text)
    except (ValueError, RecursionError) as error:
        if _first_line_is_object(text):
            return _rows_of_lines(text, name)
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise DataError(f"{name}:{line}: invalid JSON ({reason(error)}); {fix}") from error
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if isinstance(value, list):
        return numbered(value, name)
    if _first_line_is_object(text) and not any(map(_is_rows, value.values())):
        return _rows_of_lines(text, name)
    keys = f" with the keys {list(value)}" if isinstance(value, dict) else ""
    raise DataError(f"{name}: expected rows, got one JSON {type(value).__name__}{keys}; {fix}")


def _is_rows(value: object) -> bool:
    """Return whether the value is, or contains, a list of rows; chat turns, which have a role, are not rows."""
    if isinstance(value, dict):
        return any(map(_is_rows, value.values()))
    return isinstance(value, list) and any(isinstance(one, dict) and not {"role", "from"} & one.keys() for one in value)


def _first_line_is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text.lstrip().partition("\n")[0]), dict)
    except (ValueError, RecursionError):
        return False


def _separated(path: Path) -> list[Row]:
    from tunesmith.data.readers.csv_tsv import read_separated

    return list(read_separated(path))


def _parquet(path: Path) -> list[Row]:
    from tunesmith.data.readers.parquet_hub import read_parquet

    return read_parquet(path)


READERS: Mapping[str, Callable[[Path], list[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_file,
    ".csv": _separated,
    ".tsv": _separated,
    ".parquet": _parquet,
}
