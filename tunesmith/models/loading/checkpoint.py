"""Folders that are either complete or absent: safetensors and JSON files, a manifest, and a rename at the end."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.data.files import sha256_of_file
from tunesmith.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"


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


def verify_folder(folder: Path, *, only: str = "*") -> None:
    """Compare the files of a folder with its manifest.

    Args:
        folder: a folder that `write_folder` wrote.
        only: pattern of the file names to check.

    Raises:
        CheckpointError: if a file is missing or differs from what was written.
    """
    try:
        sums = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise CheckpointError(
            f"{folder}: no readable {MANIFEST}, so it is incomplete; delete it and run again"
        ) from None
    for name, expected in sums.items():
        path = folder / name
        if not path.match(only):
            continue
        if not path.is_file() or sha256_of_file(path) != expected:
            raise CheckpointError(f"{path}: missing or changed since it was written; restore it or run again")


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
