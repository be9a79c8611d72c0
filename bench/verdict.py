"""`python -m bench.verdict`: seconds to a proven result, `tunesmith tune` against TRL with a script of one's own.

Writes bench/VERDICT.md. In every round both sides run in turn on the same rows: movie reviews of a2_vader_movie
(../shared/data; 720 rows of which a tenth validates, 480 held out), and the decoder of `tunesmith demo`. Theirs is
bench/peers/proven.py. Rounds that are finished are not run again; `--again` forgets them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.objectives.__main__ import read
from bench.race.page import cpu
from bench.race.run import peers_python
from tunesmith.data.examples.types import LabelledText
from tunesmith.models.loading.bundled_models import fetch
from tunesmith.models.loading.device import choose_machine
from tunesmith.pipelines.demo import recipes
from tunesmith.training.read import read_data

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "bench" / ".verdict"
SHIPPED = ROOT / "tunesmith" / "shipped_data"
MODEL = "smollm2-135m"
Parts = dict[str, list[dict[str, str]]]


@dataclass(frozen=True)
class Case:
    """What both sides are given."""

    about: str
    rows: int  # to learn from, a tenth of them to validate; 0: those of the demo
    rank: int = 16
    cache: str = ""  # of an earlier case; an own one, with nothing but the model in it, unless named
    dtype: str = ""  # the machine's fastest
    held: int = 480
    sentences: int = 1  # joined to one text, with the label of the first
    model: str = MODEL  # or a folder
    eval_steps: int | str = "auto"


CASES = {
    "first": Case("720 movie rows, the first run on this machine", 720),
    "second": Case("the same rows again with rank 8", 720, rank=8, cache="first"),
    "small": Case("240 movie rows, the first run", 240),
    "demo": Case("the decoder of `tunesmith demo`, the first run", 0, dtype="float32", eval_steps=13),
}


def parts_of(case: Case, *, tiny: bool) -> Parts:
    """Training, validation and held-out rows."""
    if case.rows:
        many, rows = case.sentences, read("a2_vader_movie")  # each row is of another review
        texts = [" ".join(row["text"] for row in rows[i : i + many]) for i in range(0, len(rows) - many, many)]
        joined = [{"text": text, "label": row["label"]} for text, row in zip(texts, rows[::many], strict=False)]
        train, held = joined[: case.rows], case.rows // 10
        parts = {"train": train[held:], "validation": train[:held], "test": joined[-case.held :]}
    else:
        split = read_data(recipes(str(SHIPPED / "reviews.jsonl"))["demo-smollm2-135m"], offline=True).split
        parts = {
            name: [{"text": row.text, "label": row.labels[0]} for row in part if isinstance(row, LabelledText)]
            for name, part in (("train", split.train), ("validation", split.validation), ("test", split.test))
        }
    return {name: part[:24] if tiny else part for name, part in parts.items()}


def write_job(case: Case, parts: Parts, folder: Path, *, machine: dict[str, Any]) -> None:
    """The job of both sides: the same rows, instruction, rank, rows a step and machine."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name in ("general.jsonl", "probe.jsonl"):
        shutil.copy(SHIPPED / name, folder)
    labels = sorted({row["label"] for row in parts["train"]})
    instruction = f"Which label fits the text: {', '.join(labels)}? Answer with the label only."
    recipe = {
        "model": case.model,
        "data": {name: f"{name}.jsonl" for name in parts},
        "objective": {"kind": "classify", "text": "text", "label": "label", "instruction": instruction},
        "technique": {"kind": "lora", "rank": case.rank},
        # Random weights may not learn in the check before training.
        "schedule": {"epochs": 1, "batch_rows": 16, "eval_steps": case.eval_steps, "probe": case.model == MODEL},
        "machine": machine,
        "seed": 0,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    model = str(fetch(MODEL)) if case.model == MODEL else case.model
    job = {"model": model, "labels": labels, "instruction": instruction, "rank": case.rank}
    (folder / "job.json").write_text(json.dumps({**job, **machine, "batch_rows": 16, "seed": 0}), encoding="utf-8")


def run(command: Sequence[str], log: Path, **more: str) -> dict[str, float]:
    """Wall and processor seconds of a command; what it prints goes into `log`."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT), **more}
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("w", encoding="utf-8") as out:
        ended = subprocess.run(command, cwd=ROOT, env=env, stdout=out, stderr=out, check=False).returncode
    if ended:
        sys.exit(f"ended with {ended}; its words are in {log}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - began, "cpu_seconds": used}


def ours(folder: Path, cache: Path) -> dict[str, Any]:
    """`tunesmith tune` with a cache of its own, in which there is only the model at first."""
    if not (cache / "models").exists():
        cache.mkdir(parents=True)
        (cache / "models").symlink_to(fetch(MODEL).parent)
    words = ["tune", str(folder / "recipe.yaml"), "--out", str(folder / "run"), "--offline", "--verdict-minutes", "all"]
    took = run([sys.executable, "-m", "tunesmith", *words], folder / "ours.txt", TUNESMITH_CACHE=str(cache))
    report = json.loads((folder / "run" / "report.json").read_text(encoding="utf-8"))
    known = {phase["name"]: phase["actual_seconds"] for phase in report["forecast"]["phases"]}
    scores = {task["metric"]: task for task in report["tasks"]}
    return {
        **took,
        "training": known["training"],
        "general": known.get("general ability before", 0.0) + known.get("general ability after", 0.0),
        "base": known.get("base scoring", 0.0),
        "base accuracy": scores["accuracy"]["base"],
        "accuracy": scores["accuracy"]["tuned"],
        "gain": report["retention"]["general_nll_tuned"] - report["retention"]["general_nll_base"],
        "phases": known,
    }


def theirs(folder: Path) -> dict[str, Any]:
    """TRL and the script around it, with the learning rate that Tunesmith chose."""
    out = folder / "peer"
    out.mkdir(exist_ok=True)
    rate = json.loads((folder / "run" / "report.json").read_text(encoding="utf-8"))["training"]["learning_rate"]
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    (folder / "job.json").write_text(json.dumps({**job, "rate": rate}), encoding="utf-8")
    took = run([str(peers_python()), "-m", "bench.peers.proven", str(folder), str(out)], folder / "theirs.txt")
    found = json.loads((out / "result.json").read_text(encoding="utf-8"))
    phases = found["phases"]
    return {
        **took,
        "training": phases["training"],
        "general": phases["general base"] + phases["general tuned"],
        "base": phases["base"],
        "base accuracy": found["scores"]["base"]["accuracy"],
        "accuracy": found["scores"]["tuned"]["accuracy"],
        "gain": found["general"]["tuned"]["loss"] - found["general"]["base"]["loss"],
        "phases": phases,
    }


def rounds(names: Iterable[str], asked: argparse.Namespace) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """What both sides came to, in every round of every case."""
    machine = choose_machine(threads=asked.threads)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {name: {"ours": [], "theirs": []} for name in names}
    for number in range(1, asked.rounds + 1):
        place = WORK / f"{'tiny-' * asked.tiny}{number}"
        for name in found:
            case, folder = CASES[name], place / name
            fixed = {"dtype": case.dtype or machine.dtype, "threads": machine.threads}
            for side in found[name]:
                result = folder / f"{side}.json"
                if not result.exists():
                    if side == "ours":
                        shutil.rmtree(folder, ignore_errors=True)
                        write_job(case, parts_of(case, tiny=asked.tiny), folder, machine=fixed)
                    said = ours(folder, place / (case.cache or name) / "cache") if side == "ours" else theirs(folder)
                    result.write_text(json.dumps({**said, **fixed}, indent=1), encoding="utf-8")
                found[name][side].append(json.loads(result.read_text(encoding="utf-8")))
                last = found[name][side][-1]
                took = f"{last['seconds']:.0f} s ({last['cpu_seconds']:.0f} s of processors)"
                print(f"round {number} {name} {side}: {took}, training {last['training']:.0f} s", flush=True)
    return found


def table(found: dict[str, dict[str, list[dict[str, Any]]]]) -> list[str]:
    """A line for each case and side, and what theirs takes in times of ours."""
    lines = [
        "| case | side | total, s | training, s | total / training | accuracy, base | tuned | general loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ratios = [
        "| TRL and script / Tunesmith | total | processors | without general ability | theirs also without the base |",
        "|---|---|---|---|---|",
    ]
    for name, sides in found.items():
        middle = {
            side: {key: statistics.median(one[key] for one in known) for key in known[0] if key in NUMBERS}
            for side, known in sides.items()
        }
        for side, one in middle.items():
            lines.append(
                f"| {name} | {SIDES[side]} | {one['seconds']:.0f} | {one['training']:.0f} "
                f"| {one['seconds'] / one['training']:.2f} | {one['base accuracy']:.1%} | {one['accuracy']:.1%} "
                f"| {one['gain']:+.3f} |"
            )
        our, their = middle["ours"], middle["theirs"]
        bare, their_bare = our["seconds"] - our["general"], their["seconds"] - their["general"]
        ratios.append(
            f"| {name} | {their['seconds'] / our['seconds']:.2f} | {their['cpu_seconds'] / our['cpu_seconds']:.2f} "
            f"| {their_bare / bare:.2f} | {(their_bare - their['base']) / bare:.2f} |"
        )
    return [*lines, "", *ratios]


NUMBERS = ("seconds", "cpu_seconds", "training", "general", "base", "base accuracy", "accuracy", "gain")
SIDES = {"ours": "**Tunesmith**", "theirs": "TRL and script"}
HOW = """\
Total is the time of the whole process, from its start to its end, imports included; values are medians of the rounds.
Both sides have the same rows, instruction, rank, rows a step, epochs, peak learning rate, threads and precision, and
the model in a local folder, and score all held-out rows. Theirs, `bench/peers/proven.py`, is what a careful user would
write: SFTTrainer with the settings that are fastest here, and an evaluation in the precision of training that scores
all labels of a row in one pass. It validates once, without early stopping, and has one prompt for the base. Tunesmith
checks the model and the rows, tries four prompts, validates 3 to 7 times, keeps the best checkpoint, calibrates, and
writes a report. General loss is tuned minus base, nats per token. *Without general ability* leaves its seconds out on
both sides; *without the base* is for a user who wrote down the base's scores of an earlier run."""

GROWTH = """\
## How the seconds grow

![Seconds of the whole run and of its training over training rows, length of a text and parameters](growth.svg)

Made by `python -m bench.growth`: both sides once for each point, with 120 held-out rows and nothing kept from an
earlier run; 96 training rows where another axis grows. All models but that of 135M parameters have random weights."""


def main() -> None:
    """Run the cases that are named, print the table and write the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.verdict", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)}; none: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    parser.add_argument("--tiny", action="store_true", help="24 rows: does it run? prints, writes no page")
    asked = parser.parse_args()
    names = asked.cases or list(CASES)
    if unknown := set(names) - set(CASES):
        parser.error(f"no case {min(unknown)}; there are {', '.join(CASES)}")
    if asked.again:
        shutil.rmtree(WORK, ignore_errors=True)
    found = rounds(names, asked)
    cases = [f"- **{name}**: {CASES[name].about}, {found[name]['ours'][0]['dtype']}" for name in names]
    page = [
        "# Seconds to a proven result",
        "",
        f"Made by `python -m bench.verdict` on {cpu()}, {asked.rounds} round{'s' * (asked.rounds > 1)}.",
    ]
    page += ["", *table(found), "", *cases, "", HOW, "", GROWTH]
    print("\n".join(page))
    if not asked.tiny:
        (ROOT / "bench" / "VERDICT.md").write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
