"""Merged exports, opened by transformers in a process without Tunesmith, against the runs on held-out rows.

    python -m bench.exports --out /tmp/exports [--only encoder]

Tunes an encoder, a multi-label encoder, a reward model and a decoder with label words on rows of `examples/`, exports
each, and executes the code of the export's README in a subprocess in which `tunesmith` cannot be imported.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tunesmith.inference.export.usage import read_usage
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.saved_model import load
from tunesmith.report.predictions import read_predictions

ROOT = Path(__file__).parent.parent
ROWS = 200
Data = dict[str, str]

# Executed by the other process: the code of the README, then its function on the rows of a file.
CALL = """
import json, sys
sys.modules["tunesmith"] = None  # an import of it raises ImportError
{code}
rows = json.loads(open({rows!r}, encoding="utf-8").read())
open({answers!r}, "w").write(json.dumps({function}(rows)))
"""


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _topics(place: Path) -> Path:
    """Write mails with two labels each: the list they were sent to, and whether they are replies."""
    rows = [
        {"text": row["text"], "label": [row["label"], *(["reply"] if row["subject"].lower().startswith("re:") else [])]}
        for row in _lines(ROOT / "examples/mail.jsonl")
    ]
    file = place / "topics.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def recipes(place: Path) -> dict[str, Data]:
    """Return the recipe of each kind of export: few training rows, and 200 held-out rows."""
    pairs = ROOT / "examples/pairs.jsonl"
    reviews, mail = ROOT / "tunesmith/shipped_data/reviews.jsonl", ROOT / "examples/mail.jsonl"
    small = "schedule: {epochs: 1, probe: false}\nseed: 0\n"
    data = "{{train: {}, rows: {}, validation: 60, test: {}{}}}"
    return {
        "encoder": {
            "recipe": f"model: minilm-l6\ndata: {data.format(mail, 320, ROWS, ', group: thread, max_tokens: 128')}\n"
            "objective: {kind: classify, text: text, label: label}\ntechnique: full\n" + small
        },
        "multi-label": {
            "recipe": f"model: minilm-l6\ndata: {data.format(_topics(place), 320, ROWS, ', max_tokens: 128')}\n"
            "objective: {kind: classify, text: text, label: label}\ntechnique: {kind: lora, rank: 16}\n" + small
        },
        "reward": {
            "recipe": f"model: minilm-l6\ndata: {data.format(pairs, 320, ROWS, ', group: group')}\n"
            "objective: {kind: reward}\ntechnique: {kind: lora, rank: 16}\n" + small
        },
        "reward decoder": {
            "recipe": "model: smollm2-135m\n"
            f"data: {data.format(pairs, 320, ROWS, ', group: group')}\n"
            "objective: {kind: reward}\ntechnique: {kind: lora, rank: 16}\n" + small
        },
        "label words": {
            "recipe": f"model: smollm2-135m\ndata: {data.format(reviews, 320, ROWS, ', group: group')}\n"
            'objective: {kind: classify, text: text, label: label, instruction: "Is it positive or negative?"}\n'
            "technique: {kind: lora, rank: 16}\n" + small
        },
    }


def _pairs(question: str) -> list[tuple[str, str]]:
    prompt, _, answers = question.partition("\n\nA: ")
    chosen, _, rejected = answers.partition("\n\nB: ")
    return [(prompt, chosen), (prompt, rejected)]


def _outside(export: Path, rows: list[Any]) -> list[Any]:
    """Execute the code of the export's README in another process, in the folder of the export."""
    usage = read_usage(export)
    assert usage is not None
    asked, answers = export.parent / "rows.json", export.parent / "answers.json"
    asked.write_text(json.dumps(rows), encoding="utf-8")
    code = CALL.format(code=usage.code("."), rows=str(asked), answers=str(answers), function=usage.form.split()[0])
    subprocess.run([sys.executable, "-P", "-c", code], cwd=export, check=True, env={"PATH": "", "HF_HUB_OFFLINE": "1"})
    answered: list[Any] = json.loads(answers.read_text(encoding="utf-8"))
    return answered


def _best(probabilities: dict[str, float], *, multi: bool) -> set[str]:
    if multi:
        return {name for name, probability in probabilities.items() if probability >= 0.5}
    return {max(probabilities, key=probabilities.__getitem__)}


def _labels(model: LocalModel, export: Path, questions: list[str]) -> tuple[int, int, float]:
    multi = model.objective.label_mode == "multi"
    theirs = [{one["label"]: one["score"] for one in answer} for answer in _outside(export, questions)]
    ours = model.classify(questions)
    equal = sum(set(one.labels) == _best(other, multi=multi) for one, other in zip(ours, theirs, strict=True))
    pairs = zip(ours, theirs, strict=True)
    return equal, len(ours), max(abs(p - other[name]) for one, other in pairs for name, p in one.probabilities.items())


def _rewards(model: LocalModel, export: Path, questions: list[str]) -> tuple[int, int, float]:
    pairs = [pair for question in questions for pair in _pairs(question)]
    ours, theirs = model.rewards(pairs), _outside(export, pairs)
    better = [[a > b for a, b in zip(side[::2], side[1::2], strict=True)] for side in (ours, theirs)]
    equal = sum(a == b for a, b in zip(*better, strict=True))
    return equal, len(questions), max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    """Print one line per kind of export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, parts in recipes(args.out).items():
        if args.only not in name:
            continue
        began = time.perf_counter()
        run = args.out / name.replace(" ", "-")
        recipe = args.out / f"{run.name}.yaml"
        recipe.write_text(parts["recipe"], encoding="utf-8")
        export = run / "export/merged"
        for command in (["tune", str(recipe), "--out", str(run)], ["export", str(run), "--format", "merged"]):
            if not export.exists():
                subprocess.run([sys.executable, "-m", "tunesmith", *command], check=True, cwd=ROOT)
        model = load(run)
        questions = [row.question for row in read_predictions(run)][:ROWS]
        compare = _rewards if model.objective.produces == "score" else _labels
        equal, rows, difference = compare(model, export, questions)
        seconds = time.perf_counter() - began
        print(
            f"{name}: equal on {equal} of {rows} rows, largest difference {difference:.1e}, {seconds:.0f} s", flush=True
        )


if __name__ == "__main__":
    main()
