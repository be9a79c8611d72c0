"""Change one value in the text of a recipe; comments, order and everything else stay."""

from __future__ import annotations

from typing import Any

import yaml

from tunesmith.config.messages import invalid_yaml
from tunesmith.config.recipe import expanded
from tunesmith.data.bounded_yaml import BoundedLoader, parse_yaml
from tunesmith.errors import RecipeError


def set_value(text: str, key: str, value: Any) -> str:
    """Return the text with a key set.

    Args:
        text: YAML of a recipe.
        key: dotted, at most two parts, such as `schedule.epochs`.
        value: the new value; None removes the key.

    Raises:
        RecipeError: the text is not a YAML mapping.
    """
    section, _, name = key.partition(".")
    root = _mapping(text)
    entry = _entry(root, section)
    if not name:
        return _put(text, root, section, value)
    if entry is None:
        return text if value is None else _append(text, f"{section}: {_inline({name: value})}\n")
    if isinstance(entry[1], yaml.MappingNode):
        return _put(text, entry[1], name, value)
    if value is None:
        return text
    whole = parse_yaml(_slice(text, entry[1]))
    known = expanded(section, {} if whole is None else whole)
    return _replace(text, entry[1], _inline({**(known if isinstance(known, dict) else {}), name: value}))


def _mapping(text: str) -> yaml.MappingNode:
    try:
        root = yaml.compose(text, BoundedLoader)
    except yaml.YAMLError as error:
        raise RecipeError(invalid_yaml("recipe", error)) from error
    if root is None:
        return yaml.MappingNode("tag:yaml.org,2002:map", [], flow_style=False)
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError("recipe: not a mapping; write `key: value` lines")
    return root


def _entry(node: yaml.MappingNode, name: str) -> tuple[yaml.Node, yaml.Node] | None:
    return next(((key, value) for key, value in node.value if key.value == name), None)


def _put(text: str, node: yaml.MappingNode, name: str, value: Any) -> str:
    """Set or remove a key of a mapping in the text."""
    entry = _entry(node, name)
    if entry is not None:
        return _remove(text, node, entry) if value is None else _replace(text, entry[1], _inline(value))
    if value is None:
        return text
    line = f"{name}: {_inline(value)}"
    if not node.value and node.end_mark is None:
        return _append(text, line + "\n")
    if node.flow_style:
        end = node.end_mark.index - 1
        return f"{text[:end].rstrip()}{', ' if node.value else ''}{line}{text[end:]}"
    last = node.value[-1][1]
    at = text.find("\n", _end(text, last))
    indent = " " * node.value[0][0].start_mark.column
    return _append(text, f"{indent}{line}\n") if at < 0 else f"{text[: at + 1]}{indent}{line}\n{text[at + 1 :]}"


def _remove(text: str, node: yaml.MappingNode, entry: tuple[yaml.Node, yaml.Node]) -> str:
    start, end = entry[0].start_mark.index, _end(text, entry[1])
    if not node.flow_style:
        newline = text.find("\n", end)
        return text[: text.rfind("\n", 0, start) + 1] + (text[newline + 1 :] if newline >= 0 else "")
    if (after := text[end:].lstrip()).startswith(","):
        return text[:start] + after[1:].lstrip()
    return text[:start].rstrip().removesuffix(",") + text[end:]


def _replace(text: str, node: yaml.Node, new: str) -> str:
    start = node.start_mark.index
    block = isinstance(node, yaml.CollectionNode) and not node.flow_style
    if block:  # it begins on a line below its key
        start = len(text[:start].rstrip())
        new = f" {new}"
    elif text[start - 1 : start] == ":":  # the value was empty
        new = f" {new}"
    return text[:start] + new + text[_end(text, node) :]


def _end(text: str, node: yaml.Node) -> int:
    """Return where a value ends; the end of a block is marked behind the blank lines and comments that follow."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        return _end(text, node.value[-1][1])
    if isinstance(node, yaml.SequenceNode) and not node.flow_style:
        return _end(text, node.value[-1])
    end = int(node.end_mark.index)
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):  # marked at the line that follows
        # Blank lines belong to the value only where it keeps them (`|+`).
        return len(text[:end].removesuffix("\n") if node.value.endswith("\n\n") else text[:end].rstrip())
    return end


def _slice(text: str, node: yaml.Node) -> str:
    return text[node.start_mark.index : node.end_mark.index]


def _append(text: str, line: str) -> str:
    return (text if not text or text.endswith("\n") else text + "\n") + line


def _inline(value: Any) -> str:
    dumped = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return dumped.removesuffix("\n").removesuffix("...").rstrip("\n")
