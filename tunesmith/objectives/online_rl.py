"""Online reinforcement learning, one step at a time: sample completions, score them, update the policy.

Letters: P prompts, G completions of each, B completions in all, M tokens of all completions, concatenated, D size of a
hidden state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from tunesmith.data.examples.prompts import Completion, RLPrompt, Scorer
from tunesmith.data.tokenization.chat_template import Template, Tokens
from tunesmith.errors import Refused
from tunesmith.models.batch import Batch, Rollout, StepMetrics, pack
from tunesmith.models.generation.generate import AnswerIds, sample
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.policy import Policy
from tunesmith.models.world import current_world
from tunesmith.objectives import policy_gradient
from tunesmith.objectives.base import Learner, Loss, one_output
from tunesmith.objectives.rl import Rl

# Rewards whose difference is below this are equal but for rounding.
EQUAL = 1e-9


class Sampler(Protocol):
    """Samples completions: in this process, as `sample` does, or in an engine that receives the weights before."""

    def __call__(
        self, policy: Policy, prompts: Sequence[list[int]], *, count: int, sampling: Sampling, template: Template
    ) -> list[list[AnswerIds]]:
        """Return `count` completions for each prompt; an engine adds the log-probability of every token."""
        ...


@dataclass(frozen=True, slots=True)
class OnlineRLLearner(Learner):
    """Learner of an `rl` objective. All randomness derives from the seed and the step, so a run can resume anywhere."""

    objective: Rl  # the bound objective
    template: Template  # tokenizer and chat template
    prompts: Mapping[str, RLPrompt]  # the prompts by their location
    score: Scorer  # scores completions
    seed: int  # seed of the run
    # metrics of the completions themselves, for the training log
    completion_metrics: Callable[[Sequence[Completion]], StepMetrics] = lambda completions: {}
    sampler: Sampler = sample  # samples the completions

    def prepare(self, batch: Batch, policy: Policy) -> Batch:
        """Sample completions of the prompts of a batch and score them.

        Returns:
            A batch of the completions with advantages and the log-probabilities under policy and reference model.
        """
        objective = self.objective
        prompts, sampled, completions = self._sample(batch, policy)
        scores = torch.tensor(self._scores(completions), dtype=torch.float32)
        cut_off = torch.tensor([not completion.finished for completion in completions])
        rewards = (scores - objective.missing_end_penalty * cut_off).view(len(prompts), -1)
        kept = [i for i, completion in enumerate(completions) if completion.finished or not objective.mask_truncated]
        rows = [_with_completion(prompts[i // objective.group], sampled[i]) for i in kept]
        packed = pack(rows or [Tokens.of(prompts[0])]).to(policy.device)
        metrics = {**_reward_metrics(scores, rewards, sampled, cut_off), **self.completion_metrics(completions)}
        rollout = self._rollout(packed, policy, rewards, kept=kept, sizes=[row.learned for row in rows])
        logprobs = [value for i in kept for value in sampled[i].logprobs]
        if logprobs:
            rollout = replace(rollout, sampled=torch.tensor(logprobs, device=policy.device))
        return replace(
            packed,
            rollout=replace(rollout, metrics=metrics),
            step=batch.step,
            counts=batch.counts,
            tokens=packed.tokens if rows else 0,
        )

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Compute the policy loss, with ppo also the value loss, summed over the completion tokens."""
        rollout, objective = batch.rollout, self.objective
        assert rollout is not None, "prepare comes first"
        states = policy.learned(batch)
        new = self._token_logprobs(states, batch, policy)
        old = new.detach() if rollout.old is None else rollout.old
        options = policy_gradient.PolicyLossOptions(objective.clip, objective.beta, objective.value_weight)
        metrics = {**rollout.metrics, **self._update_metrics(new.detach(), old, rollout)}
        weights = None if rollout.sampled is None else policy_gradient.sampling_weights(old, rollout.sampled)
        if objective.algorithm == "grpo":
            total = policy_gradient.grpo(
                new, old, rollout.reference, rollout.advantages, weights=weights, options=options
            )
            return Loss(total, self.units(batch), metrics)
        assert rollout.values is not None
        assert rollout.returns is not None
        values = one_output(states.detach(), policy)
        value_loss = policy_gradient.value_loss(values, rollout.values, rollout.returns, options.clip)
        each = policy_gradient.clipped_surrogate(new, old, rollout.advantages, options.clip)
        surrogate = (each if weights is None else each * weights).sum()
        metrics["value_loss"] = (value_loss.detach(), self.units(batch))
        return Loss(surrogate + options.value * value_loss, self.units(batch), metrics)

    def sample_once(self, batch: Batch, policy: Policy) -> Batch:
        """Return a batch with one sampled completion per prompt; nothing is scored."""
        once = replace(self, objective=self.objective.model_copy(update={"group": 1}))
        prompts, sampled, _ = once._sample(batch, policy)
        return pack([_with_completion(*pair) for pair in zip(prompts, sampled, strict=True)]).to(policy.device)

    def greedy_rewards(self, policy: Policy, batch: Batch) -> list[float]:
        """Return the reward of a greedy completion of each prompt of a batch."""
        sampling = Sampling(max_new_tokens=self.objective.max_new_tokens)
        groups = self.sampler(policy, _prompts(batch), count=1, sampling=sampling, template=self.template)
        completions = [self._completion(batch, row, answer) for row, (answer,) in enumerate(groups)]
        return self.score(completions)

    def check(self, policy: Policy, batch: Batch) -> tuple[float, float]:
        """Return the lowest and highest reward of sampled completions.

        Raises:
            Refused: all rewards that are compared with each other are equal, or no completion is learned from, so
                nothing can be learned.
        """
        _, _, completions = self._sample(batch, policy)
        if self.objective.mask_truncated and not any(completion.finished for completion in completions):
            raise Refused(
                f"rl: all {len(completions)} completions of {batch.rows} prompts were cut off after "
                f"{self.objective.max_new_tokens} tokens, and objective.mask_truncated excludes them from the loss; "
                "raise objective.max_new_tokens, or set objective.mask_truncated=false"
            )
        scores = torch.tensor(self.score(completions)).view(batch.rows, -1)
        grouped = scores if self.objective.algorithm == "grpo" else scores.view(1, -1)
        if float((grouped.max(dim=1).values - grouped.min(dim=1).values).max()) < EQUAL:
            scope = "within each group" if grouped is scores and len(scores) > 1 else "of all completions"
            raise Refused(
                f"reward: all rewards {scope} are equal ({len(completions)} completions of {batch.rows} prompts, "
                f"the first got {float(scores[0, 0]):g}); use a reward that distinguishes completions, or raise "
                "objective.group or objective.temperature"
            )
        return float(scores.min()), float(scores.max())

    def _sample(self, batch: Batch, policy: Policy) -> tuple[list[list[int]], list[AnswerIds], list[Completion]]:
        """Return the prompts of a batch, and G completions of each, consecutively, as ids and as text."""
        objective, prompts = self.objective, _prompts(batch)
        sampling = Sampling(
            max_new_tokens=objective.max_new_tokens,
            temperature=objective.temperature,
            seed=self.seed * 1_000_003 + batch.step,
        )
        groups = self._groups(prompts, policy, sampling)
        sampled = [answer for group in groups for answer in group]
        completions = [self._completion(batch, i // objective.group, answer) for i, answer in enumerate(sampled)]
        return prompts, sampled, completions

    def _groups(self, prompts: list[list[int]], policy: Policy, sampling: Sampling) -> list[list[AnswerIds]]:
        """Return G completions of each prompt.

        Over sharded weights every process samples for all: one whose completions end first would leave the others
        waiting in the middle of a pass. A completion does not depend on the others that are sampled with it.
        """
        world = current_world()
        if not world.lockstep:
            return self.sampler(policy, prompts, count=self.objective.group, sampling=sampling, template=self.template)
        every = {tuple(prompt): prompt for part in world.dealing.gather(prompts) for prompt in part}
        groups = self.sampler(
            policy, list(every.values()), count=self.objective.group, sampling=sampling, template=self.template
        )
        found = dict(zip(every, groups, strict=True))
        return [found[tuple(prompt)] for prompt in prompts]

    def _scores(self, completions: list[Completion]) -> list[float]:
        """Score completions; over sharded weights, a reward that fails in one process is the error of all."""
        world = current_world()
        if not world.lockstep:
            return self.score(completions)
        return world.dealing.collect(lambda: self.score(completions))[world.rank]

    def _completion(self, batch: Batch, row: int, answer: AnswerIds) -> Completion:
        return Completion(self.prompts[batch.locations[row]], self.template.decode(answer.ids).strip(), answer.finished)

    def _token_logprobs(self, states: Tensor, batch: Batch, policy: Policy) -> Tensor:
        """Return the log-probability [M] of each completion token at the sampling temperature."""
        return policy.words.logprobs(states, batch.targets, temperature=self.objective.temperature)

    @torch.no_grad()
    def _rollout(
        self, batch: Batch, policy: Policy, rewards: Tensor, *, kept: Sequence[int], sizes: list[int]
    ) -> Rollout:
        """Compute per-token advantages of the kept completions, of `sizes` tokens, from all rewards [P, G]."""
        objective = self.objective
        ppo = objective.algorithm == "ppo"
        states = policy.learned(batch) if ppo or objective.updates > 1 else None
        old = None if states is None else self._token_logprobs(states, batch, policy)
        reference = None
        if ppo or objective.beta:
            with policy.reference():
                reference = self._token_logprobs(policy.learned(batch), batch, policy)
        # The only row of the batch is a prompt, which has no learned token. Over sharded weights, its passes were still
        # needed: every process runs equally many.
        if not kept:
            empty = torch.zeros(0, device=policy.device)
            return Rollout(empty, empty, empty, empty, empty)
        if not ppo:
            advantages = policy_gradient.group_advantages(rewards, scaled=objective.scale == "group")
            return Rollout(advantages.flatten()[list(kept)].to(policy.device)[batch.row_ids], old, reference)
        assert old is not None
        assert reference is not None
        assert states is not None
        values = one_output(states, policy)
        kept_rewards = rewards.flatten()[list(kept)].to(policy.device)
        per_token = policy_gradient.token_rewards(kept_rewards, old, reference, sizes, beta=objective.beta)
        advantages = policy_gradient.gae(per_token, values, sizes, objective.spread)
        return Rollout(advantages, old, reference, values, advantages + values)

    def _update_metrics(self, new: Tensor, old: Tensor, rollout: Rollout) -> StepMetrics:
        """Return the share of clipped tokens, the nats per token, the KL, and how an engine differs from the policy."""
        count = len(new)
        clipped = ((new - old).exp() - 1).abs() > self.objective.clip
        metrics = {"clipped_share": (clipped.sum(), count), "nats_per_token": (-new.sum(), count)}
        if rollout.reference is not None:
            metrics["kl"] = (policy_gradient.kl(new, rollout.reference).sum(), count)
        if rollout.sampled is not None:
            ratio = (old - rollout.sampled).exp()
            metrics["engine_ratio"] = (ratio.sum(), count)
            metrics["capped_share"] = ((ratio > policy_gradient.MAX_WEIGHT).sum(), count)
        return metrics


def _prompts(batch: Batch) -> list[list[int]]:
    """Return the token ids of each prompt of a batch."""
    return [batch.ids[row[row >= 0]].tolist() for row in batch.row_index]


def _with_completion(prompt: list[int], answer: AnswerIds) -> Tokens:
    """Return a prompt with a completion and its stop token; every token of the completion is learned."""
    return Tokens.of(prompt, [*answer.ids, *answer.end])


def _reward_metrics(scores: Tensor, rewards: Tensor, sampled: Sequence[AnswerIds], cut_off: Tensor) -> StepMetrics:
    """Return the metrics of one step's completions: scores [B], rewards [P, G], and which are cut off [B]."""
    count, groups = len(sampled), len(rewards)
    equal = rewards.max(dim=1).values - rewards.min(dim=1).values < EQUAL
    return {
        "reward": (float(scores.sum()), count),
        "reward_spread": (float(rewards.std(dim=1).sum()) if rewards.shape[1] > 1 else 0.0, groups),
        "groups_alike": (float(equal.sum()), groups),
        "answer_tokens": (float(sum(len(answer.ids) + len(answer.end) for answer in sampled)), count),
        "cut_off_share": (float(cut_off.sum()), count),
    }
