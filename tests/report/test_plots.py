"""Axis limits of the plots: no point is cut off."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.report import plots


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """The limits of the vertical axis of each plot made in the test."""
    seen: list[tuple[float, float]] = []
    inline = plots._inline

    def watch(*args: Any, **kwargs: Any) -> Any:
        figure = FIGURE(*args, **kwargs)
        figures.append(figure)
        return figure

    def note(svg: str, text: str) -> str:
        seen.append(figures[-1].axes[0].get_ylim())
        return inline(svg, text)

    import matplotlib.figure

    FIGURE, figures = matplotlib.figure.Figure, list[Any]()
    monkeypatch.setattr(matplotlib.figure, "Figure", watch)
    monkeypatch.setattr(plots, "_inline", note)
    return seen


@pytest.mark.parametrize("first", [1.2, 1.8, 40.0])
def test_the_first_losses_are_within_the_axis_however_high_they_are(limits: list[tuple[float, float]], first: float):
    train = [(float(step), 0.6 + 0.4 / step) for step in range(2, 60)]
    train.insert(0, (1.0, first))
    svg = plots.loss_plot(train, [(10.0, 0.9), (50.0, 0.7)], best_step=50)
    low, high = limits[0]
    assert low <= min(value for _, value in train)
    assert high >= first
    assert ("log scale" in svg) == (first == 40.0)


def test_rewards_below_and_above_zero_are_within_the_axis(limits: list[tuple[float, float]]):
    plots.loss_plot([(1.0, -2.0), (2.0, 0.5)], [(2.0, 0.7)], best_step=2, name="reward")
    low, high = limits[0]
    assert low <= -2.0
    assert high >= 0.7


def test_a_loss_of_zero_throughout_has_an_axis(limits: list[tuple[float, float]]):
    assert plots.loss_plot([(1.0, 0.0), (2.0, 0.0)], [], best_step=2)
    assert limits[0] == (0.0, 1.0)
