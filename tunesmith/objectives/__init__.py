"""Objectives: what is learned. A new one is a file in this package and its name in `multitask.AnyPart`.

The file declares everything that other packages ask for, as class variables and methods of `base.Objective`; none of
them asks for the class (`tests/objectives/test_capabilities.py`). Recipes, their JSON schema and multitask runs know
an objective by `AnyPart`, which type checkers need as a written union. Apart from that, a new evaluation
has a line in `evaluation.evaluators.EVALUATORS`, and new rows have a format with a parser;
`docs/how-to/extend.md` lists the files. The classes below are imported for those who build them or derive from them.

An objective is a section of the recipe (`base.Objective`). The loss is computed by its learner (`base.Learner`), which
is the objective itself unless it needs more than its settings: `PreferenceLearner`, `MultitaskLearner` and
`OnlineRLLearner`.
"""

from collections.abc import Sequence
from typing import get_args

from tunesmith.objectives.base import Objective
from tunesmith.objectives.classify import Classify
from tunesmith.objectives.domain import Domain
from tunesmith.objectives.embed import Embed
from tunesmith.objectives.instruct import Instruct
from tunesmith.objectives.multitask import AnyPart, Multitask
from tunesmith.objectives.preference import Preference
from tunesmith.objectives.regress import Regress
from tunesmith.objectives.rerank import Rerank
from tunesmith.objectives.reward_model import Reward
from tunesmith.objectives.rl import Rl
from tunesmith.objectives.tag import Tag

AnyObjective = AnyPart | Rl | Multitask
OBJECTIVES: tuple[type[AnyObjective], ...] = get_args(AnyObjective)


def objective_class(kind: str) -> type[Objective]:
    """Return the class of a kind, which may be that of a plugin, without its settings; the base of all if unknown."""
    known: Sequence[type[Objective]] = OBJECTIVES
    return next((each for each in known if each.model_fields["kind"].default == kind), Objective)


__all__ = [
    "OBJECTIVES",
    "AnyObjective",
    "Classify",
    "Domain",
    "Embed",
    "Instruct",
    "Multitask",
    "Objective",
    "Preference",
    "Regress",
    "Rerank",
    "Reward",
    "Rl",
    "Tag",
    "objective_class",
]
