"""Hashes for comparing millions of texts: words, MinHash signatures and runs of words.

Signatures are MinHash (Broder 1997) over runs of five bytes: the share of equal hashes of two texts estimates the
Jaccard similarity of their runs. Everything is array arithmetic over a chunk of texts.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.text.words import folded

Longs = NDArray[np.uint64]
Shorts = NDArray[np.uint16]

K = 96  # hashes in a signature
RUN = 5  # bytes in a shingle
MAX_BYTES = 8000  # bytes of a text that its signature covers
GRAM = 13  # words in a run, which rarely occurs twice by chance (GPT-3, arXiv 2005.14165, appendix C)
WORD_BITS = 20

_RNG = np.random.default_rng(0x7_0_5)  # fixed, so that signatures of two files are comparable
_XOR = _RNG.integers(0, 2**32, K, dtype=np.uint32)
_TIMES = _RNG.integers(0, 2**31, K, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
_MIX = np.uint64(0x9E3779B97F4A7C15)


def slots(words: Sequence[str]) -> NDArray[np.uint32]:
    """Return the hash of each word, in [0, 2^20)."""
    hashes = [zlib.crc32(word.encode(errors="surrogatepass")) for word in words]
    return np.array(hashes, dtype=np.uint32) >> np.uint32(32 - WORD_BITS)


def digest(text: str, *, exact: bool = False) -> int:
    """Return a 64-bit hash of a text, normalized for letter case and spacing unless `exact`."""
    plain = text if exact else folded(text)
    return int.from_bytes(hashlib.blake2b(plain.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def signatures(texts: Sequence[bytes]) -> Shorts:
    """Return the MinHash signature of each text, [N, K]; equal texts have equal signatures."""
    if not texts:
        return np.zeros((0, K), np.uint16)
    padded = [text[:MAX_BYTES].ljust(RUN) for text in texts]
    sizes = np.fromiter(map(len, padded), np.int64, len(padded))
    stream = np.frombuffer(b"".join(padded), np.uint8).astype(np.uint64)
    runs = np.zeros(len(stream) - RUN + 1, np.uint64)
    for i in range(RUN):
        runs |= stream[i : len(stream) - RUN + 1 + i] << np.uint64(8 * i)
    # Runs that start at the last bytes of a text would reach into the next text.
    ends = np.cumsum(sizes)
    inside = np.ones(len(stream), bool)
    for i in range(1, RUN):
        inside[ends - i] = False
    hashed = ((runs[inside[: len(runs)]] * _MIX) >> np.uint64(32)).astype(np.uint32)
    counts = sizes - RUN + 1
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    result = np.empty((len(texts), K), np.uint16)
    for k in range(K):
        # The low half identifies the minimum; its high half is nearly always zero.
        result[:, k] = np.minimum.reduceat((hashed ^ _XOR[k]) * _TIMES[k], starts).astype(np.uint16)
    return result


def grams(hashes: Sequence[NDArray[np.uint32]], length: int = GRAM) -> tuple[Longs, NDArray[np.int64]]:
    """Return the hash of each run of `length` words and the index of its text; texts are given as word slots."""
    sizes = np.fromiter(map(len, hashes), np.int64, len(hashes))
    long = np.flatnonzero(sizes >= length)
    if not len(long):
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    stream = np.concatenate([hashes[int(i)] for i in long]).astype(np.uint64) * _MIX
    owner = np.repeat(long, sizes[long])
    count = len(stream) - length + 1
    runs = np.zeros(count, np.uint64)
    for i in range(length):
        runs = runs * np.uint64(0x100000001B3) + (stream[i : i + count] >> np.uint64(7))
    same = owner[:count] == owner[length - 1 :]
    return runs[same], owner[:count][same]
