"""Ratings (good or bad) of answers given outside the feedback page, in a file that `tunesmith votes` reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock

from tunesmith.annotation.items import BAD, GOOD, make_item, read_items
from tunesmith.annotation.pair_judging import WHAT
from tunesmith.annotation.vote_state import VOTE
from tunesmith.annotation.vote_store import Entry, VoteStore
from tunesmith.data.tokenization.messages import Message

# Separate from the store of the feedback page, which accepts votes on its own prompts only.
FILE = "thumbs.db"


class Thumbs:
    """Records ratings of single answers; safe to use from several threads.

    Args:
        place: returns the file for a model's name.
    """

    def __init__(self, place: Callable[[str], Path]) -> None:
        self._path_of = place
        self._stores: dict[Path, tuple[VoteStore, set[str]]] = {}  # with the keys of the items of each store
        self._lock = Lock()

    def keep(self, messages: Sequence[Message], answer: str, *, by: str, good: bool, rater: str = "") -> Path:
        """Record a rating; it is on disk when this returns.

        Args:
            messages: the prompt.
            answer: the rated answer.
            by: name of the model.
            good: the rating.
            rater: name of the rater.

        Returns:
            The file of the rating.

        Raises:
            DataError: the file cannot be written or is not a store of votes.
        """
        path = self._path_of(by)
        item = make_item(messages, [answer], [by])
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
        """Close all files."""
        for store, _ in self._stores.values():
            store.close()
