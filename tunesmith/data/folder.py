"""A folder of documents as rows: one for each file, its whole text in it."""

from __future__ import annotations

from pathlib import Path

from tunesmith.data.collect.document import markdown
from tunesmith.data.collect.pool import convert_all
from tunesmith.data.collect.sources import find, sorted_out
from tunesmith.data.files import is_there
from tunesmith.data.rows import Row, refuse


def read_folder(folder: Path) -> list[Row]:
    """A row {text, doc_id} for every document of a folder, in the order of names; hidden files are passed over.

    Raises DataError where a file cannot be read, and where there is no document.
    """
    found = find([folder])
    faults = [f"{doc_id}: {why}" for doc_id, why in found.unreadable.items()]
    converted = {done.path: done for done in convert_all([source.path for source in found.sources])}
    rows = []
    for source in found.sources:
        done = converted[source.path]
        if done.document is None:
            faults.append(f"{source.doc_id}: {done.error}")
        elif text := markdown(done.document.blocks).strip():
            rows.append(Row(source.doc_id, {"text": text, "doc_id": source.doc_id}))
    return rows if not faults else refuse(sorted(faults))


def passed_over(source: str) -> str:
    """What of a folder of documents is not read, being of another kind; nothing for a file, or where all is."""
    if not (is_there(source) and Path(source).is_dir()):
        return ""
    kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(sorted_out([source])[1].items()))
    return f"{source}: of another kind and not read: {kinds}" if kinds else ""
