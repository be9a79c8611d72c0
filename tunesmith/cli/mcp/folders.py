"""Files below one folder, runs below another, and known models; everything else that a client names is refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tunesmith.config import Recipe
from tunesmith.config.load import with_places
from tunesmith.config.recipe import SELF, Loop
from tunesmith.display import under_home
from tunesmith.errors import TunesmithError
from tunesmith.models.loading.bundled_models import BUNDLED_MODELS
from tunesmith.report.formatting import clean

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
# Longest text, list and nesting in a result; what is left out is counted in its place.
MAX_CHARS, MAX_ITEMS, MAX_DEPTH = 2_000, 50, 12
MAX_RECIPE_CHARS = 20_000  # of a recipe, which is shown whole or not at all
KEPT = ".mcp"  # folder below the runs with jobs and recipes


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
        if not RUN_NAME.fullmatch(name) or not (new or folder.is_dir()):
            raise McpRefusal(f"run {shown(name)!r}: no run in this folder; the tool `runs` lists them")
        return without_links(folder)

    def kept(self) -> Path:
        """Return the folder of jobs and of the recipes of runs. Raises McpRefusal if it leads elsewhere."""
        return without_links(self.runs / KEPT)

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return a recipe with absolute paths. Raises McpRefusal for a value that reaches outside of the folders."""
        servers = any("://" in arm for arm in recipe.arms)
        is_code = recipe.objective.samples_completions  # its rewards are Python functions or models
        parts = [part for task in (recipe, *recipe.tasks.values()) for part in (task.objective, task.technique)]
        others = any(not type(part).__module__.startswith("tunesmith.") for part in parts)  # their keys are unknown
        refused = {
            "objective": is_code,
            "extension": others,
            "arms": servers,
            "track": recipe.track,
            "loop": recipe.loop != Loop(),
        }
        if keys := [key for key, value in refused.items() if value]:
            raise McpRefusal(f"{keys[0]}: names code or servers, which only the user may run; use something else")
        return _placed(recipe, rows=lambda name: str(self._readable(name)), model=self._model)

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        """Return what is not a default, with names that a client may use; empty if it is too long or would be changed.

        A client passes it back: a cut text or list, or one without its control characters, would be another recipe.
        """

        def rows(name: str) -> str:
            path = Path(name)
            return path.relative_to(self.data).as_posix() if path.is_relative_to(self.data) else name

        named = _placed(recipe, rows=rows, model=lambda m: f"runs/{Path(m).name}" if Path(m).parent == self.runs else m)
        values = named.model_dump(mode="json", exclude_defaults=True)
        kinds = {key: {"kind": getattr(recipe, key).kind} for key in ("objective", "technique")}
        values |= {"model": named.model, **{key: kind | values.get(key, {}) for key, kind in kinds.items()}}
        text = json.dumps(values, ensure_ascii=False)
        return values if shown(text, MAX_RECIPE_CHARS) == text else {}

    def relative(self, text: str) -> str:
        """Return a message as one cleaned line, with paths relative to the folders."""
        for folder in (self.runs, self.data):
            text = text.replace(f"{folder}/", "").replace(str(folder), folder.name)
        return shown("; ".join(text.splitlines()), 600)

    def without_places(self, document: Any) -> Any:
        """Return a JSON document in which the paths of files and runs are relative to the folders."""
        text = json.dumps(document, ensure_ascii=False)
        for folder in (self.runs, self.data):
            for mark in ("/", "\\"):
                text = text.replace(json.dumps(f"{folder}{mark}", ensure_ascii=False)[1:-1], "")
        return json.loads(text)

    def _readable(self, name: str) -> Path:
        """Return a path below the data folder; a recipe file may give it as an absolute one."""
        path = _resolved(self.data / clean(name))
        is_place = name.startswith("~") or (":" in name and not Path(name).is_absolute())
        if not name or name != clean(name) or is_place or not self._is_visible(path):
            raise _outside(name)
        if not (os.path.isfile(path) or os.path.isdir(path)):  # methods of Path raise for a name that is too long
            raise McpRefusal(f"{shown(name)}: no such file in the data folder; check the name")
        for link, target in _links(path):
            if not self._is_visible(target):
                raise _outside(f"{name}/{link.relative_to(path)}")
        return path

    def _is_visible(self, path: Path) -> bool:
        """Return whether a path without links is in the data folder, and no part of it is hidden."""
        return path.is_relative_to(self.data) and not any(p.startswith(".") for p in path.relative_to(self.data).parts)

    def _model(self, name: str) -> str:
        """Return a model as a recipe names it: an alias, a run by its folder, or one that the user allowed."""
        if not name or name in BUNDLED_MODELS or name in map(under_home, self.models):
            return name
        run = Path(name).name if Path(name).parent == self.runs else name.removeprefix("runs/")
        if RUN_NAME.fullmatch(run) and (self.runs / run).is_dir():
            return str(self.run(run))
        known = ", ".join([*BUNDLED_MODELS, *self.models])
        raise McpRefusal(f"model: {shown(name)} is not allowed; use {known}, a run, or ask the user to add --model")


def without_links(path: Path) -> Path:
    """Return a path. Raises McpRefusal if it, or anything below it, is a link: what is written would go elsewhere."""
    for link, _ in _links(path):
        raise McpRefusal(f"{path.parent.name}/{path.name}: {shown(link.name)} is a link; the user has to remove it")
    return path


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # links in a circle
        raise _outside(path.name) from None


def _links(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the links among a path and everything below it, and where they lead."""
    below = (Path(folder, name) for folder, *names in os.walk(path) for name in chain(*names))
    for entry in chain([path], below):
        if (target := _resolved(entry)) != entry:  # a link, or a junction of Windows
            yield entry, target


def _placed(recipe: Recipe, *, rows: Callable[[str], str], model: Callable[[str], str]) -> Recipe:
    """Return a recipe with other names of files and of models."""
    placed = with_places(recipe, rows=lambda name: name if name in ("", SELF) else rows(name), code=str, model=model)
    compare = recipe.compare.model_copy(update={"model": model(recipe.compare.model)})
    documents = placed.documents.model_copy(update={"encoder": model(recipe.documents.encoder)})
    teacher = placed.teacher.model_copy(update={"model": model(recipe.teacher.model)})
    named = {"model": model(recipe.model), "compare": compare, "documents": documents, "teacher": teacher}
    return placed.model_copy(update=named)


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
