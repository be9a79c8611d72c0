import numpy as np
import pytest

from tunesmith.metrics import resampling
from tunesmith.metrics.resampling import Clusters


def test_mcnemar_looks_only_at_rows_that_changed():
    # eight rows better, one worse: 2 * (1 + 9) / 2**9
    change = np.array([1.0] * 8 + [-1.0] + [0.0] * 100)
    assert resampling.mcnemar(change) == pytest.approx(20 / 512)


def test_few_clusters_are_flipped_in_every_way():
    # only +++ and --- of eight ways reach 3
    assert resampling.sign_flip(np.array([1.0, 1.0, 1.0, 0.0]), np.random.default_rng(0), 1000) == 0.25


def test_many_clusters_are_flipped_at_random_and_p_is_never_zero():
    p = resampling.sign_flip(np.ones(40), np.random.default_rng(0), 500)
    assert p == 1 / 501


def test_drawn_rows_keep_clusters_whole():
    clusters = Clusters.of(6, ["x", "y", "x", "z", "x", "y"])
    for rows in clusters.drawn_rows(np.random.default_rng(0), 20):
        counts = np.bincount(rows, minlength=6)
        assert counts[0] == counts[2] == counts[4]
        assert counts[1] == counts[5]
        assert counts[0] + counts[1] + counts[3] == 3


def test_drawn_means_weigh_each_cluster_by_its_rows():
    # two clusters: (1, 1, 1) and (0,): a draw has the mean 1, 3/4 or 0
    clusters = Clusters.of(4, ["x", "x", "x", "y"])
    means = clusters.drawn_means(np.array([1.0, 1.0, 1.0, 0.0]), np.random.default_rng(0), 200)
    assert set(means.tolist()) == {1.0, 0.75, 0.0}


def test_drawn_rates_are_of_the_same_clusters_for_every_side_and_nothing_is_divided_by_nothing():
    clusters = Clusters.of(3, ["x", "x", "y"])
    over, under = np.array([1.0, 3.0, 0.0]), np.array([2.0, 0.0, 0.0])
    rates = clusters.drawn_rates([over, 2 * over], under, np.random.default_rng(0), 200)
    assert rates.shape == (200, 2)
    assert set(rates[:, 0].tolist()) == {2.0, 0.0}  # x, with y or twice: 4 / 2; y twice: 0 / 0
    assert rates[:, 1].tolist() == (2 * rates[:, 0]).tolist()


@pytest.mark.parametrize("budget", [1, 12, 10_000])
def test_draws_are_the_same_however_few_are_held_at_a_time(budget: int, monkeypatch: pytest.MonkeyPatch):
    clusters, values = Clusters.of(5, None), np.arange(5.0)
    whole = clusters.drawn_means(values, np.random.default_rng(0), 50)
    drawn, kept = [], np.random.default_rng(0)

    class Watched:
        def integers(self, count: int, *, size: tuple[int, int]):
            drawn.append(size)
            return kept.integers(count, size=size)

    monkeypatch.setattr(resampling, "_BLOCK", budget)
    assert clusters.drawn_means(values, Watched(), 50).tolist() == whole.tolist()
    assert max(rows for rows, _ in drawn) == min(50, max(1, budget // 5))


def test_wilson_has_the_textbook_interval():
    assert resampling.wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_the_interval_is_wider_where_clusters_are_few():
    drawn = np.random.default_rng(0).normal(size=20_000)
    assert resampling.percentiles(drawn, 5)[1] > 2.5 > resampling.percentiles(drawn, 500)[1]


def test_p_is_one_half_tail_each_side_for_many_clusters():
    # 2.5 % of the draws lie below 0
    drawn = np.concatenate([np.full(25, -1.0), np.full(975, 1.0)])
    assert resampling.bootstrap_p(drawn, 100_000) == pytest.approx(2 * 26 / 1001, rel=1e-3)


def test_the_interval_of_two_to_five_clusters_holds_the_truth_about_as_often_as_it_says():
    """Their means alone, the smallest to the largest, would hold it in 53 % of tries for two clusters."""
    chance = np.random.default_rng(0)
    for count in (2, 3, 5):
        hits = 0
        for _ in range(200):
            means = chance.normal(size=count)
            drawn = Clusters.of(count, None).drawn_means(means, chance, 400)
            low, high = resampling.percentiles(drawn, count)
            hits += low <= 0 <= high
            assert resampling.bootstrap_p(drawn, count) <= 1
        assert hits >= 180


def test_two_clusters_that_both_moved_alike_are_no_proof():
    drawn = Clusters.of(2, None).drawn_means(np.array([0.1, 0.2]), np.random.default_rng(0), 2000)
    assert resampling.bootstrap_p(drawn, 2) > 0.1
    assert resampling.percentiles(drawn, 2)[0] < 0
