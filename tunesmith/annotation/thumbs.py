"""Thumbs up or down for answers given outside the feedback page, kept in a file that `tunesmith votes` reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock

from tunesmith.annotation.items import BAD, GOOD, make_item, read_items
from tunesmith.annotation.pair_judging import WHAT
from tunesmith.annotation.vote_state import VOTE
from tunesmith.annotation.vote_store import Entry, VoteStore
from tunesmith.data.tokenization.messages import Message

# Not the page's own file: that one holds votes on its prompts alone.
FILE = "thumbs.db"


class Thumbs:
    """What people said of single answers of some models, each in the file that `place` names for it."""

    def __init__(self, place: Callable[[str], Path]) -> None:
        self._place = place
        self._stores: dict[Path, tuple[VoteStore, set[str]]] = {}  # with the keys of what each holds, read once
        self._lock = Lock()  # a server keeps thumbs from several threads

    def keep(self, messages: Sequence[Message], answer: str, *, by: str, good: bool, rater: str = "") -> Path:
        """Whether an answer of a model was good; on disk in the file returned. Raises DataError."""
        path, item = self._place(by), make_item(messages, [answer], [by])
        with self._lock:
            if path not in self._stores:
                store = VoteStore(path, what=WHAT)
                self._stores[path] = store, set(read_items(store.since()))
            store, known = self._stores[path]
            new = [] if item.key in known else [item.entry]
            store.append(*new, Entry(rater, VOTE, item.key, {"label": GOOD if good else BAD, "left": 0}))
            known.add(item.key)
        return path

    def close(self) -> None:
        """Write what is in the logs into the files."""
        for store, _ in self._stores.values():
            store.close()
