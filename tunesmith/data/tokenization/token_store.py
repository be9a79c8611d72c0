"""Encoded rows in mapped files: encoded once by all cores, then shared by every process and every resumed run.

A row takes 4 bytes per token on the disk and some 60 bytes more, and in memory only what is read of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.cpu_count import cores
from tunesmith.data.parallel import in_order
from tunesmith.data.stored import Joined, Ragged, RaggedWriter, StoredSequence, array_of
from tunesmith.data.tokenization.tokens import Encoded, Tokens

E = TypeVar("E")
# Examples that one process encodes at a time.
AT_ONCE = 1000
# Parts of a sequence, then of a row, with the type of their values. `flags` has one value for each sequence of a row.
PARTS = {
    "ids": "<u4",
    "learned": "<i4",
    "weights": "<f8",
    "second": "<i4",
    "where": "|u1",
    "label": "<f8",
    "words": "<i4",
    "reference": "<f8",
    "flags": "|u1",
    "size": "<i4",
}
SHORTENED, ASKS = 1, 2
# Of each part the values of all rows or sequences, and how many each of them has.
Piece = Mapping[str, tuple[NDArray[Any], NDArray[Any]]]


class EncodedStore(StoredSequence[Encoded]):
    """Encoded rows in a folder of arrays, read one by one."""

    def _open(self) -> int:
        parts = {name: Ragged(self.folder, name, dtype) for name, dtype in PARTS.items()}
        self._parts = {name: part for name, part in parts.items() if len(part)}
        return len(parts["size"])

    @classmethod
    def write(cls, folder: Path, pieces: Iterable[Piece]) -> EncodedStore:
        """Write consecutive rows, as `packed` returns them, to a new folder and return them."""
        folder.mkdir()
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(closing(RaggedWriter(folder, name, dtype))) for name, dtype in PARTS.items()
            }
            for piece in pieces:
                for name, arrays in piece.items():
                    writers[name].append(*arrays)
        return cls(folder)

    def sizes(self) -> Iterator[int]:
        """Yield the size of each row, in tokens."""
        return map(self._parts["size"].values.__getitem__, self.chosen.data) if len(self) else iter(())

    def _read(self, row: int) -> Encoded:
        flags = self._parts["flags"]
        first, end = flags.starts[row], flags.starts[row + 1]
        return Encoded(
            sequences=tuple(map(self._sequence, range(first, end))),
            where=bytes(self._parts["where"][row]).decode(errors="surrogateescape") if "where" in self._parts else "",
            label=tuple(self._part("label", row)),
            shortened=bool(flags.values[first] & SHORTENED),
            words=tuple(self._part("words", row)),
            reference=tuple(self._part("reference", row)),
            asks=bool(flags.values[first] & ASKS),
        )

    def _part(self, name: str, index: int) -> list[Any]:
        part = self._parts.get(name)
        return [] if part is None else part[index].tolist()

    def _sequence(self, index: int) -> Tokens:
        ids = self._part("ids", index)
        learn = [False] * len(ids)
        spans = self._part("learned", index)
        for start, end in zip(spans[::2], spans[1::2], strict=True):
            learn[start:end] = [True] * (end - start)
        return Tokens(ids, learn, self._part("weights", index), *self._part("second", index))


def encoded_pieces(encode: Callable[[E], list[Encoded]], examples: Iterable[E]) -> Iterator[Piece]:
    """Encode examples on all cores, each as rows, and yield the packed rows in order."""
    rest = iter(examples)
    parts = iter(lambda: list(islice(rest, AT_ONCE)), [])
    return in_order(_encode, encode, parts, workers=cores())


def _encode(encode: Callable[[E], list[Encoded]], examples: list[E]) -> Piece:
    return packed([row for example in examples for row in encode(example)])


def packed(rows: Sequence[Encoded]) -> Piece:
    """Return rows as arrays: of each part the values of all items, and how many each item has."""
    sequences = [tokens for row in rows for tokens in row.sequences]
    items: dict[str, list[Sequence[float]]] = {
        "ids": [tokens.ids for tokens in sequences],
        "learned": [_spans(tokens.learn) for tokens in sequences],
        "weights": [tokens.weights for tokens in sequences],
        "second": [[tokens.second] if tokens.second else [] for tokens in sequences],
        "where": [row.where.encode(errors="surrogateescape") for row in rows],
        "label": [row.label for row in rows],
        "words": [row.words for row in rows],
        "reference": [row.reference for row in rows],
        "flags": [[SHORTENED * row.shortened + ASKS * row.asks] * len(row.sequences) for row in rows],
        "size": [[row.size] for row in rows],
    }
    return {name: _items(values, PARTS[name]) for name, values in items.items()}


def _items(items: Sequence[Sequence[float]], dtype: str) -> tuple[NDArray[Any], NDArray[Any]]:
    sizes = np.fromiter(map(len, items), np.int64, len(items))
    return np.fromiter(chain.from_iterable(items), dtype, int(sizes.sum())), sizes


def _spans(learn: Sequence[bool]) -> list[int]:
    """Return where each run of learned tokens starts and ends."""
    edges: list[int] = np.flatnonzero(np.diff([False, *learn, False])).tolist()
    return edges


def sizes_of(rows: Sequence[Encoded]) -> memoryview:
    """Return the size of each row, in tokens."""
    parts = rows.parts if isinstance(rows, Joined) else (rows,)
    sizes = (part.sizes() if isinstance(part, EncodedStore) else (row.size for row in part) for part in parts)
    return array_of(len(rows), "<i4", chain.from_iterable(sizes)).data
