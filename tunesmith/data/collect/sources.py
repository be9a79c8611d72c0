"""The files that sources stand for, each with the name it has in rows and the digest of what it holds."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from tunesmith.data.collect.convert import READERS
from tunesmith.data.collect.store import FOLDER, KEPT
from tunesmith.data.files import sha256_of_file
from tunesmith.errors import DataError

# What programs put beside documents: Sphinx's second copy of every page, and things that are no text.
APART = frozenset({"_sources", "_static", "__pycache__", "node_modules"})


@dataclass(frozen=True, slots=True)
class Source:
    """A file: `doc_id` is its name in rows, its path from the folder that was named, without the way there."""

    path: Path
    doc_id: str
    sha256: str

    @property
    def kept(self) -> str:
        """What its document is kept under: bytes of another kind are read by another reader."""
        return f"{self.sha256}{self.path.suffix.lower()}"


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """The files to read in a fixed order; those of other kinds by their ending, with how many there are."""

    sources: tuple[Source, ...]
    skipped: dict[str, int]
    unreadable: dict[str, str]


def find(named: Sequence[str | Path]) -> FoundFiles:
    """Every file of a known kind that is named or lies in a named folder; hidden ones and links are passed over.

    Raises DataError for a name that leads nowhere, a file of another kind, and folders without any document.
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
    """The files to read, by their names in rows, and how many of other kinds there are. Raises DataError as `find`."""
    paths: dict[str, Path] = {}
    skipped: Counter[str] = Counter()
    for name in named:
        for path, doc_id in _files(Path(name), skipped):
            suffix = path.suffix.lower()
            # In a folder, json and yaml are seldom descriptions of calls.
            if suffix in READERS and (path == Path(name) or suffix not in (".json", ".yaml", ".yml")):
                key = doc_id if paths.get(doc_id, path) == path else path.as_posix().lstrip("/")
                paths[key] = path
            else:
                skipped[suffix or "no ending"] += 1
    if not paths:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in skipped.most_common(5))
        raise DataError(
            f"{', '.join(map(str, named))}: no document in it{f', only {kinds}' if kinds else ''}; give {kinds_read()}"
        )
    return paths, skipped


def kinds_read() -> str:
    """The endings that can be read, for people."""
    return ", ".join(suffix.removeprefix(".") for suffix in READERS)


def _files(path: Path, skipped: Counter[str]) -> Iterator[tuple[Path, str]]:
    """Each file with its name in rows; folders of programs are counted as skipped. Raises DataError."""
    if path.is_dir():
        top = path.resolve().name
        for folder, folders, files in os.walk(path):
            skipped.update(f"{name}/" for name in folders if name in APART)
            ours = (Path(folder) / FOLDER / KEPT).is_dir()
            left = APART | {FOLDER} if ours else APART
            left |= {name for name in folders if _is_made_here(Path(folder) / name)}
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in left)
            for name in sorted(files):
                file = Path(folder) / name
                if not name.startswith(".") and not file.is_symlink():
                    yield file, _written(f"{top}/{file.relative_to(path).as_posix()}")
        return
    if not path.exists():
        here = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        nearest = get_close_matches(path.name, here, n=1)
        cure = f"did you mean {nearest[0]!r}?" if nearest else "check the path"
        raise DataError(f"{path}: no such file or folder; {cure}")
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path.name}: cannot read this kind of file; give {kinds_read()}")
    yield path, _written(path.name)


def _is_made_here(folder: Path) -> bool:
    """Whether a folder is a run's or a comparison's, whose reports hold the answers to held-out rows."""
    pages = ("run.json", "identity.json")
    return (folder / "recipe.yaml").is_file() and any((folder / page).is_file() for page in pages)


def _written(name: str) -> str:
    """A file's name in UTF-8, which old disks and archives do not keep to."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
