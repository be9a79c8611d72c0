"""How each kind of objective is measured. The visible table."""

from typing import Any

from tunesmith.workflows.yardsticks.answering import Answering
from tunesmith.workflows.yardsticks.base import Frozen, Said, Worth, Yardstick
from tunesmith.workflows.yardsticks.judging import Judging
from tunesmith.workflows.yardsticks.reading import Reading
from tunesmith.workflows.yardsticks.rewarded import Rewarded
from tunesmith.workflows.yardsticks.together import ALONE, ManyTasks

YARDSTICKS: dict[str, type[Yardstick[Any]]] = {
    "classify": Answering,
    "instruct": Answering,
    "domain": Reading,
    "preference": Judging,
    "reward": Judging,
    "rl": Rewarded,
}


def yardstick_of(frozen: Frozen) -> Yardstick[Any]:
    """What measures models on these rows."""
    if frozen.parts:
        return ManyTasks({name: yardstick_of(part) for name, part in frozen.parts.items()})
    return YARDSTICKS[frozen.objective.kind](frozen)


__all__ = ["ALONE", "YARDSTICKS", "Frozen", "Said", "ManyTasks", "Worth", "Yardstick", "yardstick_of"]
