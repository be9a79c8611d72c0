"""What another trainer's configuration becomes while it is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Conversion:
    """A foreign configuration on its way: what is still to be read, what it became, what was left out."""

    raw: dict[str, Any]
    folder: Path
    place: str
    ours: dict[str, Any] = field(default_factory=lambda: {"data": {}, "objective": {}, "technique": {}})
    dropped: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def take(self, name: str) -> Any:
        """The value under a name, which is then done with; None where there is none."""
        return self.raw.pop(name, None)

    def put(self, section: str, key: str, value: Any, was: str) -> None:
        """Set one of our keys."""
        self.ours[section][key] = value
        self.reasons[f"{section}.{key}"] = f"was {was}"


def number(value: Any) -> float | None:
    """The number that a value says; None where it is a word or a list."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def found(work: Conversion, path: str) -> str:
    """The path from where we stand, if it counts from the file's own folder."""
    beside = work.folder / path
    return str(beside) if path and beside.exists() and not Path(path).is_absolute() else path
