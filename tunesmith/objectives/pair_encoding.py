"""Encoding shared by the objectives that learn from preferences: their columns, and completions of one prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tunesmith.data.readers.row import Row, file_of
from tunesmith.data.schema.columns import beside
from tunesmith.data.schema.formats import SYSTEMS, detect
from tunesmith.data.tokenization.chat_template import Template, Tokens
from tunesmith.data.tokenization.messages import Message, separated
from tunesmith.errors import DataError


def preference_columns(rows: Sequence[Row], named: Mapping[str, str]) -> Mapping[str, str]:
    """Return role -> column; columns that the recipe names take precedence over detected ones.

    Raises:
        DataError: the rows contain no preferences.
    """
    named = {role: column for role, column in named.items() if column}
    if {"chosen", "rejected"} <= named.keys() or {"prompt", "answer", "label"} <= named.keys():
        return {**named, **beside(rows, named.values(), system=SYSTEMS, margin=["margin"])}
    detected = detect(rows)
    if detected.objective != "preference":
        raise DataError(
            f"{file_of(rows)}: expected preferences, got rows of {detected.name}; name objective.chosen and "
            f"objective.rejected, or tune with objective: {detected.objective}"
        )
    return {**detected.columns, **named}


def check_thoughts(where: str, completions: Sequence[str], template: Template) -> None:
    """Raise DataError if only some completions have thoughts and the template writes them: prompts would differ."""
    thinking = {bool(separated(Message("assistant", completion)).thoughts) for completion in completions}
    if template.thinks and len(thinking) > 1:
        fix = "give both or neither of them thoughts, or drop the row"
        raise DataError(f"{where}: only one of chosen and rejected has thoughts; {fix}")


def encode_completions(
    prompt: Sequence[Message], completions: Sequence[str], template: Template, *, limit: int
) -> tuple[list[Tokens], bool]:
    """Encode each completion after the same prompt; only the tokens of the completion are learned.

    The prompt is shortened until the longest completion fits; a completion that is longer than `limit` loses its end.

    Returns:
        One sequence per completion, and whether anything was shortened.
    """
    longest = max(
        completions,
        key=lambda text: len(template.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]),
    )
    fitted, shortened = template.fit([*prompt, Message("assistant", longest)], limit)
    context = [replace(turn, weight=0.0) if turn.role == "assistant" else turn for turn in fitted[:-1]]
    sequences = []
    for completion in completions:
        tokens = template.chat([*context, Message("assistant", completion)])
        sequences.append(tokens.cut(limit))
        shortened |= len(tokens.ids) > limit
    return sequences, shortened
