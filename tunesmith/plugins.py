"""Extensions by other packages: entry points of installed packages, each loaded when a recipe or a file names it.

A package offers objectives, techniques, metrics, readers of file types, and reward functions in its pyproject.toml, see
`docs/how-to/extend.md`. `import tunesmith` loads none of them, and a name never leads to code that is not installed.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata
from typing import Any, get_args

from tunesmith.errors import RecipeError, briefly

GROUPS = ("objectives", "techniques", "metrics", "readers", "rewards")
_LOADED: set[tuple[str, str]] = set()


@cache
def offered(group: str) -> dict[str, metadata.EntryPoint]:
    """Return the entry points of installed packages for a group of GROUPS, by name."""
    return {entry.name: entry for entry in metadata.entry_points(group=f"tunesmith.{group}")}


def plugin(group: str, name: str, base: type | None = None) -> Any:
    """Load what an installed package offers under a name.

    Args:
        group: one of GROUPS.
        name: kind, metric, suffix without its dot, or reward.
        base: the class that it has to be derived from; None for a function.

    Returns:
        The class or function; None if no installed package offers it.

    Raises:
        RecipeError: it cannot be imported, or is something else; the message names the package.
    """
    if (entry := offered(group).get(name)) is None:
        return None
    package = entry.dist.name if entry.dist else entry.module
    place = f"{package}: {group} {name!r} ({entry.value})"
    try:
        value = entry.load()
    except (Exception, SystemExit) as error:  # code of others may raise anything
        problem = f"cannot be imported ({type(error).__name__}: {briefly(error)})"
        raise RecipeError(f"{place}: {problem}; update it, or pip uninstall {package}") from error
    if base is None and not callable(value):
        raise RecipeError(f"{place}: expected a function, got {type(value).__name__}; ask its author")
    if base is not None:
        if not (isinstance(value, type) and issubclass(value, base)):
            raise RecipeError(f"{place}: expected a class derived from {base.__name__}; ask its author")
        field = value.model_fields.get("kind")  # type: ignore[attr-defined]
        if field is None or get_args(field.annotation) != (name,):
            raise RecipeError(f"{place}: its field `kind` is not Literal[{name!r}]; ask its author")
    _LOADED.add((group, name))
    return value


def used(recipe: Any) -> dict[str, str]:
    """Return the packages that offer the objective, the technique or a metric of a recipe, with their versions."""
    objectives = [part.objective for part in recipe.parts.values()] or [recipe.objective]
    named = [("techniques", recipe.technique.kind), *(("objectives", one.kind) for one in objectives)]
    named += [("metrics", str(getattr(one, "metric", ""))) for one in objectives]
    entries = [offered(group)[name] for group, name in named if (group, name) in _LOADED]  # built-in ones are not
    return {entry.dist.name: entry.dist.version for entry in entries if entry.dist}


def taken(group: str, name: str) -> str:
    """Return problem and fix if an installed package offers a name that is built in; empty if none does."""
    if (entry := offered(group).get(name)) is None:
        return ""
    package = entry.dist.name if entry.dist else entry.module
    problem = f"{package}: offers {group} {name!r}, which is built in and is used instead"
    return f"{problem}; rename it there, or pip uninstall {package}"


def missing(packages: Any) -> str:
    """Return the fix for packages that a run names as its extensions and that are not installed; empty if all are.

    Args:
        packages: name -> version, from a file that anyone may have written.
    """
    if not isinstance(packages, dict) or not packages:
        return ""
    known = {entry.dist.name for group in GROUPS for entry in offered(group).values() if entry.dist}
    named = [f"{name}=={version}" if version else name for name, version in packages.items() if name not in known]
    absent = [one for one in named if re.fullmatch(r"[A-Za-z0-9][\w.-]*(==[\w.+!-]+)?", one)]
    return f"pip install {' '.join(absent)} if you trust what this run names" if absent else ""
