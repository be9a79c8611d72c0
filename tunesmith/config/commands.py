"""Commands that messages print, with the real paths of the user, so that they work when pasted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from tunesmith.data.files import quoted
from tunesmith.data.schema.guess import Guess

ROLE_KEYS = (
    *(
        "text",
        "label",
        "prompt",
        "answer",
        "messages",
        "chosen",
        "rejected",
        "winner",
        "context",
        "choices",
        "thoughts",
    ),
)


def clean_name(source: str) -> Path:
    """Return a free name for a cleaned copy of a file, dataset or `FILE.xlsx#Sheet`, next to it."""
    path = Path(source.partition("#")[0])
    stem = path.name.partition(".")[0] or "rows"
    folder = path.parent if path.parent.is_dir() else Path()
    names = (folder / f"{stem}-clean{f'-{number}' if number else ''}.jsonl" for number in count())
    return next(name for name in names if not name.exists() and not name.with_name(f"{name.name}.log.jsonl").exists())


def columns_set(objective: Mapping[str, Any]) -> str:
    """Return the option that names the objective of a recipe's section and its columns; empty if it names no column."""
    named = {key: objective[key] for key in ROLE_KEYS if objective.get(key)}
    return Guess(objective["kind"], named).change() if named else ""


def audit_fix(source: str, columns: str = "") -> str:
    """Return the command that writes a cleaned copy of a file or dataset, with the option of `columns_set`."""
    return " ".join(filter(None, ["tunesmith audit", quoted(source), columns, "--fix", quoted(clean_name(source))]))


def set_options(changes: Sequence[str]) -> str:
    """Return `key=value` changes as options of a command line."""
    return " ".join(f"--set {quoted(change)}" for change in changes)


def collect_passages(source: str) -> str:
    """Return the command that splits a document, or a folder of them, into passages, one row each."""
    stem = Path(source).resolve().name.partition(".")[0] or "documents"
    out = next(path for number in count() if not (path := Path(f"{stem}-passages{number or ''}.jsonl")).exists())
    return f"tunesmith collect {quoted(source)} --as domain --out {quoted(out)}"
