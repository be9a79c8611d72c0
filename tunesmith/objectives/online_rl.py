"""Learning from rewards, one window at a time: draw answers, have them scored, move the policy.

Letters: P prompts, G answers to each, B answers in all, M tokens of all answers one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tunesmith.data.examples.prompts import Completion, RLPrompt, Scorer
from tunesmith.data.tokenization.chat_template import Template, Tokens
from tunesmith.errors import Refused
from tunesmith.models.batch import Batch, Rollout, StepMetrics, pack
from tunesmith.models.generation.generate import AnswerIds, generate, sample
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.policy import Policy
from tunesmith.objectives import policy_gradient as arithmetic
from tunesmith.objectives.base import Loss
from tunesmith.objectives.rl import Rl

# Differences of rewards below this are rounding.
EQUAL = 1e-9


@dataclass(frozen=True, slots=True)
class OnlineRLLearner:
    """An `rl` objective with all that a step needs: the exercises by place, who scores, and the seed.

    Chance is a function of seed and step alone, so a run can go on anywhere. `watch` makes figures of the answers
    themselves for the journal.
    """

    objective: Rl
    template: Template
    prompts: Mapping[str, RLPrompt]
    score: Scorer
    seed: int
    completion_metrics: Callable[[Sequence[Completion]], StepMetrics] = lambda attempts: {}

    def prepare(self, batch: Batch, policy: Policy) -> Batch:
        """Prompts in; their answers out, with advantages and what policy and start said to them."""
        prompts, drawn, attempts = self._drawn(batch, policy)
        scores = torch.tensor(self.score(attempts), dtype=torch.float32)
        objective = self.objective
        cut_off = torch.tensor([not attempt.finished for attempt in attempts])
        paid = (scores - objective.missing_end_penalty * cut_off).view(len(prompts), -1)
        kept = [i for i, attempt in enumerate(attempts) if attempt.finished or not objective.mask_truncated]
        rows = [_answered(prompts[i // objective.group], drawn[i]) for i in kept]
        packed = pack(rows or [Tokens.of(prompts[0])]).to(policy.device)
        sizes = [rows[place].learned for place in range(len(rows))]
        figures = {**_figures(scores, paid, drawn, cut_off), **self.completion_metrics(attempts)}
        worth = self._advantages(packed, policy, paid, kept, sizes)
        return replace(packed, rollout=replace(worth, metrics=figures), step=batch.step)

    def units(self, batch: Batch) -> int:
        """Tokens of answers that are learned from."""
        return len(batch.targets)

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """The sum over the answers' tokens, and ppo's value loss."""
        rollout, objective = batch.rollout, self.objective
        assert rollout is not None, "prepare comes first"
        states = policy.learned(batch)
        new = self._token_logprobs(states, batch, policy)
        old = new.detach() if rollout.old is None else rollout.old
        weights = arithmetic.PolicyLossOptions(objective.clip, objective.beta, objective.value_weight)
        figures = {**rollout.metrics, **self._update_metrics(new.detach(), old, rollout)}
        if objective.algorithm == "grpo":
            total = arithmetic.grpo(new, old, rollout.reference, rollout.advantages, weights)
            return Loss(total, self.units(batch), figures)
        assert rollout.values is not None
        assert rollout.returns is not None
        values = _values(states.detach(), policy)
        wrong = arithmetic.value_loss(values, rollout.values, rollout.returns, weights.clip)
        total = arithmetic.clipped_surrogate(new, old, rollout.advantages, weights.clip).sum() + weights.value * wrong
        figures["value_loss"] = (float(wrong.detach()), self.units(batch))
        return Loss(total, self.units(batch), figures)

    def sample_once(self, batch: Batch, policy: Policy) -> Batch:
        """An answer drawn to each prompt, its tokens learned, nothing scored."""
        once = replace(self, objective=self.objective.model_copy(update={"group": 1}))
        prompts, drawn, _ = once._drawn(batch, policy)
        return pack([_answered(prompt, one) for prompt, one in zip(prompts, drawn, strict=True)]).to(policy.device)

    def mean_reward(self, policy: Policy, batch: Batch) -> float:
        """The mean reward of greedy answers to the prompts of a batch."""
        prompts = _prompts(batch)
        sampling = Sampling(max_new_tokens=self.objective.max_new_tokens)
        drawn = generate(policy, prompts, sampling=sampling, template=self.template)
        attempts = [self._attempt(batch, place, one) for place, one in enumerate(drawn)]
        return sum(self.score(attempts)) / len(attempts)

    def check(self, policy: Policy, batch: Batch) -> tuple[float, float]:
        """Lowest and highest reward of answers to a few prompts. Raises Refused where nothing tells them apart."""
        _, _, attempts = self._drawn(batch, policy)
        scores = torch.tensor(self.score(attempts)).view(batch.rows, -1)
        grouped = scores if self.objective.algorithm == "grpo" else scores.view(1, -1)
        if float((grouped.max(dim=1).values - grouped.min(dim=1).values).max()) < EQUAL:
            where = "within each group" if grouped is scores and len(scores) > 1 else "of all answers"
            raise Refused(
                f"reward: all rewards {where} are equal ({len(attempts)} answers to {batch.rows} prompts, "
                f"the first got {float(scores[0, 0]):g}), so there is nothing to learn; reward what tells answers "
                "apart, or raise objective.group or objective.temperature"
            )
        return float(scores.min()), float(scores.max())

    def _drawn(self, batch: Batch, policy: Policy) -> tuple[list[list[int]], list[AnswerIds], list[Completion]]:
        """The prompts of a batch, and G answers to each, one after another."""
        objective, prompts = self.objective, _prompts(batch)
        sampling = Sampling(
            max_new_tokens=objective.max_new_tokens,
            temperature=objective.temperature,
            seed=self.seed * 1_000_003 + batch.step,
        )
        groups = sample(policy, prompts, count=objective.group, sampling=sampling, template=self.template)
        drawn = [one for group in groups for one in group]
        attempts = [self._attempt(batch, place // objective.group, one) for place, one in enumerate(drawn)]
        return prompts, drawn, attempts

    def _attempt(self, batch: Batch, row: int, drawn: AnswerIds) -> Completion:
        return Completion(self.prompts[batch.locations[row]], self.template.decode(drawn.ids).strip(), drawn.finished)

    def _token_logprobs(self, states: Tensor, batch: Batch, policy: Policy) -> Tensor:
        """[M]: log p of each token of the answers at the temperature that drew them."""
        return policy.words.logprobs(states, batch.targets, temperature=self.objective.temperature)

    @torch.no_grad()
    def _advantages(self, batch: Batch, policy: Policy, paid: Tensor, kept: Sequence[int], sizes: list[int]) -> Rollout:
        """What the tokens of the kept answers are worth, given what every answer [P, G] was paid."""
        objective = self.objective
        ppo = objective.algorithm == "ppo"
        if not kept:  # the one row of the batch is a prompt, in which nothing is learned
            none = torch.zeros(0, device=policy.device)
            return Rollout(none, none, none, none, none)
        states = policy.learned(batch) if ppo or objective.updates > 1 else None
        old = None if states is None else self._token_logprobs(states, batch, policy)
        reference = None
        if ppo or objective.beta:
            with policy.reference():
                reference = self._token_logprobs(policy.learned(batch), batch, policy)
        if not ppo:
            each = arithmetic.group_advantages(paid, scaled=objective.scale == "group").flatten()[list(kept)]
            return Rollout(each.to(policy.device)[batch.row_ids], old, reference)
        assert old is not None
        assert reference is not None
        assert states is not None
        values = _values(states, policy)
        scores = paid.flatten()[list(kept)].to(policy.device)
        rewards = arithmetic.token_rewards(scores, old, reference, sizes, objective.beta)
        advantages = arithmetic.gae(rewards, values, sizes, objective.spread)
        return Rollout(advantages, old, reference, values, advantages + values)

    def _update_metrics(self, new: Tensor, old: Tensor, rollout: Rollout) -> StepMetrics:
        """How far the policy is from its start and from the one that drew, and how sure of what it drew it is."""
        count = max(1, len(new))
        beyond = ((new - old).exp() - 1).abs() > self.objective.clip
        figures = {"clipped_share": (float(beyond.sum()), count), "nats_per_token": (float(-new.sum()), count)}
        if rollout.reference is not None:
            figures["kl"] = (float(arithmetic.kl(new, rollout.reference).sum()), count)
        return figures


def _prompts(batch: Batch) -> list[list[int]]:
    """The ids of each row, in which nothing is learned."""
    return [batch.ids[path[path >= 0]].tolist() for path in batch.row_index]


def _answered(prompt: list[int], drawn: AnswerIds) -> Tokens:
    """A prompt with an answer and its stop token, of which each id is learned."""
    return Tokens.of(prompt, [*drawn.ids, *drawn.end])


def _values(states: Tensor, policy: Policy) -> Tensor:
    """[M]: what the value head expects. It reads the states and leaves them alone."""
    assert policy.head is not None
    values: Tensor = policy.head(states).float()[:, 0]
    return values


def _figures(scores: Tensor, paid: Tensor, drawn: Sequence[AnswerIds], cut_off: Tensor) -> StepMetrics:
    """What the journal tells of one window's answers."""
    answers, groups = len(drawn), len(paid)
    alike = paid.max(dim=1).values - paid.min(dim=1).values < EQUAL
    return {
        "reward": (float(scores.sum()), answers),
        "reward_spread": (float(paid.std(dim=1).sum()) if paid.shape[1] > 1 else 0.0, groups),
        "groups_alike": (float(alike.sum()), groups),
        "answer_tokens": (float(sum(len(one.ids) + len(one.end) for one in drawn)), answers),
        "cut_off_share": (float(cut_off.sum()), answers),
    }
