"""The races, and the folder that a race gives to all of its sides."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.peers.job import Job
from tunesmith.config import load_recipe
from tunesmith.data.examples.types import Example, LabelledText
from tunesmith.data.tokenization.chat_template import Encoded
from tunesmith.models.batch import TOKENS_PER_PASS
from tunesmith.objectives import Classify
from tunesmith.training.batches import Batches
from tunesmith.training.optim import TrainingPlan
from tunesmith.training.prepare import TrainingContext, prepare

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Race:
    """A recipe, what is changed in it, who runs, how many steps are timed, how many held-out rows scored."""

    name: str
    recipe: str
    changes: tuple[str, ...]
    sides: tuple[str, ...]
    steps: int
    held: int
    about: str


# Without a name; the rows of `domain` and `long` lie beside the repository, in ../shared/data.
USUAL = ("reviews", "synopsis", "encoder")
ALL = ("tunesmith", "apart", "int8", "trl_best", "trl", "plain")
RACES = {
    race.name: race
    for race in (
        Race(
            "reviews",
            "examples/reviews.yaml",
            ("schedule.batch_rows=16",),
            (*ALL, "head", "litgpt", "llamafactory"),
            2,
            96,
            "review rows, LoRA rank 16",
        ),
        Race(
            "synopsis", "examples/synopsis.yaml", ("schedule.batch_rows=8",), ALL, 2, 32, "synopsis rows, LoRA rank 16"
        ),
        Race(
            "encoder",
            "examples/reviews.yaml",
            ("model=minilm-l6", "technique=full", "schedule.batch_rows=16"),
            ("tunesmith", "head"),
            30,
            256,
            "the same reviews, text alone, all weights",
        ),
        Race(
            "domain",
            "bench/race/domain.yaml",
            (),
            ("tunesmith", "trl_best", "trl", "plain"),
            1,
            16,
            "windows of manual pages, all weights",
        ),
        Race(
            "full",
            "examples/reviews.yaml",
            ("technique=full", "schedule.batch_rows=16"),
            ("tunesmith", "trl_best", "plain"),
            2,
            96,
            "review rows, all weights",
        ),
        Race(
            "long",
            "bench/race/long.yaml",
            (),
            ("tunesmith", "trl_best", "plain"),
            1,
            16,
            "licence texts of up to 1,024 tokens, LoRA rank 16",
        ),
        Race(
            "qlora",
            "examples/reviews.yaml",
            ("technique=qlora", "schedule.batch_rows=16"),
            ("tunesmith", "plain"),
            2,
            96,
            "review rows, LoRA rank 16 over 4-bit weights (NF4)",
        ),
    )
}


def write_job(race: Race, folder: Path, *, dtype: str, steps: int) -> Job:
    """The job of a race in `folder`, with the adapter that all sides start from."""
    changes = [*race.changes, f"machine.dtype={dtype}", "data.audit=note"]
    recipe, _ = load_recipe(ROOT / race.recipe, changes=changes)
    prepared = prepare(recipe, on_event=lambda event: None, offline=True)
    recipe, base = prepared.recipe, prepared.base
    folder.mkdir(parents=True, exist_ok=True)
    windows, rows = _windows(prepared, steps)
    write_rows(folder / "rows.jsonl", (as_row(row) for row in rows))
    _write_held(folder, prepared, count=race.held)
    torch.manual_seed(recipe.seed)
    policy = recipe.technique.adapt(base.network, family=base.family, keep_reference=False)
    if recipe.technique.kind == "lora":
        recipe.technique.save(policy, folder / "adapter")
    job = Job(
        race=race.name,
        model=str(base.folder),
        family=base.family,
        technique=recipe.technique.model_dump(mode="json"),
        objective=recipe.objective.model_dump(mode="json"),
        labels=len(recipe.objective.labels) if isinstance(recipe.objective, Classify) else 0,
        dtype=dtype,
        threads=prepared.machine.threads,
        rate=recipe.technique.learning_rate(policy.hidden, base.family),
        beta2=0.99,
        weight_decay=TrainingPlan(steps=1, learning_rate=1).weight_decay,
        clip=TrainingPlan(steps=1, learning_rate=1).clip,
        seed=recipe.seed,
        windows=windows,
        tokens_per_pass=TOKENS_PER_PASS,
    )
    if isinstance(recipe.objective, Classify) and base.family == "decoder":
        by_place = {example.where: example for example in prepared.loaded.split.train}
        write_rows(folder / "texts.jsonl", _texts(prepared, [by_place[row.where] for row in rows]))
    job.write(folder)
    return replace(job, folder=str(folder))


def _windows(prepared: TrainingContext, steps: int) -> tuple[list[list[int]], list[Encoded]]:
    """Windows of row numbers, one to warm up and `steps` to time, and the rows that the numbers count.

    They are taken at even distances from the whole windows of the first epoch sorted by length, so that few of them
    stand for all; the one to warm up follows the middle one.
    """
    sampler = Batches(prepared, prepared.train).sampler
    drawn = [[i for part in sampler.window(step) for i in part] for step in range(sampler.steps_per_epoch)]
    whole = [window for window in drawn if len(window) == sampler.rows]
    whole.sort(key=lambda window: sum(sampler.lengths[i] for i in window))
    places = [int((i + 0.5) * len(whole) / steps) for i in range(steps)]
    chosen = [whole[len(whole) // 2 + 1], *(whole[place] for place in places)]
    numbers = {row: number for number, row in enumerate(dict.fromkeys(i for window in chosen for i in window))}
    return [[numbers[i] for i in window] for window in chosen], [prepared.train[i] for i in numbers]


def as_row(row: Encoded) -> dict[str, Any]:
    """A row as all sides read it."""
    (tokens,) = row.sequences
    label = max(range(len(row.label)), key=row.label.__getitem__) if row.label else -1
    return {"input_ids": tokens.ids, "learned": [int(learn) for learn in tokens.learn], "label": label}


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_held(folder: Path, prepared: TrainingContext, *, count: int) -> None:
    """Held-out rows; where label words are learned, also each row with every label, to see which is likelier."""
    held = prepared.validation[:count]
    write_rows(folder / "held.jsonl", (as_row(row) for row in held))
    objective = prepared.recipe.objective
    if not isinstance(objective, Classify) or objective.output != "words":
        return
    by_place = {example.where: example for example in prepared.loaded.split.validation}
    examples = [by_place[row.where] for row in held]
    each = []
    for example in examples:
        assert isinstance(example, LabelledText)
        for number, label in enumerate(objective.labels):
            given = objective.encode(replace(example, labels=(label,)), prepared.template, limit=512)
            each.append({**as_row(given), "label": number, "gold": objective.labels.index(example.labels[0])})
    write_rows(folder / "held_labels.jsonl", each)
    write_rows(folder / "held_texts.jsonl", _texts(prepared, examples))


def _texts(prepared: TrainingContext, examples: Sequence[Example]) -> Iterable[dict[str, Any]]:
    """The text alone, as a classification head reads it, and the number of its label."""
    objective = prepared.recipe.objective
    assert isinstance(objective, Classify)
    for example in examples:
        assert isinstance(example, LabelledText)
        ids = prepared.base.tokenizer(example.text)["input_ids"][:512]
        yield {"input_ids": ids, "label": objective.labels.index(example.labels[0])}
