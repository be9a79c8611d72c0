"""Is the technique that `tunesmith plan` recommends the one to take? Five real tasks that it was not made with.

    python -m bench.recommend predict      # writes RECOMMEND.json: to be committed before anything runs
    python -m bench.recommend run [TASK]   # tunes by each technique what was not tuned yet, and writes RECOMMEND.md

Each technique sees the same rows as often as in the technique grid and at its default rate. The recommendation loses
where another technique is surely better on the same test rows (paired by group, p < 0.05, one comparison at a time);
elsewhere it wins or ties, and the page says in how many pairs the rows are too few to tell.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.technique_grid.cells import TECHNIQUES
from bench.technique_grid.report import EQUIVALENT, NOT_SIGNIFICANT, within
from bench.technique_grid.run import begin_with_known_base
from tunesmith.config import Recipe, load_recipe, save_recipe
from tunesmith.data.files import write_whole
from tunesmith.metrics.significance import PairedComparison
from tunesmith.pipelines.plan.plan import plan_recipe
from tunesmith.report.formatting import bounds, figure, p_value, signed
from tunesmith.report.run_diff import pair_runs
from tunesmith.report.schema import Report, read_report
from tunesmith.training.run_folder import open_run

HERE = Path(__file__).resolve().parent
PAGE, TABLE = HERE.parent / "RECOMMEND.json", HERE.parent / "RECOMMEND.md"
RUNS = HERE.parents[1] / "runs" / "bench-recommend"
TASKS = ("movies", "sections", "revisions", "german", "films")
# What is not compared here, and would take longer than the training.
BRIEF = ("schedule.probe=false", "schedule.eval_steps=1000000", "schedule.save_steps=1000000", "controls=false")


def recipe_of(task: str, technique: str) -> Recipe:
    """What is tuned: the task's recipe by a technique, with as many passes over the rows as the grid gives it."""
    words, epochs = TECHNIQUES[technique]
    changes = [*BRIEF, f"technique={json.dumps(words)}", f"schedule.epochs={epochs}"]
    return load_recipe(HERE / f"{task}.yaml", changes=changes)[0]


def predict() -> None:
    """Write what is recommended for each task; a recommendation that is there is never made again."""
    page = _read()
    for task in TASKS:
        if task not in page:
            found = plan_recipe(recipe_of(task, "lora"), on_event=lambda event: None, timed=False, offline=True)
            if found.recommendation is not None:
                page[task] = found.recommendation.model_dump(mode="json")
                write_whole(PAGE, json.dumps(page, indent=1) + "\n")


def run(only: str = "") -> None:
    """Tune what was not tuned yet; a run that was stopped goes on."""
    RUNS.mkdir(parents=True, exist_ok=True)
    for task in [only] if only else TASKS:
        for technique in TECHNIQUES:
            recipe, place = recipe_of(task, technique), RUNS / f"{task}-{technique}"
            folder = open_run(recipe, place)
            if folder.finished:
                continue
            if not folder.started:
                begin_with_known_base(folder, recipe, _relatives(task, technique))
            save_recipe(recipe, place.with_suffix(".yaml"))
            words = [sys.executable, "-m", "tunesmith", "tune", str(place.with_suffix(".yaml")), "--out", str(place)]
            if subprocess.run([*words, "--offline"]).returncode:  # such as qlora without bitsandbytes
                print(f"{place.name} was not tuned: see above", file=sys.stderr)
        write_whole(TABLE, table(_read()))


def _relatives(task: str, technique: str) -> Iterator[tuple[Recipe, Path]]:
    """The other techniques' runs on the same rows."""
    return ((recipe_of(task, other), RUNS / f"{task}-{other}") for other in TECHNIQUES if other != technique)


def table(page: dict[str, Any]) -> str:
    """RECOMMEND.md: each task with its techniques, and how often the recommendation stood."""
    parts = [
        "# Recommendations of `tunesmith plan` compared with every technique\n\n"
        "The recommendations were committed before the runs (`git log bench/RECOMMEND.json`). `python -m "
        "bench.recommend run` makes this page.\nA technique is better than the recommended one if p < 0.05 "
        "on the same test rows, by group, without adjustment."
    ]
    stood: list[bool] = []
    pairs: Counter[str] = Counter()
    for task, told in page.items():
        found = {name: read_report(RUNS / f"{task}-{name}") for name in TECHNIQUES if _ended(task, name)}
        if told["technique"] in found and len(found) > 1:
            lines, verdicts = _lines(task, told["technique"], found)
            stood.append("better" not in verdicts.values())
            pairs.update(verdicts.values())
            parts.append(_section(task, told["technique"], found, lines=lines, verdicts=verdicts))
    parts.append(
        f"The recommendation wins or ties in {sum(stood)} of {len(stood)} tasks that ran: no other technique is "
        f"significantly better. Of all {pairs.total()} pairs, the other technique is better in {pairs['better']}, "
        f"worse in {pairs['worse']}, {EQUIVALENT} in {pairs[EQUIVALENT]} and {NOT_SIGNIFICANT} in "
        f"{pairs[NOT_SIGNIFICANT]}."
    )
    return "\n\n".join(parts) + "\n"


def _ended(task: str, technique: str) -> bool:
    return (RUNS / f"{task}-{technique}" / "report.json").exists()


def _section(task: str, taken: str, found: dict[str, Report], *, lines: list[str], verdicts: dict[str, str]) -> str:
    """One task: its table, and how the recommendation did."""
    one, beaten = found[taken], [name for name, verdict in verdicts.items() if verdict == "better"]
    told = f"beaten by {', '.join(beaten)}" if beaten else "wins or ties"
    return "\n".join(
        (
            f"## {task}: {taken} {told}\n",
            f"`{one.model}`, {one.objective}, {one.data.train} training and {one.task.n} test rows, {one.task.metric}, "
            f"base {figure(one.task.base)}.\n",
            f"| technique | tuned | against {taken} (95 %) | p | verdict | training |",
            "|---|---|---|---|---|---|",
            *lines,
        )
    )


def _lines(task: str, taken: str, found: dict[str, Report]) -> tuple[list[str], dict[str, str]]:
    """The rows of a task's table, and what each other technique is beside the one that was recommended."""
    lines, verdicts = [], {}
    for name, report in found.items():
        beside = ["", "", ""]
        if name != taken:
            pairs = pair_runs(RUNS / f"{task}-{taken}", RUNS / f"{task}-{name}")
            difference = pairs.compare()
            verdicts[name] = _verdict(difference, pairs.metric)
            gain = f"{signed(difference.delta)} ({bounds(difference.ci95, sign=True)})"
            beside = [gain, p_value(difference.p_value), verdicts[name]]
        cells = (name, figure(report.task.tuned), *beside, f"{math.ceil(report.speed.seconds)} s")
        lines.append(f"| {' | '.join(cells)} |")
    return lines, verdicts


def _verdict(difference: PairedComparison, metric: str) -> str:
    """Better wherever that is sure, however little it is: what would beat the recommendation is never called equal."""
    if difference.verdict == "better":
        return "better"
    if within(metric, difference.ci95):
        return EQUIVALENT
    return "worse" if difference.verdict == "worse" else NOT_SIGNIFICANT


def _read() -> dict[str, Any]:
    return dict(json.loads(PAGE.read_text(encoding="utf-8"))) if PAGE.exists() else {}


if __name__ == "__main__":
    {"predict": predict, "run": run}[sys.argv[1]](*sys.argv[2:])
