"""Sequences in files instead of memory: arrays, written piece by piece and mapped, never half written."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Self, TypeVar, overload

import numpy as np
from filelock import FileLock
from numpy.typing import ArrayLike, NDArray

from tunesmith import __version__
from tunesmith.data.files import move, writing
from tunesmith.data.user_cache import cache_dir

T = TypeVar("T")
# Raised when the files in a cache folder change.
FORMAT = 2
# Reads after which the pages of a mapped file are released: they stay in the cache of the system, not in this process.
RELEASE_EVERY = 1 << 15
# Values of an array from which it is in a file, and those that are computed at a time.
MAPPED_FROM = 1 << 20
AT_ONCE = 1 << 18


def cached_folder(kind: str, *key: object) -> Path:
    """Return the folder in the user's cache for what a version of this program makes from JSON values."""
    text = json.dumps([FORMAT, __version__, *key], default=str)
    return cache_dir() / kind / hashlib.sha256(text.encode()).hexdigest()[:32]


def build_once(folder: Path, fill: Callable[[Path], None]) -> None:
    """Build a folder unless it exists. Other processes wait for it, and a killed one leaves nothing that is read.

    `fill` writes the files into the folder it is given, which is renamed afterwards.
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
                move(partial, folder)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise


def array_of(count: int, dtype: str, values: Iterable[Any] = ()) -> NDArray[Any]:
    """Return an array of `count` numbers of a `dtype`: `values`, then zeros; a long one is in an unnamed file."""
    array: NDArray[Any]
    if count < MAPPED_FROM:
        array = np.zeros(count, dtype)
    else:
        cache = cache_dir()
        with writing(cache):
            cache.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=cache) as file:
                size = file.truncate(count * np.dtype(dtype).itemsize)
                if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a crash where values are set
                    os.posix_fallocate(file.fileno(), 0, size)
                array = np.asarray(np.memmap(file, dtype, "r+", shape=count))
    rest = iter(values)
    start = 0
    while len(part := np.fromiter(islice(rest, AT_ONCE), dtype)):
        array[start : start + len(part)] = part
        start += len(part)
    return array


def slices(count: int) -> list[slice]:
    """Return the parts of an array that are computed one after another."""
    return [slice(start, start + AT_ONCE) for start in range(0, count, AT_ONCE)]


def mapped(path: Path, dtype: str) -> NDArray[Any]:
    """Map a file of values into memory, read-only; one that is empty or not there has no values."""
    return np.memmap(path, dtype, "r") if path.exists() and path.stat().st_size else np.zeros(0, dtype)


class RaggedWriter:
    """Appends items of different lengths to two files: the values of all items, and where each one starts.

    If no item has a value, there are no files.
    """

    def __init__(self, folder: Path, name: str, dtype: str) -> None:
        self._files = [(folder / f"{name}.{part}").open("wb") for part in ("values", "starts")]
        self._dtype = dtype
        self._end = 0
        self._files[1].write(bytes(8))

    def append(self, values: ArrayLike, sizes: ArrayLike) -> None:
        """Append the values of some items, one item after another, and how many values each item has."""
        ends = self._end + np.cumsum(sizes, dtype="<i8")
        for file, array in zip(self._files, (np.ascontiguousarray(values, self._dtype), ends), strict=True):
            file.write(array.data)
        self._end = int(ends[-1]) if len(ends) else self._end

    def close(self) -> None:
        """Flush both files to the disk."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
            file.close()
            if not self._end:
                Path(file.name).unlink()


class Ragged:
    """Items of different lengths in two mapped files, read one by one."""

    def __init__(self, folder: Path, name: str, dtype: str) -> None:
        self._mapped = [mapped(folder / f"{name}.values", dtype), mapped(folder / f"{name}.starts", "<i8")]
        # Slices of arrays cost several times as much, of the class `memmap` ten times.
        self.values, self.starts = (array.data for array in self._mapped)
        self._reads = 0

    def __len__(self) -> int:
        """Return the number of items."""
        return max(0, len(self.starts) - 1)

    def __getitem__(self, index: int) -> memoryview:
        """Return the values of an item."""
        self._reads += 1
        if self._reads % RELEASE_EVERY == 0:  # give the pages that were read back to the system
            for array in self._mapped:
                if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
                    array.base.madvise(mmap.MADV_DONTNEED)
        return self.values[self.starts[index] : self.starts[index + 1]]


class ReadSequence(Sequence[T]):
    """A sequence whose items are read when they are used."""

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        """Read one item, or choose a range of them."""
        return self._range(index) if isinstance(index, slice) else self._at(index)

    @abstractmethod
    def _at(self, index: int) -> T:
        """Read an item, counted from the end if the index is negative; raise IndexError if there is none."""

    @abstractmethod
    def _range(self, part: slice) -> Sequence[T]:
        """Choose a range of items."""


class StoredSequence(ReadSequence[T]):
    """Items in a folder, or a choice of them.

    >>> part = StoredExamples(folder).take(np.array([3, 1]))  # two rows, in this order

    Args:
        folder: the folder of a whole sequence.
        chosen: indices of its items, or the file of `save` that lists them; by default all.
    """

    def __init__(self, folder: Path, chosen: NDArray[np.int32] | Path | None = None) -> None:
        self.folder = folder
        count = self._open()
        if isinstance(chosen, Path):
            chosen = np.asarray(mapped(chosen, "<i4"))
        self.chosen: NDArray[np.int32] = array_of(count, "<i4", range(count)) if chosen is None else chosen

    @abstractmethod
    def _open(self) -> int:
        """Map the files of the folder and return the number of items."""

    @abstractmethod
    def _read(self, index: int) -> T:
        """Read an item of the folder."""

    def take(self, which: NDArray[Any]) -> Self:
        """Return the items at some indices, or those for which a mask is true; they stay in their files."""
        if which.dtype != bool:
            return type(self)(self.folder, self.chosen[which])
        kept = (index for part in slices(len(which)) for index in self.chosen[part][which[part]].tolist())
        return type(self)(self.folder, array_of(int(which.sum()), "<i4", kept))

    def save(self, path: Path) -> None:
        """Write which items of the folder these are."""
        self.chosen.tofile(path)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.chosen)

    def __iter__(self) -> Iterator[T]:
        """Read one item after another."""
        return (self._read(index) for part in slices(len(self)) for index in self.chosen[part].tolist())

    def _at(self, index: int) -> T:
        return self._read(int(self.chosen[index]))

    def _range(self, part: slice) -> Self:
        return type(self)(self.folder, self.chosen[part])


def take(items: Sequence[T], which: NDArray[Any]) -> Sequence[T]:
    """Return the items at some indices, or where a mask is true: of a list a list, of stored items the same files."""
    if isinstance(items, StoredSequence):
        return items.take(which)
    return [items[i] for i in (np.flatnonzero(which) if which.dtype == bool else which).tolist()]


class Joined(ReadSequence[T]):
    """Sequences one after another, without a copy."""

    def __init__(self, *parts: Sequence[T]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        """Return the length of all parts."""
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[T]:
        """Yield the items of each part."""
        return chain.from_iterable(self.parts)

    def _at(self, index: int) -> T:
        index = index + len(self) if index < 0 else index
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)

    def _range(self, part: slice) -> list[T]:
        return [self[i] for i in range(*part.indices(len(self)))]


def joined(*parts: Sequence[T]) -> Sequence[T]:
    """Return sequences as one: a list of lists is a list, anything stored stays where it is."""
    if all(isinstance(part, list) for part in parts):
        return [item for part in parts for item in part]
    return Joined(*parts)
