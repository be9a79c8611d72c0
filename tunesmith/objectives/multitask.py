"""Several tasks at once, one model: each with its own rows and objective, and its own head where it has one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field
from torch import nn

from tunesmith.data.examples.types import Example
from tunesmith.data.readers.row import Row
from tunesmith.data.tokenization.chat_template import Encoded, Template
from tunesmith.errors import RecipeError
from tunesmith.models.batch import Batch
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import Loss, Objective, Produces, WholeStepLearner
from tunesmith.objectives.classify import Classify
from tunesmith.objectives.domain import Domain
from tunesmith.objectives.instruct import Instruct
from tunesmith.objectives.preference import Preference
from tunesmith.objectives.reward_model import Reward

# A task's name is a key of the recipe, a folder, and a part of the names of its head's numbers.
NAME = r"^[A-Za-z][A-Za-z0-9_-]*$"


def _share(value: object) -> object:
    """20% as a share; where nothing is written none is held out; anything else as it is."""
    percent = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value) if isinstance(value, str) else None
    return float(percent[1]) / 100 if percent else 0.0 if value == "" else value


# A share of the rows, or a file.
Part = Annotated[float | str, BeforeValidator(_share)]


class TaskRows(BaseModel):
    """Where rows come from and how they are split."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    train: str = Field("", description="file or Hub data set")
    validation: Part = Field(0.1, description="fraction of the rows, or a file")
    test: Part = Field(0.2, description="fraction of the rows, or a file")
    group: str = Field("", description="column whose values never straddle a split")
    where: dict[str, list[Any]] = Field(default_factory=dict, description="keep rows with these values")
    rows: int = Field(0, ge=0, description="use at most this many training rows; 0: all")


def _opened(key: str) -> BeforeValidator:
    """A validator that takes a word for a mapping with just this key."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


AnyPart = Classify | Domain | Instruct | Preference | Reward
PartObjective = Annotated[Annotated[AnyPart, Discriminator("kind")], _opened("kind")]


class TaskSection(BaseModel):
    """One task of several."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: Annotated[TaskRows, _opened("train")]
    objective: PartObjective
    weight: float = Field(1.0, gt=0, description="how much the task counts in the loss of a step")


