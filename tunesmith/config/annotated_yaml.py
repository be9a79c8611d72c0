"""A recipe in which every line says why it is there, as it is written to a file."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tunesmith.config import Recipe
from tunesmith.data.files import fix_for
from tunesmith.errors import RecipeError

WIDTH = 108


@dataclass(frozen=True, slots=True)
class AnnotatedRecipe:
    """A recipe, why each of its dotted keys is what it is, what was left out of another tool's file, and a guess at the
    columns as a command line takes it."""

    recipe: Recipe
    reasons: Mapping[str, str]
    dropped: Mapping[str, str]
    guessed: str = ""

    def text(self, folder: Path) -> str:
        """The recipe as YAML for a file in `folder`, its reasons as comments."""
        values = _from_folder(self.recipe.model_dump(mode="json", exclude_unset=True), folder)
        lines: list[str] = []
        for name, value in values.items():
            lines += [*_comment(self.reasons.get(name, ""), 0), *_entry(name, value, self.reasons)]
        if self.dropped:
            lines += ["", "# Left out:"]
            for name, why in self.dropped.items():
                lines += textwrap.wrap(f"{name}: {why}", WIDTH, initial_indent="#   ", subsequent_indent="#     ")
        return "\n".join(lines) + "\n"

    def write(self, out: Path) -> None:
        """Write the recipe. Raises RecipeError when something is there already, or the place cannot be written."""
        text = self.text(out.parent)
        try:
            with out.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise RecipeError(f"{out}: exists and is left as it is; give another --out, or delete it") from None
        except OSError as error:
            with suppress(OSError):  # what the disk had no room for would be taken for a recipe
                out.unlink()
            raise RecipeError(f"{out}: not written ({error.strerror}); {fix_for(error)}") from None


def _from_folder(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The values with paths of files that are there made to count from the recipe's folder."""

    def move(value: Any) -> Any:
        if not isinstance(value, str) or not Path(value).exists():
            return value
        if Path(value).is_absolute() and folder.absolute() not in Path(value).parents:
            return value
        try:
            path = os.path.relpath(value, folder)
        except ValueError:  # another drive
            return str(Path(value).absolute())
        return Path(path).as_posix() if "/" in path or "." in path else f"./{path}"

    data = {
        key: move(value) if key in ("train", "validation", "test") else value for key, value in values["data"].items()
    }
    return values | {"data": data, "model": move(values["model"])}


def _entry(name: str, value: Any, reasons: Mapping[str, str]) -> list[str]:
    """A key with its value; a section as one line per key, each under its reason."""
    if not isinstance(value, dict):
        return [f"{name}: {_flow(value)}"]
    lines = [f"{name}:"]
    for key, inner in value.items():
        lines += [*_comment(reasons.get(f"{name}.{key}", ""), 2), f"  {key}: {_flow(inner)}"]
    return lines


def _comment(text: str, indent: int) -> list[str]:
    lead = " " * indent + "# "
    text = "".join(letter if letter.isprintable() else " " for letter in text)  # YAML reads no others, in no place
    return textwrap.wrap(
        text, WIDTH, initial_indent=lead, subsequent_indent=lead, break_long_words=False, break_on_hyphens=False
    )


def _flow(value: Any) -> str:
    """The value on one line of YAML."""
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=math.inf).strip()[1:-1]
