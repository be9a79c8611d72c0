"""Sentence embeddings: texts as vectors in which similar meaning is a small distance. Letters: N texts, D hidden."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.data.tokenization.chat_template import Template, Tokens
from tunesmith.models.batch import pack, scored_tokens, split_by_tokens
from tunesmith.models.loading.load import Base
from tunesmith.models.policy import Policy
from tunesmith.progress import track


@torch.inference_mode()
def sentence_vectors(base: Base, texts: Sequence[str], limit: int) -> NDArray[np.float32]:
    """Embed texts with a base model.

    Args:
        base: an encoder, whose states are averaged over the tokens, or a decoder, whose last state is taken.
        texts: N texts.
        limit: tokens of each text that are read.

    Returns:
        Vectors of length 1, [N, D], in the order of the texts.
    """
    policy = Policy.over(base.network, family=base.family)
    policy.train(False)
    template = Template(base.tokenizer, chat=False)
    ids = [template.document(text, limit=limit).ids for text in texts]
    longest_first = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    vectors = torch.zeros(len(ids), policy.hidden)
    divided = split_by_tokens(longest_first, [len(row) for row in ids], scored_tokens(policy.device))
    for rows in track(divided, "embedding", unit="texts", size=len):
        # Without learned ids: a row's last learned id is not packed, and would be missing from its own vector.
        tokens = [Tokens.of(ids[row]) for row in rows]
        vectors[rows] = policy.pooled(pack(tokens, share=False).to(policy.device)).float().cpu()
    return torch.nn.functional.normalize(vectors, dim=1).numpy()