class Multitask(Objective):
    """Lower the losses of several tasks, each the mean over its own units, by one set of numbers.

    A step's loss is the weighted mean of its tasks' means, so that a task of long answers does not drown one of labels.
    Which rows a step sees is `sampling`; temperature: shares in proportion to size ** (1 / temperature)
    (Raffel et al. 2020, arXiv 1910.10683, section 3.5.2).
    """

    produces: ClassVar[Produces] = "text"
    instruction: ClassVar[str] = ""

    kind: Literal["multitask"] = "multitask"
    tasks: dict[Annotated[str, Field(pattern=NAME)], TaskSection] = Field(
        default_factory=dict, description="two or more tasks by name; the first is the headline"
    )
    sampling: Literal["size", "equal", "temperature", "weights"] = Field(
        "size", description="how the rows of a step are shared out among the tasks"
    )
    temperature: float = Field(2.0, ge=1, description="for sampling: temperature; 1: by size, higher: more equal")

    @property
    def task_objectives(self) -> Mapping[str, Objective]:
        """Return the objective of every task by name."""
        return {name: part.objective for name, part in self.tasks.items()}

    @property
    def reference(self) -> Literal["none", "precomputed", "per_step"]:
        """Return `per_step` if any task needs the reference model at every step, else `precomputed` if any needs it."""
        needs = {part.objective.reference for part in self.tasks.values()}
        return "per_step" if "per_step" in needs else "precomputed" if "precomputed" in needs else "none"

    @property
    def max_new_tokens(self) -> int:
        """That of the task with the longest answers."""
        return max(part.objective.max_new_tokens for part in self.tasks.values())

    @property
    def metric(self) -> str:
        """The headline of the first task."""
        return self.first.metric

    @property
    def first(self) -> AnyPart:
        """The objective of the first task, whose result is the run's headline."""
        return next(iter(self.tasks.values())).objective

    def without_rows(self) -> Multitask:
        """The same for whoever uses the model: where its rows lay is nobody's business."""
        return self.model_copy(
            update={"tasks": {n: p.model_copy(update={"data": TaskRows()}) for n, p in self.tasks.items()}}
        )

    def shares(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """Which part of a step's rows each task gets, given how many training rows it has; together 1."""
        parts = {
            "size": {name: float(sizes[name]) for name in self.tasks},
            "equal": dict.fromkeys(self.tasks, 1.0),
            "temperature": {name: float(sizes[name]) ** (1 / self.temperature) for name in self.tasks},
            "weights": {name: task.weight for name, task in self.tasks.items()},
        }[self.sampling]
        return {name: part / sum(parts.values()) for name, part in parts.items()}

    def scaled(self, batches: Sequence[Batch]) -> list[Batch]:
        """The micro-batches of a step, each with the factor that makes the step's loss the weighted mean over tasks.

        The loop divides all sums by all units; so each task's sum is taken times what its own units are short of that.
        """
        units: dict[str, int] = {}
        for batch in batches:
            units[batch.task] = units.get(batch.task, 0) + self.units(batch)
        weights = sum(self.tasks[name].weight for name in units)
        factors = {n: sum(units.values()) * self.tasks[n].weight / (weights * own) for n, own in units.items() if own}
        return [replace(batch, loss_weight=factors.get(batch.task, 0.0)) for batch in batches]

    def task_policy(self, policy: Policy, task: str) -> Policy:
        """The policy with the head of one task, or with none."""
        head = (
            policy.head[_head(task)] if isinstance(policy.head, nn.ModuleDict) and _head(task) in policy.head else None
        )
        view = replace(policy, head=head)
        if view.virtual is not None:  # whose reference is the very policy without them
            view.reference = view.without_virtual
        elif (start := view.start) is not None:  # and here the very policy with another network
            view.reference = lambda: view.answered_by(start)
        return view

    def head(self, policy: Policy) -> nn.Module | None:
        """The heads of all tasks that have one, by name; None where no task has."""
        heads = {_head(name): part.objective.head(policy) for name, part in self.tasks.items()}
        found = {name: head for name, head in heads.items() if head is not None}
        return nn.ModuleDict(found) if found else None

    def prepare(self, batch: Batch, policy: Policy) -> Batch:
        """The batch as its task wants it."""
        return self.tasks[batch.task].objective.prepare(batch, self.task_policy(policy, batch.task))

    def together(self, batches: Sequence[Batch], policy: Policy) -> list[Batch]:
        """The micro-batches of a step, those of each task as it wants them together."""
        found = list(batches)
        for name in {batch.task for batch in batches}:
            objective, places = self.tasks[name].objective, [i for i, one in enumerate(found) if one.task == name]
            if isinstance(objective, WholeStepLearner):
                mine = objective.together([found[i] for i in places], self.task_policy(policy, name))
                for place, batch in zip(places, mine, strict=True):
                    found[place] = batch
        return found

    def units(self, batch: Batch) -> int:
        """Units of the batch's own task."""
        return self.tasks[batch.task].objective.units(batch)

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """The sum of its task's loss, by the factor of its step."""
        found = self.tasks[batch.task].objective.loss(batch, self.task_policy(policy, batch.task))
        figures = {f"{batch.task} {name}": figure for name, figure in found.metrics.items()}
        return replace(found, total=found.total * batch.loss_weight, metrics=figures)

    def columns(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Of one task only."""
        self._refuse()

    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Never: each task reads its own rows."""
        self._refuse()

    def bind(self, examples: Sequence[Example], family: str) -> Multitask:
        """Never: each task is bound to its own rows."""
        self._refuse()

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """Never: each task encodes its own examples."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise RecipeError(f"objective multitask: name one of its tasks: {', '.join(self.tasks)}")


def _head(task: str) -> str:
    """The name of a task's head: some plain names are methods of torch's own modules."""
    return f"{task}_head"
