"""The keys of a recipe in words, for the page of the recipe: a test compares its tables with these lines."""

from __future__ import annotations

import json
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tunesmith.config import (
    Compare,
    Data,
    Documents,
    Gates,
    Ledger,
    Loop,
    Machine,
    Recipe,
    Replay,
    Retention,
    Schedule,
    Teacher,
    Verdict,
)
from tunesmith.objectives import OBJECTIVES
from tunesmith.objectives.multitask import TaskSection
from tunesmith.techniques import TECHNIQUES

# Heading on the recipe page -> the section of the recipe with the keys of its table.
SECTIONS: dict[str, type[BaseModel]] = {
    "A task of multitask": TaskSection,
    "The recipe": Recipe,
    "`data`": Data,
    **{f"`objective`: {part().kind}": part for part in OBJECTIVES},
    **{f"`technique`: {part().kind}": part for part in TECHNIQUES},
    "`schedule`": Schedule,
    "`machine`": Machine,
    "`replay`": Replay,
    "`teacher`": Teacher,
    "`gates`": Gates,
    "`retention`": Retention,
    "`ledger`": Ledger,
    "`verdict`": Verdict,
    "`loop`": Loop,
    "`documents`": Documents,
    "`compare`": Compare,
}
WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "none"}
BOUNDS = {Ge: ("ge", "at least"), Gt: ("gt", "above"), Le: ("le", "at most"), Lt: ("lt", "below")}


def values(annotation: Any) -> str:
    """Describe the type of a key."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    inside = get_args(annotation)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{word if isinstance(word, str) else json.dumps(word)}`" for word in inside)
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(dict.fromkeys(values(part) for part in inside))
    if get_origin(annotation) in (list, tuple):
        return "list"
    if get_origin(annotation) is dict:
        return "mapping"
    return WORDS.get(annotation, "section")


def allowed(field: FieldInfo) -> str:
    """Describe the type of a key and its bounds."""
    parts = [values(field.annotation)]
    for bound in field.metadata:
        if type(bound) in BOUNDS:
            attribute, words = BOUNDS[type(bound)]
            parts.append(f"{words} {getattr(bound, attribute)}")
    return ", ".join(parts)


def default(field: FieldInfo) -> str:
    """Return the default as written in YAML."""
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        return f"`{value.model_dump().get('kind', '{}')}`"
    return f"`{value if isinstance(value, str) and value else json.dumps(value)}`"


def row(name: str, field: FieldInfo) -> str:
    """Return the first three cells of a key's line on the recipe page."""
    return f"| `{name}` | {default(field)} | {allowed(field)} | "
