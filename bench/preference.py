"""`python -m bench.preference SET`: people's judgement, learned on some rows and told on the rest, pooled over folds.

Each row is held out once. Beside the tuned model stand the base and "the longer answer wins". A fold is a run under
runs/bench-preference; one that is finished is not made again. The rows are those of ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.cli.progress import Lines
from tunesmith.config import make_recipe
from tunesmith.metrics.preference_metrics import wins
from tunesmith.metrics.significance import compare_paired
from tunesmith.pipelines.tune.tune import tune_recipe
from tunesmith.report.predictions import read_predictions
from tunesmith.training.callbacks import Callbacks

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
RUNS = ROOT / "runs" / "bench-preference"
# Set -> the column whose values stay on one side.
SETS = {"g1_pandalm_human": "prompt", "g4_debian_revisions": "source", "g5_vader_tone_pairs": "group"}
PAGE = ROOT / "bench" / "PREFERENCE.md"
FOLDS, EPOCHS = 5, 2.0
HEAD = """# Predicting preferences of raters

Written by `python -m bench.preference SET [--objective reward]`. Share of held-out pairs in which the preferred answer
ranks first. Every pair is held out once, and prompts or sources are never on both sides. The ranking is by length (half
a pair if both are equally long), by log-probability per token (preference), or by score (reward; its base is a linear
probe on the frozen states). p-values are paired, by group.

| dataset | objective | model | technique | changes | pairs | longer | base | tuned | tuned - base | tuned - longer |
|---|---|---|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Told:
    """A held-out pair: its group, and whether length, base and tuned model tell it as people did."""

    group: str
    longer: float
    base: float
    tuned: float


def read(name: str) -> list[dict[str, Any]]:
    """The rows of a set."""
    return [json.loads(line) for line in (DATA / name / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def cut(rows: Sequence[dict[str, Any]], group: str, folds: int) -> list[list[dict[str, Any]]]:
    """The rows in as many parts, a group in one."""
    names = sorted({str(row[group]) for row in rows})
    random.Random(0).shuffle(names)
    place = {name: i % folds for i, name in enumerate(names)}
    return [[row for row in rows if place[str(row[group])] == fold] for fold in range(folds)]


def write(rows: Sequence[dict[str, Any]], path: Path) -> str:
    """The rows as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def fold_run(asked: argparse.Namespace, parts: Sequence[Sequence[dict[str, Any]]], fold: int) -> list[Told]:
    """What a run on the other parts tells of this one."""
    words = [asked.set, asked.objective, asked.technique, f"{asked.folds}-{fold}"]
    place = RUNS / "-".join([*words, *(change.replace("=", "").replace(".", "-") for change in asked.set_)])
    rest = [row for i, part in enumerate(parts) if i != fold for row in part]
    files = {
        "train": write(rest, place / "rows" / "train.jsonl"),
        "test": write(parts[fold], place / "rows" / "test.jsonl"),
    }
    raw = {"data": {**files, "group": SETS[asked.set], "rows": asked.rows}, "objective": asked.objective}
    raw |= {"model": asked.model, "technique": asked.technique, "schedule": {"epochs": asked.epochs}}
    recipe, _ = make_recipe(raw, place="bench", changes=asked.set_)
    run = tune_recipe(recipe, out=place / "run", callbacks=Callbacks(Lines()), offline=True)
    by_line = {f"test.jsonl:{i}": row for i, row in enumerate(parts[fold], 1)}
    found = []
    for line in read_predictions(run.folder):
        row = by_line[line.where]
        assert line.score_base is not None
        assert line.score_tuned is not None
        (longer,) = wins([len(row["chosen"]), len(row["rejected"])], tie=0.5)
        found.append(Told(str(row[SETS[asked.set]]), float(longer), line.score_base, line.score_tuned))
    return found


def folds(asked: argparse.Namespace) -> None:
    """All folds, or the first few, what they come to together, and the page of all that is known."""
    parts = cut(read(asked.set), SETS[asked.set], asked.folds)
    found = [one for fold in range(asked.only or asked.folds) for one in fold_run(asked, parts, fold)]
    groups = [one.group for one in found]
    sides = {name: [getattr(one, name) for one in found] for name in ("longer", "base", "tuned")}
    shares = {name: sum(values) / len(values) for name, values in sides.items()}
    against = {other: compare_paired(sides[other], sides["tuned"], groups=groups) for other in ("base", "longer")}
    cells = [asked.set, asked.objective, asked.model, asked.technique, " ".join(changes(asked)) or "-", str(len(found))]
    cells += [f"{share:.3f}" for share in shares.values()]
    cells += [f"{one.delta:+.3f}, p = {one.p_value:.3f}" for one in against.values()]
    print(keep(cells))
    for other, one in against.items():
        print(f"tuned against {other}: {one.sentence}")


def changes(asked: argparse.Namespace) -> list[str]:
    """What was set other than it usually is."""
    usual = {"folds": FOLDS, "only": 0, "rows": 0, "epochs": EPOCHS}
    given = vars(asked)
    return [*asked.set_, *(f"{name}={given[name]:g}" for name, value in usual.items() if given[name] != value)]


def keep(cells: Sequence[str]) -> str:
    """A line of the page, written there in place of an earlier one of the same setting."""
    line, setting = f"| {' | '.join(cells)} |", f"| {' | '.join(cells[:5])} |"
    page = PAGE.read_text(encoding="utf-8").splitlines()
    others = [one for one in page if one.startswith("| g") and not one.startswith(setting)]
    PAGE.write_text("\n".join([HEAD, *sorted([*others, line]), ""]), encoding="utf-8")
    return line


def main() -> None:
    """Folds of a set."""
    parser = argparse.ArgumentParser(prog="python -m bench.preference", description=__doc__)
    parser.add_argument("set", choices=[*SETS])
    parser.add_argument("--objective", choices=("preference", "reward"), default="preference")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--technique", default="lora")
    parser.add_argument("--folds", type=int, default=FOLDS)
    parser.add_argument("--only", type=int, default=0, help="the first so many folds; 0: all")
    parser.add_argument("--rows", type=int, default=0, help="training rows of a fold; 0: all")
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--set", dest="set_", action="append", default=[], metavar="KEY=VALUE")
    folds(parser.parse_args())


if __name__ == "__main__":
    main()
