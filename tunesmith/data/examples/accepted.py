"""Notes on rows with several accepted answers, and on questions without an answer."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.data.examples.types import Chat, Example


def answer_notes(examples: Sequence[Example]) -> list[str]:
    """Return how rows with several accepted answers and with none are learned and scored; empty without such rows."""
    lists = [example.accepted for example in examples if isinstance(example, Chat) and example.accepted is not None]
    choices = sum(map(_are_of_choice, lists))
    several = [answers for answers in lists if len(answers) > 1 and not _are_of_choice(answers)]
    notes = []
    if choices:
        notes.append(
            f"{choices} of {len(examples)} rows have choices: the letter of the right one is learned, and its text is "
            "accepted too"
        )
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


def _are_of_choice(answers: Sequence[str]) -> bool:
    """Return whether the accepted answers are the key of a choice, both, and its text (`parsers._choice_answers`)."""
    return len(answers) == 3 and answers[1] == f"{answers[0]}. {answers[2]}"
