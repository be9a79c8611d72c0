"""Cache of `tunesmith collect` next to its output, so that only changed documents are processed again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.documents.document import Document, from_json, to_json
from tunesmith.data.files import sha256_of_file, write_whole, writing
from tunesmith.errors import DataError

FOLDER = "collected"
KEPT = "documents"


@dataclass(frozen=True, slots=True)
class CollectStore:
    """An output file such as `manual.jsonl`, and the folder `collected` next to it.

    The folder contains the converted documents by digest, shared by all output files in the same folder, and for each
    output file the summary of its last run (`manual.json`) and the replies of models (`manual.replies.jsonl`).
    """

    rows: Path

    @property
    def folder(self) -> Path:
        """The folder of the cache."""
        return self.rows.parent / FOLDER

    @property
    def replies(self) -> Path:
        """The file with the replies of models."""
        return self.folder / f"{self.rows.stem}.replies.jsonl"

    def check(self) -> None:
        """Raise DataError if writing the rows would overwrite a file that collect did not write."""
        if self.rows.suffix != ".jsonl":
            raise DataError(f"{self.rows}: rows are written as JSON lines; give a name that ends in .jsonl")
        try:
            digest = sha256_of_file(self.rows) if self.rows.exists() else ""
        except OSError as error:
            raise DataError(f"{self.rows}: cannot be read ({error.strerror}); give another --out") from error
        about = self.about()  # written before the rows, so that those of the run before may still be there
        if digest and digest not in (about.get("sha256"), about.get("replaces")):
            raise DataError(f"{self.rows}: changed since collect wrote it; give another --out, or move this file")

    def about(self) -> dict[str, Any]:
        """Return the summary of the last run, or an empty dictionary if it cannot be read."""
        return _summary(self._about)

    def document(self, kept: str) -> Document | None:
        """Return the document of a cache key (`Source.kept`); None if it is missing, damaged or of another version."""
        try:
            return from_json(json.loads(self._document(kept).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, kept: str, document: Document) -> None:
        """Cache a document; raise DataError if it cannot be written."""
        path = self._document(kept)
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(to_json(document), ensure_ascii=False))

    def write(self, rows: Iterable[Mapping[str, object]], about: Mapping[str, Any]) -> None:
        """Write the rows and the summary of the run, and delete documents that no output file needs.

        The `documents` of the summary are the cache keys of the documents that the rows were made from.

        Raises:
            DataError: a file or folder cannot be written.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        summary = {**about, "sha256": hashlib.sha256(text.encode()).hexdigest()}
        if self.rows.exists():
            summary["replaces"] = sha256_of_file(self.rows)
        write_whole(self._about, json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
        write_whole(self.rows, text)
        with writing(self.folder):
            summaries = [_summary(path) for path in self.folder.glob("*.json")]
            needed = {f"{kept}.json" for summary in summaries for kept in summary.get("documents", ())}
            for path in (self.folder / KEPT).glob("*.json"):
                if path.name not in needed:
                    path.unlink()

    @property
    def _about(self) -> Path:
        return self.folder / f"{self.rows.stem}.json"

    def _document(self, kept: str) -> Path:
        return self.folder / KEPT / f"{kept}.json"


def _summary(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
