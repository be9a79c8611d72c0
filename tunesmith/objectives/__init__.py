"""Axis A: what is learned. The visible list."""

from tunesmith.objectives.classify import Classify
from tunesmith.objectives.domain import Domain
from tunesmith.objectives.instruct import Instruct
from tunesmith.objectives.multitask import Multitask
from tunesmith.objectives.preference import Preference
from tunesmith.objectives.reward import Reward
from tunesmith.objectives.rl import Rl

OBJECTIVES = (Classify, Domain, Instruct, Preference, Reward, Rl, Multitask)

__all__ = ["OBJECTIVES", "Classify", "Domain", "Instruct", "Multitask", "Preference", "Reward", "Rl"]
