"""`python -m bench.noise.stages 4000`: verdicts in stages on simulated answers, how often they err and what they save.

The levels of `STAGES` are computed here, from the alpha spending function of Lan and DeMets 1983 (Biometrika 70:659) of
the O'Brien-Fleming type, by the recursive integration of Armitage, McPherson and Rowe 1969 (JRSS A 132:235).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from bench.noise.paired import DESIGNS, KINDS, Design, FloatArray, Latent, clopper_pearson, rows
from tunesmith.evaluation.predict import accepted_answers
from tunesmith.metrics.resampling import ALPHA, STAGES, at_level
from tunesmith.metrics.significance import PairedComparison, compare_paired
from tunesmith.metrics.task_scores import PER_ROW

POINTS = 801  # of the density between the boundaries
RESAMPLES = 1_000
PLANS: Mapping[str, Mapping[float, float]] = {
    "all rows at once": {1.0: ALPHA},
    "in stages": STAGES,
    "in stages, uncorrected": dict.fromkeys(STAGES, ALPHA),
}


def levels(shares: Sequence[float], alpha: float = ALPHA) -> list[float]:
    """Return the level of a two-sided test at each share of the rows, so that all of them together reject with `alpha`.

    Args:
        shares: shares of the rows, rising.
        alpha: the level of the whole.
    """
    places, mass = np.zeros(1), np.ones(1)  # of the sum of standard normal scores that has crossed no boundary
    found: list[float] = []
    for before, share in zip([0.0, *shares], shares, strict=False):
        step = math.sqrt(share - before)
        spent = [4 * float(ndtr(ndtri(alpha / 4) / math.sqrt(each))) if each else 0.0 for each in (before, share)]

        def beyond(bound: float) -> float:
            return float(mass @ (ndtr((-bound - places) / step) + ndtr((places - bound) / step)))  # noqa: B023

        bound = float(brentq(lambda b: beyond(b) - (spent[1] - spent[0]), 0.0, 12.0))  # noqa: B023
        found.append(2 * float(ndtr(-bound / math.sqrt(share))))
        inside = np.linspace(-bound, bound, POINTS)
        simpson = np.where(np.arange(POINTS) % 2, 4.0, 2.0)
        simpson[[0, -1]] = 1.0
        density = np.exp(-0.5 * ((inside[:, None] - places) / step) ** 2) @ mass / (step * math.sqrt(2 * math.pi))
        places, mass = inside, density * simpson * (inside[1] - inside[0]) / 3
    return found


@dataclass(frozen=True, slots=True)
class Outcome:
    """The comparison at the stage that decided, and the share of the rows that it took."""

    found: PairedComparison
    share: float

    @classmethod
    def of(cls, scores: FloatArray, design: Design, plan: Mapping[float, float]) -> Outcome:
        """Compare scores of base and tuned model, [2, N], in the stages of a plan, whole groups at a time."""
        ends = list(accumulate(design.sizes))
        groups = design.groups if max(design.sizes) > 1 else None
        for share, level in plan.items():
            end = next(end for end in ends if end >= share * ends[-1])
            with at_level(level):
                found = compare_paired(*scores[:, :end], groups=groups and groups[:end], resamples=RESAMPLES)
            if found.verdict in ("better", "worse"):
                break
        return cls(found, end / ends[-1])


def drawn(kind: str, design: Design, *, effect: float, seed: int) -> FloatArray:
    """Draw the scores of two simulated models, [2, N]."""
    latent = Latent.draw(design, effect=effect, seed=(seed, list(KINDS).index(kind), sum(design.sizes)))
    objective, examples, sides = KINDS[kind](latent)
    score = PER_ROW[objective.metric]
    return np.array([score(accepted_answers(examples), side.answers.given) for side in sides])


def cells(kind: str, design: Design, *, effect: float, count: int) -> dict[str, str]:
    """Return for each plan how many of `count` models were called better or worse, and the mean share of rows."""
    many = Design(design.sizes * 100, design.tilt, design.shared)
    truth = float(np.diff(drawn(kind, many, effect=effect, seed=10**6).mean(axis=1))[0]) if effect else 0.0
    scores = [drawn(kind, design, effect=effect, seed=seed) for seed in range(count)]
    lines = {}
    for name, plan in PLANS.items():
        found = [Outcome.of(each, design, plan) for each in scores]
        called = sum(each.found.verdict in ("better", "worse") for each in found)
        covered = np.mean([each.found.ci95[0] <= truth <= each.found.ci95[1] for each in found])
        lines[name] = (
            f"{called / count:.1%} (at most {clopper_pearson(called, count)[1]:.1%}), "
            f"{np.mean([each.share for each in found]):.0%} of the rows, intervals cover {covered:.1%}"
        )
    return {f"{kind}, {sum(design.sizes)} rows in {len(design.sizes)} groups, true difference {truth:.3f}": "", **lines}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, help="simulated comparisons for each cell")
    count = parser.parse_args().count
    print("levels:", ", ".join(f"{level:.3g}" for level in levels(list(STAGES))), flush=True)
    for kind, design in (
        ("instruct, exact match", rows(150)),
        ("instruct, ROUGE-L", rows(40)),
        ("instruct, exact match", DESIGNS["15 groups of 8"]),
        ("instruct, exact match", DESIGNS["12 groups of 1 to 40"]),
    ):
        for effect in (0.0, 0.4, 0.8):
            for name, line in cells(kind, design, effect=effect, count=count).items():
                print(f"{name}: {line}", flush=True)


if __name__ == "__main__":
    main()
