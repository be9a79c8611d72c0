"""Commands that messages print, with the real paths of the user, so that they work when pasted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.data.files import quoted
from tunesmith.data.schema.guess import Guess
from tunesmith.errors import RowError

if TYPE_CHECKING:
    from tunesmith.objectives import AnyObjective


def clean_name(source: str) -> Path:
    """Return a free name for a cleaned copy of a file, dataset or `FILE.xlsx#Sheet`, next to it."""
    path = Path(source.partition("#")[0])
    stem = path.name.partition(".")[0] or "rows"
    folder = path.parent if path.parent.is_dir() else Path()
    names = (folder / f"{stem}-clean{f'-{number}' if number else ''}.jsonl" for number in count())
    return next(name for name in names if not name.exists() and not name.with_name(f"{name.name}.log.jsonl").exists())


def columns_set(objective: AnyObjective) -> str:
    """Return the option that names an objective and its columns; empty if it names no column."""
    named = {key: name for key in objective.column_keys if (name := getattr(objective, key))}
    return Guess(objective.kind, named).change() if named else ""


def audit_fix(source: str, columns: str = "", *, against: str = "", model: str = "") -> str:
    """Return the command that writes a cleaned copy of a file or dataset.

    Args:
        source: the file, dataset or recipe.
        columns: the option of `columns_set`.
        against: file of test rows that must not be in the copy.
        model: model that helps to find problems.
    """
    more = [f"{option} {quoted(value)}" for option, value in (("--against", against), ("--model", model)) if value]
    words = ["tunesmith audit", quoted(source), columns, *more, "--fix", quoted(clean_name(source))]
    return " ".join(filter(None, words))


def with_audit_fix(error: RowError, source: str, columns: str) -> RowError:
    """Return an error of rows with the command that drops them; other arguments as in `audit_fix`."""
    return RowError(f"{error}; to drop these rows: `{audit_fix(source, columns)}`")


def set_options(changes: Sequence[str]) -> str:
    """Return `key=value` changes as options of a command line."""
    return " ".join(f"--set {quoted(change)}" for change in changes)


def collect_passages(source: str) -> str:
    """Return the command that splits a document, or a folder of them, into passages, one row each."""
    stem = Path(source).resolve().name.partition(".")[0] or "documents"
    out = next(path for number in count() if not (path := Path(f"{stem}-passages{number or ''}.jsonl")).exists())
    return f"tunesmith collect {quoted(source)} --as domain --out {quoted(out)}"
