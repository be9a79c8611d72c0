"""State of a conversion from another trainer's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Conversion:
    """A configuration that is being converted."""

    raw: dict[str, Any]  # keys that are not converted yet
    folder: Path  # of the file
    place: str  # the file, for error messages
    ours: dict[str, Any] = field(default_factory=lambda: {"data": {}, "objective": {}, "technique": {}})  # the recipe
    dropped: dict[str, str] = field(default_factory=dict)  # keys without a counterpart, and why
    reasons: dict[str, str] = field(default_factory=dict)  # dotted key -> comment

    def take(self, name: str) -> Any:
        """Remove a key and return its value; None if it is missing."""
        return self.raw.pop(name, None)

    def put(self, section: str, key: str, value: Any, was: str) -> None:
        """Set a key of the recipe that was converted from `was`."""
        self.ours[section][key] = value
        self.reasons[f"{section}.{key}"] = f"was {was}"


def number(value: Any) -> float | None:
    """Parse a number; None if the value is not one."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def resolve_path(work: Conversion, path: str) -> str:
    """Return the path relative to the folder of the file if it exists there, else unchanged."""
    relative = work.folder / path
    return str(relative) if path and relative.exists() and not Path(path).is_absolute() else path
