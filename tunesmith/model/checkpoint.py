"""Folders that are either whole or not there: safetensors and JSON, a manifest, and a rename at the end."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from tunesmith.data.files import sha256_of_file
from tunesmith.errors import CheckpointError

MANIFEST = "manifest.json"


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make `folder` from what `fill` writes; a crash at any moment leaves the old folder or the new one.

    Files are written beside the target, hashed into a manifest, flushed to disk and renamed.
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
                path.chmod(mode)  # safetensors are written for their owner alone
            _flush(path)
    except (OSError, SafetensorError) as error:  # safetensors tell of a full disk in an error of their own
        shutil.rmtree(half, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(f"{folder}: not written ({reason}); free some space and run the command again") from error
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():  # else `old` may be all there is, left by a crash between these two renames
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    half.rename(folder)
    _flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def find_folder(folder: Path) -> Path | None:
    """The whole folder, or the one it was replacing when the machine stopped between two renames."""
    old = folder.with_name(f".{folder.name}.old")
    return next((path for path in (folder, old) if (path / MANIFEST).exists()), None)


def verify_folder(folder: Path, *, only: str = "*") -> None:
    """Raise CheckpointError unless every file whose name matches `only` has the bytes it was written with."""
    try:
        sums = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise CheckpointError(
            f"{folder}: no readable {MANIFEST}; it was not written to its end, delete it and run again"
        ) from None
    for name, wanted in sums.items():
        path = folder / name
        if not path.match(only):
            continue
        if not path.is_file() or sha256_of_file(path) != wanted:
            raise CheckpointError(f"{path}: missing or changed since it was written; restore it or run again")


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to one safetensors file."""
    from safetensors.torch import save_file

    found = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    places = Counter(value.untyped_storage().data_ptr() for value in found.values())
    # What shares its memory is refused by safetensors; a copy of all would take as much as the weights once more.
    shared = [name for name, value in found.items() if places[value.untyped_storage().data_ptr()] > 1]
    save_file(found | {name: found[name].clone() for name in shared}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read one safetensors file. Raises CheckpointError when it is not one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); restore it or run again") from None


def _flush(path: Path) -> None:
    """Ask the disk to keep a file or a folder entry."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
