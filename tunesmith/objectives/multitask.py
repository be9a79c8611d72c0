"""Several tasks in one model, each with its own rows, objective and, if it has one, head."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NoReturn, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, field_validator, model_validator

from tunesmith.data.examples.types import Example
from tunesmith.data.files import portable
from tunesmith.data.readers.row import Row
from tunesmith.data.tokenization.chat_template import Encoded, Template
from tunesmith.errors import RecipeError
from tunesmith.objectives.base import Learner, Loss, Objective, Produces
from tunesmith.objectives.classify import Classify
from tunesmith.objectives.domain import Domain
from tunesmith.objectives.embed import Embed
from tunesmith.objectives.instruct import Instruct
from tunesmith.objectives.preference import Preference
from tunesmith.objectives.regress import Regress
from tunesmith.objectives.rerank import Rerank
from tunesmith.objectives.reward_model import Reward
from tunesmith.objectives.tag import Tag

if TYPE_CHECKING:
    from torch import nn

    from tunesmith.models.batch import Batch
    from tunesmith.models.policy import Policy

# The name of a task is a key of the recipe, the name of a folder, and part of the names of its head's parameters.
NAME = r"^[A-Za-z][A-Za-z0-9_-]*$"


def _amount(value: object) -> object:
    """Convert `20%` to 0.2 and an empty string to 0; raise ValueError for 1.0, which may be one row or all."""
    percent = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value) if isinstance(value, str) else None
    value = float(percent[1]) / 100 if percent else 0.0 if value == "" else value
    if isinstance(value, int | float) and (isinstance(value, bool) or value < 0):
        raise ValueError("expected a fraction in [0, 1), a whole number of rows or a file; use 0.2")
    if isinstance(value, float) and value >= 1:
        whole = f"write {value:.0f} for a number of rows" if value.is_integer() else "use 0.2"
        raise ValueError(f"expected a fraction in [0, 1), a whole number of rows or a file; {whole}")
    return value or 0.0


# A fraction of the rows, a number of rows, or a file.
Part = Annotated[int | float | str, BeforeValidator(_amount)]


class TaskRows(BaseModel):
    """The source of the rows of a task, and their split."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    train: str = Field("", description="file or Hub data set")
    validation: Part = Field(0.1, description="fraction or number of the rows, or a file")
    test: Part = Field(0.2, description="fraction or number of the rows, or a file")
    split: str = Field(
        "split",
        description="column with train, validation or test; empty: not used, the default if validation or test is set",
    )
    group: str = Field("", description="column; rows with the same value stay in the same split")
    where: dict[str, list[Any]] = Field(default_factory=dict, description="keep rows with these values")
    rows: int = Field(0, ge=0, description="maximum number of training rows; 0: all")

    @model_validator(mode="after")
    def _split_as_written(self) -> Self:
        """Do not use a split column if the recipe itself sets the size of a part."""
        if "split" not in self.model_fields_set and self.model_fields_set & {"test", "validation"}:
            self.__dict__["split"] = ""  # not a set field: recipes are written without it
        return self


def _short_for(key: str) -> BeforeValidator:
    """Accept a string as a mapping with only this key."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


# Every objective that can be a task of several: a new one is named here, and nowhere else.
AnyPart = Classify | Domain | Embed | Instruct | Preference | Regress | Rerank | Reward | Tag
PartObjective = Annotated[Annotated[AnyPart, Discriminator("kind")], _short_for("kind")]


class TaskSection(BaseModel):
    """One task of several."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: Annotated[TaskRows, _short_for("train")]
    objective: PartObjective
    weight: float = Field(1.0, gt=0, description="weight of the task in the loss of a step")


