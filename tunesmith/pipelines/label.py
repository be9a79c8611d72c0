"""A file of rows and a store of votes become a labelling that people can sit down at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tunesmith.annotation.active_learning import LabelQueue
from tunesmith.annotation.assignment import NO_OVERLAP, Overlap
from tunesmith.annotation.label_features import TFIDF, make_vectors
from tunesmith.annotation.label_rows import (
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
from tunesmith.annotation.labelling import WHAT, LabelSession
from tunesmith.annotation.vote_state import VoteState
from tunesmith.annotation.vote_store import VoteStore
from tunesmith.errors import Refused


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """What a person asked to have labelled; an empty `store` lies beside the data."""

    source: str
    columns: Columns = Columns()
    labels: tuple[str, ...] = ()
    brought: str = ""
    store: Path | None = None
    overlap: Overlap = NO_OVERLAP
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


def open_labelling(request: LabelRequest, *, log: Callable[[str], None]) -> LabelSession:
    """The labelling as it stood when it was left, with the labels that were brought. Raises DataError."""
    rows, store = _opened(request, log)
    texts = [item.text for item in rows.items]
    keep = request.kept_in.with_suffix(".vectors.safetensors")
    vectors = make_vectors(texts, features=request.features, keep=keep, offline=request.offline, log=log)
    return LabelSession(rows, store, LabelQueue(vectors, seed=request.seed), overlap=request.overlap)


def export_labels(request: LabelRequest, path: Path, *, log: Callable[[str], None]) -> LabelExport:
    """Write the labelled rows to the file. Raises Refused where no row has a label."""
    rows, store = _opened(request, log)
    votes = VoteState(store.since())
    store.close()
    if not any(votes.label(key) for key in rows.keys):
        if any(votes.on(key) for key in rows.keys):
            cure = "let one more person label them, with --raters one higher"
            raise Refused(f"{request.kept_in}: of every labelled row as many people gave one label as another; {cure}")
        raise Refused(f"{request.kept_in}: no row has a label yet; label some with `tunesmith label {request.source}`")
    done = export(rows, votes, path)
    if done.tied:
        log(f"{done.tied} rows left out: as many people gave one label as another")
    return done


def _opened(request: LabelRequest, log: Callable[[str], None]) -> tuple[RowsFile, VoteStore]:
    """The rows, and the store with every label that the command and the files bring."""
    request.overlap.check()
    for label in request.labels:
        check_label(label)
    rows = read_items(request.source, request.columns, offline=request.offline)
    if rows.copies:
        log(f"{rows.copies} rows repeat the text of another: each text is labelled once, for all its rows")
    if rows.blank:
        log(f"{rows.blank} rows have no text in {rows.text!r} and are left out")
    found = {request.source: given_labels(rows, rater=Path(request.source).name)}
    if request.brought:
        found[request.brought] = brought_labels(request.brought, rows, offline=request.offline)
    store = VoteStore(request.kept_in, what=WHAT)  # not before: rows that are refused leave no file behind
    events = store.since()
    votes = VoteState(events)
    for source, given in found.items():
        _tell(Path(source).name, given, log)
    brought = [entry for given in found.values() for entry in not_yet(given, votes, events)]
    entries = [*words(request.labels, votes), *brought]
    if entries:
        store.append(*entries)
    return rows, store


def _tell(name: str, given: Given, log: Callable[[str], None]) -> None:
    if given.contradictions:
        log(f"{name}: {given.contradictions} rows say another label than the first row with their text, which counts")
    if given.strangers:
        log(f"{name}: {given.strangers} rows are left out, their text is not in the data")
