"""Texts as vectors, where texts of like meaning lie near each other. N texts, D hidden."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.data.template import Template, Tokens
from tunesmith.model.batch import TOKENS_PER_PASS, cut, pack
from tunesmith.model.load import Base
from tunesmith.model.policy import Policy


@torch.inference_mode()
def sentence_vectors(base: Base, texts: Sequence[str], limit: int) -> NDArray[np.float32]:
    """[N, D] of length 1: the mean of an encoder's states over the first `limit` tokens; a decoder's last state."""
    policy = Policy.over(base.network, family=base.family)
    policy.train(False)
    template = Template(base.tokenizer, chat=False)
    read = [template.document(text, limit=limit).ids for text in texts]
    longest_first = sorted(range(len(read)), key=lambda row: -len(read[row]))
    found = torch.zeros(len(read), policy.hidden)
    for rows in cut(longest_first, [len(ids) for ids in read], TOKENS_PER_PASS):
        # Nothing is learned from these: a row's last learned id would be left out of its own vector.
        tokens = [Tokens.of(read[row]) for row in rows]
        found[rows] = policy.pooled(pack(tokens, share=False).to(policy.device)).float().cpu()
    return torch.nn.functional.normalize(found, dim=1).numpy()
