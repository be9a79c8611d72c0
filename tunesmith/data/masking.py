"""Words hidden for a masked-language model to find: whole words, and always the same ones for the same pass."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from tunesmith.data.template import Encoded, Template, Tokens
from tunesmith.data.windows import NO_WORD
from tunesmith.errors import ModelError

# Of the words that are to be found, so many are hidden behind the mask token, so many replaced by other ids; the rest
# stand as they are (Devlin et al. 2018, arXiv 1810.04805, section 3.1; there by token, here by word).
MASKED, REPLACED = 0.8, 0.1


@dataclass(frozen=True, slots=True)
class Masking:
    """A share of a row's words, hidden as a pure function of (seed, pass, row): a run can go on anywhere."""

    share: float
    seed: int
    mask: int
    ordinary: tuple[int, ...]  # ids that may stand in for a word

    @classmethod
    def of(cls, template: Template, *, share: float, seed: int) -> Masking:
        """The masking of a tokenizer. Raises ModelError where it has no mask token."""
        tokenizer = template.tokenizer
        if tokenizer.mask_token_id is None:
            raise ModelError("tokenizer: no mask token, so no word can be hidden; choose an encoder of the BERT kind")
        special = set(tokenizer.all_special_ids)
        return cls(share, seed, tokenizer.mask_token_id, tuple(i for i in range(len(tokenizer)) if i not in special))

    def hide(self, row: Encoded, turn: int | str) -> Encoded:
        """The row as a pass over the data sees it; `hidden` are the places to be told and what stood there."""
        (tokens,) = row.sequences
        chance = random.Random(f"{self.seed}/{turn}/{row.where}")
        words = sorted(set(row.words) - {NO_WORD})
        chosen = set(chance.sample(words, max(1, round(self.share * len(words))))) if words else set()
        fates = {word: chance.random() for word in sorted(chosen)}
        ids, hidden = list(tokens.ids), []
        for place, word in enumerate(row.words):
            if word not in chosen:
                continue
            hidden.append((place, ids[place]))
            if fates[word] < MASKED:
                ids[place] = self.mask
            elif fates[word] < MASKED + REPLACED:
                ids[place] = chance.choice(self.ordinary)
        return replace(row, sequences=(Tokens.of(ids),), hidden=tuple(hidden))
