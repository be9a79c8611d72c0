"""The recipe of a run: load, resolve, validate, write and import it. Objectives and techniques meet only here."""

from tunesmith.config.checks import check_gates, check_pair, check_replay, check_technique
from tunesmith.config.load import load_recipe, make_recipe, save_recipe, with_places
from tunesmith.config.recipe import (
    ARMS,
    PEOPLE,
    SELF,
    VOTES,
    AnyObjective,
    AnyTechnique,
    Compare,
    Data,
    Documents,
    Gates,
    Loop,
    Machine,
    Recipe,
    Replay,
    Retention,
    Schedule,
)

__all__ = [
    "ARMS",
    "PEOPLE",
    "SELF",
    "VOTES",
    "AnyObjective",
    "AnyTechnique",
    "Compare",
    "Data",
    "Documents",
    "Gates",
    "Loop",
    "Machine",
    "Recipe",
    "Replay",
    "Retention",
    "Schedule",
    "check_gates",
    "check_pair",
    "check_replay",
    "check_technique",
    "load_recipe",
    "make_recipe",
    "save_recipe",
    "with_places",
]
