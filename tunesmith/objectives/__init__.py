"""Objectives: what is learned. A new one is a file in this package, its import, and its name in `AnyObjective`.

An objective is a section of the recipe (`base.Objective`). The loss is computed by its learner (`base.Learner`), which
is the objective itself unless it needs more than its settings: `PreferenceLearner`, `MultitaskLearner` and
`OnlineRLLearner`.
"""

from typing import get_args

from tunesmith.objectives.base import Objective
from tunesmith.objectives.classify import Classify
from tunesmith.objectives.domain import Domain
from tunesmith.objectives.instruct import Instruct
from tunesmith.objectives.multitask import Multitask
from tunesmith.objectives.preference import Preference
from tunesmith.objectives.regress import Regress
from tunesmith.objectives.reward_model import Reward
from tunesmith.objectives.rl import Rl

AnyObjective = Classify | Domain | Instruct | Preference | Regress | Reward | Rl | Multitask
OBJECTIVES: tuple[type[AnyObjective], ...] = get_args(AnyObjective)

__all__ = [
    "OBJECTIVES",
    "AnyObjective",
    "Classify",
    "Domain",
    "Instruct",
    "Multitask",
    "Objective",
    "Preference",
    "Regress",
    "Reward",
    "Rl",
]
