"""The errors a user can meet, as one tree.

TunesmithError            exit 2: the user's input is wrong
├── DataError             a row, a file or a column
│   ├── RowError          rows that no run can read
│   └── UnsettledError    rows of a known shape that do not say what to learn
├── RecipeError           a key, a value or a pair that cannot work
├── TemplateError         a chat format that cannot be masked, or differs from the run's
├── ModelError            a model that cannot be found, read or trusted
├── CheckpointError       a run folder that is broken, foreign or not a run
├── RewardError           a reward that fails or gives no number
└── Refused               exit 1: the input is well-formed, and the data or a gate says no

Each message is one line: place, finding, cure. Anything else that is raised is our own bug.
"""

import re
from collections.abc import Sequence

_MEMBER = re.compile(r"(constrained-)?(float|int|str|bool|list|dict|tuple)\b|literal\[|function-")

_NAMING = ("where", "tasks")  # what stands below these is a name that a person gave


def briefly(said: object) -> str:
    """The first 200 characters of an error, or of what a library says of one, on one line."""
    return " ".join(str(said).split())[:200] or type(said).__name__


class TunesmithError(Exception):
    """An error whose text is meant for the user: `place: finding; cure`."""

    exit_code = 2


class DataError(TunesmithError):
    """A row, a file or a column is not what the recipe needs."""


class RowError(DataError):
    """Rows that no run can read, each with its fault: `tunesmith audit --fix` drops them."""


class UnsettledError(DataError):
    """Rows of a known shape that leave open what is to be learned: a guess would be wrong."""


class RecipeError(TunesmithError):
    """A recipe holds an unknown key, a wrong value or a pair that cannot work."""


class TemplateError(TunesmithError):
    """A chat format cannot be masked safely, or is not the one a run was trained with."""


class ModelError(TunesmithError):
    """A model cannot be found, read or trusted."""


class CheckpointError(TunesmithError):
    """A run folder is broken, foreign, or made for another base."""


class RewardError(TunesmithError):
    """A reward raised an error or gave something that is no number."""


class Refused(TunesmithError):
    """The input is well-formed, and the data or a gate says no."""

    exit_code = 1


def key_of(place: Sequence[int | str]) -> list[str]:
    """The keys that a person wrote of a place that pydantic names: without the members of unions in it."""
    told = ["", *map(str, place)]
    return [part for before, part in zip(told, told[1:], strict=False) if before in _NAMING or not _MEMBER.match(part)]
