"""What a step of several tasks is worth, and which rows it sees."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.bases import base, chats, farthest, gradients, labelled, pairs, policy, template, with_mismatched
from tunesmith.data.examples.types import Example
from tunesmith.models.batch import Batch, collate
from tunesmith.objectives import Classify, Instruct, Multitask, Preference
from tunesmith.objectives.multitask import TaskRows, TaskSection
from tunesmith.techniques import Full, Lora
from tunesmith.training.batches import Mixture
from tunesmith.training.fit import accumulate_gradients, prepare_batches

LABELS = Classify(labels=("negative", "positive"), output="linear")
WORDS = Instruct()


def both(**more: Any) -> Multitask:
    parts = {
        "mood": TaskSection(data=TaskRows(), objective=LABELS),
        "talk": TaskSection(data=TaskRows(), objective=WORDS, weight=3),
    }
    return Multitask(tasks=parts, **more)


def batch(task: str, *examples: Example) -> Batch:
    objective = {"mood": LABELS, "talk": WORDS}[task]
    rows = [objective.encode(example, template("llama"), limit=512) for example in examples]
    return replace(collate(rows), task=task)


def test_a_step_is_the_weighted_mean_of_its_tasks_means_however_it_is_cut():
    objective, made = both(), policy("llama", Lora(rank=4), lively=0.05)
    made.head = objective.head(made)
    mood, talk = labelled(3), chats(4)
    alone = {}
    for name, examples in (("mood", mood), ("talk", talk)):
        part = objective.tasks[name].objective
        loss = part.loss(batch(name, *examples), objective.task_policy(made, name))
        alone[name] = loss.total / loss.units
    wanted = (alone["mood"] + 3 * alone["talk"]) / 4
    wanted.backward()
    grads = gradients(made)
    cuts = [batch("mood", *mood[:1]), batch("talk", *talk[:3]), batch("mood", *mood[1:]), batch("talk", *talk[3:])]
    learner = objective.make_learner()
    found, _ = accumulate_gradients(made, learner, prepare_batches(made, learner, cuts))
    assert found == pytest.approx(wanted.item(), rel=1e-5)
    assert farthest(gradients(made), grads) < 1e-4


def test_a_step_without_a_task_counts_the_others_fully():
    objective, made = both(), policy("llama")
    talk = batch("talk", *chats(2))
    loss = WORDS.loss(talk, made)
    learner = objective.make_learner()
    found, _ = accumulate_gradients(made, learner, prepare_batches(made, learner, [talk]))
    assert found == pytest.approx(loss.total.item() / loss.units, rel=1e-6)


def test_tasks_with_a_head_have_their_own_and_others_none():
    objective, made = both(), policy("llama")
    made.head = objective.head(made)
    assert [name for name, _ in made.trainable() if name.startswith("head.")] == [
        "head.mood_head.weight",
        "head.mood_head.bias",
    ]
    assert isinstance(objective.task_policy(made, "mood").head, torch.nn.Linear)
    assert objective.task_policy(made, "talk").head is None


def test_a_task_asks_the_start_of_full_tuning_not_the_network_as_it_is():
    objective = Multitask(
        tasks={"likes": TaskSection(data=TaskRows(), objective=Preference(loss="kto").bind(pairs(3), "decoder"))}
    )
    made = Full().adapt(base("llama").network, family="decoder", keep_reference=True)
    part = objective.tasks["likes"].objective
    rows = [part.encode(pair, template("llama"), limit=512) for pair in pairs(3)]
    own = replace(with_mismatched(rows), task="likes")
    start = made.reference_logprobs(own)
    with torch.no_grad():
        for _, value in made.trainable():
            value.add_(torch.randn_like(value), alpha=0.05)
    assert torch.equal(objective.task_policy(made, "likes").reference_logprobs(own), start)
    (batch,) = prepare_batches(made, objective.make_learner(), [own])
    assert batch.reference is not None
    assert float((batch.reference - start).min()) >= 0.0
    assert not torch.allclose(made.logprobs(own), start, atol=1e-2)


@pytest.mark.parametrize(
    ("sampling", "mood"),
    [
        ({"sampling": "size"}, 0.9),
        ({"sampling": "equal"}, 0.5),
        ({"sampling": "temperature"}, 0.75),
        ({"sampling": "weights"}, 0.25),
    ],
)
def test_rows_are_shared_out_as_the_recipe_says(sampling: dict[str, Any], mood: float):
    shares = both(**sampling).task_shares({"mood": 900, "talk": 100})
    assert shares == {"mood": pytest.approx(mood), "talk": pytest.approx(1 - mood)}  # sqrt 900 : sqrt 100 = 3 : 1


def test_every_step_has_rows_each_pass_sees_each_row_once_and_nothing_must_be_remembered():
    mixture = Mixture(((4,) * 7, (9,) * 50), (0.1, 0.9), rows=8, tokens=40, seed=1)
    steps = 70  # 70 * 8 * 0.1 = 56 rows of the first task: eight passes over seven
    seen: list[tuple[int, int]] = []
    for step in range(steps):
        window = mixture.window(step)
        assert window == replace(mixture).window(step)
        assert 1 <= sum(len(draw.rows) for draw in window) <= 10
        assert all(len(draw.rows) * (4, 9)[draw.task] <= 40 for draw in window)
        seen += [(draw.epoch, row) for draw in window if draw.task == 0 for row in draw.rows]
    assert len(seen) == mixture.drawn(0, steps) == 56
    assert sorted(seen) == [(turn, row) for turn in range(8) for row in range(7)]
    assert mixture.drawn(1, steps) == math.floor(0.9 * 8 * steps + 0.75)


def test_a_task_below_a_row_a_step_comes_by_turns_and_no_step_is_empty():
    mixture = Mixture(((3,) * 5,) * 3, (1 / 3,) * 3, rows=3, tokens=99, seed=0)
    assert all(mixture.window(step) for step in range(50))
    thin = Mixture(((3,) * 5,) * 2, (0.05, 0.95), rows=2, tokens=99, seed=0)
    assert all(thin.window(step) for step in range(50))
    assert thin.drawn(0, 50) == 5
