"""The errors that user input can cause.

TunesmithError            exit 2: invalid input
├── DataError             invalid row, file or column
│   ├── RowError          rows that cannot be parsed
│   └── UnsettledError    rows of a known format that fit several objectives
├── OptionError           option or parameter with an invalid value
├── RecipeError           unknown key, invalid value or unsupported combination
├── TemplateError         chat template that cannot be masked, or differs from that of the run
├── ModelError            model not found, unreadable or not trusted
├── CheckpointError       run folder damaged, of another base, or not a run
├── StorageError          file or folder that cannot be written or read; a DataError and a CheckpointError
├── RewardError           reward function failed or returned no number
├── ProcessError          another process of the run ended
└── Refused               exit 1: data check or quality gate failed

Each message is `place: problem; fix`, one line per problem. Any other exception is a bug in Tunesmith.
"""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_MEMBER = re.compile(r"(constrained-)?(float|int|str|bool|list|dict|tuple)\b|literal\[|function-")

_NAMING = ("where", "tasks")  # sections whose keys are names chosen by the user


def briefly(error: object) -> str:
    """Return the first 200 characters of an error or of its text on one line; the class name if it has no text."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def nearest_name(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return the known name that resembles a misspelt word most; empty if none does.

    Args:
        word: the word as the user wrote it.
        known: the names that exist. Case does not count.
        cutoff: smallest similarity in [0, 1], as `difflib.get_close_matches` measures it.
    """
    by_lower = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), by_lower, 1, cutoff)
    return by_lower[near[0]] if near else ""


def first_names(names: Sequence[str], count: int) -> str:
    """Return the first names joined by commas, for a message; `, ...` stands for the others.

    Args:
        names: all names.
        count: greatest number of names.
    """
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `did you mean 'NAME'?` with the nearest name; empty if none resembles the word."""
    near = nearest_name(word, known)
    return f"did you mean {near!r}?" if near else ""


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out.

    Args:
        error: any exception. torch has its own type for a GPU; on a CPU only the text of a RuntimeError shows it.
    """
    words = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    ran_out = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's, not imported here
    return ran_out or any(word in str(error) for word in words)


class TunesmithError(Exception):
    """Base class of all errors caused by user input; the text is `place: problem; fix`."""

    exit_code = 2
    command: Sequence[str] = ()  # words of the command that the text names as the fix, for programs


class OptionError(TunesmithError):
    """An option of a command, or a parameter of a function, has an invalid value."""


class DataError(TunesmithError):
    """A row, a file or a column is not what the recipe requires."""


class RowError(DataError):
    """Rows cannot be parsed; `tunesmith audit --fix` drops them."""


class UnsettledError(DataError):
    """Rows of a known format fit several objectives, and the recipe does not name one."""


class RecipeError(TunesmithError):
    """A recipe contains an unknown key, an invalid value or an unsupported combination."""


class TemplateError(TunesmithError):
    """A chat template cannot be masked safely, or is not the one a run was trained with."""


class OverBudgetError(TemplateError):
    """A chat template takes too much time or memory; its format is not known by that."""


class ModelError(TunesmithError):
    """A model is not found, cannot be read, or is not trusted."""


class CheckpointError(TunesmithError):
    """A run folder is damaged, belongs to another base model, or is not a run."""


class StorageError(DataError, CheckpointError):
    """The disk is full or read-only, or a file cannot be opened; what was saved before is kept."""


class RewardError(TunesmithError):
    """A reward function raised an error or did not return a number."""


class ProcessError(TunesmithError):
    """Another process of the run has ended or cannot be reached."""


class Refused(TunesmithError):
    """A data check or a quality gate failed; the input itself is valid."""

    exit_code = 1


def key_of(location: Sequence[int | str]) -> list[str]:
    """Return the keys of a pydantic error location without the union members that pydantic inserts."""
    parts = ["", *map(str, location)]
    return [
        part for before, part in zip(parts, parts[1:], strict=False) if before in _NAMING or not _MEMBER.match(part)
    ]
