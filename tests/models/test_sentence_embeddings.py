"""Texts as vectors: the mean of all their tokens, whatever stands beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tunesmith.models.loading.load import load_base
from tunesmith.models.sentence_embeddings import sentence_vectors
from tunesmith.pipelines.audit import EMBEDDED_TOKENS, model_tools

TEXTS = ["good phone", "", "a battery that lasts the whole day and then some more", "bad phone", "good phone"]
LIMIT = 8


def by_hand(folder: Path, limit: int = LIMIT) -> np.ndarray:
    """Each text alone through the plain network, all of its tokens counted."""
    base, found = load_base(str(folder), offline=True), []
    for text in TEXTS:
        ids = base.tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        with torch.no_grad():
            states = base.network.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        found.append(states.mean(dim=0).numpy())
    return np.stack([one / np.linalg.norm(one) for one in found])


def test_a_text_is_the_mean_of_every_token_that_is_read_the_last_one_too(tiny_bert: Path):
    found = sentence_vectors(load_base(str(tiny_bert), offline=True), TEXTS, LIMIT)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand(tiny_bert), atol=1e-5)
    assert np.array_equal(found[0], found[4])


def test_an_audit_reads_texts_in_the_same_way(tiny_bert: Path):
    found = model_tools(str(tiny_bert), limit=0, offline=True)["embed"](TEXTS)
    np.testing.assert_allclose(found, by_hand(tiny_bert, EMBEDDED_TOKENS), atol=1e-5)


def test_no_text_is_no_vector(tiny_bert: Path):
    base = load_base(str(tiny_bert), offline=True)
    assert sentence_vectors(base, [], LIMIT).shape == (0, base.network.config.hidden_size)
