"""One line on an invalid recipe: the place with its line, the key, and what was expected instead."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tunesmith.config.aliases import ALIASES, INSIDE, unknown_kind
from tunesmith.config.recipe import Data, Recipe
from tunesmith.config.unsupported import why_left_out
from tunesmith.errors import key_of, suggestion
from tunesmith.objectives import OBJECTIVES
from tunesmith.objectives.multitask import TaskRows, TaskSection
from tunesmith.techniques import TECHNIQUES

# What a key expects, by the error type of pydantic; filled with the context of the error.
EXPECTED = {
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "greater_than": "a number > {gt}",
    "greater_than_equal": "a number >= {ge}",
    "less_than": "a number < {lt}",
    "less_than_equal": "a number <= {le}",
    "string_type": "text; put a number in quotes",
    "string_unicode": "text in UTF-8",
    "dict_type": "a mapping of keys",
    "mapping_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "tuple_type": "a list, such as [a, b]",
    "list_type": "a list, such as [a, b]",
    "string_pattern_mismatch": "a name of the letters a to z, digits, `-` and `_`, starting with a letter",
}
PARTS = {get_args(part.model_fields["kind"].annotation)[0]: part for part in (*OBJECTIVES, *TECHNIQUES)}
OPTIONS = {key for part in PARTS.values() for key in part.model_fields}
KINDS = {"objective": OBJECTIVES, "technique": TECHNIQUES}


def explain(error: ValidationError, place: str, *, changes: Mapping[str, str], text: str = "") -> str:
    """Return one line on the first error that pydantic found in a recipe.

    Args:
        error: the errors.
        place: file or command.
        changes: changed key -> the change as the user wrote it, which replaces the place.
        text: the YAML, to find lines in; may be empty.
    """
    first, *others = error.errors()
    # pydantic inserts union members into the path, which are not keys of the file.
    path = [part for part in key_of(first["loc"]) if part != "[key]"]
    dotted = ".".join(p for i, p in enumerate(path) if not (i and path[i - 1] in KINDS and p in PARTS))
    unknown = first["type"] == "extra_forbidden"
    changed = _change(dotted, changes, unknown=unknown)
    if changed:
        place = changed
    elif text and (line := line_of(text, dotted.split("."), key=unknown)):
        place = f"{place}:{line}"
    at = place if place.startswith(f"{dotted}=") else f"{place}: {dotted}"
    if unknown:
        return f"{place}: {_unknown_key(path, dotted)}"
    if first["type"] == "missing":
        return f"{place}: {dotted} is missing; {_add(path)}"
    if first["type"] == "value_error":
        problem = first["msg"].removeprefix("Value error, ")
        if not path:  # a problem of the recipe as a whole, which names its keys itself
            return f"{place}: {problem}"
        return f"{at}: {problem}" + ("" if "unknown kind" in problem else f" (got {first['input']!r})")
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f"{at}: {_wrong_kind(first)}"
    # The members of a union fail one by one: `a number or auto` is two errors at the same key.
    same = [first, *(other for other in others if [p for p in key_of(other["loc"]) if p != "[key]"] == path)]
    expected = list(dict.fromkeys(_expected(one) for one in same))
    hint = suggestion(str(first["input"]), [word for one in same for word in _words(one)])
    return f"{at}: expected {' or '.join(expected)}, got {_plain(first['input'])}; {hint or _fix(path)}"


def line_of(text: str, path: Sequence[str], *, key: bool = False) -> int:
    """Return the line of a key path in YAML, or of the nearest section around it unless `key`; 0 if there is none."""
    node = None
    with suppress(yaml.YAMLError, RecursionError):
        node = yaml.compose(text, yaml.SafeLoader)
    line = 0
    for depth, name in enumerate(path):
        entry = _entry(node, name) or (_entry(node, _alias_of(node, path, depth)) if depth < 2 else None)
        if entry is None:
            return 0 if key else line
        line, node = entry[0].start_mark.line + 1, entry[1]
    return line


def _entry(node: yaml.Node | None, name: str) -> tuple[yaml.Node, yaml.Node] | None:
    """Return the key and value nodes of a key, or an item of a list twice."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == name), None)
    if isinstance(node, yaml.SequenceNode) and name.isdigit() and int(name) < len(node.value):
        item = node.value[int(name)]
        return item, item
    return None


def _alias_of(node: yaml.Node | None, path: Sequence[str], depth: int) -> str:
    """Return the name of another trainer under which a key was written; empty if none was."""
    dotted = ".".join(path[:2])
    names = [name for name, ours in (ALIASES | (INSIDE if depth else {})).items() if ours == dotted]
    return next((name for name in names if _entry(node, name)), "")


