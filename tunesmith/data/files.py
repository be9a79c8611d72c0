"""File digests, atomic writes, strict JSON and path checks."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.errors import CheckpointError, DataError, StorageError, TunesmithError

T = TypeVar("T")
FULL = (errno.ENOSPC, errno.EDQUOT)
FIXES = {
    **dict.fromkeys(FULL, "free some space"),
    errno.EEXIST: "move what is in the way, or give another path",
    errno.ENAMETOOLONG: "use a shorter name",
}
# Errors that a user can repair whichever file they are about. Others, without a place that is known to be the user's,
# are bugs.
REPAIRABLE = (*FULL, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
# Digests of the files in a run folder, as `sha256sum` prints them. A file that was replaced has several lines.
DIGESTS = "digests.txt"
DIGESTS_HEADER = "# tunesmith: SHA-256 of what was written here\n"  # `sha256sum --check` takes it for a comment
# Names of devices on Windows, with any suffix. `PureWindowsPath.is_reserved` is deprecated from Python 3.13 on.
DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[1-9\u00b9\u00b2\u00b3]) *(\.|:|$)", re.IGNORECASE)
# Seconds for which virus scanners and indexers of Windows keep a new file open.
SCANNED = 2.0
PAGES = ("run.json", "need.run.json")  # next to the list of an earlier version, which has no header


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 hex digest of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, text: str | Iterable[str]) -> None:
    """Write a text file atomically: readers see the old content or the new content, never a part of it.

    Pipes and devices are written directly. A symbolic link is kept and its target is replaced. The content is a text or
    its parts.

    Raises:
        DataError: if the file cannot be written.
    """
    parts = [text] if isinstance(text, str) else text
    with writing(path):
        if path.exists() and not path.is_file():
            path.write_text("".join(parts), encoding="utf-8", newline="\n")
            return
        target = path.resolve()
        temporary = target.with_name(f".{target.name}.{os.getpid()}.half")  # two processes may write the same file
        try:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:  # the same bytes on every system
                file.writelines(parts)
            _record_digest(target, temporary)
            move(temporary, target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def move(source: Path, target: Path) -> None:
    """Rename a file or folder over a file, or to a new name; on Windows, wait until other programs have closed it."""
    until = time.monotonic() + (SCANNED if sys.platform == "win32" else 0)
    while True:
        try:
            source.replace(target)
            return
        except PermissionError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.05)


def begin_digests(folder: Path) -> None:
    """Begin the list of digests in a folder of ours, unless it has one."""
    if _has_digests(folder):
        return
    half = folder / f".{DIGESTS}.{os.getpid()}.half"  # the list is whole or absent
    with writing(folder / DIGESTS):
        try:
            half.write_text(DIGESTS_HEADER, encoding="utf-8", newline="\n")
            move(half, folder / DIGESTS)
        except BaseException:
            with suppress(OSError):
                half.unlink()
            raise


def _has_digests(folder: Path) -> bool:
    """Return whether a folder has a list of digests that is ours, not a file of the user with the same name."""
    path = folder / DIGESTS
    if not path.is_file():
        return False
    return any((folder / page).is_file() for page in PAGES) or _start(path) == DIGESTS_HEADER


def _start(path: Path) -> str | None:
    """Return as many characters of a file as the header of a list has; None if it cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(len(DIGESTS_HEADER))
    except OSError:
        return None


def _record_digest(target: Path, content: Path) -> None:
    """Add the digest of a file's new content to the list of its folder, before the content is there."""
    if found := _digest_list(target):
        with found[0].open("a", encoding="utf-8", newline="\n") as file:
            file.write(f"{sha256_of_file(content)}  {found[1]}\n")
            file.flush()
            os.fsync(file.fileno())  # after a power failure, the list must not be older than the file


def _digest_list(path: Path) -> tuple[Path, str] | None:
    """Return the list of digests for a file and its name there; None outside of run folders."""
    path = path.resolve()
    folder = next(filter(_has_digests, path.parents), None)
    return (folder / DIGESTS, path.relative_to(folder).as_posix()) if folder else None


def was_changed(path: Path) -> bool:
    """Return whether a file is listed, and its content is none that `write_whole` has written."""
    if (found := _digest_list(path)) is None or not path.is_file():
        return False
    lines = found[0].read_text(encoding="utf-8", errors="replace")
    known = re.findall(rf"([0-9a-f]{{64}})  {re.escape(found[1])}$", lines, re.MULTILINE)
    return bool(known) and sha256_of_file(path) not in known


def report_edit(path: Path) -> None:
    """Report in the log that a file was edited that people may edit."""
    if was_changed(path):
        report_once(f"{path}: edited since it was written; restore it if that was not you", sha256_of_file(path))


@cache
def report_once(text: str, _state: str = "") -> None:
    """Write a line into the log, once per state of what it is about. Without a handler, Python prints it to stderr."""
    logging.getLogger("tunesmith").warning("%s", text)


def read_text(path: Path) -> str:
    """Read a text file that this program wrote; raise CheckpointError if it was changed or cannot be read."""
    if was_changed(path):
        raise CheckpointError(f"{path}: changed since it was written; restore it or run again in another folder")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); restore it or run again") from None


def read_json(text: str | bytes) -> Any:
    """Parse JSON. Raise ValueError for duplicate keys; `json` would silently keep the last one."""
    return json.loads(text, object_pairs_hook=_once)


