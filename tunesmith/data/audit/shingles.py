"""Texts as numbers that can be compared by the million: words, MinHash signatures, hashes of word sequences.

Signatures are MinHash (Broder 1997) over runs of five bytes: two texts agree in a share of their K numbers that
estimates the Jaccard likeness of their runs. All of it is array arithmetic over a whole chunk of texts.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.words import folded

Longs = NDArray[np.uint64]
Shorts = NDArray[np.uint16]

K = 96  # numbers in a signature
RUN = 5  # bytes in a shingle
LONGEST = 8000  # bytes of a text that its signature looks at
GRAM = 13  # words in a row that hardly two people write alike (GPT-3, arXiv 2005.14165, appendix C)
WORD_BITS = 20

_DRAWN = np.random.default_rng(0x7_0_5)  # fixed, so that signatures of two files compare
_XOR = _DRAWN.integers(0, 2**32, K, dtype=np.uint32)
_TIMES = _DRAWN.integers(0, 2**31, K, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
_MIX = np.uint64(0x9E3779B97F4A7C15)


def slots(words: Sequence[str]) -> NDArray[np.uint32]:
    """A place from 0 to 2^20 for each word."""
    found = [zlib.crc32(word.encode(errors="surrogatepass")) for word in words]
    return np.array(found, dtype=np.uint32) >> np.uint32(32 - WORD_BITS)


def digest(text: str, *, exact: bool = False) -> int:
    """64 bits of a text, letter case and spacing aside unless it is to be exact."""
    plain = text if exact else folded(text)
    return int.from_bytes(hashlib.blake2b(plain.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def signatures(texts: Sequence[bytes]) -> Shorts:
    """(n, K): the MinHash signature of each text; equal texts have equal ones."""
    if not texts:
        return np.zeros((0, K), np.uint16)
    padded = [text[:LONGEST].ljust(RUN) for text in texts]
    sizes = np.fromiter(map(len, padded), np.int64, len(padded))
    stream = np.frombuffer(b"".join(padded), np.uint8).astype(np.uint64)
    runs = np.zeros(len(stream) - RUN + 1, np.uint64)
    for i in range(RUN):
        runs |= stream[i : len(stream) - RUN + 1 + i] << np.uint64(8 * i)
    # The last bytes of a text begin no whole run: what starts there would reach into the next text.
    ends = np.cumsum(sizes)
    inside = np.ones(len(stream), bool)
    for i in range(1, RUN):
        inside[ends - i] = False
    hashed = ((runs[inside[: len(runs)]] * _MIX) >> np.uint64(32)).astype(np.uint32)
    counts = sizes - RUN + 1
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    found = np.empty((len(texts), K), np.uint16)
    for k in range(K):
        # The low half of the smallest number names it; its high half is nearly always zero.
        found[:, k] = np.minimum.reduceat((hashed ^ _XOR[k]) * _TIMES[k], starts).astype(np.uint16)
    return found


def grams(hashes: Sequence[NDArray[np.uint32]], length: int = GRAM) -> tuple[Longs, NDArray[np.int64]]:
    """The hash of every run of `length` words, and in which of the texts it stands; texts come as slots of words."""
    sizes = np.fromiter(map(len, hashes), np.int64, len(hashes))
    long = np.flatnonzero(sizes >= length)
    if not len(long):
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    stream = np.concatenate([hashes[int(i)] for i in long]).astype(np.uint64) * _MIX
    owner = np.repeat(long, sizes[long])
    count = len(stream) - length + 1
    found = np.zeros(count, np.uint64)
    for i in range(length):
        found = found * np.uint64(0x100000001B3) + (stream[i : i + count] >> np.uint64(7))
    same = owner[:count] == owner[length - 1 :]
    return found[same], owner[:count][same]
