"""Several tasks in one model, each measured by its own yardstick; the first is the headline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from tunesmith.evaluation.tasks import Arm, Score, TaskScore
from tunesmith.inference.local import LocalModel
from tunesmith.model.policy import Policy
from tunesmith.workflows.prepare import Prepared
from tunesmith.workflows.run_folder import of_task
from tunesmith.workflows.yardsticks.answering import Answered
from tunesmith.workflows.yardsticks.base import Worth, Yardstick
from tunesmith.workflows.yardsticks.judging import Judged
from tunesmith.workflows.yardsticks.reading import Read

# The word for what each task's own model says, tuned by itself on as many of its rows.
ALONE = "single-task model"


@dataclass(frozen=True, slots=True)
class SaidByTask:
    """What a model said to the rows of each task."""

    parts: dict[str, Answered | Read | Judged]

    @property
    def seconds(self) -> float:
        """How long all of it took."""
        return sum(said.seconds for said in self.parts.values())


class ManyTasks:
    """Measures each task by its own yardstick."""

    shape: ClassVar[type[Any]] = SaidByTask

    def __init__(self, parts: Mapping[str, Yardstick[Any]]) -> None:
        self.parts = dict(parts)

    @property
    def headline(self) -> str:
        """The name of the first task."""
        return next(iter(self.parts))

    def untuned(self, prepared: Prepared, policy: Policy, out: Path) -> SaidByTask:
        """What the base says at its best to each task's rows."""
        found = {}
        for name, yardstick in self.parts.items():
            policy.head = None  # one task's head is nothing to the next
            found[name] = yardstick.untuned(prepared.parts[name], policy, of_task(out, name))
        return SaidByTask(found)

    def tuned(self, model: LocalModel) -> SaidByTask:
        """What a model of all tasks says to each task's rows."""
        return SaidByTask({name: yardstick.tuned(model.at(name)) for name, yardstick in self.parts.items()})

    def gathered(self, model_of: Callable[[str], LocalModel]) -> SaidByTask:
        """What each task's own model says to its rows; one is made when the one before has spoken and is gone."""
        return SaidByTask({name: yardstick.tuned(model_of(name)) for name, yardstick in self.parts.items()})

    def tasks(self, base: SaidByTask, tuned: SaidByTask, *, name: str) -> list[TaskScore]:
        """Base against tuned, task by task under its own name."""
        return [
            score
            for task, yardstick in self.parts.items()
            for score in yardstick.tasks(base.parts[task], tuned.parts[task], name=task)
        ]

    def scores(self, said: SaidByTask, *, name: str) -> list[Score]:
        """One side, task by task under its own name."""
        found = ((yardstick, said.parts[task], task) for task, yardstick in self.parts.items())
        return [score for yardstick, one, task in found for score in yardstick.scores(one, name=task)]

    def arms(
        self, task: TaskScore, sides: tuple[SaidByTask, SaidByTask], controls: Mapping[str, SaidByTask]
    ) -> tuple[list[Arm], list[Arm]]:
        """The baselines of the first task; models of single tasks are compared task by task, not here."""
        return self.baselines(self.headline, task, sides), []

    def baselines(self, name: str, task: TaskScore, sides: tuple[SaidByTask, SaidByTask]) -> list[Arm]:
        """The base and the cheap ways of one task."""
        base, tuned = sides
        return self.parts[name].arms(task, (base.parts[name], tuned.parts[name]), {})[0]

    def lines(self, sides: Mapping[str, SaidByTask]) -> list[dict[str, Any]]:
        """A line for each row of each task, which it names."""
        return [
            {"task": task, **line}
            for task, yardstick in self.parts.items()
            for line in yardstick.lines({name: said.parts[task] for name, said in sides.items()})
        ]

    def worth(self, prepared: Prepared, model: LocalModel, sides: tuple[SaidByTask, SaidByTask]) -> Worth:
        """What is measured beside the scores of the first task, and what of any task raises an alarm."""
        base, tuned = sides
        found = {
            name: one.worth(prepared.parts[name], model.at(name), (base.parts[name], tuned.parts[name]))
            for name, one in self.parts.items()
        }
        alarms = tuple(f"{name}: {alarm}" for name, worth in found.items() for alarm in worth.alarms)
        return replace(found[self.headline], alarms=alarms)
