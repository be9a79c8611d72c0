"""`tunesmith label`: open a labelling session over a file of rows, and export its labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from tunesmith.annotation.active_learning import LabelQueue
from tunesmith.annotation.label_features import make_vectors
from tunesmith.annotation.label_rows import (
    Given,
    LabelExport,
    RowsFile,
    brought_labels,
    check_label,
    export,
    given_labels,
    items_of,
    not_yet,
    words,
)
from tunesmith.annotation.labelling import WHAT, LabelSession, SpanSession
from tunesmith.annotation.span_votes import WHAT as SPANS
from tunesmith.annotation.span_votes import SpanVotes
from tunesmith.annotation.vote_state import VoteState
from tunesmith.annotation.vote_store import Event, VoteStore
from tunesmith.data.examples.span_formats import ROWS
from tunesmith.data.files import quoted
from tunesmith.data.readers.read import read_rows
from tunesmith.errors import OptionError, Refused
from tunesmith.pipelines.requests import LabelRequest


def open_labelling(request: LabelRequest, *, log: Callable[[str], None]) -> LabelSession:
    """Open a labelling session, or continue an earlier one with the votes in its store.

    Args:
        request: the options.
        log: receives notes on the rows.

    Raises:
        DataError: rows, labels or store are invalid.
    """
    rows, store = _open_store(request, log)
    texts = [item.text for item in rows.items]
    keep = request.kept_in.with_suffix(".vectors.safetensors")
    vectors = make_vectors(texts, features=request.features, keep=keep, offline=request.offline, log=log)
    session = SpanSession if rows.spans else LabelSession
    return session(rows, store, LabelQueue(vectors, seed=request.seed), overlap=request.overlap)


def export_labels(request: LabelRequest, path: Path, *, log: Callable[[str], None]) -> LabelExport:
    """Write the labelled rows to a file.

    Args:
        request: the options of the session.
        path: the JSON lines file to write.
        log: receives notes on the rows.

    Raises:
        DataError: rows, labels or store are invalid.
        Refused: no row has a label.
    """
    request.check_export(path)
    rows, votes = _exported(request, log)
    if not any(votes.label(key) for key in rows.keys):
        if any(votes.on(key) for key in rows.keys):
            fix = "let one more rater label them by raising --raters"
            tie = (
                "raters disagree on every labelled row"
                if rows.spans
                else "every labelled row has a tie between two labels"
            )
            raise Refused(f"{request.kept_in}: {tie}; {fix}")
        columns = f"{quoted(request.source)}{request.options()}"
        raise Refused(f"{request.kept_in}: no row has a label yet; label some with `tunesmith label {columns}`")
    result = export(rows, votes, path, form=request.form or ROWS)
    if result.tied:
        why = "raters disagree on their spans" if rows.spans else "two labels have equally many votes"
        log(f"{result.tied} rows left out because {why}")
    return result


def _marks_spans(request: LabelRequest) -> bool | None:
    """Return whether spans are labelled, by the options or the store; None if the rows decide.

    Raises OptionError for options of labels.
    """
    kind = VoteStore.kind(request.kept_in) if VoteStore.has_events(request.kept_in) else ""
    of_spans = request.form not in ("", ROWS)
    if of_spans and kind == WHAT:
        raise OptionError(f"--format {request.form}: a format of spans, and {request.kept_in} has labels; leave it out")
    spans = bool(request.spans) or of_spans or kind == SPANS
    if spans and request.labels:
        raise OptionError("--labels: spans are marked; name their labels with --spans")
    return spans or (False if request.labels or kind else None)


def _read(request: LabelRequest, log: Callable[[str], None]) -> tuple[RowsFile, dict[str, Given]]:
    """Read the rows, and the labels of each file as votes."""
    request.overlap.check()
    spans = _marks_spans(request)
    rows = items_of(read_rows(request.source, offline=request.offline), request.columns, spans=spans)
    if rows.spans and spans is None:
        log(f"{rows.label!r} has spans, so spans are marked")
    if rows.copies:
        done = "its spans are marked once" if rows.spans else "each text is labelled once"
        log(f"{rows.copies} rows repeat the text of another row; {done}")
    if rows.blank:
        log(f"{rows.blank} rows left out because {rows.text!r} is empty")
    given = {request.source: given_labels(rows, rater=Path(request.source).name)}
    if request.brought:
        given[request.brought] = brought_labels(request.brought, rows, offline=request.offline)
    for source, labels in given.items():
        name, votes = Path(source).name, "spans" if rows.spans else "label"
        if labels.contradictions:
            log(
                f"{name}: {labels.contradictions} rows contradict the {votes} of the first row with their text; ignored"
            )
        if labels.strangers:
            log(f"{name}: {labels.strangers} rows left out because their text is not in the data")
    return rows, given


def _open_store(request: LabelRequest, log: Callable[[str], None]) -> tuple[RowsFile, VoteStore]:
    """Read the rows, open the store, and add the labels of the command line and of the files to it."""
    labels = [check_label(label) for label in request.labels]
    labels += [check_label(label, spans=True) for label in request.spans]
    rows, given = _read(request, log)
    # Opened last, so that invalid rows leave no file.
    store = VoteStore(request.kept_in, what=SPANS if rows.spans else WHAT, empty=(SPANS, WHAT))
    events = store.since()
    votes = _state(rows, events)
    entries = words(labels, votes)
    for found in given.values():
        entries += not_yet(found, votes, events)
    if entries:
        store.append(*entries)
    return rows, store


def _exported(request: LabelRequest, log: Callable[[str], None]) -> tuple[RowsFile, VoteState]:
    """Return the rows, and the votes of the store and of the rows; the store is not changed or created."""
    if request.brought:  # an import is kept
        rows, store = _open_store(request, log)
        with closing(store):
            return rows, _state(rows, store.since())
    rows, given = _read(request, log)
    events: list[Event] = []
    if VoteStore.has_events(request.kept_in):
        with closing(VoteStore(request.kept_in, what=SPANS if rows.spans else WHAT, read_only=True)) as store:
            events = store.since()
    votes = _state(rows, events)
    for found in given.values():
        for entry in not_yet(found, votes, events):
            votes.take(Event(votes.number + 1, 0.0, entry.rater, entry.kind, entry.item, entry.body or {}))
    return rows, votes


def _state(rows: RowsFile, events: Sequence[Event]) -> VoteState:
    return (SpanVotes if rows.spans else VoteState)(events)
