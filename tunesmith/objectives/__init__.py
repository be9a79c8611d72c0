"""Axis A: what is learned. The visible list."""

from typing import TYPE_CHECKING

from tunesmith.objectives.classify import Classify
from tunesmith.objectives.domain import Domain
from tunesmith.objectives.instruct import Instruct
from tunesmith.objectives.multitask import Multitask
from tunesmith.objectives.preference import Preference
from tunesmith.objectives.reward_model import Reward
from tunesmith.objectives.rl import Rl

OBJECTIVES = (Classify, Domain, Instruct, Preference, Reward, Rl, Multitask)

if TYPE_CHECKING:  # the checker holds each of them to the contract
    from tunesmith.objectives.base import Objective

    _HELD: tuple[type[Objective], ...] = OBJECTIVES

__all__ = ["OBJECTIVES", "Classify", "Domain", "Instruct", "Multitask", "Preference", "Reward", "Rl"]
