"""Answers of a base model and of a tuned model to the same held-out rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from tunesmith.config import AnyObjective
from tunesmith.data.examples.types import Chat, Example, LabelledText, Reference, TextExample
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics.baselines import linear_probe
from tunesmith.metrics.task_scores import LABEL_BREAK, value
from tunesmith.models.kept_answers import answer_clock, once
from tunesmith.models.loading.load import Base
from tunesmith.models.policy import Policy
from tunesmith.objectives.instruct import accepted, asked, reference
from tunesmith.progress import track

# The answers of each baseline or control to all evaluation rows.
AnswersByArm = dict[str, list[str]]

# The kind of kept answers of what is fitted to the training rows alone.
BASELINES = "baselines"
# Validation rows that choose the prompt of the base model: enough to distinguish a good prompt from a bad one.
CHOICE_ROWS = {"labels": 100, "text": 32}


@dataclass(frozen=True, slots=True)
class AnswerSet:
    """Answers to a list of rows, how they were made, and how long that took in seconds."""

    given: list[str]
    how: str
    seconds: float
    finished: list[bool] = field(default_factory=list)
    probabilities: list[dict[str, float]] = field(default_factory=list)
    wording: str | None = None  # prompt template that was chosen for a base model; empty: the instruction
    thoughts: list[str] = field(default_factory=list)  # before each answer; empty if no answer has any
    size: tuple[int | None, int | None] = (None, None)  # parameters and bytes of a teacher; None if unknown


def reference_answers(examples: Sequence[Example]) -> list[str]:
    """Return the reference answer of each row; several labels are joined."""
    return [LABEL_BREAK.join(sorted(e.labels)) if isinstance(e, LabelledText) else reference(e) for e in examples]


def accepted_answers(examples: Sequence[Example]) -> list[Reference]:
    """Return what an answer to each row is scored against: the reference, or all accepted answers."""
    references: Iterable[Reference] = reference_answers(examples)
    return [accepted(e) if isinstance(e, Chat) else only for e, only in zip(examples, references, strict=True)]


def question(example: Example) -> str:
    """Return the prompt of a row as text for reports: the text to label or rate, or the last message."""
    return example.text if isinstance(example, TextExample) else asked(example)[-1].content


def subsample(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """Return a part of the rows, in their order.

    Args:
        examples: the rows.
        count: how many at most; 0: all.
        seed: chooses them.
    """
    if not count or count >= len(examples):
        return list(examples)
    chosen = sorted(random.Random(f"{seed}/compare").sample(range(len(examples)), count))
    return [examples[i] for i in chosen]


def answer(model: LocalModel, examples: Sequence[Example]) -> AnswerSet:
    """Answer rows with a model of a `classify` or `instruct` objective: labels with probabilities, or greedy texts."""
    start = answer_clock()
    if model.objective.produces == "labels":
        labelled = model.classify([example.text for example in examples if isinstance(example, LabelledText)])
        answers = [LABEL_BREAK.join(sorted(one.labels)) for one in labelled]
        seconds = answer_clock() - start
        return AnswerSet(answers, "", seconds, probabilities=[one.probabilities for one in labelled])
    replies = model.replies([asked(example, model.wording) for example in examples])
    finished = [reply.finished for reply in replies]
    thoughts = [reply.thoughts for reply in replies]
    answers = [reply.text for reply in replies]
    seconds = answer_clock() - start
    return AnswerSet(answers, "", seconds, finished, thoughts=thoughts if any(thoughts) else [])


def best_wording(
    objective: AnyObjective, wordings: Sequence[str], model: Callable[[str], LocalModel], rows: Sequence[Example]
) -> str:
    """Return the prompt template by which a model answers rows best by the metric of an objective.

    A run in half precision scores labels in it: the few that rounding changes say little about a template.

    Args:
        objective: of the rows.
        wordings: the templates; the first of equals is chosen.
        model: returns the model with a template.
        rows: the rows.
    """
    references, scores = accepted_answers(rows), dict[str, float]()
    for wording in track(wordings, "choosing a prompt", unit="prompts"):
        worded = model(wording)
        with worded.policy.scoring() if objective.produces == "labels" else nullcontext():
            scores[wording] = value(objective.metric, references, answer(worded, rows).given)
    return max(wordings, key=lambda wording: scores[wording])


@dataclass(frozen=True, slots=True)
class BaseModelPrompter:
    """Answers the rows of a task with the base model, by a prompt or by a linear probe."""

    base: Base
    policy: Policy
    template: Template
    objective: AnyObjective  # with reference answers
    limit: int  # tokens of the longest row

    def model(self, wording: str = "") -> LocalModel:
        """Return the base model with one of the objective's prompt templates."""
        objective = self.objective.in_words() if self.policy.family == "decoder" else self.objective
        return LocalModel(self.policy, self.template, objective, self.limit, wording)

    def answer(self, *, train: Sequence[Example], validation: Sequence[Example], test: Sequence[Example]) -> AnswerSet:
        """Return the best answers to the test rows without tuning.

        Args:
            train: rows that a probe is fitted on.
            validation: rows that choose the prompt; without any, the training rows do.
            test: rows to answer.
        """
        wordings = self.objective.prompt_templates(self.policy.family)
        if not wordings:
            return self._probe(train, test)
        candidates = validation or train
        # A random subset, as a file may be sorted by its labels.
        chosen = subsample(candidates, CHOICE_ROWS[self.objective.produces], seed=0)
        best = best_wording(self.objective, wordings, self.model, chosen)
        how = f"plain prompt: {best or 'the instruction as written'}"
        return replace(answer(self.model(best), test), how=how, wording=best)

    def _probe(self, train: Sequence[Example], test: Sequence[Example]) -> AnswerSet:
        """Fit logistic regression on the frozen states, one per label if a row may have several."""
        model = self.model()
        train_states = model.embed([question(e) for e in train]).numpy()
        start = answer_clock()
        test_states = model.embed([question(e) for e in test]).numpy()
        seconds = answer_clock() - start  # as for other models, fitting is not counted
        labels = [e.labels for e in train if isinstance(e, LabelledText)]
        metric = self.objective.probe_metric
        if self.objective.label_mode == "single":
            joined = [LABEL_BREAK.join(row) for row in labels]
            given = once("probes", linear_probe, train_states, joined, test_states, metric=metric)
        else:
            columns = {}
            for label in track(self.objective.known_labels, "fitting linear probes", unit="labels"):
                targets = ["yes" if label in row else "no" for row in labels]
                columns[label] = once("probes", linear_probe, train_states, targets, test_states, metric=metric)
            given = [
                LABEL_BREAK.join(sorted(label for label, column in columns.items() if column[i] == "yes"))
                for i in range(len(test))
            ]
        return AnswerSet(given, "linear probe on the frozen model", seconds)
