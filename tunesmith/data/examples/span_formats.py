"""Texts with spans as rows of `tag`, in spaCy's training format, or as tasks of Label Studio; all three are also read.

spaCy's format is `[text, {"entities": [[start, end, label], ...]}]`, one per line, whose parts `Example.from_dict`
takes. A DocBin would need spaCy, which this package does not depend on, and a choice of its tokenizer. All three count
code points.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tunesmith.data.examples.types import Span
from tunesmith.errors import DataError

ROWS, SPACY, LABEL_STUDIO = "rows", "spacy", "label-studio"
FORMATS = (ROWS, SPACY, LABEL_STUDIO)
ENDINGS: Mapping[str, tuple[str, ...]] = {
    ROWS: (".jsonl", ".ndjson"),
    SPACY: (".jsonl", ".ndjson"),
    LABEL_STUDIO: (".json",),
}
# Names of the tags in the labelling interface of a project, as in Label Studio's template for named entities.
FROM, TO = "label", "text"


class SpanRow(NamedTuple):
    """A text with spans, and what else its row has."""

    where: str  # file:line
    text: str
    spans: Sequence[Span]
    column: str  # name of the text
    other: Mapping[str, Any]  # further columns
    task: Mapping[str, Any]  # further fields of a task of Label Studio, such as its id


def formatted(rows: Iterable[SpanRow], form: str) -> list[str]:
    """Return the lines of a file, with line ends.

    Args:
        rows: the texts.
        form: one of FORMATS.

    Raises:
        DataError: a further column has the name of one of the format.
    """
    if form == LABEL_STUDIO:
        tasks = [line(_task(row)).rstrip() for row in rows]
        return ["[\n", ",\n".join(tasks), "\n]\n"]
    if form == SPACY:
        return [line([row.text, {"entities": [list(span) for span in row.spans]}]) for row in rows]
    return [line(_row(row)) for row in rows]


def _row(row: SpanRow) -> dict[str, Any]:
    """Return a row of `tag`."""
    _check_names(row, row.column, "spans")
    return {**row.task, **row.other, row.column: row.text, "spans": [span._asdict() for span in row.spans]}


def _check_names(row: SpanRow, *names: str) -> None:
    """Raise DataError if a further column would be overwritten."""
    for name in names:
        if name in row.other:
            raise DataError(f"{row.where}: the export would overwrite column {name!r}; rename the column")


def _task(row: SpanRow) -> dict[str, Any]:
    """Return a task of Label Studio with one annotation."""
    _check_names(row, row.column)
    result = [
        {
            "id": f"{number:010d}",
            "from_name": FROM,
            "to_name": TO,
            "type": "labels",
            "value": {
                "start": span.start,
                "end": span.end,
                "text": row.text[span.start : span.end],
                "labels": [span.label],
            },
        }
        for number, span in enumerate(row.spans)
    ]
    return {**row.task, "data": {**row.other, row.column: row.text}, "annotations": [{"result": result}]}


def line(value: object) -> str:
    """Return a value as one line of JSON, with its end; a number that is not finite, which JSON has not, is null."""
    try:
        words = json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        words = json.dumps(_finite(value), ensure_ascii=False, default=str, allow_nan=False)
    # Another column may contain half of a surrogate pair, which UTF-8 cannot encode.
    return words.encode(errors="backslashreplace").decode() + "\n"


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
