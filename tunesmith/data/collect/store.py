"""What `collect` keeps beside its rows, so that a second time only what changed is done again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.collect.document import Document, from_json, to_json
from tunesmith.data.files import sha256_of_file, write_whole, writing
from tunesmith.errors import DataError

FOLDER, KEPT = "collected", "documents"


@dataclass(frozen=True, slots=True)
class CollectStore:
    """The file of rows, `manual.jsonl`, and what lies in the folder `collected` beside it.

    There are the converted documents by their digest, which all files of rows in one place share, and for each file
    of rows the account of its last time (`manual.json`) and the replies of models (`manual.replies.jsonl`).
    """

    rows: Path

    @property
    def folder(self) -> Path:
        """The folder beside the rows."""
        return self.rows.parent / FOLDER

    @property
    def replies(self) -> Path:
        """Where the replies of models are kept."""
        return self.folder / f"{self.rows.stem}.replies.jsonl"

    def check(self) -> None:
        """Nothing where the rows may be written; DataError where that would lose what somebody else wrote."""
        if self.rows.suffix != ".jsonl":
            raise DataError(f"{self.rows}: rows are written as JSON lines; give a name that ends in .jsonl")
        try:
            held = sha256_of_file(self.rows) if self.rows.exists() else ""
        except OSError as error:
            raise DataError(f"{self.rows}: cannot be read ({error.strerror}); give another --out") from error
        if held and held != self.about().get("sha256"):
            raise DataError(f"{self.rows}: not as collect left it, and kept as it is; give another --out, or move it")

    def about(self) -> dict[str, Any]:
        """The account of the last time; empty where there is none that can be read."""
        return _account(self._about)

    def document(self, kept: str) -> Document | None:
        """The document that a file, kept under its digest and ending, was turned into, if this version did."""
        try:
            return from_json(json.loads(self._document(kept).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # absent, of another version or damaged: it is made again

    def keep(self, kept: str, document: Document) -> None:
        """Keep a document for the next time. Raises DataError."""
        self._make(self._document(kept).parent)
        write_whole(self._document(kept), json.dumps(to_json(document), ensure_ascii=False))

    def write(self, rows: Iterable[Mapping[str, object]], about: Mapping[str, Any]) -> None:
        """The rows, and the account of how they came about. Raises DataError."""
        self._make(self.folder)
        write_whole(self.rows, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        page = {**about, "sha256": sha256_of_file(self.rows)}
        write_whole(self._about, json.dumps(page, ensure_ascii=False, indent=1) + "\n")
        with writing(self.folder):
            self._forget()

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            cure = "give --out a file in another folder, or move what is in the way"
            raise DataError(f"{folder}: no folder can be made there ({error.strerror}); {cure}") from error

    def _forget(self) -> None:
        """Drop the documents that no file of rows here was made from."""
        accounts = [_account(path) for path in self.folder.glob("*.json")]
        wanted = {f"{kept}.json" for account in accounts for kept in account.get("documents", ())}
        for path in (self.folder / KEPT).glob("*.json"):
            if path.name not in wanted:
                path.unlink()

    @property
    def _about(self) -> Path:
        return self.folder / f"{self.rows.stem}.json"

    def _document(self, kept: str) -> Path:
        return self.folder / KEPT / f"{kept}.json"


def _account(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