class Multitask(Objective):
    """Lower the losses of several tasks with shared parameters.

    The loss of a step is the weighted mean of its tasks' means over their own units, so that a task of long answers
    does not outweigh one of labels. `sampling` decides the rows of a step; with `temperature` the shares are in
    proportion to size ** (1 / temperature) (Raffel et al. 2020, arXiv 1910.10683, section 3.5.2).
    """

    produces: ClassVar[Produces] = "text"
    results: ClassVar[str] = "multitask recipes"
    route: ClassVar[str] = ""
    instruction: ClassVar[str] = ""

    kind: Literal["multitask"] = "multitask"
    tasks: dict[Annotated[str, Field(pattern=NAME)], TaskSection] = Field(
        default_factory=dict, description="two or more tasks by name; the first is the headline"
    )
    sampling: Literal["size", "equal", "temperature", "weights"] = Field(
        "size", description="distribution of the rows of a step over the tasks"
    )
    temperature: float = Field(2.0, ge=1, description="only for sampling: temperature; 1: by size, higher: more equal")

    @field_validator("tasks")
    @classmethod
    def _have_folders(cls, tasks: dict[str, TaskSection]) -> dict[str, TaskSection]:
        """Raise ValueError for names whose folders Windows would not make, or not distinguish."""
        folders = {name.lower() for name in tasks if name == portable(name)}
        if sys.platform == "win32" and len(folders) < len(tasks):
            raise ValueError("names of folders on Windows, so they must differ in more than case; rename one")
        return tasks

    @property
    def task_objectives(self) -> Mapping[str, Objective]:
        """Return the objective of every task by name."""
        return {name: part.objective for name, part in self.tasks.items()}

    @property
    def task_weights(self) -> Mapping[str, float]:
        """Return the weight of every task in the loss of a step."""
        return {name: part.weight for name, part in self.tasks.items()}

    def with_task_objectives(self, objectives: Mapping[str, Objective]) -> Multitask:
        """Return the objective with the objective of every task replaced."""
        tasks = {n: part.model_copy(update={"objective": objectives[n]}) for n, part in self.tasks.items()}
        return self.model_copy(update={"tasks": tasks})

    @property
    def reference(self) -> Literal["none", "precomputed", "per_step"]:
        """Return `per_step` if any task needs the reference model at every step, else `precomputed` if any needs it."""
        needs = {part.objective.reference for part in self.tasks.values()}
        return "per_step" if "per_step" in needs else "precomputed" if "precomputed" in needs else "none"

    @property
    def max_new_tokens(self) -> int:
        """Return the longest answer of any task, in tokens."""
        return max(part.objective.max_new_tokens for part in self.tasks.values())

    @property
    def metric(self) -> str:
        """Return the headline metric, which is that of the first task."""
        return self.first.metric

    @property
    def first(self) -> AnyPart:
        """Return the objective of the first task."""
        return next(iter(self.tasks.values())).objective

    def without_rows(self) -> Multitask:
        """Return the objective without the paths of its rows, for a model that is given to others."""
        tasks = {
            name: part.model_copy(update={"data": TaskRows(), "objective": part.objective.without_rows()})
            for name, part in self.tasks.items()
        }
        return self.model_copy(update={"tasks": tasks})

    def with_models(self, place: Callable[[str], str]) -> Multitask:
        """Return the objective with other names of the models that its tasks use."""
        return self.with_task_objectives({name: part.with_models(place) for name, part in self.task_objectives.items()})

    def task_shares(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """Return the fraction of a step's rows that each task gets, by `sampling`."""
        parts = {
            "size": {name: float(sizes[name]) for name in self.tasks},
            "equal": dict.fromkeys(self.tasks, 1.0),
            "temperature": {name: float(sizes[name]) ** (1 / self.temperature) for name in self.tasks},
            "weights": {name: task.weight for name, task in self.tasks.items()},
        }[self.sampling]
        return {name: part / sum(parts.values()) for name, part in parts.items()}

    def task_policy(self, policy: Policy, task: str) -> Policy:
        """Return the policy with the head of one task, or without a head."""
        from torch import nn

        name = _head_name(task)
        head = policy.head[name] if isinstance(policy.head, nn.ModuleDict) and name in policy.head else None
        view = replace(policy, head=head)
        # The functions of a policy that lead to its reference model refer to the policy they were made for.
        if view.virtual is not None:
            view.reference = view.without_virtual
        elif (start := view.start) is not None:
            view.reference = lambda: view.answered_by(start)
        return view

    def head(self, policy: Policy) -> nn.Module | None:
        """Return the heads of the tasks that have one, by name; None if no task has a head."""
        from torch import nn

        heads = {_head_name(name): part.objective.head(policy) for name, part in self.tasks.items()}
        layers = {name: head for name, head in heads.items() if head is not None}
        return nn.ModuleDict(layers) if layers else None

    def make_learner(self) -> MultitaskLearner:
        """Return a learner of all tasks."""
        return MultitaskLearner(self, {name: part.objective.make_learner() for name, part in self.tasks.items()})

    def columns(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Raise RecipeError: each task has other columns."""
        self._refuse()

    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Raise RecipeError: each task parses its own rows."""
        self._refuse()

    def bind(self, examples: Sequence[Example], family: str) -> Multitask:
        """Raise RecipeError: each task is bound to its own rows."""
        self._refuse()

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """Raise RecipeError: each task encodes its own examples."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise RecipeError(f"objective multitask: name one of its tasks: {', '.join(self.tasks)}")


@dataclass(frozen=True, slots=True)
class MultitaskLearner(Learner):
    """Computes the loss of each batch by the learner of its task, scaled by the weight of the task in its step."""

    objective: Multitask
    learners: Mapping[str, Learner]  # by task

    def prepare(self, batch: Batch, policy: Policy) -> Batch:
        """Return the batch prepared by the learner of its task."""
        return self.learners[batch.task].prepare(batch, self.objective.task_policy(policy, batch.task))

    def step_sums(self, batches: Sequence[Batch], policy: Policy) -> dict[str, float]:
        """Return the units of all tasks, and the sums of each task under `TASK SUM`."""
        sums = super(MultitaskLearner, self).step_sums(batches, policy)
        for name in dict.fromkeys(batch.task for batch in batches):
            own = [batch for batch in batches if batch.task == name]
            found = self.learners[name].step_sums(own, self.objective.task_policy(policy, name))
            sums |= {f"{name} {key}": value for key, value in found.items()}
        return sums

    def with_sums(self, batches: Sequence[Batch], sums: Mapping[str, float]) -> list[Batch]:
        """Return micro-batches with loss weights that make the loss of the step the weighted mean over its tasks.

        The training loop divides the sum of all losses by the sum of all units. The weight of a task's batch is
        therefore (all units / units of the task) * (weight of the task / sum of weights).
        """
        weights = self.objective.task_weights
        units = {name: sums[f"{name} units"] for name in weights if f"{name} units" in sums}
        total = sum(weights[name] for name in units)
        ready = {}
        for name in dict.fromkeys(batch.task for batch in batches):
            own = {key.removeprefix(f"{name} "): value for key, value in sums.items() if key.startswith(f"{name} ")}
            ready[name] = iter(self.learners[name].with_sums([b for b in batches if b.task == name], own))
        prepared = []
        for batch in batches:
            name = batch.task
            factor = sums["units"] * weights[name] / (total * units[name]) if units[name] else 0.0
            prepared.append(replace(next(ready[name]), loss_weight=factor))
        return prepared

    def units(self, batch: Batch) -> float:
        """Return the units of the batch, as its task counts them."""
        return self.learners[batch.task].units(batch)

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Compute the summed loss of the batch's task, times its loss weight."""
        loss = self.learners[batch.task].loss(batch, self.objective.task_policy(policy, batch.task))
        metrics = {f"{batch.task} {name}": value for name, value in loss.metrics.items()}
        return replace(loss, total=loss.total * batch.loss_weight, metrics=metrics)


def _head_name(task: str) -> str:
    """Return the name of a task's head: some task names would clash with methods of `nn.ModuleDict`."""
    return f"{task}_head"
