"""Whole-word masking for masked language modelling, reproducible for every epoch."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.data.tokenization.windows import NO_WORD
from tunesmith.errors import ModelError

# Of the selected words, 80 % are masked, 10 % replaced by random ids, and the rest unchanged (Devlin et al. 2018,
# arXiv 1810.04805, section 3.1; there per token, here per whole word).
MASKED = 0.8
REPLACED = 0.1


@dataclass(frozen=True, slots=True)
class Masking:
    """Masks a share of the words of a row, chosen by (seed, epoch, row) alone, so that a run can resume anywhere."""

    share: float  # fraction of words to predict
    seed: int  # seed of the run
    mask: int  # id of the mask token
    ordinary: tuple[int, ...]  # ids that may replace a word

    @classmethod
    def of(cls, template: Template, *, share: float, seed: int) -> Masking:
        """Create the masking for the tokenizer of an encoder.

        Raises:
            ModelError: if the tokenizer has no mask token.
        """
        tokenizer = template.tokenizer
        if tokenizer.mask_token_id is None:
            raise ModelError("tokenizer: no mask token; choose a masked language model such as BERT")
        special = set(tokenizer.all_special_ids)
        return cls(share, seed, tokenizer.mask_token_id, tuple(i for i in range(len(tokenizer)) if i not in special))

    def hide(self, row: Encoded, turn: int | str) -> Encoded:
        """Return a row, one window with the word index of each token, masked for one epoch or for a name."""
        (tokens,) = row.sequences
        rng = random.Random(f"{self.seed}/{turn}/{row.where}")
        words = sorted(set(row.words) - {NO_WORD})
        selected = set(rng.sample(words, max(1, round(self.share * len(words))))) if words else set()
        draws = {word: rng.random() for word in sorted(selected)}
        ids = list(tokens.ids)
        hidden = []
        for index, word in enumerate(row.words):
            if word not in selected:
                continue
            hidden.append((index, ids[index]))
            if draws[word] < MASKED:
                ids[index] = self.mask
            elif draws[word] < MASKED + REPLACED:
                ids[index] = rng.choice(self.ordinary)
        return replace(row, sequences=(Tokens.of(ids),), hidden=tuple(hidden))
