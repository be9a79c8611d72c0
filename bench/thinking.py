"""Thinking on the real decoder: `python -m bench.thinking` prints the thinking ledger of each run.

smollm2-135m knows no thoughts, so it gets a chat template with a switch (`TEMPLATE`) and rows with thoughts. The rows
compare countries by a figure of the World Factbook (`examples/factbook*.jsonl`, public domain): the prompt names
the figures, the answer is the country with the largest one. The thoughts are derived from the figures by a fixed
template (`thoughts`), which keeps the largest so far. No model wrote or corrected them. Training rows are about the 16
countries of `factbook.jsonl`, test rows about the 8 of `factbook.test.jsonl`.

1. `learn`: the decoder with the template, tuned on rows with thoughts, `objective.thinking: learn`.
2. `drop` and `keep`: the merged model of `learn`, tuned on other rows with the answer alone.

The ledger of each run has its start as `base`, on all test rows.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

from tunesmith.config import Recipe
from tunesmith.evaluation.results import ThinkingLedger
from tunesmith.events import Event, Note, StageStarted
from tunesmith.models.loading.load import load_base
from tunesmith.models.loading.locate import LoadOptions
from tunesmith.pipelines.tune.tune import tune_recipe
from tunesmith.report.ledger_lines import COLUMNS, ledger_lines
from tunesmith.training.callbacks import Callbacks

EXAMPLES = Path(__file__).parent.parent / "examples"
TEMPLATE = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' and message.reasoning_content and loop.last %}"
    "{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{{ message.content + '<|im_end|>\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# Figures of the Factbook: how a prompt names them, and their unit.
FIGURES = {
    "area_km2": ("area", "sq km"),
    "coastline_km": ("coastline", "km"),
    "highest_point_m": ("highest point", "m"),
    "population": ("population", "people"),
    "life_expectancy": ("life expectancy", "years"),
    "median_age": ("median age", "years"),
}
LONGEST_ANSWER = 12
LONGEST_THOUGHTS = 128


def figures(file: str) -> dict[str, dict[str, str]]:
    """Return figure -> country -> value as the file writes it."""
    found: dict[str, dict[str, str]] = {name: {} for name in FIGURES}
    for line in (EXAMPLES / file).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if (name := row["id"].partition("/")[2]) in FIGURES:
            found[name][row["country"]] = row["answer"]
    return found


def number(value: str) -> float:
    """Return the number of a figure."""
    return float(value.replace(",", ""))


def thoughts(values: Sequence[tuple[str, str]]) -> str:
    """Write the steps that find the largest value of (country, value)."""
    best, most = values[0]
    steps = [f"{best} has {most}."]
    for country, value in values[1:]:
        more = number(value) > number(most)
        steps.append(f"{country} has {value}, which is {'more' if more else 'less'} than {most}.")
        best, most = (country, value) if more else (best, most)
    return " ".join([*steps, f"The largest is {most}, of {best}."])


def comparisons(file: str, count: int, *, seed: str, thinking: bool, countries: int) -> list[dict[str, str]]:
    """Return rows that ask which of some countries has the largest figure; no set of countries occurs twice."""
    rng = random.Random(seed)
    known = figures(file)
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < count:
        name = rng.choice(list(FIGURES))
        values = rng.sample(sorted(known[name].items()), countries)
        if len({number(value) for _, value in values}) < len(values):
            continue
        what, unit = FIGURES[name]
        listed = "\n".join(f"{country}: {what} {value} {unit}" for country, value in values)
        row = {
            "prompt": f"{listed}\nWhich of these countries has the largest {what}?",
            "answer": max(values, key=lambda pair: number(pair[1]))[0],
        }
        if thinking:
            row["reasoning_content"] = thoughts(values)
        rows[" ".join([name, *sorted(country for country, _ in values)])] = row
    return list(rows.values())


def thinking_base(folder: Path) -> Path:
    """Write smollm2-135m with the thinking template."""
    if not (folder / "config.json").exists():
        base = load_base("smollm2-135m", options=LoadOptions("float32", "cpu", ""), offline=True)
        base.network.save_pretrained(folder)
        base.tokenizer.chat_template = TEMPLATE
        base.tokenizer.save_pretrained(folder)
    return folder


def report(event: Event) -> None:
    """Print stages and notes."""
    if isinstance(event, StageStarted | Note):
        print(f"  {event}", flush=True)


def tune(
    name: str, model: Path, rows: Path, out: Path, *, thinking: str, epochs: int, test: Path, threads: int
) -> tuple[Path, ThinkingLedger]:
    """Tune a model and print its ledger; a finished run is not repeated."""
    recipe = Recipe.model_validate(
        {
            "model": str(model),
            "data": {"train": str(rows), "validation": 0.05, "test": str(test), "max_tokens": 384},
            "objective": {
                "kind": "instruct",
                "metric": "exact_match",
                "thinking": thinking,
                "max_new_tokens": LONGEST_ANSWER,
                "max_thinking_tokens": LONGEST_THOUGHTS,
            },
            "technique": {"kind": "lora", "rank": 16},
            "schedule": {"epochs": epochs},
            "retention": {"questions": 0, "texts": 4},
            "ledger": {"rows": len(test.read_text(encoding="utf-8").splitlines())},
            "machine": {"threads": threads},
        }
    )
    run = tune_recipe(recipe, out=out / name, callbacks=Callbacks(on_event=report), offline=True)
    ledger = run.report.thinking
    assert ledger is not None
    print(f"\n{name}, {ledger.rows} rows, {run.report.training.steps} steps, {run.report.speed.total_seconds:.0f} s")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for line in ledger_lines(ledger):
        print("| " + " | ".join(line.cells) + " |", flush=True)
    return run.folder, ledger


def main() -> None:
    """Run all steps and print the ledgers."""
    parser = argparse.ArgumentParser(prog="python -m bench.thinking", description=__doc__)
    parser.add_argument("--rows", type=int, default=400, help="training rows of each run")
    parser.add_argument("--test", type=int, default=100, help="test rows")
    parser.add_argument("--countries", type=int, default=4, help="countries that a row compares")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--modes", nargs="*", default=["drop", "keep"], help="runs over that of learn")
    parser.add_argument("--out", type=Path, default=Path("runs/thinking"))
    asked = parser.parse_args()
    out: Path = asked.out
    out.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, file, count, thinking in (
        ("with_thoughts", "factbook.jsonl", asked.rows, True),
        ("answers", "factbook.jsonl", asked.rows, False),
        ("test", "factbook.test.jsonl", asked.test, False),
    ):
        rows = comparisons(file, count, seed=name, thinking=thinking, countries=asked.countries)
        files[name] = out / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    same = {"out": out, "epochs": asked.epochs, "test": files["test"], "threads": asked.threads}
    learn, ledger = tune("learn", thinking_base(out / "base"), files["with_thoughts"], thinking="learn", **same)
    ledgers = {"learn": ledger}
    for mode in asked.modes:
        _, ledgers[mode] = tune(mode, learn, files["answers"], thinking=mode, **same)
    page = {name: ledger.model_dump() for name, ledger in ledgers.items()}
    (out / "thinking.json").write_text(json.dumps(page, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
