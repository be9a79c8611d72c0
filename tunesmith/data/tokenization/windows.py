"""Split documents into windows of token ids. Every token is in exactly one window; windows do not overlap."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.text.words import UNSPACED
from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.data.tokenization.tokenizer import with_offsets

NO_WORD = -1
_BEGINS_WORD = re.compile(rf"[\s{UNSPACED}]")


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a document."""

    text: str  # the whole document
    ids: list[int]  # token ids, [T]
    spans: list[tuple[int, int]]  # start and end character of each id in `text`, [T]; (0, 0) for special tokens
    words: list[int]  # index of each id's word, counted over the document, [T]; -1 for special and unknown tokens

    def row(self, where: str, *, next_token: bool) -> Encoded:
        """Return the window as a training row.

        Train on every `next_token`, the end token included; else keep the words for masking.
        """
        if next_token:
            return Encoded((Tokens(self.ids, [True] * len(self.ids)),), where)
        learn = [word != NO_WORD for word in self.words]
        return Encoded((Tokens(self.ids, learn),), where, words=tuple(self.words))

    def told(self) -> list[int]:
        """Return the indices that a next-token loss is measured on: text tokens with a token before them."""
        return [index for index, word in enumerate(self.words) if word != NO_WORD and index]

    @property
    def size(self) -> int:
        """Number of UTF-8 bytes of the text that a next-token loss is measured on."""
        indices = self.told()
        if not indices:
            return 0
        # Without a BOS token the first id is context only; its characters are not predicted.
        start = self.spans[0][1] if self.words[0] != NO_WORD else self.spans[indices[0]][0]
        return len(self.text[start : self.spans[indices[-1]][1]].encode())


def windows(text: str, template: Template, *, limit: int) -> list[Window]:
    """Split a document into windows of at most `limit` ids, each with the tokens that the tokenizer adds before a text.

    The last window of a decoder ends with the end token; every window of an encoder ends with what the tokenizer adds
    after a text.

    Args:
        text: the document.
        template: tokenizer.
        limit: tokens per window, special tokens included.
    """
    tokenizer = template.tokenizer
    text = template.harmless(text)
    encoding = with_offsets(tokenizer, text)
    ids = list(encoding["input_ids"])
    spans = [(start, end) for start, end in encoding["offset_mapping"]]
    words = _words(text, spans, encoding.word_ids(0))
    before, behind = template.frame
    if not template.chats:  # an encoder would learn to predict the unknown token, not the word
        words = [NO_WORD if i == tokenizer.unk_token_id else word for i, word in zip(ids, words, strict=True)]
    if template.chats:
        behind = []
        if tokenizer.eos_token_id is not None:
            ids, spans, words = [*ids, tokenizer.eos_token_id], [*spans, (0, 0)], [*words, NO_WORD]
    # At least two ids per window: a single id has nothing to predict.
    cuts = [*range(0, len(ids), limit - len(before) - len(behind)), len(ids)]
    if len(cuts) > 2 and cuts[-1] - cuts[-2] < 2:
        cuts[-2] -= 1
    front, back = [(0, 0)] * len(before), [(0, 0)] * len(behind)
    return [
        Window(
            text,
            [*before, *ids[a:b], *behind],
            [*front, *spans[a:b], *back],
            [*[NO_WORD] * len(before), *words[a:b], *[NO_WORD] * len(behind)],
        )
        for a, b in itertools.pairwise(cuts)
    ]


def _words(text: str, spans: Sequence[tuple[int, int]], own: Sequence[int | None]) -> list[int]:
    """Return the index of each token's word; no word extends over white space.

    Some tokenizers, such as those of Gemma, Llama 2 and mmBERT, take a whole document for one word, and most take a
    sentence without spaces for one. In scripts without spaces each token begins a word, as each character does.

    Args:
        text: the document.
        spans: start and end character of each token, [T].
        own: index of each token's word by the tokenizer, [T]; None for special tokens.
    """
    words: list[int] = []
    count, last, reached, filled = NO_WORD, None, 0, False
    for word, (_, end) in zip(own, spans, strict=True):
        if word is None:
            words.append(NO_WORD)
            continue
        piece = text[reached:end]  # empty for further bytes of one character
        if word != last or (filled and _BEGINS_WORD.match(piece)):
            count, filled = count + 1, False
        words.append(count)
        last, reached, filled = word, max(reached, end), filled or bool(piece.strip())
    return words


def beginning(text: str, template: Template, *, limit: int) -> list[int]:
    """Return the ids of a text to continue: what the tokenizer adds before a text, and the last ids of the text.

    Args:
        text: beginning of a document.
        template: tokenizer.
        limit: maximum number of ids; the start of the text is cut.
    """
    before, _ = template.frame
    ids = template.tokenizer(template.harmless(text), add_special_tokens=False, verbose=False)["input_ids"]
    return [*before, *ids[-(limit - len(before)) :]]
