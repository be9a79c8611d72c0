"""What the untuned and the tuned model answer to the same frozen rows."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tunesmith.config import AnyObjective
from tunesmith.data.examples.types import Example, LabelledText
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics.baselines import linear_probe
from tunesmith.metrics.task_scores import LABEL_BREAK, value
from tunesmith.models.loading.load import Base
from tunesmith.models.policy import Policy
from tunesmith.objectives import Classify, Instruct
from tunesmith.objectives.classify import WORDINGS
from tunesmith.objectives.instruct import PLAIN_WORDINGS, asked, reference

# Ways to answer the test rows, each with what it says to every one of them.
AnswersByArm = dict[str, list[str]]

# Validation rows on which a plain wording is chosen: enough to tell a good one from a bad one.
CHOICE_ROWS = {"classify": 100, "instruct": 32}


@dataclass(frozen=True, slots=True)
class AnswerSet:
    """Answers to a list of rows, how they were got, and how long it took."""

    given: list[str]
    how: str
    seconds: float
    finished: list[bool] = field(default_factory=list)
    probabilities: list[dict[str, float]] = field(default_factory=list)
    wording: str | None = None  # prompt template that was chosen for a base model; empty: the instruction


def prompt_templates_for(objective: AnyObjective, family: str) -> tuple[str, ...]:
    """The ways to put the question among which the base's is chosen; none where it is a probe or read as it is."""
    if objective.label_mode is None:
        return PLAIN_WORDINGS
    return ("", *WORDINGS) if objective.label_mode == "single" and family == "decoder" else ()


def reference_answers(examples: Sequence[Example]) -> list[str]:
    """What the rows say is right."""
    return [LABEL_BREAK.join(sorted(e.labels)) if isinstance(e, LabelledText) else reference(e) for e in examples]


def question(example: Example) -> str:
    """What a row asks, for people to read."""
    return example.text if isinstance(example, LabelledText) else asked(example)[-1].content


def subsample(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """`count` of the rows, drawn by the seed, in their order; all where there are no more."""
    if not count or count >= len(examples):
        return list(examples)
    chosen = sorted(random.Random(f"{seed}/compare").sample(range(len(examples)), count))
    return [examples[i] for i in chosen]


def answer(model: LocalModel, examples: Sequence[Example]) -> AnswerSet:
    """What a model answers to these rows."""
    began = time.perf_counter()
    if model.objective.produces == "labels":
        found = model.classify([example.text for example in examples if isinstance(example, LabelledText)])
        given = [LABEL_BREAK.join(sorted(one.labels)) for one in found]
        return AnswerSet(given, "", time.perf_counter() - began, probabilities=[one.probabilities for one in found])
    replies = model.replies([asked(example, model.wording) for example in examples])
    finished = [reply.finished for reply in replies]
    return AnswerSet([reply.text for reply in replies], "", time.perf_counter() - began, finished)


@dataclass(frozen=True, slots=True)
class BaseModelPrompter:
    """A base model with all that is needed to let it try the task."""

    base: Base
    policy: Policy
    template: Template
    objective: Classify | Instruct
    limit: int

    def model(self, wording: str = "") -> LocalModel:
        """The base, asked in this wording."""
        objective = self.objective
        if objective.produces == "labels" and self.policy.family == "decoder":
            objective = objective.model_copy(update={"output": "words"})
        return LocalModel(self.policy, self.template, objective, self.limit, wording)

    def answer(self, *, train: Sequence[Example], validation: Sequence[Example], test: Sequence[Example]) -> AnswerSet:
        """Its best answers to the test rows without tuning: a plain prompt chosen on validation, or a linear probe."""
        wordings = prompt_templates_for(self.objective, self.policy.family)
        if not wordings:
            return self._probe(train, test)
        best = self._choose(wordings, validation or train)
        found = answer(self.model(best), test)
        return AnswerSet(
            found.given,
            f"plain prompt: {best or 'the instruction as written'}",
            found.seconds,
            found.finished,
            found.probabilities,
            wording=best,
        )

    def _choose(self, wordings: Sequence[str], examples: Sequence[Example]) -> str:
        """The wording with the best headline on some validation rows, the first among equals."""
        chosen = subsample(examples, CHOICE_ROWS[self.objective.kind], seed=0)  # a file may be sorted by its labels
        metric = self.objective.metric
        scores = {
            wording: value(metric, reference_answers(chosen), answer(self.model(wording), chosen).given)
            for wording in wordings
        }
        return max(wordings, key=lambda wording: scores[wording])

    def _probe(self, train: Sequence[Example], test: Sequence[Example]) -> AnswerSet:
        """Logistic regression on the frozen states, one per label where a row may have several."""
        model = self.model()
        learn = model.embed([question(e) for e in train]).numpy()
        began = time.perf_counter()
        ask = model.embed([question(e) for e in test]).numpy()
        seconds = time.perf_counter() - began  # as any other model's: what is learned before and after is not counted
        labels = [e.labels for e in train if isinstance(e, LabelledText)]
        metric = self.objective.probe_metric
        if self.objective.label_mode == "single":
            given = linear_probe(learn, [LABEL_BREAK.join(found) for found in labels], ask, metric=metric)
        else:
            columns = {
                label: _yes(label, labels, lambda y: linear_probe(learn, y, ask, metric=metric))
                for label in self.objective.known_labels
            }
            given = [
                LABEL_BREAK.join(sorted(la for la in columns if columns[la][i] == "yes")) for i in range(len(test))
            ]
        return AnswerSet(given, "linear probe on the frozen model", seconds)


def _yes(label: str, rows: Sequence[Sequence[str]], probe: Callable[[list[str]], list[str]]) -> list[str]:
    """Whether each test row has this label; a label that all or no training rows have needs no probe."""
    target = ["yes" if label in row else "no" for row in rows]
    return probe(target)
