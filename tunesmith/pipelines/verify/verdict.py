"""The decision whether answers are those of the tuned model, of its base, of a damaged copy, or of something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Literal

from tunesmith.pipelines.verify.challenge import Prompt

Verdict = Literal["tuned", "base", "damaged", "something else", "undecided"]
ERROR = 0.01
# The definition of another model: one that gives at most this share of the answers. Two runs on the same rows with
# other settings may agree in most of them, so only nearly complete agreement shows the tuned model.
ANOTHER = 0.8
DISTINCT = 3  # characters that an answer has to share with the tuned one beyond where the base's differs


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and the counts that it is based on."""

    verdict: Verdict
    error_rate: float | None  # how often a model for which the verdict is wrong gives such answers; None: undecided
    tuned: int  # answers that are those of the tuned model
    of_tuned: int  # prompts at which it is known
    base: int  # answers that are those of the base
    of_base: int
    begun: int  # answers that begin as those of the tuned model do, beyond where the base's differ

    def sentence(self) -> str:
        """Return the verdict with its evidence on one line."""
        tuned = f"{self.tuned} of {self.of_tuned} prompts are answered as by the tuned model"
        base = f"{self.base} of {self.of_base} as by its base"
        if self.error_rate is None:
            return f"undecided: {tuned} and {base}, too few for either and too many for something else"
        rate = "less than 0.01 %" if self.error_rate < 1e-4 else f"{100 * self.error_rate:.2g} %"
        another = f"a model that agrees in {100 * ANOTHER:.0f} % of them"
        found, who = {
            "tuned": (tuned, another),
            "base": (f"{self.base} of {self.of_base} prompts are answered as by the base", another),
            "damaged": (f"{tuned}, {self.begun} begin so", "one that always gives the same answer"),
        }.get(self.verdict, (f"{tuned}, {base}", another))
        return f"{self.verdict}: {found}; {who} would reach this in {rate} of cases"


def tail(count: int, n: int, chance: float) -> float:
    """Return the probability of `count` or more successes among n."""
    from scipy.special import bdtrc  # takes long to import

    return float(bdtrc(count - 1, n, chance))


# The fewest prompts with which complete agreement suffices, 21.
NEEDED = next(n for n in range(1, 100) if ANOTHER**n <= ERROR)


def judge(prompts: Sequence[Prompt], answers: Sequence[str]) -> Judgement:
    """Return who gave these answers.

    `tuned` and `base` reject in an exact binomial test at 1 % that the model agrees in at most 80 % of such prompts.

    Args:
        prompts: prompts of a challenge.
        answers: one answer to each, without white space around it.
    """
    pairs = list(zip(prompts, answers, strict=True))
    of_tuned = [(prompt, answer) for prompt, answer in pairs if prompt.tuned is not None]
    n, of_base = len(of_tuned), sum(prompt.base is not None for prompt in prompts)
    tuned = sum(prompt.by_tuned(answer) for prompt, answer in of_tuned)
    base = sum(prompt.by_base(answer) for prompt, answer in pairs)
    begun = sum(_begins_as_tuned(prompt, answer) for prompt, answer in of_tuned)
    counts = (tuned, n, base, of_base, begun)
    if (by_another := tail(tuned, n, ANOTHER)) <= ERROR:
        return Judgement("tuned", by_another, *counts)
    if (by_another := tail(base, of_base, ANOTHER)) <= ERROR:
        return Judgement("base", by_another, *counts)
    if tuned > ANOTHER * n or base > ANOTHER * of_base:
        return Judgement("undecided", None, *counts)
    if (by_chance := tail(begun, n, _chance([prompt for prompt, _ in of_tuned]))) <= ERROR:
        return Judgement("damaged", by_chance, *counts)
    from scipy.special import bdtr

    rarely = max(float(bdtr(agree, of, ANOTHER)) for agree, of in ((tuned, n), (base, of_base)) if of)
    return Judgement("something else", rarely, *counts)


def _begins_as_tuned(prompt: Prompt, answer: str) -> bool:
    """Return whether the answer is that of the tuned model up to where the base's differs, and somewhat further."""
    text, base = prompt.tuned.text if prompt.tuned else "", prompt.base.text if prompt.base else ""
    return answer.startswith(text[: len(commonprefix([text, base])) + DISTINCT])


def _chance(prompts: Sequence[Prompt]) -> float:
    """Return how often a model agrees that gives the same answer to every prompt, the most frequent one."""
    texts = {prompt.tuned.text for prompt in prompts if prompt.tuned} | {p.base.text for p in prompts if p.base}
    return max(
        (sum(_begins_as_tuned(prompt, text) for prompt in prompts) / len(prompts) for text in texts), default=1.0
    )
