"""Write a recipe as YAML with the reason for every line as a comment."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from tunesmith.config import Recipe
from tunesmith.data.files import is_there, write_whole
from tunesmith.data.readers.text_file import locate
from tunesmith.display import Display, Displayed
from tunesmith.errors import RecipeError

WIDTH = 108


@dataclass(frozen=True, slots=True, repr=False)
class AnnotatedRecipe(Displayed):
    """A recipe with the reasons for its values."""

    recipe: Recipe
    reasons: Mapping[str, str]  # by dotted key
    dropped: Mapping[str, str]  # keys of another trainer's file that have no counterpart, and why
    guessed: str = ""  # guessed column roles, as command-line options
    candidates: Sequence[BaseModel] = ()  # models that were compared

    def display(self) -> Display:
        """Show objective, model and technique; every value with its reason in a table."""
        recipe = self.recipe
        what = f"{recipe.objective.kind}, {recipe.technique.kind}, {recipe.model}"
        return Display(
            f"Recipe for {recipe.data.train}: {what}",
            [f"not converted: {name}: {why}" for name, why in self.dropped.items()],
            ("key", "reason"),
            list(self.reasons.items()),
        )

    def text(self, folder: Path) -> str:
        """Return the recipe as YAML with comments; paths are relative to `folder`."""
        values = _from_folder(self.recipe.model_dump(mode="json", exclude_unset=True), folder)
        lines: list[str] = []
        for name, value in values.items():
            lines += [*_comment(self.reasons.get(name, ""), 0), *_entry(name, value, self.reasons)]
        if self.dropped:
            lines += ["", "# Not converted:"]
            for name, why in self.dropped.items():
                lines += textwrap.wrap(f"{name}: {why}", WIDTH, initial_indent="#   ", subsequent_indent="#     ")
        return "\n".join(lines) + "\n"

    def write(self, out: Path) -> None:
        """Write the recipe to a new file. Raises RecipeError if it exists, StorageError if it cannot be written."""
        if out.exists():
            raise RecipeError(f"{out}: already exists and is not overwritten; use another --out, or delete it")
        write_whole(out, self.text(out.parent))  # a truncated file could be taken for a recipe


def _from_folder(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the paths of existing files relative to the folder of the recipe."""

    def move(value: Any) -> Any:
        if not isinstance(value, str) or not (is_there(value) or locate(value)):
            return value
        if Path(value).is_absolute() and folder.absolute() not in Path(value).parents:
            return value
        try:
            path = os.path.relpath(value, folder)
        except ValueError:  # on another drive
            return str(Path(value).absolute())
        return Path(path).as_posix() if "/" in path or "." in path else f"./{path}"

    data = {
        key: move(value) if key in ("train", "validation", "test") else value for key, value in values["data"].items()
    }
    return {key: move(value) if key == "model" else value for key, value in values.items()} | {"data": data}


def _entry(name: str, value: Any, reasons: Mapping[str, str]) -> list[str]:
    """Format a key with its value; a section has one line per key, each below its reason."""
    if not isinstance(value, dict):
        return [f"{name}: {_flow(value)}"]
    lines = [f"{name}:"]
    for key, inner in value.items():
        lines += [*_comment(reasons.get(f"{name}.{key}", ""), 2), f"  {key}: {_flow(inner)}"]
    return lines


def _comment(text: str, indent: int) -> list[str]:
    lead = " " * indent + "# "
    text = "".join(letter if letter.isprintable() else " " for letter in text)  # YAML allows no other characters
    return textwrap.wrap(
        text, WIDTH, initial_indent=lead, subsequent_indent=lead, break_long_words=False, break_on_hyphens=False
    )


def _flow(value: Any) -> str:
    """Format a value as one line of YAML."""
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=math.inf).strip()[1:-1]
