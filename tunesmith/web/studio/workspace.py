"""The working folder of the page: its data files, recipes and runs, and the lock of the one server that serves it."""

from __future__ import annotations

import os
import re
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from tunesmith.data.files import portable, write_whole
from tunesmith.data.readers.read import READERS
from tunesmith.errors import TunesmithError

HIDDEN = ".studio"  # folder of what the page keeps: jobs, deleted runs, its address
RECIPES = (".yaml", ".yml")
FIX_LOG = ".log.jsonl"  # end of the name of what `audit --fix` changed
MOST_FILES = 2000  # listed of each kind
DEPTH = 3  # folders below the working folder in which files are listed
NAME = re.compile(r"\w[\w.-]{0,99}")
UNSAFE = re.compile(r"[^\w.-]+")
MOST_CHARS = 60  # of a proposed name before its ending: a file system counts 255 bytes, and a letter has up to four
SKIPPED = ("runs", "loops", "comparisons", "node_modules", "__pycache__", "venv")


def clean_name(name: str) -> str:
    """Return the closest name that `Workspace.new_name` accepts."""
    path = Path(UNSAFE.sub("-", unicodedata.normalize("NFC", name)))  # macOS takes letters apart
    stem = path.stem.strip(".-_")
    if not 0 < len(stem) <= MOST_CHARS:  # files of a folder keep names of their own
        stem = f"{stem[:MOST_CHARS] or 'file'}-{zlib.crc32(name.encode()):08x}"
    return portable(stem + path.suffix)


class WorkspaceError(TunesmithError):
    """A path is outside the working folder, or the folder is in use."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file in a list."""

    path: str  # from the working folder
    bytes: int
    changed: float  # time of the last change, in seconds since 1970


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder in which the page was started.

    Attributes:
        folder: absolute path.
    """

    folder: Path

    @property
    def kept(self) -> Path:
        """Return the folder of what the page keeps."""
        return self.folder / HIDDEN

    @property
    def runs(self) -> Path:
        """Return the folder of the runs."""
        return self.folder / "runs"

    def path(self, name: str) -> Path:
        """Return the path of a file or folder that a request names.

        Raises:
            WorkspaceError: it is outside the working folder, or does not exist.
        """
        path = (self.folder / name.replace("\0", "")).resolve()
        if not name or "\0" in name or not path.is_relative_to(self.folder.resolve()):
            raise WorkspaceError(f"{name or 'file'}: not in {self.folder}; the page serves files of this folder only")
        if not path.exists():
            raise WorkspaceError(f"{name}: no such file; it may have been deleted or renamed")
        return path

    def run(self, name: str) -> Path:
        """Return the folder of a run. Raises WorkspaceError if there is none."""
        folder = self.runs / self.new_name(name)
        if not folder.is_dir():
            raise WorkspaceError(f"{name}: no such run; it may have been deleted")
        return folder

    @staticmethod
    def new_name(name: str) -> str:
        """Return the name of a file or run to create. Raises WorkspaceError if it could leave its folder."""
        if not NAME.fullmatch(name) or name != portable(name):
            raise WorkspaceError(f"name {name[:60]!r}: use letters, digits, dots, hyphens and underscores")
        return name

    def data(self, kinds: tuple[str, ...] = READERS) -> list[FileEntry]:
        """Return the files of rows, or of other kinds, newest first."""
        return self._files(kinds)

    def recipes(self) -> list[FileEntry]:
        """Return the recipes, newest first."""
        return self._files(RECIPES)

    def _files(self, kinds: tuple[str, ...]) -> list[FileEntry]:
        found = []
        for folder, folders, names in os.walk(self.folder):
            depth = len(Path(folder).relative_to(self.folder).parts)
            folders[:] = sorted(name for name in folders if name[0] != "." and name not in SKIPPED and depth < DEPTH)
            if "config.json" in names:  # of a model
                continue
            for name in names:
                path = Path(folder, name)
                if name[0] != "." and path.suffix.lower() in kinds and not name.endswith(FIX_LOG) and path.is_file():
                    facts = path.stat()
                    found.append(FileEntry(path.relative_to(self.folder).as_posix(), facts.st_size, facts.st_mtime))
            if len(found) > MOST_FILES:
                break
        return sorted(found, key=lambda entry: entry.changed, reverse=True)[:MOST_FILES]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock of the folder, which the system releases however this process ends.

        Raises:
            WorkspaceError: another server has it.
        """
        self.kept.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # addresses in it contain tokens; some file systems have no permissions
            self.kept.chmod(0o700)
        lock = FileLock(self.kept / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            fix = "use it, or stop it first"
            raise WorkspaceError(f"{self.folder}: a studio is open here at {self.address()}; {fix}") from error
        try:
            yield
        finally:
            lock.release()

    def note_address(self, address: str) -> None:
        """Record the address of this server, for the message to a second one."""
        write_whole(self.kept / "address", address + "\n")

    def address(self) -> str:
        """Return the address that the server of this folder last printed."""
        try:
            return (self.kept / "address").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return "another address"
