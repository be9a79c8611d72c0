"""Folders that are either complete or absent: safetensors and JSON files, a manifest, and a rename at the end."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data.files import move, report_once, sha256_of_file, writing
from tunesmith.errors import CheckpointError, StorageError
from tunesmith.models.world import World, current_world

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
# The file of a process with its parts of sharded tensors, as torch names it.
SHARDS = "shard-{:05d}-model-00001-of-00001.safetensors"


def write_folder(folder: Path, fill: Callable[[Path], None], *, shards: Mapping[str, Tensor] | None = None) -> None:
    """Write a folder so that a crash at any moment leaves the old folder or the new one, never a mixture.

    Files are written to a sibling folder, hashed into a manifest, flushed to disk and renamed.

    Args:
        folder: target; an existing folder is replaced.
        fill: writes the files into the folder it is given; called again for another one if the disk is full.
        shards: sharded tensors by name. Then all processes have to call this; each writes and hashes its parts, and the
            first one everything else.

    Raises:
        StorageError: if the disk is full or the folder is not writable. Unless there are shards, the error names a
            temporary folder that holds the files instead, if that can be written.
    """
    try:
        _write_folder(folder, fill, shards)
    except StorageError as error:
        if not shards:
            with suppress(StorageError, OSError):
                elsewhere = _write_elsewhere(folder.name, fill)
                # `mv` would put it into a folder that is there.
                move = f"delete {folder} and move it there" if folder.exists() else f"which can be moved to {folder}"
                error.args = (f"{error}; until then it is in {elsewhere}, {move}",)
        raise


def _write_elsewhere(name: str, fill: Callable[[Path], None]) -> Path:
    """Write a folder into a temporary one and return its path; leave nothing if that fails."""
    place = Path(tempfile.mkdtemp(prefix="tunesmith-"))
    try:
        _write_folder(place / name, fill)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return place / name


def _write_folder(folder: Path, fill: Callable[[Path], None], shards: Mapping[str, Tensor] | None = None) -> None:
    """Write a folder as `write_folder` does, or raise StorageError."""
    half = folder.with_name(f".{folder.name}.half")
    world = current_world().dealing if shards else World()

    def begin() -> None:
        with _writing(folder, half):
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir()

    world.lead(begin)
    if shards:
        with _writing(folder, half):
            save_shards(shards, half)
    own = half / SHARDS.format(world.rank + 1)
    sums = world.gather(sha256_of_file(own) if own.exists() else "")
    known = {SHARDS.format(rank): digest for rank, digest in enumerate(sums, 1) if digest}
    world.lead(lambda: _finish(folder, half, fill, known))


def _finish(folder: Path, half: Path, fill: Callable[[Path], None], known: Mapping[str, str]) -> None:
    """Write the other files and the manifest, flush everything and rename the folder; some hashes are known."""
    with _writing(folder, half):
        fill(half)
        names = [path.relative_to(half).as_posix() for path in sorted(half.rglob("*")) if path.is_file()]
        sums = {name: known.get(name) or sha256_of_file(half / name) for name in names}
        (half / MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8", newline="\n")
        mode = (half / MANIFEST).stat().st_mode
        for path in (half, *half.rglob("*")):
            if path.is_file():
                path.chmod(mode)  # safetensors creates files that only their owner may read
            _flush(path)
        old = folder.with_name(f".{folder.name}.old")
        if folder.exists():  # otherwise `old` may be the only copy, left by a crash between these two renames
            shutil.rmtree(old, ignore_errors=True)
            move(folder, old)
        move(half, folder)
        _flush(folder.parent)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _writing(folder: Path, half: Path) -> Iterator[None]:
    """Delete what was written so far, and raise StorageError, if the disk is full or not writable."""
    try:
        with writing(folder):
            yield
    except StorageError:
        shutil.rmtree(half, ignore_errors=True)
        raise


def find_folder(folder: Path) -> Path | None:
    """Return the complete folder, or the previous version if a crash came between the two renames.

    Args:
        folder: a target of `write_folder`.

    Returns:
        The folder to read, None if there is not any.
    """
    old = folder.with_name(f".{folder.name}.old")
    return next((path for path in (folder, old) if (path / MANIFEST).exists()), None)


def verify_folder(folder: Path, *, editable: Container[str] = ()) -> None:
    """Compare every file of a folder with its manifest.

    Args:
        folder: a folder that `write_folder` wrote.
        editable: names of files that may have been edited since, which is reported in the log.

    Raises:
        CheckpointError: if another file is missing or differs.
    """
    for name, expected in file_digests(folder).items():
        path = folder / name
        if path.is_file() and file_digest(path) == expected:
            continue
        if not path.is_file() or name not in editable:
            raise CheckpointError(f"{path}: missing or changed since it was written; restore it or run again")
        report_once(f"{path}: edited since it was written; restore it if that was not you", file_digest(path))


def verify_model(folder: Path) -> None:
    """Compare a saved model with its manifest; report edits of `EDITABLE`, and files that came later, in the log.

    Args:
        folder: the model folder of a run.

    Raises:
        CheckpointError: if any other file is missing or differs from what was written.
    """
    if not (folder / MANIFEST).exists():
        report_once(f"{folder}: {MANIFEST} is missing, so nothing shows whether its files have changed; restore it")
        return
    verify_folder(folder, editable=EDITABLE)
    known = {*file_digests(folder), MANIFEST}
    for path in sorted(folder.iterdir()):
        if path.name not in known and path.suffix in READ_BY_LIBRARIES:
            report_once(f"{folder}: {path.name!r} is not of the run and may change its answers; delete it if unsure")


def names_file(folder: Path, name: str) -> bool:
    """Return whether the manifest of a folder names a file; False without a readable manifest."""
    try:
        return name in file_digests(folder)
    except CheckpointError:
        return False


def file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that `write_folder` wrote into a folder, by name; raise CheckpointError."""
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        sums = None
    if not isinstance(sums, dict):
        raise CheckpointError(f"{folder}: no readable {MANIFEST}, so it is incomplete; delete it and run again")
    return sums


def file_digest(path: Path) -> str:
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
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({error}); restore it or run again") from None
    # The tensors are the mapped file, which Windows could not replace, as the next checkpoint does.
    return {name: value.clone() for name, value in tensors.items()} if sys.platform == "win32" else tensors


def save_shards(shards: Mapping[str, Tensor], folder: Path) -> None:
    """Write sharded tensors, each process the parts that it holds, in one safetensors file per process.

    Args:
        shards: by name.
        folder: an existing folder, the same in all processes.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    # Not torch's default writer, which pickles its metadata.
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(shards), storage_writer=writer)
    except CheckpointException as error:  # by process, equal in all of them; not an Exception
        raise next(iter(error.failures.values()))[0] from None


def has_shards(folder: Path) -> bool:
    """Return whether a folder contains parts of sharded tensors."""
    return (folder / SHARDS.format(1)).exists()


def shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the whole shape of every tensor in the safetensors files of a folder, sharded or not."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    found: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: tuple(value.size) for name, value in found.items()}


def load_into(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill tensors from the safetensors files of a folder, whole or sharded there and here.

    Args:
        tensors: by name; changed in place. If any is sharded, all processes have to call this.
        folder: the folder.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a single process loads alone
        load(dict(tensors), storage_reader=reader, no_dist=current_world().size == 1)


def _flush(path: Path) -> None:
    """Write a file or a folder entry to disk: without it, a rename may be on disk before the bytes it names."""
    windows = sys.platform == "win32"  # which opens no folders, and flushes only what was opened for writing
    if windows and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
