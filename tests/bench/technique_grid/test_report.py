"""The page of the grid, from results made by hand, and the pages in docs/ from the stored results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.technique_grid.cells import Setting
from bench.technique_grid.report import Control, Grid, GridCell, GridPair, page
from bench.technique_grid.run import read

ROOT = Path(__file__).parents[3]


def cell(**changes: Any) -> GridCell:
    values: dict[str, Any] = {
        "objective": "classify", "family": "decoder", "technique": "lora", "seed": 0,
        "model": "smollm2-135m", "metric": "accuracy", "base": 0.7, "tuned": 0.9, "delta": 0.2, "ci95": (0.15, 0.25),
        "p_value": 0.0001, "train_rows": 600, "epochs": 2.0, "steps": 76, "test_rows": 500,
        "head_only": Control(score=0.8, p_adjusted=0.02), "shuffled": Control(score=0.5, p_adjusted=0.0001),
        "baseline": ("TF-IDF", 0.75), "verdict": "better", "learning_rate": 1.3e-3, "trainable": 2_000,
        "parameters": 100_000, "seconds": 75.0, "peak_bytes": 1_500_000_000, "model_bytes": 500_000_000,
        "general_nats": 0.01, "probe": -0.02,
    }  # fmt: skip
    return GridCell(**(values | changes))


def pair(**changes: Any) -> GridPair:
    values: dict[str, Any] = {
        "objective": "classify", "family": "decoder", "technique": "full", "against": "lora", "seeds": (0, 1),
        "metric": "accuracy", "delta": 0.01, "ci95": (-0.01, 0.03), "p_value": 0.4, "n": 1000,
    } | changes  # fmt: skip
    return GridPair(**({"p_adjusted": values["p_value"]} | values))


def grid(*cells: GridCell, **parts: Any) -> Grid:
    return Grid(**({"cells": cells, "pairs": (), "refused": {}, "missing": ()} | parts))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows", "controls"), [("grid", 160, True), ("grid-64", 64, False), ("grid-600", 600, False)]
)
def test_the_pages_in_docs_are_those_of_the_stored_results(
    name: str, rows: int, controls: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    expected = (ROOT / "docs" / "reference" / f"{name}.md").read_text(encoding="utf-8")
    assert page(read(Setting(rows=rows, seeds=3, controls=controls))) == expected


def test_a_line_has_parameters_scores_controls_and_costs():
    text = page(grid(cell()))
    assert "## classify, decoder\n\n`smollm2-135m`, measured by accuracy. lora: 600 training rows, 2 epochs " in text
    assert ", 2 epochs (76 steps), 500 test rows. Controls run: head only, shuffled. " in text
    assert "Best baseline without a language model: TF-IDF, 0.750." in text
    seeds = page(grid(cell(), cell(seed=1, test_rows=490), cell(seed=2, test_rows=507)))
    assert "lora: 600 training rows, 2 epochs (76 steps), 490 to 507 test rows. Controls" in seeds
    assert (
        "| lora | 0 | 2,000 (2 %) | 0.700 | 0.900 | +0.200 (+0.150 to +0.250) | < 0.001 "
        "| 0.800 (0.020) | 0.500 (< 0.001) | **better** "
        "| 0.0013 | 1 min 15 s | 1.5 GB | 500 MB | +0.010 | −2.0\N{NO-BREAK SPACE}% |"
    ) in text


def test_a_loss_is_marked_as_one_and_missing_controls_are_a_dash():
    text = page(grid(cell(metric="perplexity", head_only=None, shuffled=None)))
    assert "measured by perplexity (lower is better)." in text
    assert "| < 0.001 | – | – | **better** |" in text
    assert "Controls run: none." in text


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "equivalent within 3 points"),  # from -1 to 3 points
        ({"ci95": (-0.01, 0.031)}, "not significant"),
        ({"delta": 0.05, "ci95": (0.03, 0.07), "p_value": 0.001}, "better"),
        ({"delta": -0.05, "ci95": (-0.07, -0.03), "p_value": 0.001}, "worse"),
        ({"delta": 0.05, "ci95": (0.01, 0.07), "p_value": 0.02, "p_adjusted": 0.1}, "not significant"),
        ({"metric": "chrf", "ci95": (-1.0, 3.0)}, "equivalent within 3 points"),  # on a scale of 100
        ({"metric": "chrf", "ci95": (-1.0, 3.1)}, "not significant"),
        ({"metric": "perplexity"}, "not significant"),  # without a scale there are no points
    ],
)
def test_two_techniques_are_equivalent_only_if_the_whole_interval_is_within_three_points(
    changes: dict[str, Any], verdict: str
):
    assert pair(**changes).verdict == verdict
    assert page(grid(cell(), pairs=(pair(**changes),))).count(f"| 1,000 | {verdict} |") == 1


def test_cells_that_cannot_work_and_missing_ones_are_on_the_page():
    reason = "instruct needs a decoder; nearest that works: classify"
    refused = {"instruct/lora/encoder": reason, "instruct/full/encoder": reason}
    text = page(grid(refused=refused, missing=("domain/full/encoder",)))
    assert f"- {reason} (`instruct/lora/encoder`, `instruct/full/encoder`)\n" in text
    assert "## Not run yet\n\n- domain, encoder: full\n" in text


def test_the_verdicts_of_a_table_are_summarised():
    text = page(grid(cell(), cell(seed=1), cell(technique="prompt", verdict="no effect")))
    assert "Verdicts: better: lora (2 seeds); no effect: prompt." in text


def test_a_cell_with_some_of_the_seeds_is_not_called_missing():
    text = page(grid(cell(), partial=("classify/lora/decoder",)))
    assert "Not run yet" not in text
    assert (
        "## Fewer seeds than requested\n\nTheir tables have one line per finished seed.\n\n- classify, decoder: lora"
        in text
    )
