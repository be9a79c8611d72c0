"""The decision whether answers are those of the tuned model, of its base, of a damaged copy, or of something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, exp, log
from os.path import commonprefix
from typing import Literal

from tunesmith.pipelines.verify.challenge import Prompt

Verdict = Literal["tuned", "base", "damaged", "something else"]
# Greatest probability of a wrong "tuned" or "base", and of "damaged" for a model that has nothing to do with the run.
ERROR = 0.01
NEARLY = 0.95  # share of the reachable evidence that suffices where that is little
# Evidence at which no further prompt is sent, in nats.
ENOUGH = log(1e4)
# Share of prompts on which an unrelated model begins as the tuned one does, and a damaged one at least does.
CHANCE, TRACE = 0.1, 0.3
DISTINCT = 3  # characters that have to agree beyond those


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, the probability that it is wrong, and what it is based on."""

    verdict: Verdict
    error_rate: float
    tuned: int  # answers equal to those of the tuned model
    base: int  # answers equal to those of the base
    begun: int  # answers that begin as that of the tuned model does, beyond where the base differs


def evidence(prompts: Sequence[Prompt], answers: Sequence[str]) -> tuple[float, float]:
    """Return the evidence that the tuned model answered, and that the base did, in nats.

    Each is a log-likelihood ratio against any model that gives each answer with at most the probability
    `lost`. By Markov's inequality, such a model reaches e nats with a probability of at most exp(-e), after any
    number of prompts (Ville 1939), so the test may stop at any time.
    """
    tuned = base = 0.0
    for prompt, answer in zip(prompts, answers, strict=True):
        tuned += _ratio(prompt.tuned_margins.kept, prompt.lost, same=prompt.by_tuned(answer))
        base += bool(prompt.base) * _ratio(
            prompt.base_margins.kept, prompt.base_margins.lost, same=prompt.by_base(answer)
        )
    return tuned, base


def _ratio(kept: float, lost: float, *, same: bool) -> float:
    return log(kept / lost) if same else log((1 - kept) / (1 - lost))


def decided(prompts: Sequence[Prompt], answers: Sequence[str]) -> bool:
    """Return whether the tuned model or the base has certainly answered, so that no further prompt is needed."""
    return max(evidence(prompts, answers)) >= ENOUGH


def judge(prompts: Sequence[Prompt], answers: Sequence[str]) -> Judgement:
    """Return who gave these answers.

    Args:
        prompts: prompts of a challenge.
        answers: one answer to each, without white space around it.
    """
    tuned, base = evidence(prompts, answers)
    pairs = list(zip(prompts, answers, strict=True))
    counts = (
        sum(prompt.by_tuned(answer) for prompt, answer in pairs),
        sum(prompt.by_base(answer) for prompt, answer in pairs),
        begun := sum(_begins_as_tuned(prompt, answer) for prompt, answer in pairs),
    )
    # A challenge of few prompts cannot reach that evidence; then the error rate is larger, and stated.
    reachable = sum(_ratio(prompt.tuned_margins.kept, prompt.lost, same=True) for prompt in prompts)
    if tuned >= min(-log(ERROR), NEARLY * reachable) or base >= -log(ERROR):
        return Judgement("tuned" if tuned >= base else "base", exp(-max(tuned, base)), *counts)
    n = len(prompts)
    by_chance = _tail(begun, n, CHANCE)
    missed = min(1.0, exp(max(tuned, base)))  # the probability of so little evidence, if it is one of them
    if by_chance <= ERROR:
        return Judgement("damaged", max(by_chance, missed), *counts)
    return Judgement("something else", max(1 - _tail(begun + 1, n, TRACE), missed), *counts)


def _begins_as_tuned(prompt: Prompt, answer: str) -> bool:
    """Return whether the answer is that of the tuned model up to where the base's differs, and somewhat further."""
    shared = len(commonprefix([prompt.tuned, prompt.base]))
    return answer.startswith(prompt.tuned[: shared + DISTINCT])


def _tail(count: int, n: int, chance: float) -> float:
    """Return the probability of `count` or more of n successes."""
    return sum(comb(n, k) * chance**k * (1 - chance) ** (n - k) for k in range(count, n + 1))
