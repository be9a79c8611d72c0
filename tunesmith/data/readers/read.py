"""Read the rows of a user's file, each with its location; all errors of a file are reported together.

Reads jsonl, ndjson, json, csv, tsv, txt, log, xlsx and parquet, text files packed as gz or zip, folders of documents,
and datasets of the Hugging Face Hub as `owner/name` or `owner/name:split`. `FILE#PART` names a sheet of a workbook, a
key of a JSON document, or a file in a zip archive.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.data.files import is_link, is_there, quoted
from tunesmith.data.readers.csv_tsv import dialect_of, read_separated
from tunesmith.data.readers.json_rows import json_document, json_lines
from tunesmith.data.readers.parquet_hub import parquet_rows
from tunesmith.data.readers.row import Row, allowed_values, has_allowed, keep, numbered
from tunesmith.data.readers.text_file import PACKED, FileSource, TextFile, locate, open_text
from tunesmith.data.readers.text_lines import log_rows, text_rows
from tunesmith.data.remote import remote_url
from tunesmith.errors import DataError, first_names, nearest_name
from tunesmith.plugins import plugin

DATASET = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?::([\w.-]+))?")
LINES = (".jsonl", ".ndjson")
ARRAY = re.compile(rb"\[\s*(\{|$)")  # the start of an array of objects
TABLES = (".csv", ".tsv")
TEXTS = (*LINES, *TABLES, ".json", ".txt", ".log")
BOOKS = (".xlsx", ".xlsm")
# Extensions of files with rows.
READERS = (*LINES, ".json", *TABLES, ".txt", ".log", *BOOKS, ".parquet")
LISTED = 5  # files of a folder in a message
# Kinds whose rows can be read one by one, and the size of a file from which they are. In memory, its rows, examples and
# tokens would take more than ten times as much.
STREAMED = (*LINES, *TABLES, ".parquet")
LARGE_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class RowFile:
    """The rows of a source, and how it was read.

    Attributes:
        rows: at least one row, in file order.
        notes: one line per fact that a user should check, such as an encoding or a sheet; empty for a plain file.
    """

    rows: list[Row]
    notes: tuple[str, ...] = ()


def read_rows(source: str | Path, *, offline: bool = False) -> list[Row]:
    """Load all rows of a file, a folder of documents or a Hub dataset.

    Args:
        source: path, `FILE#PART`, or `owner/name[:split]` of a Hub dataset.
        offline: do not download datasets.

    Returns:
        At least one row, in file order.

    Raises:
        DataError: if anything cannot be read; one message lists up to 20 errors of the file.
    """
    return read_file(source, offline=offline).rows


def read_file(source: str | Path, *, offline: bool = False) -> RowFile:
    """Load all rows of a source as `read_rows` does, with notes on how it was read."""
    path = Path(source)
    if is_there(path) and path.is_dir():
        return _folder(path)
    if (file := locate(source)) is None:
        return RowFile(_from_hub(str(source), offline=offline))
    stream, note = _read(check_kind(file))
    if not (rows := list(stream)):
        raise DataError(f"{source}: no rows; give a file with at least one")
    return RowFile(rows, _noted(file, note))


def large_file(source: str | Path) -> bool:
    """Return whether a source is a file that is read row by row, and kept in files instead of memory."""
    file = locate(source)
    return file is not None and file.kind in STREAMED and file.path.stat().st_size >= LARGE_BYTES


class RowStream:
    """The rows of a file with some values (see `keep`), read from its start whenever they are iterated.

    A file for which `large_file` is false is read at once. `notes` are those of `RowFile`.
    """

    def __init__(self, source: str | Path, where: Mapping[str, Sequence[object]]) -> None:
        file = locate(source)
        assert file is not None
        self._file = check_kind(file)
        self._where = allowed_values(where)
        self.notes = _noted(file, _read(file)[1])
        if next(iter(self), None) is None:
            keep(read_rows(source), where)  # raises the error

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows with the allowed values."""
        return (row for row in _read(self._file)[0] if has_allowed(row.fields, self._where))

    def about(self) -> int:
        """Return the number of lines of the file, for progress; of a Parquet file the number of rows."""
        if self._file.kind == ".parquet":
            return parquet_rows(self._file.path)
        with open_text(self._file).open_bytes() as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))


def _noted(file: FileSource, note: str) -> tuple[str, ...]:
    return (f"{file.path.name}: {note}",) if note else ()


def notes_of(source: str | Path) -> tuple[str, ...]:
    """Return the notes of `read_file` on a source; tables and JSON lines are not read for them.

    Args:
        source: source of rows.
    """
    if (file := locate(source)) is None or file.kind == ".parquet":
        return ()
    if check_kind(file).kind in (*LINES, *TABLES):
        text = open_text(file)
        note = _joined(text, dialect_of(text, file.kind).note if file.kind in TABLES else "")
        return _noted(file, note)
    return read_file(source).notes


