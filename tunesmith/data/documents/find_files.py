"""Search for documents in files and folders; each gets a name for its rows and a digest."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.documents.cache import FOLDER, KEPT
from tunesmith.data.documents.convert import READERS
from tunesmith.data.files import refuse_pipe, sha256_of_file
from tunesmith.errors import DataError, suggestion

# Folders that programs create next to documents: Sphinx's source copy of every page, and files without text.
APART = frozenset({"_sources", "_static", "__pycache__", "node_modules"})


@dataclass(frozen=True, slots=True)
class Source:
    """A document file."""

    path: Path
    doc_id: str  # name in rows: the path, starting with the given folder
    sha256: str  # of its bytes

    @property
    def kept(self) -> str:
        """The cache key of its document. It contains the extension because the reader depends on it."""
        return f"{self.sha256}{self.path.suffix.lower()}"


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """The result of a search."""

    sources: tuple[Source, ...]  # sorted by name
    skipped: dict[str, int]  # extension or folder name -> number of skipped files or folders
    unreadable: dict[str, str]  # name -> error


def find(named: Sequence[str | Path]) -> FoundFiles:
    """Find all documents in files and folders, without hidden files and symbolic links.

    Raises:
        DataError: a path does not exist, a file has an unknown type, or there is no document at all.
    """
    paths, skipped = sorted_out(named)
    sources, unreadable = [], {}
    for doc_id, path in sorted(paths.items()):
        try:
            sources.append(Source(path, doc_id, sha256_of_file(path)))
        except OSError as error:
            unreadable[doc_id] = f"cannot be read ({error.strerror}); check its permissions"
    return FoundFiles(tuple(sources), dict(skipped), unreadable)


def sorted_out(named: Sequence[str | Path]) -> tuple[dict[str, Path], Counter[str]]:
    """Find documents as `find` does, without reading them.

    Returns:
        The path of each document by its name in rows, and the number of skipped files by extension.
    """
    paths: dict[str, Path] = {}
    skipped: Counter[str] = Counter()
    for name in named:
        for path, doc_id in _files(Path(name), skipped):
            suffix = path.suffix.lower()
            # JSON and YAML files in a folder are seldom API descriptions.
            if suffix in READERS and (path == Path(name) or suffix not in (".json", ".yaml", ".yml")):
                key = doc_id if paths.get(doc_id, path) == path else path.as_posix().lstrip("/")
                paths[key] = path
            else:
                skipped[suffix or "no ending"] += 1
    if not paths:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in skipped.most_common(5))
        only = f", only {kinds}" if kinds else ""
        raise DataError(f"{', '.join(map(str, named)) or 'documents'}: no documents found{only}; give {kinds_read()}")
    return paths, skipped


def kinds_read() -> str:
    """Return the supported extensions, for messages."""
    return ", ".join(suffix.removeprefix(".") for suffix in READERS)


def _files(path: Path, skipped: Counter[str]) -> Iterator[tuple[Path, str]]:
    """Yield each file with its name in rows, and count skipped folders; raise DataError for an unusable path."""
    if path.is_dir():
        top = path.resolve().name
        for folder, folders, files in os.walk(path):
            skipped.update(f"{name}/" for name in folders if name in APART)
            is_cache = (Path(folder) / FOLDER / KEPT).is_dir()
            ignored = APART | {FOLDER} if is_cache else APART
            ignored |= {name for name in folders if _is_run_folder(Path(folder) / name)}
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in ignored)
            for name in sorted(files):
                file = Path(folder) / name
                if not name.startswith(".") and not file.is_symlink() and file.is_file():  # a named pipe would wait
                    yield file, _utf8_name(f"{top}/{file.relative_to(path).as_posix()}")
        return
    if not path.exists():
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{path}: no such file or folder; {suggestion(path.name, names) or 'check the path'}")
    refuse_pipe(path)
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path.name}: unsupported file type; give {kinds_read()}")
    yield path, _utf8_name(path.name)


def _is_run_folder(folder: Path) -> bool:
    """Return whether a folder belongs to a run or a comparison: its reports contain answers to held-out rows."""
    files = ("run.json", "identity.json")
    return (folder / "recipe.yaml").is_file() and any((folder / name).is_file() for name in files)


def _utf8_name(name: str) -> str:
    """Return a file name as valid UTF-8; names from old disks and archives may use other encodings."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
