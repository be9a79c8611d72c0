"""Documents to windows of token ids: nothing of a document is cut away, and no window sees another."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from tunesmith.data.template import Encoded, Template, Tokens
from tunesmith.data.tokenizer import frame

NO_WORD = -1


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of a document as ids; of each id its characters in `text` and the number of its word.

    Special tokens have no word (-1) and no characters; what an encoder cannot read has no word.
    `words` are numbered over the whole document.
    """

    text: str
    ids: list[int]
    spans: list[tuple[int, int]]
    words: list[int]

    def row(self, where: str, *, next_token: bool) -> Encoded:
        """What is learned from it: every next token, the end of the document too; or the words that may be hidden."""
        if next_token:
            return Encoded((Tokens(self.ids, [True] * len(self.ids)),), where)
        learn = [word != NO_WORD for word in self.words]
        return Encoded((Tokens(self.ids, learn),), where, words=tuple(self.words))

    def told(self) -> list[int]:
        """Places of the ids that are text and have an id before them: what a next-token loss is measured on."""
        return [place for place, word in enumerate(self.words) if word != NO_WORD and place]

    @property
    def size(self) -> int:
        """Bytes of the text that `told` stands for."""
        places = self.told()
        if not places:
            return 0
        # Without a beginning token the first id is only read; its characters are not told.
        start = self.spans[0][1] if self.words[0] != NO_WORD else self.spans[places[0]][0]
        return len(self.text[start : self.spans[places[-1]][1]].encode())


def windows(text: str, template: Template, *, limit: int) -> list[Window]:
    """A document in windows of at most `limit` ids, each with what this tokenizer puts before every text.

    A decoder's last window ends with its end token; an encoder's windows all have what it puts behind a text.
    """
    tokenizer = template.tokenizer
    text = template.harmless(text)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, spans = list(found["input_ids"]), [(a, b) for a, b in found["offset_mapping"]]
    words = [NO_WORD if word is None else word for word in found.word_ids(0)]
    before, behind = frame(tokenizer)
    if not template.chats:  # an encoder would learn to tell "unknown", and not what stood there
        words = [NO_WORD if i == tokenizer.unk_token_id else word for i, word in zip(ids, words, strict=True)]
    if template.chats:
        behind = []
        if tokenizer.eos_token_id is not None:
            ids, spans, words = [*ids, tokenizer.eos_token_id], [*spans, (0, 0)], [*words, NO_WORD]
    cuts = _cuts(len(ids), limit - len(before) - len(behind))
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


def beginning(text: str, template: Template, *, limit: int) -> list[int]:
    """The ids of a text that goes on: what stands before every text, and at most the last `limit` ids of it."""
    before, _ = frame(template.tokenizer)
    ids = template.tokenizer(template.harmless(text), add_special_tokens=False, verbose=False)["input_ids"]
    return [*before, *ids[-(limit - len(before)) :]]


def _cuts(length: int, room: int) -> list[int]:
    """Where `length` ids are cut into pieces of `room`, the last of at least two: a lone id teaches nothing."""
    cuts = [*range(0, length, room), length]
    if len(cuts) > 2 and cuts[-1] - cuts[-2] < 2:
        cuts[-2] -= 1
    return cuts
