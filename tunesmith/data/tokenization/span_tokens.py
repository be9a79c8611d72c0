"""Texts as tokens with their characters and words, and the windows of a long text in which each token is answered once.

T tokens of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.tokenization.chat_template import Template
from tunesmith.data.tokenization.tokenizer import with_offsets
from tunesmith.data.tokenization.tokens import Encoded, Tokens

# Share of a window that is only read as context, on each side where there is more text.
CONTEXT = 0.25


@dataclass(frozen=True, slots=True)
class TextTokens:
    """The tokens of a text without special tokens, however the tokenizer cuts it."""

    text: str
    ids: list[int]  # [T]
    pieces: list[tuple[int, int]]  # first and last character of each token in `text`, exclusive, [T]
    words: list[int]  # index of each token's word, as transformers' pipeline cuts words, [T]

    @classmethod
    def of(cls, text: str, template: Template) -> TextTokens:
        """Tokenize a text; special tokens in it are read as plain text."""
        tokenizer, safe = template.tokenizer, template.harmless(text)
        encoding = with_offsets(tokenizer, safe)
        ids, pieces = list(encoding["input_ids"]), [(start, end) for start, end in encoding["offset_mapping"]]
        if safe != text:  # a space was put into each special token
            places = [0]
            for letter in safe:
                places.append(places[-1] + (letter == text[places[-1] : places[-1] + 1]))
            pieces = [(places[start], places[end]) for start, end in pieces]
        model = tokenizer.backend_tokenizer.model
        aware = bool(getattr(model, "continuing_subword_prefix", None))
        words: list[int] = []
        for token, i, (start, end) in zip(tokenizer.convert_ids_to_tokens(ids), ids, pieces, strict=True):
            continues = len(token) != end - start if aware else start > 0 and " " not in text[start - 1 : start + 1]
            words.append((words[-1] if words else 0) + (not continues or i == tokenizer.unk_token_id))
        return cls(text, ids, pieces, words)

    def rows(self, template: Template, where: str, *, limit: int, targets: Sequence[int] = ()) -> list[Encoded]:
        """Return the windows of the text as rows in which every token is answered exactly once, with context around it.

        `hidden` of a row has the index of each token that it answers, and what is learned of it.

        Args:
            template: has the tokens around every text.
            where: location of the row; that of several windows has their number.
            limit: tokens of a row, special tokens included.
            targets: what is learned of each token, [T]; 0 by default.
        """
        before, behind = template.frame
        count, room = len(self.ids), limit - len(before) - len(behind)
        context = int(CONTEXT * room)
        starts = [*range(0, count - room, room - 2 * context), max(0, count - room)]
        ends = [*(start + room - context for start in starts[:-1]), count]  # of the tokens that a window answers
        targets = targets or [0] * count
        return [
            Encoded(
                (Tokens.of([*before, *self.ids[start : start + room], *behind]),),
                where if len(starts) == 1 else f"{where} window {number}",
                words=tuple(self.words[i] for i in range(first, end)),
                hidden=tuple((len(before) + i - start, targets[i]) for i in range(first, end)),
            )
            for number, (start, first, end) in enumerate(zip(starts, [0, *ends], ends, strict=False), 1)
        ]
