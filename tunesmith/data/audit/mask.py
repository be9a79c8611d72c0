"""Replace personal data and secrets in texts by placeholders."""

from __future__ import annotations

from tunesmith.data.audit.keys import keys
from tunesmith.data.audit.personal import personal, without_overlaps


def masked(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the text with placeholders such as `<email>` for personal data and secrets, and the kinds replaced."""
    spans = without_overlaps([*keys(text), *personal(text)])
    parts = []
    end = 0
    for span in spans:
        parts += [text[end : span.start], f"<{span.word}>"]
        end = span.end
    return "".join([*parts, text[end:]]), tuple(span.word for span in spans)
