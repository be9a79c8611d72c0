"""Sequences in files instead of memory: .npy arrays, written piece by piece and mapped, never half written."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self, TypeVar, overload

import numpy as np
from filelock import FileLock
from numpy.typing import ArrayLike, NDArray

from tunesmith import __version__
from tunesmith.data.files import writing
from tunesmith.data.user_cache import cache_dir

T = TypeVar("T")
# Raised when the files in a cache folder change.
FORMAT = 1
# Reads after which the pages of a mapped file are released: they stay in the cache of the system, not in this process.
RELEASE_EVERY = 1 << 15


def cached_folder(kind: str, *key: object) -> Path:
    """Return the folder in the user's cache for what a version of this program makes from JSON values."""
    text = json.dumps([FORMAT, __version__, *key], default=str)
    return cache_dir() / kind / hashlib.sha256(text.encode()).hexdigest()[:32]


def build_once(folder: Path, fill: Callable[[Path], None]) -> None:
    """Build a folder unless it exists. Other processes wait for it, and a killed one leaves nothing that is read.

    Args:
        folder: the folder.
        fill: writes its files into the folder it is given, which is renamed afterwards.
    """
    if folder.is_dir():
        return
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a killed process: the lock is ours
            if folder.is_dir():
                return
            try:
                partial.mkdir()
                fill(partial)
                partial.rename(folder)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise


class ArrayWriter:
    """Appends values to a .npy file. numpy leaves space in its header for the final number of values."""

    def __init__(self, path: Path, dtype: str) -> None:
        self.path = path
        self._file = path.open("wb")
        self._dtype = dtype
        self._count = 0
        self._write_header()

    def append(self, values: ArrayLike) -> None:
        """Append values."""
        array = np.asarray(values, dtype=self._dtype)
        self._file.write(array.tobytes())
        self._count += len(array)

    def close(self) -> None:
        """Write the number of values and flush the file to the disk."""
        self._file.seek(0)
        self._write_header()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _write_header(self) -> None:
        header = {"descr": self._dtype, "fortran_order": False, "shape": (self._count,)}
        np.lib.format.write_array_header_1_0(self._file, header)


def mapped(path: Path) -> NDArray[Any]:
    """Map a .npy file into memory, read-only."""
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


class RaggedWriter:
    """Appends items of different lengths to two .npy files: the values of all items, and where each one starts.

    Args:
        folder: where the files are written.
        name: of the files.
        dtype: type of the values.
        optional: delete the files if no item has a value.
    """

    def __init__(self, folder: Path, name: str, dtype: str, *, optional: bool = False) -> None:
        self._optional = optional
        self._values = ArrayWriter(folder / f"{name}.npy", dtype)
        self._starts = ArrayWriter(folder / f"{name}.starts.npy", "<i8")
        self._starts.append([0])
        self._end = 0

    def append(self, values: ArrayLike, sizes: ArrayLike) -> None:
        """Append items.

        Args:
            values: the values of all items, one item after another.
            sizes: the number of values of each item.
        """
        ends = self._end + np.cumsum(np.asarray(sizes, np.int64))
        self._values.append(values)
        self._starts.append(ends)
        self._end = int(ends[-1]) if len(ends) else self._end

    def close(self) -> None:
        """Finish both files."""
        for writer in (self._values, self._starts):
            writer.close()
            if self._optional and not self._end:
                writer.path.unlink()


class Ragged:
    """Items of different lengths in two mapped files, read one by one."""

    def __init__(self, folder: Path, name: str) -> None:
        self._mapped = [mapped(folder / f"{name}.npy"), mapped(folder / f"{name}.starts.npy")]
        # Views without the class `memmap`, whose slices cost ten times as much.
        self.values, self.starts = (np.asarray(array) for array in self._mapped)
        self._reads = 0

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> NDArray[Any]:
        """Return the values of an item."""
        self._reads += 1
        if self._reads % RELEASE_EVERY == 0:
            self.release()
        return self.values[self.starts[index] : self.starts[index + 1]]

    def release(self) -> None:
        """Give the pages that were read back to the system."""
        for array in self._mapped:
            if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
                array.base.madvise(mmap.MADV_DONTNEED)


class StoredSequence(Sequence[T]):
    """Items in a folder, or a choice of them, each read when it is used; an item takes 4 bytes of memory.

    >>> part = StoredExamples(folder).take([3, 1])  # two rows, in this order

    Args:
        folder: the folder of a whole sequence.
        chosen: indices of its items, or the file of `save` that lists them; by default all.
    """

    def __init__(self, folder: Path, chosen: NDArray[np.int32] | Path | None = None) -> None:
        self.folder = folder
        count = self._open()
        if isinstance(chosen, Path):
            chosen = np.asarray(mapped(chosen))
        self.chosen = np.arange(count, dtype=np.int32) if chosen is None else chosen

    @abstractmethod
    def _open(self) -> int:
        """Map the files of the folder and return the number of items."""

    @abstractmethod
    def _read(self, index: int) -> T:
        """Read an item of the folder."""

    def take(self, indices: ArrayLike) -> Self:
        """Return the items at some indices, which stay in their files."""
        return type(self)(self.folder, self.chosen[np.asarray(indices, np.int64)])

    def save(self, path: Path) -> None:
        """Write which items of the folder these are."""
        with closing(ArrayWriter(path, "<i4")) as writer:
            writer.append(self.chosen)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> T | Self:
        """Read one item, or choose a range of them."""
        if isinstance(index, slice):
            return type(self)(self.folder, self.chosen[index])
        return self._read(int(self.chosen[index]))


def take(items: Sequence[T], indices: ArrayLike) -> Sequence[T]:
    """Return the items at some indices: of a list a list, of stored items the same files."""
    if isinstance(items, StoredSequence):
        return items.take(indices)
    return [items[i] for i in np.asarray(indices).tolist()]


class Joined(Sequence[T]):
    """Sequences one after another, without a copy."""

    def __init__(self, *parts: Sequence[T]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        """Return the length of all parts."""
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[T]:
        """Yield the items of each part."""
        for part in self.parts:
            yield from part

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        """Return one item, or a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = index + len(self) if index < 0 else index
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


def joined(*parts: Sequence[T]) -> Sequence[T]:
    """Return sequences as one: a list of lists is a list, anything stored stays where it is."""
    if all(isinstance(part, list) for part in parts):
        return [item for part in parts for item in part]
    return Joined(*parts)
