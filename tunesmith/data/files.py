"""A file's digest, and files that are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.errors import CheckpointError, DataError

T = TypeVar("T")


def sha256_of_file(path: Path) -> str:
    """Hex digest of what a file holds."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, text: str) -> None:
    """The text as the file, which at any moment is the old one or the new one. Raises DataError where it cannot be.

    A pipe or a device is written into as it is, and a link leads to the file that is replaced.
    """
    with writing(path):
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        whole = path.resolve()
        half = whole.with_name(f".{whole.name}.{os.getpid()}.half")  # two processes may write one file
        try:
            half.write_text(text, encoding="utf-8")
            half.replace(whole)
        except BaseException:
            with suppress(OSError):
                half.unlink()
            raise


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for one in which a key stands twice, where the last would silently
    win."""
    return json.loads(text, object_pairs_hook=_once)


def read_page(path: Path, shape: type[T]) -> T:
    """A file that we kept, in the shape it was written in. Raises CheckpointError for one that has another."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(shape).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else f"not JSON ({error})"
        cure = "written by another version or changed by hand; delete it, or what it lies in"
        raise CheckpointError(f"{path}: {why}; {cure}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return found


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A context in which what the disk refuses becomes a DataError about this file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: not written ({error.strerror or error}); {cure_of(error)}") from error


def cure_of(error: OSError) -> str:
    """What to do about a place that the disk refused to write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space"
    return "name a place in a folder that is there and can be written"


def is_there(path: str | Path) -> bool:
    """Whether something lies there; not for a name that is too long for any disk, where `Path.exists` raises."""
    return os.path.exists(path)


def is_link(path: str | Path) -> bool:
    """Whether a link lies there, wherever it leads; not for a name that is too long either."""
    return os.path.islink(path)


def refuse_utf16(start: bytes, name: str) -> None:
    """Raise DataError where a file that starts so is UTF-16."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{name}:1: UTF-16, not UTF-8; save the file as UTF-8")


def is_recipe(path: Path) -> bool:
    """Whether a file is a recipe and not rows: YAML, or JSON whose top has an objective."""
    if path.suffix.lower() != ".json":
        return path.suffix.lower() in (".yaml", ".yml")
    try:
        text = path.read_text(encoding="utf-8")
        whole = json.loads(text) if text.lstrip().startswith("{") else None
    except (OSError, ValueError, RecursionError):  # whoever reads it as rows says what is wrong with it
        return False
    return isinstance(whole, dict) and "objective" in whole and not isinstance(whole.get("data"), list)


def check_folder(path: Path) -> None:
    """Nothing for a file whose folder is there. Raises DataError."""
    if path.is_dir():
        raise DataError(f"{path}: a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise DataError(f"{path}: no such folder; name a file in a folder that is there")