def _change(dotted: str, changes: Mapping[str, str], *, unknown: bool) -> str:
    """Return the change that caused an error at a key; empty if none did."""
    place = ""
    for key, change in changes.items():
        # An unknown key is caused by its own change, or by the change of its section to another kind.
        caused = unknown and (key.startswith(f"{dotted}.") or dotted.startswith(f"{key.removesuffix('.kind')}."))
        if caused or key in (dotted, f"{dotted}.kind") or dotted.startswith(f"{key}."):
            place = change
    return place


def _unknown_key(path: Sequence[str], dotted: str) -> str:
    """Return the message for a key that its section does not have."""
    if (why := why_left_out(path[-1])) and path[-1] not in OPTIONS:
        return f"{dotted}: not supported: {why}; remove it"
    known = sorted(_section(path))
    if "tasks" in path and "data" in path[-2:-1] and path[-1] in Data.model_fields:
        hint = f"data.{path[-1]} applies to all tasks"
    else:
        hint = suggestion(path[-1], known) or _of_other_kinds(path)
    return f"unknown key {dotted!r}{', ' * bool(hint)}{hint}; known keys: {', '.join(known)}"


def _of_other_kinds(path: Sequence[str]) -> str:
    """Return which kinds of a section have a key that this one does not have; empty if none has."""
    section = path[-2] if len(path) > 1 else ""
    section = next((name for name, parts in KINDS.items() if PARTS.get(section) in parts), section)
    kinds = [kind for kind, part in PARTS.items() if part in KINDS.get(section, ()) and path[-1] in part.model_fields]
    return f"it belongs to {section} {' or '.join(kinds)}" if kinds else ""


def _add(path: Sequence[str]) -> str:
    """Return how to add a missing key."""
    if path[-1] in KINDS:
        kinds = [kind for kind, part in PARTS.items() if part in KINDS[path[-1]]]
        kinds = kinds if len(path) == 1 else [kind for kind in kinds if kind not in ("multitask", "rl")]
        return f"add it as `{path[-1]}: KIND`, one of {', '.join(kinds)}"
    return "add it"


def _wrong_kind(error: ErrorDetails) -> str:
    """Return the message for a section whose kind pydantic does not know."""
    context = error.get("ctx", {})
    known = re.findall(r"'([^']*)'", str(context.get("expected_tags", "")))
    if "tag" not in context:
        return "kind is missing; add it"
    return unknown_kind(str(context["tag"]), known)


def _words(error: ErrorDetails) -> list[str]:
    """Return the words that a key allows."""
    return re.findall(r"'([^']*)'", str(error.get("ctx", {}).get("expected", "")))


def _expected(error: ErrorDetails) -> str:
    """Return what a key expects."""
    if error["type"] == "literal_error":  # pydantic writes Python, recipes are YAML
        expected = str(error["ctx"]["expected"]).replace("''", '""')  # no value, as YAML has it
        return expected.replace("'", "").replace("True", "true").replace("False", "false")
    if error["type"] in EXPECTED:
        return EXPECTED[error["type"]].format(**error.get("ctx", {}))
    return error["msg"].removeprefix("Input should be ")


def _plain(value: object) -> str:
    """Return a value as YAML writes it, shortened."""
    text = "true" if value is True else "false" if value is False else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _fix(path: Sequence[str]) -> str:
    """Return how to fix a wrong value: with the default of its key, if it has one."""
    field = _section(path).get(path[-1])
    default = getattr(field, "default", None)
    if isinstance(default, bool | int | float | str) and default != "":
        return f"use {_plain(default).strip(chr(39))}, the default"
    return "correct it"


def _section(path: Sequence[str]) -> Mapping[str, Any]:
    """Return the fields of the section that contains the last key of a path."""
    fields = Recipe.model_fields.items()
    models: dict[str, Any] = {
        n: f.annotation for n, f in fields if isinstance(f.annotation, type) and issubclass(f.annotation, BaseModel)
    }
    models["tasks"] = TaskSection
    if "tasks" in path:
        models["data"] = TaskRows
    models |= PARTS
    for name in reversed(path[:-1]):
        if name in models:
            fields_of: Mapping[str, Any] = models[name].model_fields
            return fields_of
    return Recipe.model_fields


def invalid_yaml(path: object, error: Exception) -> str:
    """Return the message for a file that is not YAML."""
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, yaml.MarkedYAMLError) and mark is not None:
        return f"{path}:{mark.line + 1}: invalid YAML ({error.problem}); fix this line"
    problem = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
    return f"{path}: invalid YAML ({problem}); fix this line"
