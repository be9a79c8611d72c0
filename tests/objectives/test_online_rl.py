"""A learner that draws its own rows: the same ones for the same step, worth what their rewards say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bases import LORA, Hooks, fit, policy, template
from tests.training.test_fit import digest, stop_after
from tunesmith.data.examples.prompts import Completion, RLPrompt
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import Refused, RewardError
from tunesmith.models.batch import Batch, collate
from tunesmith.models.policy import Policy
from tunesmith.objectives import Rl
from tunesmith.objectives.online_rl import OnlineRLLearner
from tunesmith.techniques import Full, Ia3, Prefix
from tunesmith.techniques.base import Technique
from tunesmith.training.callbacks import Interrupted
from tunesmith.training.fit import accumulate_gradients, prepare_batches
from tunesmith.training.optim import TrainingPlan, make_optimizer

ASKED = [RLPrompt(f"rows:{i}", (Message("user", f"Say something about the fox {i}"),)) for i in range(6)]
RL = Rl(reward="rules:score", group=4, max_new_tokens=5, beta=0.1)


def by_letters(attempts: Sequence[Completion]) -> list[float]:
    """A reward that tells random answers apart."""
    return [len(set(attempt.text)) / 10 for attempt in attempts]


def practice(score: Any = by_letters, **changes: Any) -> OnlineRLLearner:
    objective = RL.model_copy(update=changes)
    return OnlineRLLearner(objective, template("llama"), {one.where: one for one in ASKED}, score, seed=5)


def prompts(count: int = 2, *, turn: int = 0) -> Batch:
    rows = [RL.encode(one, template("llama"), limit=200) for one in ASKED[:count]]
    return replace(collate(rows), step=turn)


def start(technique: Technique = LORA, *, lively: float = 0.05) -> Policy:
    return policy("llama", technique, lively=lively)


def test_the_same_step_draws_the_same_answers_and_another_step_others():
    made, learner = start(), practice()
    first, again, later = (learner.prepare(prompts(turn=turn), made) for turn in (1, 1, 2))
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.targets[:8], later.targets[:8])


def test_answers_do_not_depend_on_how_a_window_is_cut_into_micro_batches():
    made, learner = start(), practice()
    whole = learner.prepare(prompts(2), made)
    one, other = (
        learner.prepare(replace(collate([RL.encode(e, template("llama"), limit=200)]), step=0), made) for e in ASKED[:2]
    )
    assert whole.targets.tolist() == [*one.targets.tolist(), *other.targets.tolist()]
    assert whole.rollout is not None
    assert one.rollout is not None
    assert torch.allclose(whole.rollout.advantages[: len(one.targets)], one.rollout.advantages)


def test_each_token_has_the_advantage_of_its_answer_within_its_group():
    rewards = [1.0, 0.0, 0.0, 1.0, 5.0, 5.0, 5.0, 5.0]
    learner = practice(lambda attempts: rewards[: len(attempts)], missing_end_penalty=0.0)
    made = learner.prepare(prompts(2), start())
    assert made.rollout is not None
    each = {row: set(made.rollout.advantages[made.row_ids == row].tolist()) for row in range(8)}
    # mean 0.5 and standard deviation 0.57735 in the first group, no differences in the second
    assert [next(iter(each[row])) for row in range(4)] == pytest.approx(
        [0.86588, -0.86588, -0.86588, 0.86588], abs=1e-4
    )
    assert all(each[row] == {0.0} for row in range(4, 8))
    assert made.rollout.metrics["groups_alike"] == (1.0, 2)
    assert made.rollout.metrics["reward"] == (22.0, 8)


def test_an_answer_without_an_end_is_paid_less_or_not_learned_from():
    made = start()
    plain = practice(lambda attempts: [1.0] * len(attempts)).prepare(prompts(1), made)
    assert plain.rollout is not None
    cut_off, answers = plain.rollout.metrics["cut_off_share"]
    assert 0 < cut_off <= answers == 4
    masked = practice(mask_truncated=True).prepare(prompts(1), made)
    assert masked.rows == max(1, answers - cut_off)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_micro_batch_whose_answers_were_all_cut_off_moves_nothing(algorithm: str):
    made = start()
    learner = practice(algorithm=algorithm, mask_truncated=True, max_new_tokens=1, updates=2)
    torch.manual_seed(0)
    made.head = learner.objective.head(made)
    (batch,) = prepare_batches(made, learner, [prompts(2)])
    assert batch.rollout is not None
    assert batch.rollout.metrics["cut_off_share"] == (8.0, 8)
    loss, figures = accumulate_gradients(made, learner, [batch])
    assert (loss, figures["cut_off_share"]) == (0.0, (8.0, 8))
    assert all(value.grad is None or not value.grad.any() for _, value in made.trainable())


def test_grpo_with_one_answer_to_a_prompt_is_refused():
    with pytest.raises(ValueError, match="grpo compares the completions of a group; use 2 or more, or algorithm: ppo"):
        Rl(reward="rules:score", group=1)
    assert Rl(reward="rules:score", group=1, algorithm="ppo").group == 1


def test_the_start_is_asked_before_the_technique_touched_it():
    made, learner = start(lively=0.2), practice()
    batch = learner.prepare(prompts(), made)
    assert batch.rollout is not None
    assert batch.rollout.reference is not None
    with made.reference(), torch.no_grad():
        wanted = made.words.logits(made.learned(batch)).log_softmax(dim=1).gather(1, batch.targets[:, None])[:, 0]
    assert torch.allclose(batch.rollout.reference, wanted, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
@pytest.mark.parametrize("technique", [Full(), LORA, Ia3(), Prefix(tokens=4)], ids=lambda one: one.kind)
def test_after_a_step_good_answers_are_likelier_and_bad_ones_less(algorithm: str, technique: Technique):
    learner = practice(algorithm=algorithm, beta=0.0, group=8, scale="none", missing_end_penalty=0.0)
    made = technique.adapt(policy("llama").network, family="decoder", keep_reference=True, start=[40, 41, 42, 43])
    torch.manual_seed(0)
    made.head = learner.objective.head(made)
    (batch,) = prepare_batches(made, learner, [prompts(2)])
    assert batch.rollout is not None
    before, good = made.logprobs(batch), batch.rollout.advantages
    accumulate_gradients(made, learner, [batch])
    optimizer = make_optimizer(made, TrainingPlan(steps=1, learning_rate=1e-3))
    optimizer.step()
    made.train(False)
    with torch.no_grad():
        gain = made.logprobs(batch) - before
    each = torch.zeros(batch.rows).index_add_(0, batch.row_ids, good)
    assert float(gain @ each) > 0


@pytest.mark.parametrize("technique", [Full(), LORA, Ia3(), Prefix(tokens=4)], ids=lambda one: one.kind)
def test_answers_are_drawn_and_learned_from_in_half_precision_too(technique: Technique):
    learner = practice()
    made = technique.adapt(policy("llama").network, family="decoder", keep_reference=True, start=[40, 41, 42, 43])
    made.autocast_dtype = torch.bfloat16
    (batch,) = prepare_batches(made, learner, [prompts(2)])
    loss, figures = accumulate_gradients(made, learner, [batch])
    assert math.isfinite(loss)
    assert figures["kl"][0] >= 0
    assert any(float(value.grad.abs().sum()) > 0 for _, value in made.trainable() if value.grad is not None)


def test_several_updates_on_the_same_answers_move_the_ratio_away_from_one(tmp_path: Path):
    learner, records = practice(updates=3, scale="none"), list[Any]()
    plan = TrainingPlan(steps=1, learning_rate=0.1, warmup=0.0, updates=3)
    fit(start(), learner, lambda step: [prompts(2, turn=step)], plan=plan, hooks=Hooks(tmp_path, records.append))
    assert records[0]["clipped_share"] > 0
    assert records[0]["kl"] > 0


def test_the_gradient_of_a_window_is_the_same_in_any_cut():
    learner, made = practice(), start()

    def slopes(batches: list[Batch]) -> torch.Tensor:
        accumulate_gradients(made, learner, prepare_batches(made, learner, batches))
        found = torch.cat([value.grad.flatten() for _, value in made.trainable() if value.grad is not None])
        for _, value in made.trainable():
            value.grad = None
        return found

    rows = [RL.encode(one, template("llama"), limit=200) for one in ASKED[:4]]
    whole, parts = slopes([collate(rows)]), slopes([collate(rows[:1]), collate(rows[1:])])
    assert float((whole - parts).norm() / whole.norm()) < 1e-4


def test_equal_rewards_are_found_before_time_is_spent():
    with pytest.raises(Refused, match=r"all rewards within each group are equal \(8 completions of 2 .* got 1\)"):
        practice(lambda attempts: [1.0] * len(attempts)).check(start(), prompts(2))
    lowest, highest = practice().check(start(), prompts(2))
    assert lowest < highest


def test_a_run_whose_completions_are_all_masked_is_refused_before_time_is_spent():
    cut_off = {"max_new_tokens": 1, "missing_end_penalty": 0.0}
    found = r"all 8 completions of 2 prompts were cut off after 1 tokens, and objective.mask_truncated excludes them"
    with pytest.raises(Refused, match=found):
        practice(mask_truncated=True, **cut_off).check(start(), prompts(2))
    practice(**cut_off).check(start(), prompts(2))


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path):
    def run(folder: Path, **hooks: Any) -> Policy:
        torch.manual_seed(0)
        made = policy("llama", LORA)
        plan = TrainingPlan(steps=4, learning_rate=0.02, save_steps=2)
        fit(
            made,
            practice(),
            lambda step: [prompts(2, turn=step)],
            plan=plan,
            hooks=Hooks(folder, lambda r: None, **hooks),
        )
        return made

    whole = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", stop=stop_after(3))
    assert digest(run(tmp_path / "cut")) == digest(whole)


def test_a_reward_that_fails_loses_no_finished_step(tmp_path: Path):
    calls: list[int] = []

    def fails(attempts: Sequence[Completion]) -> list[float]:
        calls.append(len(attempts))
        if len(calls) == 3:
            raise RewardError("reward rules:score: rows:0: it gave nan")
        return by_letters(attempts)

    hooks = Hooks(tmp_path, lambda record: None)
    window, plan = (lambda step: [prompts(2, turn=step)]), TrainingPlan(steps=4, learning_rate=0.02)
    torch.manual_seed(0)
    with pytest.raises(RewardError):
        fit(policy("llama", LORA), practice(fails), window, plan=plan, hooks=hooks)
    torch.manual_seed(0)
    resumed: list[int] = []
    again = policy("llama", LORA)
    fit(again, practice(), window, plan=plan, hooks=replace(hooks, resumed=resumed.append))
    assert resumed == [2]
    torch.manual_seed(0)
    whole = policy("llama", LORA)
    fit(whole, practice(), window, plan=plan, hooks=Hooks(tmp_path / "whole", lambda record: None))
    assert digest(again) == digest(whole)


@pytest.mark.parametrize("broken", [1, 2])
def test_a_reward_that_fails_in_a_validation_costs_no_step_and_the_validation_is_made_up_for(
    broken: int, tmp_path: Path
):
    told, left = list[dict[str, Any]](), [False] * (broken - 1) + [True]

    def validate() -> float:
        if left and left.pop(0):
            raise RewardError("reward rules:score: rows:0: it gave nan")
        return -float(len(told))

    hooks = Hooks(tmp_path, lambda record: told.append(dict(record)), validate)
    window, plan = (lambda step: [prompts(2, turn=step)]), TrainingPlan(steps=4, learning_rate=0.02, eval_steps=2)
    torch.manual_seed(0)
    with pytest.raises(RewardError):
        fit(policy("llama", LORA), practice(), window, plan=plan, hooks=hooks)
    steps = [record["step"] for record in told if "loss" in record]
    assert steps == list(range(1, 2 * broken + 1))
    torch.manual_seed(0)
    state = fit(policy("llama", LORA), practice(), window, plan=plan, hooks=hooks)
    assert [record["step"] for record in told if "loss" in record] == [1, 2, 3, 4]
    assert [record["step"] for record in told if "validation_loss" in record] == [2, 4]
    assert (state.best_step, state.validation_pending) == (4, False)


def test_a_value_head_says_nothing_at_first():
    made = start()
    head = RL.model_copy(update={"algorithm": "ppo"}).head(made)
    assert head is not None
    assert head(torch.randn(3, made.hidden)).tolist() == [[0.0]] * 3
    assert RL.head(made) is None