def read_page(path: Path, shape: type[T]) -> T:
    """Load a JSON file written by this program, and validate it as a type such as a pydantic model or a TypedDict.

    Raises:
        CheckpointError: if the file is not JSON or does not match `shape`.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(shape).validate_python(json.loads(read_text(path)))
    except (ValueError, RecursionError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else f"not JSON ({error})"
        fix = "written by another version or edited by hand; delete it, or the folder it is in"
        raise CheckpointError(f"{path}: {reason}; {fix}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object from JSON pairs; refuse duplicate keys."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"duplicate key {counts.most_common(1)[0][0]!r}")
    return fields


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the operating system inside the context into a StorageError about `path`."""
    try:
        yield
    except Exception as error:
        if (found := storage_error(error, path)) is None:
            raise
        raise found from error


def storage_error(error: Exception, path: Path | None = None) -> StorageError | None:
    """Return the error for the user if the operating system refused a file; None for any other exception."""
    if isinstance(error, shutil.Error) and (number := re.search(r"\[Errno (\d+)\]", str(error))):
        # `copytree` lists what it could not copy; the numbers of the errors are in the texts only
        error = OSError(int(number[1]), os.strerror(int(number[1])), str(error.args[0][0][1]))
    if not isinstance(error, OSError):  # libraries in Rust have the number of the error in their text
        number = re.search(r"([^:]*) \(os error (\d+)\)", str(error))
        if number is None or isinstance(error, TunesmithError):
            return None
        error = OSError(int(number[2]), number[1].strip(), None, int(number[2]))  # a WinError
    place = str(path or error.filename2 or error.filename or "")[:200]
    if not path and error.errno not in (REPAIRABLE if place else (*FULL, errno.EROFS, errno.EIO)):
        return None  # a bug, or a connection
    problem = "cannot be written" if path or error.errno in (*FULL, errno.EROFS) else "cannot be opened or written"
    return StorageError(f"{place or 'a file'}: {problem} ({error.strerror or error}); {fix_for(error)}")


def fix_for(error: OSError) -> str:
    """Return the fix for a failed write, to end an error message."""
    return FIXES.get(error.errno or 0, "give a path in an existing, writable folder")


def quoted(word: str | Path) -> str:
    """Return a path or another word as the shell takes it, for commands in messages."""
    if sys.platform != "win32":
        return shlex.quote(str(word))
    text = str(word)  # cmd.exe knows double quotes only
    return text if re.fullmatch(r"[\w@+=:,./\\-]+", text) else '"' + text.replace('"', '\\"') + '"'


def command_line(words: Iterable[str]) -> str:
    """Return words as one line for the shell."""
    return " ".join(map(quoted, words))


def split_command(line: str) -> list[str]:
    """Split a command line into words; in Windows paths, a backslash is not an escape. Raises ValueError."""
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    if sys.platform == "win32":
        lexer.escape, lexer.quotes = "", '"'
    return list(lexer)


def function_in(name: str) -> tuple[str, str]:
    """Split `module:function` or `path/file.py:function`; the second part of a path is empty, of `C:/x` as well."""
    module, colon, function = name.rpartition(":")
    return (module, function) if colon and not set("/\\") & set(function) else (name, "")


def portable(name: str) -> str:
    """Return a file name that every system accepts: Windows reserves names such as `con.csv`, and ends in dots."""
    name = name.rstrip(". ")
    return f"_{name}" if DEVICES.match(name) else name


def is_there(path: str | Path) -> bool:
    """Return whether the path exists. A name too long for the file system does not; `Path.exists` would raise."""
    return os.path.exists(path)


def refuse_pipe(path: Path, error: type[TunesmithError] = DataError) -> None:
    """Raise `error` for a named pipe or a device: reading it waits for a writer, and gives its content only once."""
    if is_there(path) and not path.is_file() and not path.is_dir():
        raise error(f"{path}: is a pipe or a device; write its content to a file and give that")


def is_link(path: str | Path) -> bool:
    """Return whether the path is a symbolic link, broken or not; False for a name too long for the file system."""
    return os.path.islink(path)


def is_recipe(path: Path) -> bool:
    """Return whether a file is a recipe, not rows: YAML, or a JSON object with the key `objective`."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return path.suffix.lower() in (".yaml", ".yml")
    try:
        text = path.read_text(encoding="utf-8-sig")
        value = json.loads(text) if text.lstrip().startswith("{") else None
    except (OSError, ValueError, RecursionError):  # the row reader reports the error
        return False
    return isinstance(value, dict) and "objective" in value and not isinstance(value.get("data"), list)


def holds_files(path: Path) -> bool:
    """Return whether a path is a file, or a folder with more than what its first write left when it was killed."""
    return path.is_file() or (path.is_dir() and not all(map(_is_left_over, path.iterdir())))


def _is_left_over(path: Path) -> bool:
    """Return whether a file is a part of one, or a list of digests without any; earlier versions left empty ones."""
    empty = path.name == DIGESTS and path.is_file() and _start(path) in ("", DIGESTS_HEADER)
    return empty or path.suffix == ".half"


def check_writable(path: Path) -> None:
    """Raise StorageError if the file at `path` is read-only, or if nothing can be created there."""
    with writing(path):
        if is_there(path):
            if path.is_file() and not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        place = next((parent for parent in path.absolute().parents if is_there(parent)), None)
        if place is None:  # a drive that is not there
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with tempfile.TemporaryFile(dir=place):  # `os.access` knows nothing of quotas and of root
            pass


def check_folder(path: Path) -> None:
    """Raise DataError unless a file can be created at `path`: its folder exists and it is not a folder itself."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give a file name")
    if not path.absolute().parent.is_dir():
        raise DataError(f"{path}: the folder does not exist; create it or give a file in another one")
