"""Files below one folder, runs below another, and known models; everything else that a client names is refused."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config import Recipe
from tunesmith.config.load import with_places
from tunesmith.config.recipe import SELF, Loop
from tunesmith.display import under_home
from tunesmith.errors import TunesmithError
from tunesmith.models.loading.bundled_models import BUNDLED_MODELS
from tunesmith.objectives import Rl
from tunesmith.report.formatting import clean

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
# Longest text, list and nesting in a result; what is left out is counted in its place.
MAX_CHARS, MAX_ITEMS, MAX_DEPTH = 2_000, 50, 12


class McpRefusal(TunesmithError):
    """A client asked for something that this server does not allow."""


@dataclass(frozen=True, slots=True)
class Folders:
    """The places of a server; both paths are absolute and without symbolic links."""

    data: Path  # whose files are read as rows, documents or recipes
    runs: Path  # in which runs are written, and whose runs are read
    models: tuple[str, ...] = ()  # allowed in addition to the bundled ones and the runs

    def source(self, name: str) -> Path:
        """Return the path of a file or folder that a client names. Raises McpRefusal if it may not be read."""
        if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name):
            raise _outside(name)
        return self._readable(name)

    def run(self, name: str, *, new: bool = False) -> Path:
        """Return the folder of a run or comparison. Raises McpRefusal if it is not there, unless it is `new`."""
        folder = self.runs / name
        if not RUN_NAME.fullmatch(name) or folder.is_symlink() or not (new or folder.is_dir()):
            raise McpRefusal(f"run {shown(name)!r}: no run in this folder; the tool `runs` lists them")
        return folder

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return a recipe with absolute paths. Raises McpRefusal for a value that reaches outside of the folders."""
        servers = any("://" in arm for arm in recipe.arms)
        is_code = isinstance(recipe.objective, Rl)  # its rewards are Python functions or models
        refused = {"objective": is_code, "arms": servers, "track": recipe.track, "loop": recipe.loop != Loop()}
        if keys := [key for key, value in refused.items() if value]:
            raise McpRefusal(f"{keys[0]}: names code or servers, which only the user may run; use something else")
        placed = with_places(
            recipe, rows=lambda name: name if name in ("", SELF) else str(self._readable(name)), code=lambda name: name
        )
        compare = recipe.compare.model_copy(update={"model": self._model(recipe.compare.model)})
        documents = placed.documents.model_copy(update={"encoder": self._model(recipe.documents.encoder)})
        models = {"model": self._model(recipe.model), "compare": compare, "documents": documents}
        return placed.model_copy(update=models)

    def relative(self, text: str) -> str:
        """Return a message as one cleaned line, with paths relative to the folders."""
        for folder in (self.runs, self.data):
            text = text.replace(f"{folder}/", "").replace(str(folder), folder.name)
        return shown("; ".join(text.splitlines()), 600)

    def _readable(self, name: str) -> Path:
        """Return a path below the data folder; a recipe file may give it as an absolute one."""
        path = (self.data / clean(name)).resolve()
        is_place = name.startswith("~") or (":" in name and not Path(name).is_absolute())
        inner = path.relative_to(self.data).parts if path.is_relative_to(self.data) else (".",)
        if not name or name != clean(name) or is_place or any(part.startswith(".") for part in inner):
            raise _outside(name)
        if not path.is_file() and not path.is_dir():
            raise McpRefusal(f"{shown(name)}: no such file in the data folder; check the name")
        for link in filter(Path.is_symlink, path.rglob("*") if path.is_dir() else ()):
            if not link.resolve().is_relative_to(self.data):
                raise _outside(f"{name}/{link.relative_to(path)}")
        return path

    def _model(self, name: str) -> str:
        """Return a model as a recipe names it: an alias, a run by its folder, or one that the user allowed."""
        if not name or name in BUNDLED_MODELS or name in map(under_home, self.models):
            return name
        run = name.removeprefix("runs/")
        if RUN_NAME.fullmatch(run) and (self.runs / run).is_dir():
            return str(self.run(run))
        known = ", ".join([*BUNDLED_MODELS, *self.models])
        raise McpRefusal(f"model: {shown(name)} is not allowed; use {known}, a run, or ask the user to add --model")


def _outside(name: str) -> McpRefusal:
    problem = "hidden, or outside of the data folder; name a file by its path in that folder, such as reviews.csv"
    return McpRefusal(f"{shown(name) or 'source'}: {problem}")


def digest_of(recipe: Recipe, *more: Path) -> str:
    """Return a digest of the names and contents of all files that the run of a vetted recipe reads, and of `more`."""
    paths = list(more)

    def note(name: str) -> str:
        if name not in ("", SELF):
            paths.append(Path(name))
        return name

    with_places(recipe, rows=note, code=lambda name: name)
    total = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else (path,):
            total.update(f"{file}\0".encode(errors="surrogateescape"))
            if file.is_file():
                with file.open("rb") as content:
                    total.update(hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()


def shown(text: str, most: int = 120) -> str:
    """Return text of a client, a file or a model without characters that control a screen or hide, and not too long."""
    visible = "".join(
        c for c in clean(text) if c in "\u200c\u200d" or unicodedata.category(c) not in ("Cf", "Co", "Cn")
    )
    left_out = len(visible) - most
    return f"{visible[:most]} [... {left_out:,} characters left out]" if left_out > 0 else visible


def bounded(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Return a JSON value with every text cleaned, and long texts, long lists and deep values cut with a note."""
    if isinstance(value, str) or (not depth and isinstance(value, dict | list)):
        return shown(str(value), MAX_CHARS)
    if isinstance(value, dict):
        items = list(value.items())
        note = {"left_out": f"{len(items) - MAX_ITEMS:,} more keys"} if len(items) > MAX_ITEMS else {}
        return {shown(str(key)): bounded(inner, depth - 1) for key, inner in items[:MAX_ITEMS]} | note
    if isinstance(value, list | tuple):
        more = [f"[... {len(value) - MAX_ITEMS:,} more left out]"] if len(value) > MAX_ITEMS else []
        return [bounded(item, depth - 1) for item in value[:MAX_ITEMS]] + more
    return value
