"""Notes on rows: those skipped because they have nothing to learn or score, and those with several or no answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from tunesmith.data.examples.types import Chat, Example
from tunesmith.data.readers.row import Row, file_of
from tunesmith.data.schema.cells import cell, flag_of
from tunesmith.data.schema.values import is_blank, lacks_number
from tunesmith.data.schema.winner import side
from tunesmith.data.text.words import folded
from tunesmith.errors import first_names

# Roles without which a row cannot be used; the others, such as `system` and `input`, may be blank in any row.
NEEDED = (
    "query",
    "passage",
    "relevance",
    "text",
    "label",
    "target",
    "prompt",
    "answer",
    "messages",
    "conversations",
    "chosen",
    "rejected",
)
LISTED = 3  # locations in a note


def usable(rows: Sequence[Row], columns: Mapping[str, str]) -> tuple[list[Row], list[str]]:
    """Return the rows that have a value in every needed column, and a note per reason for skipping others.

    A column that is blank in every row is left to the parser, which reports it.
    """
    skipper = Skipper(rows, columns)
    return skipper.usable(rows), skipper.notes


class Skipper:
    """Skips the rows of a file that have nothing to learn, part by part, and counts them.

    Args:
        rows: the first rows. A column that is blank in all of them is left to the parser; if none of them is usable,
            nothing is skipped.
        columns: role -> column.
    """

    def __init__(self, rows: Sequence[Row], columns: Mapping[str, str]) -> None:
        present = (role for role in NEEDED if role in columns)
        self._needed = [role for role in present if not all(_lacks(role, cell(row, columns[role])) for row in rows)]
        self._columns = columns
        if rows and all(unusable(row, columns, self._needed) for row in rows):
            self._needed, self._columns = [], {}
        self._file = file_of(rows)
        self._answered = _answered(rows, columns)
        self._rows = 0
        self._skipped: dict[str, list[str]] = defaultdict(list)

    def usable(self, rows: Sequence[Row]) -> list[Row]:
        """Return the usable rows of a part."""
        kept: list[Row] = []
        for row in rows:
            if reason := unusable(row, self._columns, self._needed) or self._unanswered(row):
                self._skipped[reason].append(row.where)
            else:
                kept.append(row)
        self._rows += len(rows)
        return kept

    def _unanswered(self, row: Row) -> str:
        """Return why a row with a relevance is skipped: negatives alone cannot be ranked."""
        if not self._answered or folded(str(cell(row, self._columns["query"]))) in self._answered:
            return ""
        return "no passage answers their query"

    @property
    def notes(self) -> list[str]:
        """Return one line per reason with the number of rows and the first locations."""
        return [
            f"{self._file}: {len(places)} of {self._rows} rows skipped, {reason} ({first_names(places, LISTED)})"
            for reason, places in self._skipped.items()
        ]


def _answered(rows: Sequence[Row], columns: Mapping[str, str]) -> set[str]:
    """Return the queries that a passage answers, if rows state the relevance of a passage."""
    if "relevance" not in columns:
        return set()
    right = (row for row in rows if flag_of(cell(row, columns["relevance"])) is not False)
    return {folded(str(cell(row, columns["query"]))) for row in right}


def blank_role(row: Row, columns: Mapping[str, str], needed: Sequence[str] = NEEDED) -> str:
    """Return the first needed role that has no value in a row; empty if all have one. Arguments as in `unusable`."""
    return next((role for role in needed if role in columns and _lacks(role, cell(row, columns[role]))), "")


def unusable(row: Row, columns: Mapping[str, str], needed: Sequence[str] = NEEDED) -> str:
    """Return why a run skips a row, which has nothing to learn or to score; empty if it does not.

    Args:
        row: the row.
        columns: role -> column.
        needed: roles whose columns need a value.
    """
    if blank := blank_role(row, columns, needed):
        return f"{columns[blank]!r} {'has no number' if blank == 'target' else 'is blank'}"
    if "winner" in columns:
        better = side(cell(row, columns["winner"]), columns["chosen"], columns["rejected"])
        if better not in ("first", "second"):
            return f"{columns['winner']!r} prefers neither answer"
    if "chosen" in columns and "rejected" in columns:
        chosen, rejected = (cell(row, columns[role]) for role in ("chosen", "rejected"))
        if isinstance(chosen, str) and isinstance(rejected, str) and chosen.split() == rejected.split():
            return "chosen and rejected are the same answer"
    return ""


def _lacks(role: str, value: object) -> bool:
    """Return whether a cell has no value for a role. A row may have no labels, and a question no answer: `[]`."""
    if role == "target":
        return lacks_number(value)
    return is_blank(value) or (value == [] and role not in ("label", "answer"))


def answer_notes(examples: Sequence[Example]) -> list[str]:
    """Return how rows with several accepted answers and with none are learned and scored; empty without such rows."""
    choices = several = most = unanswerable = 0
    for example in examples:
        if isinstance(example, Chat) and example.accepted is not None:
            count = len(example.accepted)
            of_choice = _are_of_choice(example.accepted)
            choices += of_choice
            several += count > 1 and not of_choice
            most = max(most, 0 if of_choice else count)
            unanswerable += count == 0
    notes = []
    if choices:
        notes.append(
            f"{choices} of {len(examples)} rows have choices: the letter of the right one is learned, and its text is "
            "accepted too"
        )
    if several:
        notes.append(
            f"{several} of {len(examples)} rows have several accepted answers: the first is learned, and a "
            f"score is the best of up to {most} accepted answers"
        )
    if unanswerable:
        notes.append(
            f"{unanswerable} of {len(examples)} rows have no accepted answer: the text of objective.unanswerable "
            "is learned and expected"
        )
    return notes


def _are_of_choice(answers: Sequence[str]) -> bool:
    """Return whether the accepted answers are the key of a choice, both, and its text (`parsers._choice_answers`)."""
    return len(answers) == 3 and answers[1] == f"{answers[0]}. {answers[2]}"
