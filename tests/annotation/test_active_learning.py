"""Which row comes next."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tunesmith.annotation.active_learning import FIRST, ROUND, LabelQueue, Vectors, rank, tfidf_vectors
from tunesmith.annotation.label_features import TFIDF, make_vectors


def blobs(*sizes: int, spread: float = 0.05) -> Vectors:
    """Heaps of unit vectors, each around an axis of its own."""
    chance = np.random.default_rng(0)
    parts = [np.eye(len(sizes))[i] + chance.normal(0, spread, (n, len(sizes))) for i, n in enumerate(sizes)]
    found = np.concatenate(parts)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_every_row_without_a_label_is_ranked_once():
    vectors = blobs(30, 20)
    labels = {row: "a" if row < 30 else "b" for row in range(5, 45)}
    assert sorted(rank(vectors, labels, seed=0)) == [0, 1, 2, 3, 4, 45, 46, 47, 48, 49]
    assert sorted(rank(vectors, {}, seed=0)) == list(range(50))
    assert rank(vectors, dict.fromkeys(range(50), "a"), seed=0) == []


def test_the_first_rows_come_from_every_heap_where_chance_would_miss_the_small_one():
    vectors = blobs(300, 300, 6)
    first = rank(vectors, {}, seed=0)[:FIRST]
    assert {min(row // 300, 2) for row in first} == {0, 1, 2}


def test_half_of_a_round_goes_to_heaps_without_a_label():
    vectors = blobs(100, 100, 12)
    labels = {row: "a" if row < 100 else "b" for row in (*range(15), *range(100, 115))}
    assert any(row >= 200 for row in rank(vectors, labels, seed=0)[:ROUND])


def test_rows_between_two_labels_come_before_rows_that_are_clear():
    angles = np.concatenate([np.linspace(0, 0.3, 200), np.linspace(1.27, 1.57, 200), np.linspace(0.7, 0.87, 40)])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    labels = {row: "a" if row < 200 else "b" for row in range(0, 400, 5)}
    between = sum(row >= 400 for row in rank(vectors, labels, seed=0)[:ROUND])
    assert between >= ROUND // 3  # they are one row in nine: by chance there would be one


def test_the_same_labels_and_seed_give_the_same_order():
    vectors = blobs(40, 40)
    labels = {row: "a" if row < 40 else "b" for row in range(20, 60)}
    assert rank(vectors, labels, seed=3) == rank(vectors, labels, seed=3)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_handful_of_rows_or_of_equal_rows_is_ranked_too(rows: int):
    assert sorted(rank(np.ones((rows, 1), dtype=np.float32), {}, seed=0)) == list(range(rows))
    labels = {0: "a"} if rows > 1 else {}
    assert len(rank(np.ones((rows, 1), dtype=np.float32), labels, seed=0)) == rows - len(labels)


def test_copies_of_one_text_do_not_fill_a_round():
    texts = ["the same old thing"] * 60 + [f"word{n} other{n} third{n}" for n in range(60)]
    first = rank(tfidf_vectors(texts), {}, seed=0)[:FIRST]
    assert sum(row < 60 for row in first) <= 2


@pytest.mark.parametrize("texts", [["?", "!"], ["a b", "a b"], ["one"], ["", "x"]])
def test_texts_without_words_or_without_a_difference_have_vectors(texts: list[str]):
    found = tfidf_vectors(texts)
    assert len(found) == len(texts)
    assert np.isfinite(found).all()


def test_labels_change_the_order_without_making_anybody_wait():
    jobs: list = []
    order = LabelQueue(blobs(60, 60), start=jobs.append)
    before = order.ranking()
    order.learn({row: "a" if row < 60 else "b" for row in range(45, 75)})
    assert order.ranking() is before
    assert len(jobs) == 1
    jobs[0]()
    assert len(order.ranking()) == 90


def test_labels_that_come_while_a_ranking_is_made_are_in_the_next():
    jobs: list = []
    order = LabelQueue(blobs(20, 20), start=jobs.append)
    order.ranking()
    order.learn({0: "a"})
    order.learn({0: "a", 1: "a"})
    order.learn({0: "a", 1: "a"})
    assert len(jobs) == 1
    jobs[0]()
    assert len(order.ranking()) == 38
    order.learn({0: "a"})
    jobs[1]()
    assert len(order.ranking()) == 39


def test_a_ranking_that_fails_is_told_and_the_old_one_goes_on(monkeypatch: pytest.MonkeyPatch):
    jobs: list = []
    order = LabelQueue(blobs(20, 20), start=jobs.append)
    before = order.ranking()

    def fails(*_: object, **__: object) -> list[int]:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("tunesmith.annotation.active_learning.rank", fails)
        order.learn({0: "a"})
        with pytest.raises(MemoryError):
            jobs[0]()
    assert order.ranking() is before
    order.learn({0: "a", 1: "a"})
    jobs[1]()
    assert len(order.ranking()) == 38


def test_the_background_is_a_thread_of_its_own():
    ran = threading.Event()
    order = LabelQueue(blobs(20, 20))
    order.ranking()
    order.learn({0: "a"})
    for _ in range(200):
        if len(order.ranking()) == 39:
            ran.set()
            break
        ran.wait(0.02)
    assert ran.is_set()


def test_tfidf_does_not_wait_for_the_import_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("loading.load", "sentence_embeddings"):
        monkeypatch.setitem(sys.modules, f"tunesmith.models.{name}", None)  # its import fails
    texts = ["a kind film", "a kind book", "a dull film"]
    assert len(make_vectors(texts, features=TFIDF, keep=tmp_path / "kept", offline=True, log=print)) == 3
