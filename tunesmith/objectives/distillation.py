"""Learning the distribution of a teacher over every token, of given answers or of those that the student samples.

Letters: M learned ids, V vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tunesmith.data.tokenization.chat_template import Template, Tokens
from tunesmith.models.batch import Batch, pack
from tunesmith.models.generation.generate import sample
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import Learner, Loss


def divergence(student: Tensor, teacher: Tensor, *, beta: float, temperature: float = 1.0) -> Tensor:
    """Compute the generalized Jensen-Shannon divergence of two distributions at each position.

    Args:
        student: logits, [M, V].
        teacher: logits, [M, V].
        beta: share of the teacher in the mixture from which the divergences of both are averaged; 0 for the forward
            divergence KL(teacher, student), 1 for the reverse one.
        temperature: divides all logits.

    Returns:
        [M], nats.

    Source: Agarwal et al. 2024 (GKD), arXiv 2306.13649, equation 1. Tested against TRL.
    """
    ours, theirs = ((logits / temperature).log_softmax(dim=-1) for logits in (student, teacher))
    if beta in (0, 1):
        first, second = (theirs, ours) if beta == 0 else (ours, theirs)
        return (first.exp() * (first - second)).sum(dim=-1)
    mixture = torch.logaddexp(ours + math.log1p(-beta), theirs + math.log(beta))
    of_teacher, of_student = ((logs.exp() * (logs - mixture)).sum(dim=-1) for logs in (theirs, ours))
    return beta * of_teacher + (1 - beta) * of_student


@dataclass(frozen=True, slots=True)
class DistillationLearner(Learner):
    """Learns from a teacher with the same tokenizer. All randomness derives from the seed and the step."""

    teacher: Policy
    template: Template
    beta: float
    temperature: float
    on_policy: float = 0.0  # share of the batches whose answers the student samples
    max_new_tokens: int = 0  # of these
    seed: int = 0

    def prepare(self, batch: Batch, policy: Policy) -> Batch:
        """Return the batch, some with answers of the student in place of those of the rows."""
        rng = random.Random(f"{self.seed}/{batch.step}/{batch.locations}")
        if rng.random() >= self.on_policy:
            return batch
        sampling = Sampling(max_new_tokens=self.max_new_tokens, temperature=1.0, seed=rng.randrange(2**31))
        prompts = prompts_of(batch)
        sampled = sample(policy, prompts, count=1, sampling=sampling, template=self.template)
        rows = [Tokens.of(prompt, [*a.ids, *a.end]) for prompt, (a,) in zip(prompts, sampled, strict=True)]
        packed = pack(rows).to(policy.device)
        return replace(packed, step=batch.step, locations=batch.locations, counts=batch.counts)

    def units(self, batch: Batch) -> float:
        """Return the number of learned tokens, each counted by its weight."""
        return batch.units

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Compute the divergence at the learned tokens times their weights, summed, in nats."""
        with torch.no_grad():
            theirs = self.teacher.learned(batch)

        def compare(logits: Tensor, states: Tensor) -> Tensor:
            others = self.teacher.words.logits(states).float()
            width = min(logits.shape[-1], others.shape[-1])  # rows after the tokenizer's last word are padding
            return divergence(logits[:, :width], others[:, :width], beta=self.beta, temperature=self.temperature)

        each = policy.words.at_each(compare, policy.learned(batch), theirs)
        return Loss((each if batch.weights is None else each * batch.weights).sum(), self.units(batch))


def prompts_of(batch: Batch) -> Sequence[list[int]]:
    """Return the ids of each row before its last run of learned ids: the prompt of its last answer."""
    ids, previous = batch.ids.tolist(), batch.prev_index.tolist()
    prompts = []
    for row, path in enumerate(batch.row_index.tolist()):
        places = [path.index(previous[i]) for i in (batch.row_ids == row).nonzero()[:, 0].tolist()]
        start = next((a for a, b in zip(places[::-1], places[-2::-1], strict=False) if a != b + 1), places[0])
        prompts.append([ids[i] for i in path[: start + 1]])
    return prompts
