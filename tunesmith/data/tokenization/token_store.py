"""Encoded rows in mapped files: encoded once by all cores, then shared by every process and every resumed run.

A row takes 4 bytes per token on the disk and some 60 bytes more, and in memory only what is read of it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.cpu_count import cores
from tunesmith.data.parallel import in_order
from tunesmith.data.stored import ArrayWriter, Joined, Ragged, RaggedWriter, StoredSequence, mapped
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.data.tokenization.tokens import Encoded, Tokens

E_contra = TypeVar("E_contra", contravariant=True)
# Examples that one process encodes at a time.
AT_ONCE = 1000
# Parts of a row and of its sequences: name -> type of the values.
SEQUENCE_PARTS = {"ids": "<u4", "learned": "<i4", "weights": "<f8"}
ROW_PARTS = {"where": "|u1", "label": "<f8", "words": "<i4", "reference": "<f8", "counts": "|u1"}
NEVER_EMPTY = ("ids", "where", "counts")
# Properties of a row: its size in tokens, and two flags.
ROW_VALUES = {"size": "<i4", "flags": "|u1"}
SHORTENED, ASKS = 1, 2
# Of each part the values of all rows or sequences, and how many each of them has.
Piece = Mapping[str, tuple[NDArray[Any], ...]]


class Encoder(Protocol[E_contra]):
    """Encodes an example as rows; every objective does."""

    def encode_all(self, example: E_contra, template: Template, *, limit: int) -> list[Encoded]:
        """Encode one example as training rows."""
        ...


class EncodedStore(StoredSequence[Encoded]):
    """Encoded rows in a folder of arrays, read one by one."""

    def _open(self) -> int:
        names = [name for name in SEQUENCE_PARTS | ROW_PARTS if (self.folder / f"{name}.npy").exists()]
        self._parts = {name: Ragged(self.folder, name) for name in names}
        self._values = {name: np.asarray(mapped(self.folder / f"{name}.npy")) for name in ROW_VALUES}
        self._first = self._parts["counts"].starts  # the first sequence of each row
        return len(self._values["size"])

    @classmethod
    def write(cls, folder: Path, pieces: Iterable[Piece]) -> EncodedStore:
        """Write encoded rows to a new folder and return them.

        Args:
            folder: the folder, a part of one that `build_once` makes.
            pieces: what `packed` returns for consecutive rows.
        """
        folder.mkdir()
        with ExitStack() as stack:
            writers: dict[str, RaggedWriter | ArrayWriter] = {
                name: RaggedWriter(folder, name, dtype, optional=name not in NEVER_EMPTY)
                for name, dtype in (SEQUENCE_PARTS | ROW_PARTS).items()
            }
            writers |= {name: ArrayWriter(folder / f"{name}.npy", dtype) for name, dtype in ROW_VALUES.items()}
            for writer in writers.values():
                stack.enter_context(closing(writer))
            for piece in pieces:
                for name, arrays in piece.items():
                    writers[name].append(*arrays)
        return cls(folder)

    @property
    def sizes(self) -> array[int]:
        """Return the size of each row, in tokens."""
        return array("i", self._values["size"][self.chosen].tobytes())

    def _read(self, row: int) -> Encoded:
        flags = int(self._values["flags"][row])
        return Encoded(
            sequences=tuple(map(self._sequence, range(self._first[row], self._first[row + 1]))),
            where=self._parts["where"][row].tobytes().decode(errors="surrogateescape"),
            label=tuple(self._part("label", row)),
            shortened=bool(flags & SHORTENED),
            words=tuple(self._part("words", row)),
            reference=tuple(self._part("reference", row)),
            asks=bool(flags & ASKS),
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
        return Tokens(ids, learn, self._part("weights", index))


def encoded_pieces(
    encoder: Encoder[E_contra], examples: Iterable[E_contra], template: Template, *, limit: int
) -> Iterator[Piece]:
    """Encode examples on all cores and yield the packed rows in order.

    Args:
        encoder: the objective.
        examples: typed rows.
        template: tokenizer and chat format.
        limit: tokens of the longest row.
    """
    rest = iter(examples)
    parts = iter(lambda: list(islice(rest, AT_ONCE)), [])
    return in_order(_encode, (encoder, template, limit), parts, workers=cores())


def _encode(shared: tuple[Encoder[E_contra], Template, int], examples: list[E_contra]) -> Piece:
    encoder, template, limit = shared
    return packed([row for example in examples for row in encoder.encode_all(example, template, limit=limit)])


def packed(rows: Sequence[Encoded]) -> Piece:
    """Return rows as arrays: of each part the values of all items, and how many each item has."""
    sequences = [tokens for row in rows for tokens in row.sequences]
    return {
        "ids": _items([tokens.ids for tokens in sequences], "<u4"),
        "learned": _items([_spans(tokens.learn) for tokens in sequences], "<i4"),
        "weights": _items([tokens.weights for tokens in sequences], "<f8"),
        "where": _items([list(row.where.encode(errors="surrogateescape")) for row in rows], "|u1"),
        "label": _items([row.label for row in rows], "<f8"),
        "words": _items([row.words for row in rows], "<i4"),
        "reference": _items([row.reference for row in rows], "<f8"),
        "counts": _items([[0] * len(row.sequences) for row in rows], "|u1"),
        "size": _items([[row.size for row in rows]], "<i4")[:1],
        "flags": _items([[SHORTENED * row.shortened + ASKS * row.asks for row in rows]], "|u1")[:1],
    }


def _items(items: Sequence[Sequence[float]], dtype: str) -> tuple[NDArray[Any], NDArray[Any]]:
    sizes = np.fromiter(map(len, items), np.int64, len(items))
    return np.fromiter(chain.from_iterable(items), dtype, int(sizes.sum())), sizes


def _spans(learn: Sequence[bool]) -> list[int]:
    """Return where each run of learned tokens starts and ends."""
    edges: list[int] = np.flatnonzero(np.diff([False, *learn, False])).tolist()
    return edges


def sizes_of(rows: Sequence[Encoded]) -> array[int]:
    """Return the size of each row, in tokens."""
    if isinstance(rows, Joined):
        return array("i", chain.from_iterable(map(sizes_of, rows.parts)))
    return rows.sizes if isinstance(rows, EncodedStore) else array("i", (row.size for row in rows))
