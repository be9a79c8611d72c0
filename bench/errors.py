"""Wrong inputs of every command: how long until the message, and what it says.

    python -m bench.errors                 # seconds, exit code and message of each, then median and slowest
    python -m bench.errors --repeat 5      # the median of five starts each
    python -m bench.errors --only keys     # one group
    python -m bench.errors --source DIR    # the package of another checkout

`tests/cli/test_slow_errors.py` runs the same inputs in one process and fails if any of them imports torch.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

RECIPE = """model: {model}
data: {{train: {train}}}
objective: {objective}
technique: {technique}
"""


@dataclass(frozen=True, slots=True)
class WrongInput:
    """A command line with one mistake; its files are those of `write_files`.

    `says` is a part of the message, such as the name that it suggests.
    """

    group: str
    line: str
    says: str

    @property
    def words(self) -> list[str]:
        """The arguments."""
        return [word.replace("␣", " ") for word in self.line.split()]


def _group(name: str, *lines: tuple[str, str]) -> list[WrongInput]:
    return [WrongInput(name, line, says) for line, says in lines]


# `␣` is a space inside an argument.
WRONG: tuple[WrongInput, ...] = (
    *_group(
        "options",
        ("tune labels.jsonl --tecnique lora", "--technique"),
        ("tune labels.jsonl --technique lroa", "lora"),
        ("tune labels.jsonl --objective clasify", "classify"),
        ("tune labels.jsonl --set technique.rnak=4", "rank"),
        ("tune labels.jsonl --set technique.rank", "KEY=VALUE"),
        ("tune labels.jsonl --set technique.rank=many", "technique.rank"),
        ("tune labels.jsonl --set schedule.epochs=-1", "schedule.epochs"),
        ("tune labels.jsonl --model smolm2-135m", "smollm2-135m"),
        ("tune labels.jsonl --model ./no/such/model", "./no/such/model"),
        ("tune labels.jsonl --model model␣with␣spaces", "model with spaces"),
        ("tunee labels.jsonl", "tune"),
        ("evaluate minilm-l6 labels.jsonl --rows x", "--rows"),
        ("evaluate minilm-l6 labels.jsonl --rows -2", "--rows"),
        ("compare labels.jsonl --budget -3", "--budget"),
        ("learning-curve labels.jsonl --rows 0", "--rows"),
        ("export runs/none --format ggml", "gguf"),
        ("serve runs/none --engine vlm", "vllm"),
    ),
    *_group(
        "keys",
        ("tune key.yaml", "learning_rate"),
        ("plan key.yaml", "learning_rate"),
        ("compare key.yaml", "learning_rate"),
        ("learning-curve key.yaml", "learning_rate"),
        ("rlhf key.yaml", "learning_rate"),
        ("audit key.yaml", "learning_rate"),
        ("tune section.yaml", "technique"),
        ("tune multitask-key.yaml", "data"),
        ("tune twice.yaml", "duplicate"),
        ("tune syntax.yaml", "line"),
        ("tune list.yaml", "mapping"),
        ("tune no-objective.yaml", "classify"),
        ("tune no-train.yaml", "data.train"),
    ),
    *_group(
        "kinds",
        ("tune kind.yaml", "instruct"),
        ("tune technique.yaml", "prefix"),
        ("tune multitask-kind.yaml", "classify"),
        ("tune multitask-one.yaml", "two or more"),
        ("tune arm.yaml", "few-shot"),
        ("compare arm.yaml", "few-shot"),
    ),
    *_group(
        "values",
        ("tune epochs.yaml", "schedule.epochs"),
        ("tune fraction.yaml", "data.test"),
        ("tune rate.yaml", "schedule.learning_rate"),
        ("tune tracker.yaml", "tensorboard"),
        ("tune reward.yaml", "objective.reward"),
        ("tune seed.yaml", "seed"),
    ),
    *_group(
        "files",
        ("tune label.jsonl", "labels.jsonl"),
        ("tune recip.yaml", "recipe.yaml"),
        ("plan label.jsonl", "labels.jsonl"),
        ("init label.jsonl", "labels.jsonl"),
        ("audit label.jsonl", "labels.jsonl"),
        ("compare label.jsonl", "labels.jsonl"),
        ("evaluate minilm-l6 label.jsonl", "labels.jsonl"),
        ("collect manuel --as domain", "manual"),
        ("label label.jsonl --labels a,b", "labels.jsonl"),
        ("studio none", "no such folder"),
        ("votes summary vote.jsonl", "vote"),
        ("export runs/none", "runs/none"),
        ("serve runs/none", "runs/none"),
        ("ask runs/none hello", "runs/none"),
        ("chat runs/none", "runs/none"),
        ("feedback runs/none", "runs/none"),
        ("evaluate runs/none labels.jsonl", "runs/none"),
        ("runs diff runs/none runs/none", "runs/none"),
        ("tune broken.jsonl", "broken.jsonl:3"),
        ("tune empty.jsonl", "empty.jsonl"),
        ("tune missing-rows.yaml", "labels.jsonl"),
        ("tune labels.jsonl --out full", "full"),
        ("tune labels.jsonl --out labels.jsonl", "labels.jsonl"),
    ),
    *_group(
        "columns",
        ("tune column.yaml", "text"),
        ("plan column.yaml", "text"),
        ("tune ambiguous.csv", "objective"),
        ("tune one-label.jsonl", "only one label"),
        ("tune unlisted-label.yaml", "bad"),
        ("tune no-rows-left.yaml", "labels.jsonl"),
        ("tune instruct-on-labels.yaml", "objective.answer"),
        ("tune labels.jsonl --objective instruct --model smollm2-135m", "objective: classify"),
        ("tune preference-on-labels.yaml", "chosen"),
        ("tune group.yaml", "author"),
    ),
    *_group(
        "pairs",
        ("tune encoder-instruct.yaml", "smollm2-135m"),
        ("plan encoder-instruct.yaml", "smollm2-135m"),
        ("tune encoder-folder.yaml", "smollm2-135m"),
        ("tune encoder-words.yaml", "output: linear"),
        ("tune encoder-gate.yaml", "max_general_nats"),
        ("tune encoder-replay.yaml", "replay"),
        ("tune encoder-decoder.yaml", "encoder-decoder"),
    ),
)


def _rows(folder: Path, name: str, rows: Sequence[object]) -> None:
    folder.joinpath(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _recipe(
    folder: Path, name: str, more: str = "", *, model: str = "minilm-l6", train: str = "labels.jsonl",
    objective: str = "classify", technique: str = "lora",
) -> None:  # fmt: skip
    text = RECIPE.format(model=model, train=train, objective=objective, technique=technique)
    folder.joinpath(name).write_text(text + more, encoding="utf-8")


def write_files(folder: Path) -> None:
    """Write the files that the command lines of `WRONG` name."""
    words = ["battery", "screen", "keyboard", "speaker", "charger", "camera", "handle", "lens"]
    labels = [
        {
            "text": f"The {words[i % 8]} number {i} is {'fine' if i % 2 else 'broken'}",
            "label": "good" if i % 2 else "bad",
        }
        for i in range(60)
    ]
    answers = [{"prompt": f"Name item {i}", "answer": f"The {words[i % 8]} {i}"} for i in range(60)]
    _rows(folder, "labels.jsonl", labels)
    _rows(folder, "answers.jsonl", answers)
    _rows(folder, "one-label.jsonl", [row | {"label": "good"} for row in labels])
    lines = folder.joinpath("labels.jsonl").read_text(encoding="utf-8").splitlines()
    folder.joinpath("broken.jsonl").write_text("\n".join([*lines[:2], '{"text": "x", ', *lines[2:]]), encoding="utf-8")
    folder.joinpath("empty.jsonl").write_text("", encoding="utf-8")
    folder.joinpath("ambiguous.csv").write_text(
        "alpha,beta,gamma\n" + "".join(f"a {i},b {i % 3},c {i}\n" for i in range(40)), encoding="utf-8"
    )
    folder.joinpath("manual").mkdir()
    folder.joinpath("manual", "page.md").write_text("# Title\n\nText.\n", encoding="utf-8")
    folder.joinpath("full").mkdir()
    folder.joinpath("full", "letter.txt").write_text("not a run\n", encoding="utf-8")
    for name, config in {
        "bert": {"model_type": "bert", "architectures": ["BertModel"]},
        "t5": {"model_type": "t5", "is_encoder_decoder": True, "architectures": ["T5ForConditionalGeneration"]},
    }.items():
        folder.joinpath(name).mkdir()
        folder.joinpath(name, "config.json").write_text(json.dumps(config), encoding="utf-8")
    _recipe(folder, "recipe.yaml")
    _recipe(folder, "key.yaml", "schedule:\n  epochs: 1\n  learning_rat: 1.0e-4\n")
    _recipe(folder, "section.yaml", "tecnique2: lora\n")
    _recipe(folder, "twice.yaml", "model: smollm2-135m\n")
    _recipe(folder, "syntax.yaml", "schedule: {epochs: 1\nseed: 3\n")
    folder.joinpath("list.yaml").write_text("- model: minilm-l6\n", encoding="utf-8")
    folder.joinpath("no-objective.yaml").write_text("data: {train: labels.jsonl}\n", encoding="utf-8")
    folder.joinpath("no-train.yaml").write_text("objective: classify\n", encoding="utf-8")
    _recipe(folder, "kind.yaml", objective="instrct")
    _recipe(folder, "technique.yaml", technique="prefx")
    parts = "objective:\n  kind: multitask\n  tasks:\n    a: {{data: {{train: labels.jsonl}}, objective: {kind}}}\n"
    part = "    b: {data: {train: labels.jsonl}, objective: classify}\n"
    for name, kind, rest in (
        ("multitask-kind", "clasify", part),
        ("multitask-one", "classify", ""),
        ("multitask-key", "classify", part.replace("data:", "dta:")),
    ):
        folder.joinpath(f"{name}.yaml").write_text(parts.format(kind=kind) + rest, encoding="utf-8")
    _recipe(folder, "arm.yaml", "arms: [promt, fewshot]\n")
    _recipe(folder, "epochs.yaml", "schedule: {epochs: many}\n")
    folder.joinpath("fraction.yaml").write_text(
        "data: {train: labels.jsonl, test: -0.5}\nobjective: classify\n", encoding="utf-8"
    )
    _recipe(folder, "rate.yaml", "schedule: {learning_rate: automatic}\n")
    _recipe(folder, "tracker.yaml", "track: [tensorbord]\n")
    _recipe(folder, "seed.yaml", "seed: -1\n")
    _recipe(folder, "reward.yaml", model="smollm2-135m", train="answers.jsonl", objective="rl")
    _recipe(folder, "missing-rows.yaml", train="label.jsonl")
    _recipe(folder, "column.yaml", objective="{kind: classify, text: txt, label: label}")
    _recipe(folder, "unlisted-label.yaml", objective="{kind: classify, labels: [good, neutral]}")
    folder.joinpath("no-rows-left.yaml").write_text(
        "data: {train: labels.jsonl, where: {label: [neutral]}}\nobjective: classify\n", encoding="utf-8"
    )
    folder.joinpath("group.yaml").write_text(
        "data: {train: labels.jsonl, group: author}\nobjective: classify\n", encoding="utf-8"
    )
    _recipe(folder, "instruct-on-labels.yaml", model="smollm2-135m", objective="{kind: instruct, prompt: text}")
    _recipe(folder, "preference-on-labels.yaml", model="smollm2-135m", objective="preference")
    _recipe(folder, "encoder-instruct.yaml", train="answers.jsonl", objective="instruct")
    _recipe(folder, "encoder-folder.yaml", model="./bert", train="answers.jsonl", objective="instruct")
    _recipe(folder, "encoder-words.yaml", objective="{kind: classify, output: words}")
    _recipe(folder, "encoder-gate.yaml", "gates: {max_general_nats: 0.1}\n")
    _recipe(folder, "encoder-replay.yaml", "replay: {share: 0.1}\n")
    _recipe(folder, "encoder-decoder.yaml", model="./t5")


@dataclass(frozen=True, slots=True)
class Measured:
    """One start: wall-clock and processor seconds, exit code and the last line of stderr."""

    seconds: float
    processor: float
    code: int
    message: str


def measure(words: Sequence[str], folder: Path, source: Path) -> Measured:
    """Run one command line in a folder with the package of a checkout."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(source), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")] or done.stderr.splitlines()[-1:]
    return Measured(seconds, used, done.returncode, " | ".join(errors))


