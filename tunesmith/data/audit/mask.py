"""Texts with personal data and secrets replaced by a word for them."""

from __future__ import annotations

from tunesmith.data.audit.keys import keys
from tunesmith.data.audit.personal import personal, without_overlaps


def masked(text: str) -> tuple[str, tuple[str, ...]]:
    """The text with `<email>`, `<phone>`, `<card>`, `<iban>`, `<ip>` and `<secret>` in place of what was there."""
    spans = without_overlaps([*keys(text), *personal(text)])
    parts, at = [], 0
    for span in spans:
        parts += [text[at : span.start], f"<{span.word}>"]
        at = span.end
    return "".join([*parts, text[at:]]), tuple(span.word for span in spans)
