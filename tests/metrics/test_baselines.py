import itertools

import numpy as np
import pytest

from tunesmith.errors import DataError
from tunesmith.metrics.baselines import _trials, best_label_set, fit_linear, linear_probe, majority, tfidf_classifier
from tunesmith.metrics.scores import multilabel_f1

GOOD = ["great", "lovely", "works", "excellent", "bright", "sturdy"]
BAD = ["broken", "awful", "returned", "dead", "noisy", "useless"]


def reviews(count: int, seed: int) -> list[tuple[str, str]]:
    """Sentences with one telling word each."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        label, words = (("positive", GOOD), ("negative", BAD))[i % 2]
        rows.append((f"the {rng.choice(['phone', 'player', 'case'])} is {rng.choice(words)} to me", label))
    return rows


def test_majority_is_the_commonest_label_and_ties_go_by_alphabet():
    assert majority(["b", "a", "b"]) == "b"
    assert majority(["b", "a"]) == "a"


def test_no_training_rows_are_refused():
    with pytest.raises(DataError, match="no training rows"):
        tfidf_classifier([], ["text"])


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_tfidf_learns_telling_words(metric):
    test = reviews(40, 1)
    assert tfidf_classifier(reviews(60, 0), [text for text, _ in test], metric=metric) == [y for _, y in test]


def test_tfidf_sees_parts_of_words_it_has_not_met():
    train = [(f"{stem}able item", "a") for stem in ("read", "wash", "fold", "port")]
    train += [(f"{stem}ness item", "b") for stem in ("dark", "kind", "sad", "loud")]
    assert tfidf_classifier(train, ["breakable item", "softness item"]) == ["a", "b"]


def test_tfidf_of_shuffled_labels_is_at_chance():
    rng, rights = np.random.default_rng(0), []
    for seed in range(5):
        texts, test = [text for text, _ in reviews(60, seed)], reviews(100, seed + 9)
        given = tfidf_classifier(
            list(zip(texts, rng.permutation(["x", "y"] * 30).tolist(), strict=True)), [t for t, _ in test]
        )
        rights.append(
            np.mean([label == wanted for label, wanted in zip(given, rng.choice(["x", "y"], 100), strict=True)])
        )
    assert np.mean(rights) == pytest.approx(0.5, abs=0.07)


def test_many_labels_some_with_a_single_row_are_learned():
    train = [*reviews(30, 0), ("where is my invoice", "billing"), ("reset the password", "login")]
    assert tfidf_classifier(train, ["my invoice please", "it is broken"]) == ["billing", "negative"]


def test_two_rows_are_enough_to_answer():
    assert tfidf_classifier([("good", "yes"), ("bad", "no")], ["good", "bad"]) == ["yes", "no"]


def test_one_label_or_texts_without_words_answer_the_commonest_label():
    assert tfidf_classifier([("x", "only")], ["y", "z"]) == ["only", "only"]
    assert tfidf_classifier([("!", "a"), ("?", "b"), ("..", "b")], ["!"]) == ["b"]
    assert tfidf_classifier([("x", "a"), ("y", "b")], []) == []


def test_the_probe_finds_a_direction_among_features_of_any_size():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 20)) * np.logspace(-3, 3, 20)
    vectors = np.hstack([vectors, np.full((300, 1), 7.0)])
    labels = np.where(vectors[:, 3] > 0, "up", "down")
    given = linear_probe(vectors[:200], labels[:200].tolist(), vectors[200:])
    assert np.mean(np.array(given) == labels[200:]) > 0.9


def test_class_weights_are_taken_where_macro_f1_gains_by_them():
    rng = np.random.default_rng(1)
    labels = np.array(["rare" if i % 12 == 0 else "common" for i in range(480)])
    vectors = rng.normal(size=(480, 3)) + 1.5 * (labels == "rare")[:, None]
    by_f1, by_accuracy = (
        linear_probe(vectors[:240], labels[:240].tolist(), vectors[240:], metric=metric).count("rare")
        for metric in ("macro_f1", "accuracy")
    )
    assert by_f1 > by_accuracy > 0


def test_vectors_of_a_group_are_in_one_fold():
    labels, groups = ["a", "b"] * 30, [number // 10 for number in range(60)]
    trials = _trials(labels, "accuracy", 0, groups)
    assert trials is not None
    assert len(set(zip(groups, trials.folds.tolist(), strict=True))) == 6
    assert set(trials.folds.tolist()) == {0, 1, 2}
    assert _trials(labels, "accuracy", 0, [0] * 60) is None  # no fold without it has a label


def test_two_long_documents_are_a_fold_each():
    rng = np.random.default_rng(0)
    labels, groups = ["a", "b"] * 1200, [0] * 1200 + [1] * 1200
    trials = _trials(labels, "macro_f1", 0, groups)
    assert trials is not None
    assert trials.folds[2000:].tolist() == [-1] * 400
    assert len(set(trials.folds[:2000].tolist())) == 2
    vectors = rng.normal(size=(2400, 3)) + 4 * (np.array(labels) == "a")[:, None]
    assert fit_linear(vectors, labels, metric="macro_f1", groups=groups).label(vectors[:2]) == ["a", "b"]
    # Of ten documents, the first two have all rows that are used.
    many = _trials(["a", "b"] * 5000, "macro_f1", 0, [number // 1000 for number in range(10_000)])
    assert many is not None
    assert len(set(many.folds[:2000].tolist())) == 2


def test_the_probe_answers_the_only_label_and_nothing_for_nothing():
    assert linear_probe([[1.0], [2.0]], ["a", "a"], [[3.0]]) == ["a"]
    assert linear_probe([[1.0], [2.0]], ["a", "b"], []) == []


@pytest.mark.parametrize("seed", range(6))
def test_the_best_set_of_labels_is_the_best_of_all_sets(seed):
    rng = np.random.default_rng(seed)
    rows = [tuple(label for label in "abcd" if rng.random() < (0.1, 0.4, 0.8)[seed % 3]) for _ in range(30)]

    def score(chosen: tuple[str, ...]) -> float:
        return float(multilabel_f1(rows, [chosen] * len(rows)).mean())

    best = max(score(chosen) for size in range(5) for chosen in itertools.combinations("abcd", size))
    assert score(best_label_set(rows, metric="sample_f1")) == pytest.approx(best)
    assert best_label_set(rows, metric="accuracy") == majority(rows)