def measure_all(inputs: Sequence[WrongInput], *, source: Path, repeat: int) -> Iterator[tuple[WrongInput, Measured]]:
    """Yield each wrong input with the medians of `repeat` starts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder)
        for wrong in inputs:
            runs = [measure(wrong.words, folder, source) for _ in range(repeat)]
            seconds, processor = (
                statistics.median(times) for times in ([r.seconds for r in runs], [r.processor for r in runs])
            )
            yield wrong, Measured(seconds, processor, runs[-1].code, runs[-1].message.replace(f"{folder}/", ""))


def main() -> None:
    """Print a line for each wrong input, and the median and the slowest."""
    parser = argparse.ArgumentParser(prog="python -m bench.errors")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="starts of each (default: 1)")
    parser.add_argument("--only", default="", metavar="GROUP", help="a group of `WRONG`, such as keys")
    parser.add_argument("--source", type=Path, default=Path(__file__).resolve().parents[1], metavar="DIR")
    args = parser.parse_args()
    inputs = [wrong for wrong in WRONG if args.only in ("", wrong.group)]
    results = []
    for wrong, got in measure_all(inputs, source=args.source.resolve(), repeat=args.repeat):
        results.append((wrong, got))
        mark = "" if got.code == 2 and wrong.says in got.message else f"   <- exit {got.code}, expected {wrong.says!r}"
        print(f"{got.seconds:6.2f} s {got.processor:6.2f} s  {wrong.line}\n    {got.message}{mark}", flush=True)
    for what, times in (
        ("wall clock", [got.seconds for _, got in results]),
        ("processor", [got.processor for _, got in results]),
    ):
        slow = sum(value >= 1 for value in times)
        print(f"{what}: median {statistics.median(times):.2f} s, maximum {max(times):.2f} s, {slow} of 1 s or more")
    print(f"{len(results)} inputs; message as expected: {sum(w.says in g.message and g.code == 2 for w, g in results)}")


if __name__ == "__main__":
    main()
