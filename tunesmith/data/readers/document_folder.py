"""A folder of documents as rows: one row per file, with its whole text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tunesmith.data.documents.document import markdown
from tunesmith.data.documents.find_files import find, sorted_out
from tunesmith.data.documents.worker_pool import convert_all
from tunesmith.data.files import is_there
from tunesmith.data.readers.row import Row, refuse
from tunesmith.progress import track

FILES_A_FOLDER = 3  # at least, for subfolders to be labels


def read_folder(folder: Path) -> list[Row]:
    """Load a row {text, doc_id} for each document of a folder, sorted by name. Hidden files are skipped.

    Where all documents are in a few subfolders, the column `folder` has the subfolder's name.

    Raise DataError if a file cannot be read or the folder has no documents.
    """
    files = find([folder])
    errors = [f"{doc_id}: {why}" for doc_id, why in files.unreadable.items()]
    paths = [source.path for source in files.sources]
    tracked = track(convert_all(paths), "converting", unit="files", total=len(paths))
    converted = {result.path: result for result in tracked}
    rows = []
    for source in files.sources:
        result = converted[source.path]
        if result.document is None:
            errors.append(f"{source.doc_id}: {result.error}")
        elif text := markdown(result.document.blocks).strip():
            rows.append(Row(source.doc_id, {"text": text, "doc_id": source.doc_id}))
    if errors:
        refuse(sorted(errors))
    folders = Counter(_parent(row) for row in rows)
    if "" in folders or len(folders) < 2 or min(folders.values()) < FILES_A_FOLDER:
        return rows
    return [Row(row.where, {**row.fields, "folder": _parent(row)}) for row in rows]


def _parent(row: Row) -> str:
    return PurePosixPath(str(row.fields["doc_id"])).parent.name


def folders_of(rows: Sequence[Row]) -> str:
    """Return a note on how to predict the subfolders of documents; empty if they are not in subfolders."""
    if not rows or "folder" not in rows[0].fields:
        return ""
    option = "--set 'objective={kind: classify, text: text, label: folder}'"
    return f"the documents are in {len({row.fields['folder'] for row in rows})} subfolders; to predict them: {option}"


def passed_over(source: str) -> str:
    """Return a note that counts the files of a folder that were skipped because of their type.

    Args:
        source: the source of rows, as in `data.train`.

    Returns:
        One line; empty for a file, and for a folder in which every file is read.
    """
    if not (is_there(source) and Path(source).is_dir()):
        return ""
    types = ", ".join(f"{suffix} ({count})" for suffix, count in sorted(sorted_out([source])[1].items()))
    return f"{source}: skipped files of unsupported types: {types}" if types else ""