def check_kind(file: FileSource) -> FileSource:
    """Return the file if its type is supported; raise DataError with the fix otherwise.

    Its kind is `.json` if a file named as JSON lines contains one array.
    """
    packed = file.path.suffix.lower() in PACKED
    if file.kind in LINES and _is_array(file):
        return replace(file, kind=".json")
    if file.kind in (TEXTS if packed else READERS) or (not packed and plugin("readers", file.kind[1:])):
        return file
    from tunesmith.data.documents.convert import READERS as DOCUMENTS

    path = file.path
    fix = f"give one of {', '.join(READERS)}"
    if path.suffix.lower() in DOCUMENTS:
        out = quoted(f"{path.stem}.jsonl")
        fix = f"convert it: `tunesmith collect {quoted(path)} --as domain --out {out}`, or give a folder of documents"
    elif file.kind == ".xls":
        fix = "open it and save it as .xlsx or .csv"
    raise DataError(f"{path}: unsupported file type; {fix}")


def _is_array(file: FileSource) -> bool:
    """Return whether a file begins with an array of objects that continues in the next line, or is its only line."""
    text = TextFile(file.path, file.name)  # of UTF-8, so that a large file is not read to its end
    with text.open_bytes() as opened:
        if file.path.suffix.lower() in PACKED or b"\0" in opened.read(4):
            text = open_text(file)
    with text.open_bytes() as opened:
        lines = (line.strip() for line in opened)
        first = next(filter(None, lines), b"")
        return bool(ARRAY.match(first)) and (not first.endswith(b"]") or not any(lines))


def _read(file: FileSource) -> tuple[Iterator[Row], str]:
    """Return the rows of a file, read one by one if its kind is one of STREAMED, and a note on how it was read."""
    if file.kind == ".parquet":
        from tunesmith.data.readers.parquet_hub import read_parquet

        return read_parquet(file.path), ""
    if file.kind in BOOKS:
        from tunesmith.data.readers.excel import read_excel

        book, note = read_excel(file)
        return iter(book), note
    if file.kind not in READERS:
        return numbered(plugin("readers", file.kind[1:])(file.path), file.name), ""
    text = open_text(file)
    rows: Iterator[Row]
    if file.kind in TABLES:
        rows, note = read_separated(text, file.kind), dialect_of(text, file.kind).note
    elif file.kind in LINES:
        rows, note = json_lines(text), ""
    elif file.kind == ".json":
        rows, note = json_document(text, "" if file.path.suffix.lower() == ".zip" else file.part)
    else:
        lines, note = (log_rows if file.kind == ".log" else text_rows)(text)
        rows = iter(lines)
    return rows, _joined(text, note)


def _joined(text: TextFile, note: str) -> str:
    return ", ".join(filter(None, [text.note, note]))


def _folder(folder: Path) -> RowFile:
    """Load a folder of documents; raise DataError that names its files of rows if it has nothing else."""
    from tunesmith.data.readers.document_folder import folders_of, passed_over, read_folder

    try:
        rows = read_folder(folder)
    except DataError as error:
        if "no documents found" not in str(error) or not (files := _row_files(folder, whole=True)):
            raise
        raise DataError(f"{folder}: expected a file, got a folder; give one of its files: {files}") from error
    return RowFile(rows, tuple(filter(None, [passed_over(str(folder)), folders_of(rows)])))


def dataset_of(source: str) -> str:
    """Return the Hub id of the data set that a source of rows names; empty for any other source."""
    path = Path(source)
    if found := re.match(r"hf://datasets/([\w.-]+/[\w.-]+)", remote_url(source)):
        return found[1]
    named_as_file = path.suffix.lower() in (*READERS, *PACKED) or "#" in source
    dataset = DATASET.fullmatch(source)
    return dataset[1] if dataset and not named_as_file and not is_there(path.parent) else ""


def _from_hub(source: str, *, offline: bool) -> list[Row]:
    """Load a Hub dataset; raise DataError if the name cannot be one."""
    if not (name := dataset_of(source)):
        raise DataError(f"{source}: no such file; {nearest_file(Path(source))}")
    if offline:
        raise DataError(
            f"{source}: no such file, and --offline forbids downloading a dataset; omit --offline or give a file"
        )
    from tunesmith.data.readers.parquet_hub import read_hub

    return read_hub(source, name, source.partition(":")[2] or "train")


def nearest_file(path: Path) -> str:
    """Return the fix for a missing file: the first missing folder, the nearest name, or the files of the folder.

    Args:
        path: path of the missing file.
    """
    if is_link(path):
        return f"it is a broken link to {str(path.readlink())!r}"
    missing = next((folder for folder in reversed(path.parents) if not is_there(folder)), None)
    if missing is not None:
        nearest = _nearest(missing, folders=True)
        fix = f"did you mean {str(nearest / path.relative_to(missing))!r}?" if nearest else "check the path"
        return f"the folder {str(missing)!r} does not exist; {fix}"
    if nearest := _nearest(path):
        return f"did you mean {str(nearest)!r}?"
    files = _row_files(path.parent)
    return f"files here: {files}" if files else f"{str(path.parent)!r} has no file of rows; check the path"


def _nearest(path: Path, *, folders: bool = False) -> Path | None:
    """Return the entry of the same folder with the most similar name."""
    if not path.parent.is_dir():
        return None
    nearest = nearest_name(path.name, [e.name for e in path.parent.iterdir() if e.is_dir() or not folders])
    return path.with_name(nearest) if nearest else None


def _row_files(folder: Path, *, whole: bool = False) -> str:
    """Return the names, or whole paths, of the files with rows in a folder, for messages."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [entry for entry in entries if entry.suffix.lower() in (*READERS, *PACKED)]
    names = [str(file) if whole else file.name for file in files]
    return first_names(names, LISTED)
