"""The rows of a search: queries with passages that answer them, and passages that are searched."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import Field, PrivateAttr

from tunesmith.data.documents.document import plain
from tunesmith.data.examples.parsers import queries
from tunesmith.data.examples.types import Example, Query
from tunesmith.data.files import report_edit
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import Row, file_of
from tunesmith.data.schema.cells import cell, flag_of
from tunesmith.data.schema.formats import RELEVANCE, detect
from tunesmith.data.schema.values import is_blank, number_of
from tunesmith.data.text.words import folded
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError
from tunesmith.objectives.base import Objective

T = TypeVar("T", dict[str, Any], list[Any])

MOST_NEGATIVES = 15
FORMAT = "query_passage"  # of the rows, as `detect` names it
PASSAGES = "passages.jsonl"  # of a run folder: the passages of its rows


class PassageObjective(Objective):
    """An objective of rows with a query and a passage, whose model finds the passage among all others."""

    file_keys: ClassVar[tuple[str, ...]] = ("documents",)
    prefers_encoder: ClassVar[bool] = True
    answers_untuned: ClassVar[bool] = True
    searches: ClassVar[bool] = True
    max_new_tokens: ClassVar[int] = 0
    instruction: ClassVar[str] = ""
    # Names of columns that grade the passages of a query, in lower case.
    grades: ClassVar[frozenset[str]] = frozenset(RELEVANCE)

    query: str = Field("", description="column with the query, or with a text to compare; empty: detected")
    passage: str = Field("", description="column with the passage that answers it, or with the other text")
    negative: str = Field("", description="column with a passage that does not answer it, a list, or several by ` + `")
    relevance: str = Field("", description="column that is 1 if the passage answers the query, else 0; empty: detected")
    evidence: str = Field("", description="column with the answer: no passage with these words is mined as a negative")
    documents: str = Field("", description="file of passages that are searched too, rows with a text")
    hard_negatives: int = Field(0, ge=0, le=MOST_NEGATIVES, description="passages per query, mined as negatives")
    negatives: int = Field(0, ge=0, description="negatives of a row; set from the rows")
    _passages: tuple[str, ...] = PrivateAttr(())
    _right: dict[str, set[str]] = PrivateAttr(default_factory=dict)
    _evidence: dict[str, set[str]] = PrivateAttr(default_factory=dict)

    def columns(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Return the columns of query and passage, or of text and label. Raises DataError if there are none."""
        named = {role: getattr(self, role) for role in self.column_keys if getattr(self, role)}
        if "query" in named and ("passage" in named or "label" in named):
            return self._with_relevance(rows, named)
        try:
            detected = detect(rows)
        except DataError:
            detected = None
        if detected is not None and detected.name == FORMAT:
            return self._with_relevance(rows, {**detected.columns, **named})
        fix = f"name the columns: objective: {{kind: {self.kind}, query: COLUMN, passage: COLUMN}}"
        raise DataError(f"{file_of(rows)}: no query was detected next to a passage that answers it; {fix}")

    def _with_relevance(self, rows: Sequence[Row], columns: Mapping[str, str]) -> Mapping[str, str]:
        """Return the columns with that of the relevance. Raises DataError for grades other than 0 and 1.

        Otherwise a passage with grade 0 would be learned as a right one.
        """
        if {"relevance", "score", "label"} & columns.keys():
            return columns
        for name in dict.fromkeys(name for row in rows for name in row.fields):
            if name.lower() not in self.grades or name in columns.values():
                continue
            flags = {flag_of(cell(row, name)) for row in rows if not is_blank(cell(row, name))}
            if flags == {True, False}:
                return {**columns, "relevance": name}
            values = [number for row in rows if (number := number_of(cell(row, name))) is not None]
            if len(set(values)) > 1:
                graded = f"{name} grades the passages, from {min(values):g} to {max(values):g}"
                fix = "make it 1 for a passage that answers its query and 0 for another one"
                raise DataError(f"{file_of(rows)}: {graded}; {fix}")
        return columns

    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Parse rows into queries."""
        return list(queries(rows, columns=columns or self.columns(rows), group=group))

    def for_rows(self, examples: Sequence[Example], *, run: Path | None = None) -> Self:
        """Return the objective with the passages of these rows, of `documents` and of a run to search, each once.

        Of texts with a label those of a run are not searched, as their labels are not kept.
        """
        rows = [row for row in examples if isinstance(row, Query)]
        texts = [text for row in rows for text in (row.passage, *row.negatives)]
        if run and (run / PASSAGES).is_file() and not any(row.label for row in rows):
            report_edit(run / PASSAGES)
            texts += [str(row.fields.get("text")) for row in read_rows(str(run / PASSAGES))]
        if self.documents:
            found_texts = [row.fields.get("text") for row in read_rows(self.documents)]
            if not any(isinstance(text, str) and text.strip() for text in found_texts):
                raise DataError(f"{self.documents}: no row has a text; name the column of the passages `text`")
            texts += [text for text in found_texts if isinstance(text, str)]
        found = self.model_copy()
        found._right, found._evidence = {}, {}
        for row in rows:
            key = row.label or folded(row.text)
            found._right.setdefault(key, set()).add(folded(row.passage))
            if words := plain(row.evidence):
                found._evidence.setdefault(key, set()).add(words)
        found._passages = tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))
        return found

    @property
    def searching(self) -> PassageObjective | None:
        """Return the objective itself if there are passages to search; there are none for scored pairs."""
        return self if self._passages else None

    @property
    def needs_negatives(self) -> bool:
        """Return whether a row without negatives teaches nothing; with others in the step it teaches something."""
        return False

    @property
    def passages(self) -> tuple[str, ...]:
        """Return the distinct passages that are searched; empty for scored pairs."""
        return self._passages

    def right(self, row: Query) -> Collection[str]:
        """Return the passages that any row has for the same query or label, without case and spaces."""
        return self._right.get(row.label or folded(row.text), {folded(row.passage)})

    def evidence_of(self, row: Query) -> Collection[str]:
        """Return the plain evidence of all rows with the same query."""
        return self._evidence.get(folded(row.text), ())

    def with_mined(self) -> Self:
        """Return the objective for rows to which mined negatives were added."""
        return self.model_copy(update={"negatives": min(MOST_NEGATIVES, self.negatives + self.hard_negatives)})

    def passages_file(self) -> str:
        """Return the content of `passages.jsonl`."""
        return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in self._passages)

    def sides(self, sequences: int) -> list[str]:
        """Return the names of the texts of a row."""
        return ["query", "passage", *["negative"] * (sequences - 2)]

    def without_rows(self) -> Self:
        """Return the objective without the path of its documents."""
        return self.model_copy(update={"documents": ""})

    def user_message(self, text: str) -> Message:
        """Return the query."""
        return Message("user", text)


def stated(folder: Path | None, name: str, shape: type[T]) -> T:
    """Return the object or list in a file of a base model; empty if there is no such file, or it has something else."""
    try:
        page = json.loads((folder / name).read_bytes()) if folder else None
    except (OSError, ValueError):
        page = None
    return page if isinstance(page, shape) else shape()
