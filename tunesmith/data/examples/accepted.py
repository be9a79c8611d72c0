"""Notes on rows with several accepted answers, and on questions without an answer."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.data.examples.types import Chat, Example


def answer_notes(examples: Sequence[Example]) -> list[str]:
    """Return how rows with several accepted answers and with none are learned and scored; empty without such rows."""
    lists = [example.accepted for example in examples if isinstance(example, Chat) and example.accepted is not None]
    several = [answers for answers in lists if len(answers) > 1]
    notes = []
    if several:
        notes.append(
            f"{len(several)} of {len(examples)} rows have several accepted answers: the first is learned, and a "
            f"score is the best of up to {max(map(len, several))} accepted answers"
        )
    if unanswerable := lists.count(()):
        notes.append(
            f"{unanswerable} of {len(examples)} rows have no accepted answer: the text of objective.unanswerable "
            "is learned and expected"
        )
    return notes
