"""The page of the grid, from lines made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from bench.technique_grid.report import Control, Grid, GridCell, GridPair, page


def cell(**changes: Any) -> GridCell:
    values: dict[str, Any] = {
        "objective": "classify", "family": "decoder", "technique": "lora", "seed": 0, "folder": "runs/grid/x",
        "model": "smollm2-135m", "metric": "accuracy", "base": 0.7, "tuned": 0.9, "delta": 0.2, "ci95": (0.15, 0.25),
        "p_value": 0.0001, "train": 600, "epochs": 2.0, "steps": 76, "test": 500,
        "head_only": Control(score=0.8, p_adjusted=0.02), "shuffled": Control(score=0.5, p_adjusted=0.0001),
        "cheap": ("TF-IDF", 0.75), "verdict": "better", "learning_rate": 1.3e-3, "trainable": 2_000,
        "parameters": 100_000, "seconds": 75.0, "peak_bytes": 1_500_000_000, "model_bytes": 500_000_000,
        "general": 0.01, "probe": -0.02,
    }  # fmt: skip
    return GridCell(**(values | changes))


def pair(**changes: Any) -> GridPair:
    values: dict[str, Any] = {
        "objective": "classify", "family": "decoder", "technique": "full", "against": "lora", "seeds": (0, 1),
        "metric": "accuracy", "delta": 0.01, "ci95": (-0.01, 0.03), "p_value": 0.4, "n": 1000,
    } | changes  # fmt: skip
    return GridPair(**({"p_adjusted": values["p_value"]} | values))


def test_a_line_says_what_moved_what_it_brought_and_what_it_cost():
    text = page(Grid(cells=(cell(),), pairs=(), refused={}, missing=()))
    assert "## classify, decoder\n\n`smollm2-135m`, measured by accuracy. lora: 600 training rows 2 times " in text
    assert " 2 times (76 steps), 500 test rows. Controls run: head only, shuffled. " in text
    assert "Without a language model: TF-IDF, 0.750." in text
    seeds = page(Grid(cells=(cell(), cell(seed=1, test=490), cell(seed=2, test=507)), pairs=(), refused={}, missing=()))
    assert "lora: 600 training rows 2 times (76 steps), 490 to 507 test rows. Controls" in seeds
    assert (
        "| lora | 0 | 2,000 (2 %) | 0.700 | 0.900 | +0.200 (+0.150 to +0.250) | < 0.001 "
        "| 0.800 (0.020) | 0.500 (< 0.001) | **better** "
        "| 0.0013 | 1 min 15 s | 1.5 GB | 500 MB | +0.010 | −2.0\N{NO-BREAK SPACE}% |"
    ) in text


def test_texts_have_no_controls_and_a_loss_is_said_to_be_one():
    text = page(
        Grid(cells=(cell(metric="perplexity", head_only=None, shuffled=None),), pairs=(), refused={}, missing=())
    )
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
        ({"metric": "chrf", "ci95": (-1.0, 3.0)}, "equivalent within 3 points"),  # of a hundred
        ({"metric": "chrf", "ci95": (-1.0, 3.1)}, "not significant"),
        ({"metric": "perplexity"}, "not significant"),  # has no such points
    ],
)
def test_two_techniques_are_equal_only_where_the_whole_interval_is_within_three_points(
    changes: dict[str, Any], verdict: str
):
    assert pair(**changes).verdict == verdict
    text = page(Grid(cells=(cell(),), pairs=(pair(**changes),), refused={}, missing=()))
    assert text.count(f"| 1,000 | {verdict} |") == 1


def test_what_cannot_work_and_what_was_not_run_stand_on_the_page():
    why = "instruct needs a decoder; nearest that works: classify"
    refused = {"instruct/lora/encoder": why, "instruct/full/encoder": why}
    text = page(Grid(cells=(), pairs=(), refused=refused, missing=("domain/full/encoder",)))
    assert f"- {why} (`instruct/lora/encoder`, `instruct/full/encoder`)\n" in text
    assert "## Not run yet\n\n- domain, encoder: full\n" in text


def test_the_verdicts_stand_in_a_sentence_too():
    cells = (cell(), cell(seed=1), cell(technique="prompt", verdict="no effect"))
    text = page(Grid(cells=cells, pairs=(), refused={}, missing=()))
    assert "In words: better: lora (2 seeds); no effect: prompt." in text


def test_a_cell_that_was_run_with_some_of_the_seeds_is_not_called_missing():
    told = page(Grid(cells=(cell(),), pairs=(), refused={}, missing=(), partly=("classify/lora/decoder",)))
    assert "Not run yet" not in told
    assert (
        "## With fewer seeds\n\nTheir tables have a line for each seed that was run.\n\n- classify, decoder: lora"
        in told
    )
