"""`python -m bench.noise --runs 200`: tiny runs on noise, and how many of them are called better.

Labels, answers and preferences are drawn without looking at the texts, so that nothing can be learned about held-out
rows. What could be learned of noise is its form; the bases of `instruct` and `domain` have learned it from rows of
their own. `--paired N` judges N simulated models per metric and set of rows instead, without training, and its power.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import string
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tunesmith as ts
from bench.noise.paired import DESIGNS, KINDS, clopper_pearson, judged, resampling
from tests.tiny import tiny_decoder, tiny_encoder
from tunesmith.models.loading import device
from tunesmith.pipelines.tune import tune as tuning
from tunesmith.report.schema import read_report
from tunesmith.report.verdicts import status

Row = dict[str, Any]
ANSWERS = ("red", "blue", "green", "white")
COMMON = ("amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty", "knoll", "ledge")
EFFECTS = (0.2, 0.5, 1.0)
LORA = {"kind": "lora", "rank": 4}


@dataclass(frozen=True, slots=True)
class Noise:
    """One kind of run: its model, objective and technique, and how a row is drawn."""

    model: str
    objective: Any
    row: Callable[[random.Random], Row]
    technique: Any = None
    rates: tuple[float, float] = (0.002, 0.02)
    form: bool = False  # the base has learned the form of the rows


def words(chance: random.Random, low: int = 4, high: int = 9) -> str:
    """Random letters as words."""
    lengths = [chance.randint(2, 5) for _ in range(chance.randint(low, high))]
    return " ".join("".join(chance.choices(string.ascii_lowercase, k=length)) for length in lengths)


def labelled(chance: random.Random) -> Row:
    return {"text": words(chance), "label": chance.choice(("positive", "negative"))}


def topics(chance: random.Random) -> Row:
    return {"text": words(chance), "label": [t for t in ("screen", "battery", "price") if chance.random() < 0.5]}


def answered(chance: random.Random) -> Row:
    return {"prompt": words(chance), "answer": chance.choice(ANSWERS)}


def document(chance: random.Random) -> Row:
    return {"text": words(chance, 12, 24)}


def preferred(chance: random.Random) -> Row:
    return {"prompt": words(chance), "chosen": words(chance), "rejected": words(chance)}


def rated(chance: random.Random) -> Row:
    return {"text": words(chance), "score": round(chance.gauss(0, 1), 3)}


def searched(chance: random.Random) -> Row:
    return {"query": words(chance), "passage": words(chance)}


def ranked(chance: random.Random) -> Row:
    """Draw query and passage from a few words, so that BM25 finds candidates."""
    return {key: " ".join(chance.choices(COMMON, k=chance.randint(3, 6))) for key in ("query", "passage")}


def marked(chance: random.Random) -> Row:
    text = words(chance)
    spans = [(word.start(), word.end()) for word in re.finditer(r"\w+", text) if chance.random() < 0.3]
    return {"text": text, "spans": [{"start": a, "end": b, "label": chance.choice(ANSWERS)} for a, b in spans]}


EXACT = {"kind": "instruct", "metric": "exact_match", "max_new_tokens": 6}
MULTI = {"kind": "classify", "multi": True}
NOISE: Mapping[str, Noise] = {
    "classify, words of a decoder": Noise("llama", "classify", labelled, LORA),
    "classify, encoder": Noise("bert", "classify", labelled, "full"),
    "multilabel, encoder": Noise("bert", MULTI, topics, "full"),
    "instruct, exact match": Noise("llama", EXACT, answered, LORA, form=True),
    "domain, perplexity": Noise("llama", "domain", document, LORA, form=True),
    "preference, DPO": Noise("llama", "preference", preferred, LORA),
    "reward, decoder": Noise("llama", "reward", preferred, LORA),
    "regress, encoder": Noise("bert", {"kind": "regress", "target": "score"}, rated, "full"),
    "embed, encoder": Noise("bert", "embed", searched, "full"),
    "rerank, encoder": Noise("bert", "rerank", ranked, "full"),
    "tag, encoder": Noise("bert", "tag", marked, "full"),
}
FORM_ROWS = 3000
RESAMPLES = 500


def tune(noise: Noise, folder: Path, model: str, *, count: int, seed: int, **schedule: Any) -> Path:
    """Tune on `count` rows of noise, in groups of four in every second run."""
    folder.mkdir(parents=True)
    chance = random.Random(f"{noise.objective}/{seed}/{count}")
    drawn = [noise.row(chance) | {"source": f"s{i // 4}"} for i in range(count)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in drawn), encoding="utf-8")
    data = {"train": str(folder / "rows.jsonl"), "test": 0.4, "audit": "note", "max_tokens": 128}
    grouped = seed % 2 == 1
    recipe = {
        "model": model,
        "objective": noise.objective,
        "technique": noise.technique,
        "data": {**data, "group": "source"} if grouped else data,
        "schedule": {"batch_rows": 8, "save_steps": 0, "probe": False, **schedule},
        "retention": False,
        "machine": {"device": "cpu", "dtype": "float32", "threads": 1},
        "seed": seed,
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return Path(ts.tune(folder / "recipe.yaml", out=folder / "run", offline=True).folder)


def bases(folder: Path, kinds: Sequence[str]) -> dict[str, str]:
    """The base of each kind: random weights, or weights that know the form of the noise and nothing else."""
    found = {}
    for name in kinds:
        noise = NOISE[name]
        path = folder / noise.model
        if not path.exists():
            (tiny_decoder if noise.model == "llama" else tiny_encoder)(path, noise.model)
        found[name] = str(path)
        if noise.form:
            learned = Noise(noise.model, noise.objective, noise.row, "full")
            settings = {"epochs": 6, "learning_rate": 0.005, "batch_rows": 32, "patience": 6}
            run = tune(learned, folder / f"form {name}", str(path), count=FORM_ROWS, seed=0, **settings)
            task = read_report(run).task
            print(f"base of {name}: {task.metric} {task.base:.4g} -> {task.tuned:.4g}", flush=True)
            found[name] = str(run)
    return found


def runs(folder: Path, count: int, kinds: Sequence[str], known: Sequence[Row]) -> Iterator[Row]:
    """Take turns among the kinds and leave out known runs; seeds, sizes, groups and learning rates differ."""
    done = {(record["kind"], record["seed"]) for record in known}
    models = bases(folder, kinds)
    for i in range(count):
        name, seed = kinds[i % len(kinds)], 1 + i // len(kinds)
        if (name, seed) in done:
            continue
        noise = NOISE[name]
        rate = noise.rates[seed // 2 % 2]
        start = time.perf_counter()
        settings = {"epochs": 3, "learning_rate": rate}
        run = tune(noise, folder / f"run {i}", models[name], count=(60, 120)[seed // 4 % 2], seed=seed, **settings)
        report = read_report(run)
        found = {"kind": name, "seed": seed, "rate": rate, "good": status(report) == "good"}
        found |= report.task.model_dump(include={"metric", "base", "tuned", "delta", "p_value", "n", "clusters"})
        yield found | {"verdict": report.task.verdict, "seconds": round(time.perf_counter() - start, 1)}


def shares(records: Sequence[Row]) -> str:
    """The table of the runs, all together last."""
    lines = [
        "| kind | runs | better | worse | not called | better, 95 % | page calls it a success |",
        "|---|" + "---|" * 6,
    ]
    for name in [*dict.fromkeys(record["kind"] for record in records), "all"]:
        own = [record for record in records if name in (record["kind"], "all")]
        verdicts = Counter(record["verdict"] for record in own)
        low, high = clopper_pearson(verdicts["better"], len(own))
        rest = len(own) - verdicts["better"] - verdicts["worse"]
        good = sum(record["good"] for record in own)
        counts = f"{len(own)} | {verdicts['better']} | {verdicts['worse']} | {rest}"
        lines.append(f"| {name} | {counts} | {low:.1%} to {high:.1%} | {good} |")
    return "\n".join(lines)


def paired(count: int) -> str:
    """The table of simulated models: share called better without an effect, and with growing ones."""
    lines = [
        "| metric | called better without an effect | 95 % | " + " | ".join(f"effect {e:g}" for e in EFFECTS) + " |"
    ]
    lines.append("|---|---|---|" + "---|" * len(EFFECTS))
    for kind in KINDS:

        def better(effect: float, each: int, kind: str = kind) -> int:
            found = (judged(kind, d, effect=effect, seed=s)[0] for d in DESIGNS.values() for s in range(each))
            return sum(task.verdict == "better" for task in found)

        n = count * len(DESIGNS)
        hits, some = better(0.0, count), max(1, count // 10)
        low, high = clopper_pearson(hits, n)
        power = " | ".join(f"{better(effect, some) / some / len(DESIGNS):.0%}" for effect in EFFECTS)
        lines.append(f"| {kind} | {hits} of {n} | {low:.1%} to {high:.1%} | {power} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.noise", description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--kinds", nargs="*", choices=list(NOISE), default=list(NOISE), metavar="KIND")
    parser.add_argument("--paired", type=int, default=0, metavar="N")
    parser.add_argument("--out", type=Path, help="a file that gets one line per run; the runs in it are not repeated")
    asked = parser.parse_args()
    # Half of the time of such a small run goes into its page, and into measuring the same machine again.
    tuning.write_reports = lambda run: None
    device.gemm_gflops = cache(device.gemm_gflops)
    if asked.paired:
        with resampling(RESAMPLES):
            print(paired(asked.paired))
        return
    known = asked.out.read_text(encoding="utf-8").splitlines() if asked.out and asked.out.exists() else []
    records = [json.loads(line) for line in known]
    with tempfile.TemporaryDirectory(prefix="noise-") as folder, resampling(RESAMPLES):
        os.environ["TUNESMITH_CACHE"] = folder  # later forecasts do not learn from such runs
        for record in runs(Path(folder), asked.runs, asked.kinds, records[:]):
            records.append(record)
            line = json.dumps(record)
            print(line, flush=True)
            if asked.out:
                with asked.out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
    print(shares(records))


if __name__ == "__main__":
    main()
