"""A file of rows and a store of votes become a labelling that people can sit down at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import Refused
from tunesmith.feedback.order import Order
from tunesmith.feedback.store import VoteStore
from tunesmith.feedback.turns import ALONE, Overlap
from tunesmith.feedback.votes import Votes
from tunesmith.workflows.label import WHAT, Labelling
from tunesmith.workflows.label_rows import (
    Columns,
    Given,
    LabelExport,
    RowsFile,
    brought_labels,
    check_label,
    export,
    given_labels,
    not_yet,
    read_items,
    words,
)
from tunesmith.workflows.label_vectors import TFIDF, make_vectors


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """What a person asked to have labelled; an empty `store` lies beside the data."""

    source: str
    columns: Columns = Columns()
    labels: tuple[str, ...] = ()
    brought: str = ""
    store: Path | None = None
    overlap: Overlap = ALONE
    features: str = TFIDF
    seed: int = 0
    offline: bool = False

    @property
    def kept_in(self) -> Path:
        """The file of the votes."""
        if self.store is not None:
            return self.store
        path = Path(self.source)
        return path.with_suffix(".labels.db") if path.exists() else Path(f"{path.name.partition(':')[0]}.labels.db")


def open_labelling(wish: LabelRequest, *, told: Callable[[str], None]) -> Labelling:
    """The labelling as it stood when it was left, with the labels that were brought. Raises DataError."""
    rows, store = _opened(wish, told)
    texts = [item.text for item in rows.items]
    keep = wish.kept_in.with_suffix(".vectors.safetensors")
    vectors = make_vectors(texts, features=wish.features, keep=keep, offline=wish.offline, told=told)
    return Labelling(rows, store, Order(vectors, seed=wish.seed), overlap=wish.overlap)


def export_labels(wish: LabelRequest, path: Path, *, told: Callable[[str], None]) -> LabelExport:
    """Write the labelled rows to the file. Raises Refused where no row has a label."""
    rows, store = _opened(wish, told)
    votes = Votes(store.since())
    store.close()
    if not any(votes.label(key) for key in rows.keys):
        if any(votes.on(key) for key in rows.keys):
            cure = "let one more person label them, with --raters one higher"
            raise Refused(f"{wish.kept_in}: of every labelled row as many people gave one label as another; {cure}")
        raise Refused(f"{wish.kept_in}: no row has a label yet; label some with `tunesmith label {wish.source}`")
    done = export(rows, votes, path)
    if done.tied:
        told(f"{done.tied} rows left out: as many people gave one label as another")
    return done


def _opened(wish: LabelRequest, told: Callable[[str], None]) -> tuple[RowsFile, VoteStore]:
    """The rows, and the store with every label that the command and the files bring."""
    wish.overlap.check()
    for label in wish.labels:
        check_label(label)
    rows = read_items(wish.source, wish.columns, offline=wish.offline)
    if rows.copies:
        told(f"{rows.copies} rows repeat the text of another: each text is labelled once, for all its rows")
    if rows.blank:
        told(f"{rows.blank} rows have no text in {rows.text!r} and are left out")
    found = {wish.source: given_labels(rows, rater=Path(wish.source).name)}
    if wish.brought:
        found[wish.brought] = brought_labels(wish.brought, rows, offline=wish.offline)
    store = VoteStore(wish.kept_in, what=WHAT)  # not before: rows that are refused leave no file behind
    events = store.since()
    votes = Votes(events)
    for source, given in found.items():
        _tell(Path(source).name, given, told)
    brought = [entry for given in found.values() for entry in not_yet(given, votes, events)]
    entries = [*words(wish.labels, votes), *brought]
    if entries:
        store.append(*entries)
    return rows, store


def _tell(name: str, given: Given, told: Callable[[str], None]) -> None:
    if given.contradictions:
        told(f"{name}: {given.contradictions} rows say another label than the first row with their text, which counts")
    if given.strangers:
        told(f"{name}: {given.strangers} rows are left out, their text is not in the data")
