"""Runs counted before they begin: what steps compute, what is written for scores, and what goes on beside training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import answers, recipe, reviews
from tests.pipelines.tune.test_domain import pages
from tests.pipelines.tune.test_multitask import mixed
from tests.pipelines.tune.test_preferences import pairs
from tunesmith.config import Recipe
from tunesmith.evaluation.evaluators.preferences import WRITTEN
from tunesmith.models.generation import generate as room
from tunesmith.pipelines.plan import plan as story
from tunesmith.pipelines.plan.cost_model import TrainingWork
from tunesmith.pipelines.plan.phase_costs import RunWork, count_run, phase_seconds
from tunesmith.pipelines.plan.profile import RunProfile, profile_run
from tunesmith.pipelines.plan.workload import COUNTED, WorkloadCounter, count_work, planned
from tunesmith.training.batches import Batches, batches_of
from tunesmith.training.prepare import TrainingContext, prepare
from tunesmith.training.replay import with_replay
from tunesmith.training.train import base_policy

pytestmark = pytest.mark.usefixtures("small_world")


def nobody(event: dict[str, Any]) -> None:
    """Nobody listens."""


def read(made: Recipe) -> TrainingContext:
    return prepare(made, on_event=nobody)


def work_of(prepared: TrainingContext) -> TrainingWork:
    policy = base_policy(prepared)
    return count_work(prepared, policy, WorkloadCounter.of(prepared, policy))


def test_no_more_steps_are_counted_than_are_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    window = Batches.window
    monkeypatch.setattr(Batches, "window", lambda self, step: seen.append(step) or window(self, step))
    prepared = read(recipe(tmp_path, reviews(60), "bert", schedule={"batch_rows": 1}))
    assert COUNTED < len(prepared.train) < 2 * COUNTED
    assert work_of(prepared).rows == 2 * len(prepared.train)
    assert len(seen) == COUNTED + 1  # and the largest
    assert seen[:2] == [0, 1]
    assert seen[COUNTED - 1] >= len(prepared.train) - 2


def test_a_network_that_does_not_pack_is_counted_padded(tmp_path: Path):
    long = [{**row, "text": row["text"] + " good" * (i % 7)} for i, row in enumerate(reviews())]
    prepared = read(recipe(tmp_path, long, "gemma"))
    assert not base_policy(prepared).packs
    work = work_of(prepared)
    batches = [one for step in range(batches_of(prepared).steps_per_epoch) for one in batches_of(prepared).window(step)]
    assert work.computed == work.padded == 2 * sum(one.row_index.numel() for one in batches)
    assert work.widest == work.widest_padded > max(one.forward_tokens for one in batches)
    assert work.attended == 2 * sum(one.rows * one.row_index.shape[1] ** 2 for one in batches)


def test_a_largest_pass_that_comes_first_is_told_from_one_that_does_not(tmp_path: Path):
    whole = read(recipe(tmp_path, reviews(), "llama", schedule={"batch_rows": 64}))
    assert work_of(whole).widest_first  # there is no other
    every = [read(recipe(tmp_path, reviews(), "llama", seed=seed, schedule={"batch_rows": 16})) for seed in range(6)]
    places = [[batches_of(one).widest(step) for step in range(batches_of(one).steps_per_epoch)] for one in every]
    first = [work_of(one).widest_first for one in every]
    assert first == [sizes.index(max(sizes)) == 0 for sizes in places]
    assert set(first) == {True, False}


def test_attention_is_counted_by_the_queries_and_keys_of_each_level(tmp_path: Path):
    prepared = read(recipe(tmp_path, reviews(), "llama", schedule={"epochs": 1}))
    levels = [
        level
        for step in range(batches_of(prepared).steps_per_epoch)
        for one in batches_of(prepared).window(step)
        for level in one.layout.levels
    ]
    assert work_of(prepared).attended == sum(one.queries.numel() * one.keys.shape[1] for one in levels)


@pytest.mark.parametrize(("loss", "times"), [("dpo", 0), ("kto", 2)])
def test_kto_reads_answers_to_other_prompts_twice_more(loss: str, times: int, tmp_path: Path):
    prepared = read(recipe(tmp_path, pairs(), "llama", objective={"kind": "preference", "loss": loss}))
    work = work_of(prepared)
    assert (work.read, work.read_learned) == (times * work.computed, times * work.learned)
    assert work.written[0].rows == min(WRITTEN, len(prepared.test))


def test_hidden_words_meet_the_whole_vocabulary_and_labels_do_not(tmp_path: Path):
    texts = [{"text": f"The quick brown fox number {i} jumps over the lazy dog and runs."} for i in range(48)]
    hiding = work_of(read(recipe(tmp_path, texts, "bert", objective="domain")))
    assert hiding.learned > 0
    assert hiding.headed == hiding.learned * hiding.head
    prepared = read(recipe(tmp_path, reviews(), "bert"))
    labelling = work_of(prepared)
    assert (labelling.learned, labelling.headed) == (0, labelling.rows * labelling.head)
    assert profile_run(prepared).size.words == prepared.base.network.config.vocab_size
    rewards = work_of(read(recipe(tmp_path, pairs(), "llama", objective="reward")))
    assert (rewards.learned, rewards.written) == (0, ())


def test_a_task_with_a_head_leaves_the_words_of_the_others_in_the_count(tmp_path: Path):
    prepared = read(mixed(tmp_path, tasks=("judge", "count")))
    work = work_of(prepared)
    batches = [one for step in range(batches_of(prepared).steps_per_epoch) for one in batches_of(prepared).window(step)]
    assert work.learned == sum(len(one.targets) for one in batches if one.task == "count") > 0
    assert work.headed == work.head * sum(one.rows for one in batches if one.task == "judge")


def test_answers_are_counted_in_the_groups_that_are_answered_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(room, "CACHED_TOKENS", 256)
    made = recipe(tmp_path, answers(), "llama", objective={"kind": "instruct", "max_new_tokens": 5})
    prepared = read(made)
    groups = work_of(prepared).written
    assert sum(one.rows for one in groups) == len(prepared.test)
    assert len(groups) > 1
    assert all(one.rows * one.prompt <= 256 and 0 < one.fed < one.prompt and one.answer == 5 for one in groups)
    assert work_of(read(recipe(tmp_path, reviews(), "llama"))).written == ()
    together = work_of(read(mixed(tmp_path, tasks=("mood", "count")))).written
    assert sum(one.rows for one in together) == len(read(mixed(tmp_path, tasks=("mood", "count"))).tasks["count"].test)


def test_general_rows_that_will_be_mixed_in_are_planned_and_those_that_are_in_not_again(tmp_path: Path):
    texts = tmp_path / "general.jsonl"
    texts.write_text("".join(json.dumps({"text": f"Paris is {'so ' * 9}good {i}."}) + "\n" for i in range(200)))
    made = recipe(tmp_path, pages(), "llama", objective="domain", data={"group": "doc", "max_tokens": 48})
    plain = read(made)
    prepared = replace(plain, recipe=made.model_copy(update={
        "replay": made.replay.model_copy(update={"share": 0.5, "source": str(texts)}),
        "objective": plain.recipe.objective,
    }))  # fmt: skip
    policy = base_policy(prepared)
    mixed_in = with_replay(prepared, tmp_path, on_event=nobody, offline=True)
    steps = [planned(one, policy).steps for one in (plain, prepared, mixed_in)]
    assert steps[1] == steps[2] == pytest.approx(2 * steps[0], abs=2)
    assert work_of(prepared).steps == steps[1]


def _work(prepared: TrainingContext) -> tuple[RunWork, RunProfile]:
    found = profile_run(prepared)
    return count_run(prepared, found), found


def test_a_control_is_trained_checked_and_scored_too(tmp_path: Path):
    prepared = read(recipe(tmp_path, answers(), "llama", objective="instruct"))
    once, found = _work(prepared)
    twice, _ = _work(replace(prepared, recipe=prepared.recipe.model_copy(update={"controls": True})))
    assert twice.phases["controls"].trainings == 1
    assert twice.phases["controls"].written == twice.phases["test scoring"].written
    seconds = [phase_seconds(work, found, prepared.recipe.technique) for work in (once, twice)]
    assert "controls" not in seconds[0]
    assert seconds[1]["controls"] > seconds[1]["training"] + seconds[1]["validation"]
    assert sum(seconds[1].values()) == pytest.approx(sum(seconds[0].values()) + seconds[1]["controls"])


def test_a_task_of_several_that_writes_answers_takes_its_time(tmp_path: Path):
    phases = _work(read(mixed(tmp_path, tasks=("mood", "count"))))[0].phases
    assert [steps for steps, _ in phases["base scoring"].written] == [8, 3 * 8]
    assert [steps for steps, _ in phases["test scoring"].written] == [8]
    together = _work(read(mixed(tmp_path, tasks=("mood", "judge"))))[0].phases
    assert not any(phase.written for phase in together.values())


def test_what_goes_on_beside_training_is_counted_once_for_all_techniques(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    counted: list[int] = []
    count = Batches.all
    monkeypatch.setattr(Batches, "all", lambda self: counted.append(1) or count(self))
    found = story.plan_recipe(recipe(tmp_path, reviews(), "bert"), on_event=nobody, timed=False)
    assert counted == [1]
    assert len({option.whole_seconds.expected for option in found.options if option.whole_seconds}) > 3
