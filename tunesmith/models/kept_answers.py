"""Answers of untouched base models, kept in one file of the user's cache so that no run computes them twice.

    policy.kept = kept_answers(base.network)
    scores = policy.recall(["options", options], prompts, lambda rows: score([prompts[i] for i in rows]))

The key of an answer is a digest of all that it depends on: every weight of the network, token ids, precision, device,
threads, libraries and the code of this package. Only a policy that was given `kept` reads and writes answers. The file
is optional: where it is damaged, locked or on a full disk, everything is computed.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch

from tunesmith import __version__
from tunesmith.data.user_cache import ANSWERS, cache_dir
from tunesmith.models.certificate import VOLATILE
from tunesmith.models.once_per_shape import code_digest
from tunesmith.models.world import alone, current_world
from tunesmith.phases import reused_in_phase

T = TypeVar("T")
# Bytes from which the older half of the answers is dropped, and the most that one call keeps.
MOST_BYTES, MOST_AT_ONCE = 1 << 30, 1 << 27
KEYS_AT_ONCE = 900  # SQLite's oldest limit is 999
SAMPLED = 4  # values of each weight that show whether it was changed
# Seconds to wait for a file that another process has locked; after that, this process makes no use of it.
PATIENCE = 2.0
TABLE = "create table if not exists answers (key text unique, kind text, seconds real, value blob)"

_LOCKED: set[Path] = set()
_SAVED: ContextVar[float] = ContextVar("saved seconds", default=0.0)
_ONLY_KNOWN: ContextVar[bool] = ContextVar("only known answers", default=False)


class UnknownAnswerError(Exception):
    """An answer of this kind is not kept, in a block of `only_known`."""


@contextmanager
def only_known() -> Iterator[None]:
    """Raise UnknownAnswerError in the block where an answer would be computed; none counts as reused."""
    token = _ONLY_KNOWN.set(True)
    try:
        yield
    finally:
        _ONLY_KNOWN.reset(token)


def answer_clock() -> float:
    """Return a time in seconds that runs during a reused answer as long as it took when it was computed."""
    return time.perf_counter() + _SAVED.get()


@dataclass(frozen=True, slots=True)
class KeptAnswers:
    """The answers of a network with the weights that it had when this was made; see `kept_answers`."""

    digest: str  # of configuration and weights
    state: list[list[float]]  # of every weight: training, adapters and casts change it

    def belong_to(self, network: Any) -> bool:
        """Return whether a network still has these weights, and no others."""
        return self.state == _state(network)


def kept_answers(network: Any) -> KeptAnswers | None:
    """Return the kept answers of a network with its present weights; None if they are sharded."""
    if current_world().lockstep:
        return None
    known = _KNOWN.get(network)
    if known is None or not known.belong_to(network):
        config = sorted(item for item in network.config.to_dict().items() if item[0] not in VOLATILE)
        digest = hashlib.sha256(repr([type(network).__name__, config]).encode("utf-8", "replace"))
        for name, value in (*network.named_parameters(), *network.named_buffers()):
            scales = value.quant_state.as_dict(packed=True) if hasattr(value, "quant_state") else {}
            digest.update(f"{name}{value.dtype}{tuple(value.shape)}{sorted(scales)}".encode())
            for part in (value.detach(), *(scales[key] for key in sorted(scales))):
                digest.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        known = _KNOWN[network] = KeptAnswers(digest.hexdigest(), _state(network))
    return known


_KNOWN: WeakKeyDictionary[Any, KeptAnswers] = WeakKeyDictionary()


def _state(network: Any) -> list[list[float]]:
    """Return where each weight is, its version, and some of its values: a change of `.data` has no other mark."""
    state = []
    for value in network.parameters():
        some = value.detach().reshape(-1)[:: value.numel() // SAMPLED + 1].tolist()
        state.append([id(value), value.data_ptr(), value._version, *some])
    return state


def refuse_unknown(kind: object) -> None:
    """Raise UnknownAnswerError in a block of `only_known`."""
    if _ONLY_KNOWN.get():
        raise UnknownAnswerError(kind)


def recall(key: Sequence[object], rows: Sequence[object], compute: Callable[[list[int]], Iterable[T]]) -> list[T]:
    """Return the answer to each row, computing only those that are not kept.

    A kept answer may have been computed together with other rows, so that it differs in the last bits from a new one.

    Args:
        key: the kind of answer, and what all of them depend on.
        rows: what one answer depends on, such as token ids.
        compute: computes the answers to the rows at some indices: JSON values, or arrays of one dimension.
    """
    world, kind = current_world(), key[0]
    start = hashlib.sha256(_text([*_code(), *key]))
    keys = [_extended(start, row) for row in rows]
    found = _transaction(lambda db: _read(db, keys)) or {}
    if len(set(world.gather(_extended(start, sorted(found))))) > 1:
        found = {}  # the processes of this run have different caches
    missing = [i for i, row_key in enumerate(keys) if row_key not in found]
    computed: dict[int, T] = {}
    if missing:
        refuse_unknown(kind)
        began = time.perf_counter()
        computed = dict(zip(missing, compute(missing), strict=True))
        seconds = (time.perf_counter() - began) / len(missing)
        kept = [(keys[i], kind, seconds, _packed(keys[i], value)) for i, value in computed.items()]
        if world.leads and sum(len(row[-1]) for row in kept) < MOST_AT_ONCE:
            _transaction(lambda db: _write(db, kept))
    if found and not _ONLY_KNOWN.get():
        saved = sum(found[row_key][0] for row_key in keys if row_key in found)
        _SAVED.set(_SAVED.get() + saved)
        reused_in_phase(saved)
    return [computed[i] if i in computed else found[row_key][1] for i, row_key in enumerate(keys)]


def once(kind: str, compute: Callable[..., T], *args: object, **options: object) -> T:
    """Return what a function computes, or has computed from the same arguments."""
    key = [kind, compute.__module__, compute.__qualname__, options]
    with alone():  # of several processes, some may not come here
        return recall(key, [args], lambda _: [compute(*args, **options)])[0]


@cache
def _code() -> list[str]:
    return [__version__, *map(version, ("torch", "transformers", "scikit-learn")), code_digest()]


def _text(value: object) -> bytes:
    """Return a value as JSON, arrays by their digest."""
    return json.dumps(value, default=_digest_of_array).encode()


def _digest_of_array(value: object) -> str:
    array = np.asarray(value)
    if array.dtype == object:
        raise TypeError(f"no part of a key: {type(value)}")
    return f"{array.dtype}{array.shape}{hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()}"


def _extended(start: Any, value: object) -> str:
    digest = start.copy()
    digest.update(_text(value))
    return str(digest.hexdigest())


def _packed(key: str, value: object) -> bytes:
    """Return a value after the name of its form and a digest."""
    if isinstance(value, np.ndarray):
        data = f"{value.dtype.str:4}".encode() + value.tobytes()
    else:
        data = b"json" + json.dumps(value).encode()
    return hashlib.sha256(key.encode() + data).digest() + data


def _transaction(work: Callable[[sqlite3.Connection], T]) -> T | None:
    """Return the result of `work` in one transaction; None if the file cannot be used. A damaged one is deleted."""
    file, began = cache_dir() / ANSWERS, time.monotonic()
    if file in _LOCKED:
        return None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file, timeout=PATIENCE)) as db, db:
            db.execute("pragma auto_vacuum = full")  # a file with fewer answers becomes smaller
            db.execute(TABLE)
            return work(db)
    except (sqlite3.Error, OSError) as error:  # locked, read-only, or the disk is full
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            with suppress(OSError):
                file.unlink()
        if time.monotonic() - began >= PATIENCE:
            _LOCKED.add(file)
        return None


def _read(db: sqlite3.Connection, keys: Sequence[str]) -> dict[str, tuple[float, Any]]:
    """Return seconds and answer of each key that is kept undamaged."""
    found = {}
    for part in (keys[start : start + KEYS_AT_ONCE] for start in range(0, len(keys), KEYS_AT_ONCE)):
        marks = ",".join("?" * len(part))
        for key, seconds, value in db.execute(f"select key, seconds, value from answers where key in ({marks})", part):
            with suppress(TypeError, ValueError):  # of another program, or of another form
                form, data = value[32:36], value[36:]
                if hashlib.sha256(key.encode() + form + data).digest() == value[:32]:
                    known = json.loads(data) if form == b"json" else np.frombuffer(data, form.decode().strip()).copy()
                    found[key] = (float(seconds), known)
    return found


def _write(db: sqlite3.Connection, rows: Sequence[tuple[object, ...]]) -> None:
    db.executemany("insert or replace into answers values (?, ?, ?, ?)", rows)
    if (cache_dir() / ANSWERS).stat().st_size > MOST_BYTES:
        db.execute("delete from answers where rowid <= (select (min(rowid) + max(rowid)) / 2 from answers)")


def kinds_of_answers() -> dict[str, tuple[int, int]]:
    """Return the number of kept answers of each kind, and their bytes."""
    statement = "select kind, count(*), sum(length(value)) from answers group by kind"
    return _transaction(lambda db: {kind: (count, size) for kind, count, size in db.execute(statement)}) or {}
