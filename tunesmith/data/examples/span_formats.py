"""Texts with spans as rows of `tag`, in spaCy's training format, or as tasks of Label Studio; all three are also read.

spaCy's format is `[text, {"entities": [[start, end, label], ...]}]`, one per line, whose parts `Example.from_dict`
takes. A DocBin would need spaCy, which this package does not depend on, and a choice of its tokenizer. All three count
code points.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tunesmith.data.examples.types import Span

ROWS, SPACY, LABEL_STUDIO = "rows", "spacy", "label-studio"
FORMATS = (ROWS, SPACY, LABEL_STUDIO)
ENDINGS: Mapping[str, tuple[str, ...]] = {
    ROWS: (".jsonl", ".ndjson"),
    SPACY: (".jsonl", ".ndjson"),
    LABEL_STUDIO: (".json",),
}
# Names of the tags in the labelling interface of a project, as in Label Studio's template for named entities.
FROM, TO = "label", "text"


def formatted(rows: Iterable[tuple[str, Sequence[Span], Mapping[str, Any]]], form: str) -> list[str]:
    """Return the lines of a file, with line ends.

    Args:
        rows: text, spans, and further columns of each row.
        form: one of FORMATS.
    """
    if form == LABEL_STUDIO:
        tasks = [line(_task(*row)).rstrip() for row in rows]
        return ["[\n", ",\n".join(tasks), "\n]\n"]
    if form == SPACY:
        return [line([text, {"entities": [list(span) for span in spans]}]) for text, spans, _ in rows]
    return [line({**other, "text": text, "spans": [span._asdict() for span in spans]}) for text, spans, other in rows]


def _task(text: str, spans: Sequence[Span], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task of Label Studio with one annotation."""
    result = [
        {
            "id": f"{number:010d}",
            "from_name": FROM,
            "to_name": TO,
            "type": "labels",
            "value": {
                "start": span.start,
                "end": span.end,
                "text": text[span.start : span.end],
                "labels": [span.label],
            },
        }
        for number, span in enumerate(spans)
    ]
    return {"data": {**other, "text": text}, "annotations": [{"result": result}]}


def line(value: object) -> str:
    """Return a value as one line of JSON, with its end."""
    # Another column may contain half of a surrogate pair, which UTF-8 cannot encode.
    return json.dumps(value, ensure_ascii=False, default=str).encode(errors="backslashreplace").decode() + "\n"
