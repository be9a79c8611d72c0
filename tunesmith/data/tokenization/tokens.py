"""Encoded examples: token ids with their loss mask, and the row they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids and their loss mask."""

    ids: list[int]  # token ids, [T]
    learn: list[bool]  # whether each id is a target of the loss, [T]
    weights: list[float] = field(default_factory=list)  # factor of the loss of each id, [T]; empty: 1 for all
    second: int = 0  # index of the first id of a second text, if the network distinguishes both; 0: it does not

    @classmethod
    def of(cls, prompt: Sequence[int], answer: Sequence[int] = ()) -> Tokens:
        """Join the ids of a prompt and of its answer; only the answer is learned."""
        return cls([*prompt, *answer], [False] * len(prompt) + [True] * len(answer))

    @property
    def learned(self) -> int:
        """Number of learned tokens."""
        return sum(self.learn)

    def cut(self, limit: int) -> Tokens:
        """Return the first `limit` tokens."""
        return Tokens(self.ids[:limit], self.learn[:limit], self.weights[:limit], self.second)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as token sequences: one for most objectives, two for a pair, one per window of a document."""

    sequences: tuple[Tokens, ...]  # token sequences with their loss masks
    where: str  # location of the row
    label: tuple[float, ...] = ()  # targets of a classification head, one per class, or the score of a reward model
    shortened: bool = False  # whether text was cut to fit the token limit
    # for masked language models, the word index of each id, [T], -1 for no word; for spans, of each of `hidden`
    words: tuple[int, ...] = ()
    # for masked language models, (index, original id) of each masked token; for spans, (index, tag) of each token
    hidden: tuple[tuple[int, int], ...] = ()
    # summed log-probability of the learned tokens of each sequence under the reference model, nats
    reference: tuple[float, ...] = ()
    asks: bool = False  # completions are sampled from this prompt; it is used although it has no learned tokens

    @property
    def learned(self) -> int:
        """Number of tokens that the loss is computed of."""
        return len(self.hidden) or sum(tokens.learned for tokens in self.sequences)

    @property
    def length(self) -> int:
        """Number of tokens of the longest sequence."""
        return max(len(tokens.ids) for tokens in self.sequences)

    @property
    def size(self) -> int:
        """Number of tokens of all sequences when padded to the longest."""
        return self.length * len(self.sequences)
