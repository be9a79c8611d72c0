"""Checks of tool calls: functions that are offered, arguments that fit their schema, ids of calls and results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tunesmith.data.tokenization.messages import ROLES
from tunesmith.data.tokenization.tool_calls import Call, calls_alone, has_json_type, read_calls, read_tools, schemas_of
from tunesmith.errors import DataError


def tool_findings(turns: Sequence[Mapping[str, Any]], tools: object) -> dict[str, str]:
    """Return the findings about the tool calls of a chat: kind -> note.

    Without a cell of offered `tools`, functions and arguments are not checked.
    """
    try:
        offered = schemas_of(read_tools(tools, ""))
        calls = [call for turn in turns for call in _calls(turn)]
    except DataError:  # the parser reports the error
        return {}
    found = {"tool_ids": _wrong_id(turns)}
    if offered:
        unknown = [call.name for call in calls if call.name not in offered]
        found["tool_not_offered"] = f"{unknown[0]} is not offered" if unknown else ""
        known = (call for call in calls if call.name in offered)
        try:
            found["tool_arguments"] = _first(_misfit(call, offered[call.name]) for call in known)
        except RecursionError:  # hundreds of nested brackets
            found["tool_arguments"] = "arguments nested too deeply to check"
    return {kind: note for kind, note in found.items() if note}


def _calls(turn: Mapping[str, Any]) -> Sequence[Call]:
    """Return the calls of a turn, also those that are written in its text."""
    content = turn.get("content", turn.get("value"))
    return read_calls(turn, "") or (calls_alone(content, bare=False) if isinstance(content, str) else ())


def _misfit(call: Call, schema: Mapping[str, Any]) -> str:
    """Return why the arguments of a call do not fit; empty if they do."""
    arguments = json.loads(call.arguments)
    known = schema.get("properties")
    extra = sorted(arguments.keys() - known.keys()) if isinstance(known, Mapping) else []
    if extra and not schema.get("additionalProperties"):
        return f"{call.name} has no parameter {extra[0]}"
    problem = misfit(arguments, schema)
    return f"{call.name}: {problem}" if problem else ""


def misfit(value: Any, schema: Any, place: str = "") -> str:
    """Return why a value does not fit a JSON schema; empty if it does, or if the schema uses other keywords.

    Checked are `type`, `enum`, `const`, `required`, `properties`, `items`, `anyOf` and `oneOf`. In the message, the
    value is called `place`.
    """
    if not isinstance(schema, Mapping):
        return ""
    for options in (schema.get("anyOf"), schema.get("oneOf")):
        if isinstance(options, list) and options and (problems := [misfit(value, one, place) for one in options]):
            return "" if "" in problems else problems[0]
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds] if isinstance(kinds, str) else []
    if kinds and not any(has_json_type(value, str(kind)) for kind in kinds):
        return f"{place or 'the arguments'} must be {' or '.join(map(str, kinds))}"
    allowed = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(allowed, list) and value not in allowed:
        return f"{place or 'the value'} must be one of {', '.join(map(str, allowed[:5]))}{', ...' * (len(allowed) > 5)}"
    return _misfit_inside(value, schema, place)


def _misfit_inside(value: Any, schema: Mapping[str, Any], place: str) -> str:
    """Return why a part of an object or array does not fit."""
    if isinstance(value, dict):
        required = schema.get("required")
        missing = (
            [key for key in required if isinstance(key, str) and key not in value] if isinstance(required, list) else []
        )
        if missing:
            return f"{place}.{missing[0]} is missing".lstrip(".")
        known = schema.get("properties")
        named = known if isinstance(known, Mapping) else {}
        return _first(misfit(part, named.get(key), f"{place}.{key}".lstrip(".")) for key, part in value.items())
    if isinstance(value, list):
        return _first(misfit(part, schema.get("items"), f"{place}[{i}]") for i, part in enumerate(value))
    return ""


def _wrong_id(turns: Sequence[Mapping[str, Any]]) -> str:
    """Return the first result that belongs to no call, or call without result; empty for rows without ids."""
    waiting: list[str] = []
    for turn in turns:
        role = ROLES.get(str(turn.get("role", turn.get("from"))).strip().lower())
        if role == "tool":
            given = turn.get("tool_call_id")
            if isinstance(given, str) and given not in waiting:
                return f"no call before this result has the id {given}"
            waiting = [one for one in waiting if one != given]
        elif waiting and any(turn.get("tool_call_id") for turn in turns):
            return f"call {waiting[0]} has no result"
        if role == "assistant":
            listed = turn.get("tool_calls")
            ids = [call.get("id") for call in listed if isinstance(call, Mapping)] if isinstance(listed, list) else []
            if repeated := [one for one in ids if one and ids.count(one) > 1]:
                return f"two calls have the id {repeated[0]}"
            waiting = [one for one in ids if isinstance(one, str)]
    return ""


def _first(notes: Iterable[str]) -> str:
    """Return the first note that is not empty."""
    return next(filter(None, notes), "")
