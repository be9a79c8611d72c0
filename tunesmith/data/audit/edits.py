"""Replacements in a text, and where its characters are afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Edit(NamedTuple):
    """A replacement: first character and the one after the last, in code points, and the new text."""

    start: int
    end: int
    new: str


def edited(text: str, edits: Iterable[Edit]) -> str:
    """Return a text with replacements made.

    Args:
        text: the text.
        edits: replacements in order, without overlaps.
    """
    parts, at = [], 0
    for edit in edits:
        parts += [text[at : edit.start], edit.new]
        at = edit.end
    return "".join([*parts, text[at:]])


def moved(start: int, end: int, passes: Iterable[Sequence[Edit]]) -> tuple[int, int]:
    """Return where a part of a text is after replacements. If it cuts into one, it then contains all of the new text.

    Args:
        start: first character.
        end: the one after the last.
        passes: replacements of each pass in order, without overlaps; a pass counts the characters that the one before
            it has left.
    """
    for edits in passes:
        start, end = _place(start, edits, end=False), _place(end, edits, end=True)
    return start, end


def _place(at: int, edits: Sequence[Edit], *, end: bool) -> int:
    """Return where a place between two characters is; of one inside a replacement, the start or end of the new text."""
    shift = 0
    for edit in edits:
        if at <= edit.start:
            break
        if at < edit.end:
            return edit.start + shift + len(edit.new) * end
        shift += len(edit.new) - (edit.end - edit.start)
    return at + shift
