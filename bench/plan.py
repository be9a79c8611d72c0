"""Twelve runs foretold by `tunesmith plan`, then run: how far were memory and time off?

    python -m bench.plan predict     # writes PLAN.json, each set in a process of its own: commit it before runs
    python -m bench.plan run [CASE]  # runs what has no outcome yet, each in a process of its own, and writes PLAN.md

Small pieces of the examples' rows, few test rows. What general ability is left is looked at in passing only: it takes
minutes, is the same in every case, and is none of what is compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tunesmith.config.resolve import resolve_recipe
from tunesmith.data.files import write_whole
from tunesmith.pipelines.plan.plan import plan_recipe
from tunesmith.training.callbacks import Callbacks

HERE = Path(__file__).parent
PAGE, TABLE = HERE / "PLAN.json", HERE / "PLAN.md"
EXAMPLES = HERE.parent / "examples"
FEW = ("data.test=0.03", "data.validation=0.03", "schedule.probe=false", "schedule.patience=99", "schedule.epochs=1")
# Rows -> recipe, changes, and the techniques that are run on them.
SETS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "reviews": (
        "reviews.yaml",
        ("data.rows=128",),
        ("full", "lora", "dora", "qlora", "ia3", "prompt", "prefix", "p-tuning"),
    ),
    "reviews by an encoder": ("reviews.yaml", ("model=minilm-l6", "data.rows=960"), ("full", "lora")),
    "synopsis": ("synopsis.yaml", ("data.rows=48", "objective.max_new_tokens=24"), ("lora",)),
    "manual": ("domain.yaml", ("data.rows=8", "replay.share=0", "schedule.batch_rows=4"), ("lora",)),
}
BOUNDS = {"memory": 0.15, "seconds": 0.25}


def cases() -> list[str]:
    """reviews/lora and so on."""
    return [f"{name}/{technique}" for name, (_, _, techniques) in SETS.items() for technique in techniques]


def predict() -> None:
    """Write what each case is expected to take; a prediction that is there is never made again."""
    page = _read()
    for name, (_, _, techniques) in SETS.items():
        wanted = [one for one in techniques if f"{name}/{one}" not in page]
        if wanted:
            found = _apart("foretell", name)
            page |= {f"{name}/{one}": {"predicted": found[one]} for one in wanted if one in found}
            _write(page)


def foretell(name: str) -> None:
    """Print what each technique is expected to take on one set; alone in a process, which holds no other's model."""
    file, changes, _ = SETS[name]
    recipe = resolve_recipe(EXAMPLES / file, changes=[*FEW, *changes, "technique=lora"], offline=True).recipe
    options = plan_recipe(recipe, on_event=lambda event: None, offline=True).options
    made = ((option.technique, option.prediction) for option in options)
    print(json.dumps({technique: one.model_dump(mode="json") for technique, one in made if one is not None}))


def run(only: str = "") -> None:
    """Run what has a prediction and no outcome; what was not foretold, as qlora without bitsandbytes, is not run."""
    page = _read()
    for case in [only] if only else cases():
        if case not in page or "outcome" in page[case]:
            continue
        page[case]["outcome"] = _apart("one", case)
        _write(page)


def _apart(command: str, what: str) -> dict[str, Any]:
    """The last line that a command of this file prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.plan", command, what], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def one(case: str) -> None:
    """Tune one case in this process, and print its peak memory, training seconds and numbers that moved."""
    import tempfile

    from tunesmith.evaluation import diagnostics as worth
    from tunesmith.evaluation import retention
    from tunesmith.pipelines.tune.tune import tune_recipe

    some = retention.items()[:8]
    retention.items = worth.items = lambda: some  # type: ignore[attr-defined]  # the base's are kept under their own digest
    retention.WINDOWS = 1
    name, technique = case.split("/")
    file, changes, _ = SETS[name]
    recipe = resolve_recipe(EXAMPLES / file, changes=[*FEW, *changes, f"technique={technique}"], offline=True).recipe
    with tempfile.TemporaryDirectory() as out:
        report = tune_recipe(recipe, out=Path(out) / "run", callbacks=Callbacks(), offline=True).report
    print(
        json.dumps(
            {
                "memory": report.memory.peak_bytes,
                "seconds": report.speed.seconds,
                "trainable": report.training.trainable,
                "by_formula": {"memory": report.memory.predicted_bytes, "seconds": report.speed.predicted_seconds},
            }
        )
    )


def table(page: dict[str, Any]) -> str:
    """PLAN.md."""
    lines = [
        "# Predictions of `tunesmith plan` and measured values",
        "",
        "Predictions were committed before the runs (`git log bench/PLAN.json`). Required: memory within 15 %, time",
        "of training within 25 %. `python -m bench.plan run` runs the missing cases. The machine had other load.",
        "",
        "| case | trainable parameters | memory predicted | measured | error | training predicted | measured | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    kept = dict.fromkeys(BOUNDS, 0)
    ran = 0
    for case, entry in page.items():
        predicted, outcome = entry["predicted"], entry.get("outcome")
        cells = [case, f"{predicted['trainable']:,}"]
        ran += outcome is not None
        for what, unit, write in (("memory", 1e9, "{:.2f} GB"), ("seconds", 1.0, "{:.0f} s")):
            expected = predicted[what]["expected"]
            cells.append(write.format(expected / unit))
            if outcome is None:
                cells += ["", ""]
                continue
            off = expected / outcome[what] - 1
            kept[what] += abs(off) <= BOUNDS[what]
            cells += [write.format(outcome[what] / unit), f"{off:+.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Of {ran} runs: memory within 15 % in {kept['memory']}, time within 25 % in {kept['seconds']}.",
        "",
    ]
    return "\n".join(lines)


def _read() -> dict[str, Any]:
    return dict(json.loads(PAGE.read_text(encoding="utf-8"))) if PAGE.exists() else {}


def _write(page: dict[str, Any]) -> None:
    write_whole(PAGE, json.dumps(page, indent=1) + "\n")
    write_whole(TABLE, table(page))


if __name__ == "__main__":
    {"predict": predict, "foretell": foretell, "run": run, "one": one}[sys.argv[1]](*sys.argv[2:])
