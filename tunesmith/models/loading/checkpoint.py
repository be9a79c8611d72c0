"""Folders that are either complete or absent: safetensors and JSON files, a manifest, and a rename at the end."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Container, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.data.files import sha256_of_file
from tunesmith.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
MODEL_FILE = "tunesmith.json"
# What people edit in a saved model: the place of its base, a threshold, a model card. An edit is reported.
EDITABLE = frozenset({MODEL_FILE, "README.md"})
# Suffixes of the files in a model folder that libraries read by themselves.
READ_BY_LIBRARIES = (".json", ".jinja", ".txt", ".model", ".safetensors")
# Seconds for which a file's times may miss a change: the clock of a file system is coarse.
CLOCK_TICK = 2


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Write a folder so that a crash at any moment leaves the old folder or the new one, never a mixture.

    Files are written to a sibling folder, hashed into a manifest, flushed to disk and renamed.

    Args:
        folder: target; an existing folder is replaced.
        fill: writes the files into the folder it is given.

    Raises:
        CheckpointError: if the disk is full or the folder is not writable.
    """
    from safetensors import SafetensorError

    folder.parent.mkdir(parents=True, exist_ok=True)
    half = folder.with_name(f".{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir()
    try:
        fill(half)
        sums = {str(path.relative_to(half)): sha256_of_file(path) for path in sorted(half.rglob("*")) if path.is_file()}
        (half / MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")
        mode = (half / MANIFEST).stat().st_mode
        for path in (half, *half.rglob("*")):
            if path.is_file():
                path.chmod(mode)  # safetensors creates files that only their owner may read
            _flush(path)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        shutil.rmtree(half, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(f"{folder}: not written ({reason}); free some space and run the command again") from error
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():  # otherwise `old` may be the only copy, left by a crash between these two renames
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    half.rename(folder)
    _flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def find_folder(folder: Path) -> Path | None:
    """Return the complete folder, or the previous version if a crash came between the two renames.

    Args:
        folder: a target of `write_folder`.

    Returns:
        The folder to read, None if there is not any.
    """
    old = folder.with_name(f".{folder.name}.old")
    return next((path for path in (folder, old) if (path / MANIFEST).exists()), None)


def verify_folder(folder: Path, *, editable: Container[str] = ()) -> list[str]:
    """Compare every file of a folder with its manifest.

    Args:
        folder: a folder that `write_folder` wrote.
        editable: names of files that may have been edited since.

    Returns:
        The editable files that differ from what was written.

    Raises:
        CheckpointError: if another file is missing or differs.
    """
    edited = []
    for name, expected in _sums(folder).items():
        path = folder / name
        if path.is_file() and _digest(path) == expected:
            continue
        if not path.is_file() or name not in editable:
            raise CheckpointError(f"{path}: missing or changed since it was written; restore it or run again")
        edited.append(name)
    return edited


def verify_model(folder: Path) -> None:
    """Compare a saved model with its manifest; report edits of `EDITABLE`, and files that came later, in the log.

    Args:
        folder: the model folder of a run.

    Raises:
        CheckpointError: if any other file is missing or differs from what was written.
    """
    if not (folder / MANIFEST).exists():
        _report(f"{folder}: {MANIFEST} is missing, so nothing shows whether its files have changed; restore it", "")
        return
    for name in verify_folder(folder, editable=EDITABLE):
        _report(f"{folder / name}: edited since it was written; restore it if that was not you", _digest(folder / name))
    known = {*_sums(folder), MANIFEST}
    for path in sorted(folder.iterdir()):
        if path.name not in known and path.suffix in READ_BY_LIBRARIES:
            _report(f"{folder}: {path.name!r} is not of the run and may change its answers; delete it if unsure", "")


def names_file(folder: Path, name: str) -> bool:
    """Return whether the manifest of a folder names a file; False without a readable manifest."""
    try:
        return name in _sums(folder)
    except CheckpointError:
        return False


@cache
def _report(text: str, _state: str) -> None:
    """Write a line into the log, once per state of what it is about. Without a handler, Python prints it to stderr."""
    logging.getLogger("tunesmith").warning("%s", text)


def _sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file by its name in the manifest of a folder; raise CheckpointError."""
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        sums = None
    if not isinstance(sums, dict):
        raise CheckpointError(f"{folder}: no readable {MANIFEST}, so it is incomplete; delete it and run again")
    return sums


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file; weights that are opened several times in one process are read once."""
    state = path.stat()
    if time.time() - max(state.st_mtime, state.st_ctime) < CLOCK_TICK:
        return sha256_of_file(path)
    return _digest_of_state(path.absolute(), (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))


@lru_cache(maxsize=1024)
def _digest_of_state(path: Path, _state: tuple[int, ...]) -> str:
    return sha256_of_file(path)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: dict[str, str] | None = None) -> None:
    """Write tensors to one safetensors file.

    Args:
        tensors: by name; they may share memory.
        path: the file.
        metadata: texts for the file's header.
    """
    from safetensors.torch import save_file

    values = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    uses = Counter(value.untyped_storage().data_ptr() for value in values.values())
    # safetensors refuses tensors that share memory. Only those are cloned: a copy of all takes as much as the weights.
    shared = [name for name, value in values.items() if uses[value.untyped_storage().data_ptr()] > 1]
    save_file(values | {name: values[name].clone() for name in shared}, path, metadata)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read one safetensors file.

    Args:
        path: the file.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        CheckpointError: if it is missing, truncated or not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({error}); restore it or run again") from None


def _flush(path: Path) -> None:
    """Write a file or a folder entry to disk: without it, a rename may be on disk before the bytes it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
