"""Measurements on a network: Tunesmith against forward passes of transformers over one row at a time.

Those know neither packing nor prefixes nor caches, so whatever differs from them is an error.

Letters: B rows, T tokens of a row, S tokens of a script, D hidden width, V vocabulary. Rows and prompts are token ids,
and `network` has no adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from tunesmith.data.tokenization.chat_template import Template, Tokens
from tunesmith.models.attention.packed import states_alone
from tunesmith.models.batch import pack
from tunesmith.models.generation.generate import AnswerIds, generate, sample
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.lm_head import LanguageHead
from tunesmith.models.policy import Policy


@torch.no_grad()
def states_together(policy: Policy, rows: Sequence[list[int]], *, share: bool) -> list[Tensor]:
    """Compute the states [T, D] of each row in one batch, as training and scoring do.

    Args:
        policy: the base model.
        rows: token ids of each row.
        share: a prefix that rows have in common runs once.
    """
    batch = pack([Tokens.of(row) for row in rows], share=share).to(policy.device)
    states = policy.states(batch).float()
    return [states[index[index >= 0]] for index in batch.row_index]


@torch.no_grad()
def loss_of_transformers(network: Any, rows: Sequence[Tokens]) -> float:
    """Compute the sum of -log p over the learned ids from the logits of transformers, in nats."""
    total = 0.0
    for row in rows:
        logits = network(input_ids=torch.tensor([row.ids], device=network.device)).logits[0].float()
        logprobs = logits[:-1].log_softmax(dim=1)
        for place in range(1, len(row.ids)):
            if row.learn[place]:
                total -= float(logprobs[place - 1, row.ids[place]])
    return total


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest distance between two lists of tensors, relative to the norm of the expected one.

    NaN if any distance is, as `torch.max` does and Python's `max` does not.
    """
    pairs = zip(found, expected, strict=True)
    return float(torch.stack([(one - other).norm() / other.norm().clamp(min=1e-9) for one, other in pairs]).max())


@dataclass(slots=True)
class ScriptedHead:
    """A language head that says given tokens, whatever the states are, and keeps the states.

    Generation under it goes through the real prompts, caches and stop tokens, and its states can be compared with those
    of a plain forward pass over the same ids.
    """

    head: LanguageHead
    script: list[int]  # the tokens of every row; starts again after a stop token
    stops: frozenset[int]
    seen: list[Tensor] = field(default_factory=list)  # states [B, D] of every step
    _step: int = 0

    def logits(self, states: Tensor) -> Tensor:
        """Return logits [B, V] whose largest one is that of the next token of the script."""
        self.seen.append(states.float())
        token = self.script[self._step]
        self._step = 0 if token in self.stops else (self._step + 1) % len(self.script)
        logits = torch.zeros_like(self.head.logits(states))
        logits[:, token] = 1
        return logits


def scripted(
    policy: Policy, prompts: Sequence[list[int]], script: list[int], *, template: Template, copies: int = 1
) -> tuple[list[AnswerIds], list[Tensor]]:
    """Generate with a head that says `script`.

    Args:
        policy: a decoder.
        prompts: token ids of each prompt, longest first, which is the order in which they run.
        script: what is said; at most until its first stop token, if generation stops there.
        template: supplies the stop tokens.
        copies: completions of each prompt; they share one copy of it.

    Returns:
        The completions, and for each the states [S, D] from which its tokens were chosen.
    """
    head = ScriptedHead(policy.words, script, template.stop_ids)
    speaker = replace(policy, language_head=cast(LanguageHead, head))
    greedy = Sampling(temperature=0.0, max_new_tokens=len(script))
    if copies == 1:
        answers = generate(speaker, prompts, sampling=greedy, template=template)
    else:
        each = sample(speaker, prompts, count=copies, sampling=greedy, template=template)
        answers = [answer for group in each for answer in group]
    steps = len(answers[0].ids) + len(answers[0].end)
    states: list[Tensor] = []
    # Rows that run together say the same tokens, so none of them ends before the others.
    for start in range(0, len(head.seen), steps):
        states += torch.stack(head.seen[start : start + steps], dim=1).unbind()
    return answers, states


def scripted_states_alone(
    network: Any, prompts: Sequence[list[int]], script: list[int], *, copies: int = 1
) -> list[Tensor]:
    """Compute the states [S, D] of `scripted` by forward passes without a cache; other arguments as in `scripted`."""
    alone = (states_alone(network, [*prompt, *script[:-1]]) for prompt in prompts)
    return [states[-len(script) :] for states in alone for _ in range(copies)]
