"""`tunesmith label`: open a labelling session over a file of rows, and export its labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tunesmith.annotation.active_learning import LabelQueue
from tunesmith.annotation.label_features import make_vectors
from tunesmith.annotation.label_rows import (
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
from tunesmith.annotation.labelling import WHAT, LabelSession, SpanSession
from tunesmith.annotation.span_votes import WHAT as SPANS
from tunesmith.annotation.span_votes import SpanVotes
from tunesmith.annotation.vote_state import VoteState
from tunesmith.annotation.vote_store import VoteStore
from tunesmith.data.examples.span_formats import ROWS
from tunesmith.data.files import quoted
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
    rows, store = _open_store(request, log)
    votes = (SpanVotes if rows.spans else VoteState)(store.since())
    store.close()
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


def _marks_spans(request: LabelRequest) -> bool:
    """Return whether spans are labelled, by the options or the store. Raises OptionError for options of labels."""
    kind, of_spans = VoteStore.kind(request.kept_in), request.form not in ("", ROWS)
    if of_spans and kind == WHAT:
        raise OptionError(f"--format {request.form}: a format of spans, and {request.kept_in} has labels; leave it out")
    spans = bool(request.spans) or of_spans or kind == SPANS
    if spans and request.labels:
        raise OptionError("--labels: spans are marked; name their labels with --spans")
    return spans


def _open_store(request: LabelRequest, log: Callable[[str], None]) -> tuple[RowsFile, VoteStore]:
    """Read the rows, open the store, and add the labels of the command line and of the files to it."""
    request.overlap.check()
    for label in (*request.labels, *request.spans):
        check_label(label)
    spans = _marks_spans(request)
    rows = read_items(request.source, request.columns, spans=spans, offline=request.offline)
    if rows.copies:
        log(f"{rows.copies} rows repeat the text of another row; each text is labelled once")
    if rows.blank:
        log(f"{rows.blank} rows left out because {rows.text!r} is empty")
    given = {request.source: given_labels(rows, rater=Path(request.source).name)}
    if request.brought:
        given[request.brought] = brought_labels(request.brought, rows, offline=request.offline)
    store = VoteStore(request.kept_in, what=SPANS if spans else WHAT)  # opened last, so that invalid rows leave no file
    events = store.since()
    votes = (SpanVotes if spans else VoteState)(events)
    entries = words(request.labels or request.spans, votes)
    for source, labels in given.items():
        name = Path(source).name
        if labels.contradictions:
            log(f"{name}: {labels.contradictions} rows contradict the label of the first row with their text; ignored")
        if labels.strangers:
            log(f"{name}: {labels.strangers} rows left out because their text is not in the data")
        entries += not_yet(labels, votes, events)
    if entries:
        store.append(*entries)
    return rows, store
