"""Calls of tools: read from a chat's rows, written as words, found in an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import DataError

# Where templates and models write a call's arguments.
ARGUMENTS = ("arguments", "parameters")
MARKED = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool; the arguments are an object, as JSON text."""

    name: str
    arguments: str

    def plain(self) -> dict[str, Any]:
        """The call as JSON knows it."""
        return {"name": self.name, "arguments": json.loads(self.arguments)}


def read_calls(turn: Mapping[str, Any], place: str) -> tuple[Call, ...]:
    """What a turn calls: `tool_calls` or `function_call` as OpenAI writes them, or a ShareGPT turn of that name.

    Raises DataError for a call that is none.
    """
    listed = turn.get("tool_calls") or ()
    if turn.get("function_call"):
        listed = [turn["function_call"]]
    if turn.get("from", turn.get("role")) == "function_call":
        listed = _parsed(turn.get("value", turn.get("content")))
        listed = listed if isinstance(listed, list) else [listed]
    if not isinstance(listed, list | tuple):
        raise DataError(f"{place}: tool_calls are not a list; write each as an object with name and arguments")
    return tuple(_call(one, place) for one in listed)


def read_tools(value: object, place: str) -> str:
    """The tools that a chat may call, a list as JSON text; empty without any. Raises DataError."""
    listed = _parsed(value) if isinstance(value, str) and value.strip() else value
    if not listed or (isinstance(listed, str) and not listed.strip()):
        return ""
    if isinstance(listed, str):
        raise DataError(f"{place}: tools are not JSON; write a list of objects, each with name and parameters")
    if not isinstance(listed, list | tuple) or not all(map(_is_tool, listed)):
        raise DataError(f"{place}: tools are not a list of objects with a name; write each as JSON schema")
    return json.dumps(list(listed), ensure_ascii=False)


def as_words(calls: Sequence[Call]) -> str:
    """The calls as text, each in JSON between marks (the format of Hermes and Qwen)."""
    return "\n".join(f"<tool_call>\n{json.dumps(c.plain(), ensure_ascii=False)}\n</tool_call>" for c in calls)


def calls_in(text: str) -> list[dict[str, Any]]:
    """Every call that an answer holds, in order: a JSON object with a name and arguments, whatever stands around it."""
    return [call for _, call in placed_calls(text)]


def placed_calls(text: str) -> list[tuple[int, dict[str, Any]]]:
    """The same, each with the place where its object begins."""
    found, at, reader = list[tuple[int, dict[str, Any]]](), 0, json.JSONDecoder()
    while (at := text.find("{", at)) >= 0:
        try:
            value, end = reader.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        if (call := _as_call(value)) is not None:
            found.append((at, call))
        at = end if call is not None else at + 1
    return found


def calls_alone(text: str, *, bare: bool) -> tuple[Call, ...]:
    """The calls of a text that is nothing else: each between marks, or with `bare` as JSON; none of any other text."""
    inside = [] if MARKED.sub("", text).strip() else MARKED.findall(text)
    values = [_parsed(part) for part in inside or [text] * bare]
    listed = [one for value in values for one in (value if isinstance(value, list) else [value])]
    found = [_as_call(one) if isinstance(one, Mapping) else None for one in listed]
    read = [Call(one["name"], json.dumps(one["arguments"], ensure_ascii=False)) for one in found if one is not None]
    return tuple(read) if len(read) == len(listed) else ()


def _is_tool(value: object) -> bool:
    """Whether this describes a tool by its name, as it is or as OpenAI's `function`."""
    inner = value.get("function", value) if isinstance(value, Mapping) else None
    return isinstance(inner, Mapping) and isinstance(inner.get("name"), str)


def _as_call(value: Any) -> dict[str, Any] | None:
    """A call in one spelling; None where the object is none."""
    given = next((value[key] for key in ARGUMENTS if key in value), None)
    given = _parsed(given) if isinstance(given, str) else given
    if not isinstance(value.get("name"), str) or not isinstance(given, dict):
        return None
    return {"name": value["name"], "arguments": given}


def _call(item: object, place: str) -> Call:
    """A call with its arguments in one spelling."""
    inner = item.get("function", item) if isinstance(item, Mapping) else {}
    named = inner if isinstance(inner, Mapping) else {}
    given = {key: value for key, value in named.items() if value is not None}
    found = _as_call(given if any(key in given for key in ARGUMENTS) else {**given, "arguments": {}})
    if found is None:
        raise DataError(
            f"{place} calls a tool without a name, or its arguments are no JSON object; "
            'write {"name": ..., "arguments": {...}}'
        )
    return Call(found["name"], json.dumps(found["arguments"], ensure_ascii=False))


def _parsed(text: object) -> Any:
    """The JSON value in a text; the text itself where it is none."""
    try:
        return json.loads(str(text))
    except (ValueError, RecursionError):  # brackets nested by the thousand
        return text
