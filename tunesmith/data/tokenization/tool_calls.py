"""Tool calls: parsed from rows, rendered as text, and found in completions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from tunesmith.errors import DataError

# Keys under which templates and models write the arguments of a call.
ARGUMENTS = ("arguments", "parameters")
MARKED = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
# Python types of JSON schema types, except for integers.
TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str, "number": (int, float), "boolean": bool, "array": list, "object": dict, "null": type(None),
}  # fmt: skip
# Starts of calls in the formats of `call_formats`. Outside of a parsed call, one was attempted and failed.
ATTEMPT = re.compile(
    r"""<tool_call>(?!\s*</tool_call>)|<function=|<arg_key>|\{\s*['"]name['"]\s*:|['"](?:arguments|parameters)['"]\s*:"""
)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# Python reads NaN and Infinity, which no other program does, and NaN does not equal itself.
STRICT_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call; `arguments` is a JSON object as text."""

    name: str
    arguments: str

    def plain(self) -> dict[str, Any]:
        """Return the call as a JSON object."""
        return {"name": self.name, "arguments": json.loads(self.arguments)}


@dataclass(frozen=True, slots=True)
class PlacedCall:
    """A call in a text, from the character index `start` to `end`."""

    start: int
    end: int
    name: str
    arguments: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """Return the call as a JSON object."""
        return {"name": self.name, "arguments": self.arguments}


def read_calls(turn: Mapping[str, Any], where: str) -> tuple[Call, ...]:
    """Parse the tool calls of a turn, in order.

    A turn has `tool_calls` or `function_call` (OpenAI), or it is a ShareGPT turn of the role `function_call`.

    Raises:
        DataError: if a call has no name or its arguments are not a JSON object.
    """
    listed = turn.get("tool_calls") or ()
    if turn.get("function_call"):
        listed = [turn["function_call"]]
    if turn.get("from", turn.get("role")) == "function_call":
        listed = _parsed(turn.get("value", turn.get("content")))
        listed = listed if isinstance(listed, list) else [listed]
    if not isinstance(listed, list | tuple):
        raise DataError(f"{where}: expected a list of tool_calls; write each as an object with name and arguments")
    return tuple(_call(item, where) for item in listed)


def read_tools(value: object, where: str) -> str:
    """Return the tools that a chat offers, a list or such a list as JSON text, as JSON text; empty if there are none.

    Raises:
        DataError: if the value is not a list of objects with names.
    """
    listed = _parsed(value) if isinstance(value, str) and value.strip() else value
    if not listed or (isinstance(listed, str) and not listed.strip()):
        return ""
    if isinstance(listed, str):
        raise DataError(f"{where}: tools are invalid JSON; write a list of objects, each with name and parameters")
    if not isinstance(listed, list | tuple) or not all(map(_is_tool, listed)):
        raise DataError(f"{where}: expected tools as a list of objects with a name; write each as JSON schema")
    return json.dumps(list(listed), ensure_ascii=False)


def schemas_of(tools: str) -> dict[str, Mapping[str, Any]]:
    """Return the JSON schema of the parameters of each tool of `read_tools`, by name; empty for one that lists none."""
    functions = [tool.get("function", tool) for tool in (json.loads(tools) if tools else ())]
    schemas = {each["name"]: each.get("parameters", each.get("input_schema")) for each in functions}
    return {name: schema if isinstance(schema, Mapping) else {} for name, schema in schemas.items()}


def has_json_type(value: object, kind: str) -> bool:
    """Return whether a value has a JSON schema type. 2.0 is an integer, True is not; unknown types fit."""
    if kind == "integer":
        return isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
    expected = TYPES.get(kind)
    return expected is None or (isinstance(value, expected) and (kind == "boolean" or not isinstance(value, bool)))


def as_words(calls: Sequence[Call], escape: Callable[[str], str] = str) -> str:
    """Render calls as text, each as JSON between `<tool_call>` tags (the format of Hermes and Qwen).

    `escape` is applied to the JSON of each call.
    """
    texts = [escape(json.dumps(call.plain(), ensure_ascii=False)) for call in calls]
    return "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in texts)


def calls_in(text: str) -> list[dict[str, Any]]:
    """Return all calls in a completion, in order: JSON objects with a name and arguments, whatever surrounds them."""
    return [call.plain() for call in placed_calls(text)]


def placed_calls(text: str) -> list[PlacedCall]:
    """Return all calls in a completion that are written as JSON, with their places."""
    calls: list[PlacedCall] = []
    start = 0
    while (start := text.find("{", start)) >= 0:
        try:
            value, end = STRICT_JSON.raw_decode(text, start)
        except (ValueError, RecursionError):
            start += 1
            continue
        if (call := _as_call(value)) is not None:
            calls.append(PlacedCall(start, end, call["name"], call["arguments"]))
        start = end if call is not None else start + 1
    return calls


def attempts_call(text: str) -> bool:
    """Return whether a completion contains the beginning of a call that cannot be parsed."""
    rest, start = [], 0
    for call in placed_calls(text):
        rest.append(text[start : call.start])
        start = call.end
    return ATTEMPT.search("".join([*rest, text[start:]])) is not None


def calls_alone(text: str, *, bare: bool) -> tuple[Call, ...]:
    """Return the calls of a text that contains nothing else, each between tags; with `bare` also plain JSON.

    Empty for any other text.
    """
    marked = [] if MARKED.sub("", text).strip() else MARKED.findall(text)
    values = [_parsed(part) for part in marked or [text] * bare]
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    calls = [_as_call(item) if isinstance(item, Mapping) else None for item in items]
    valid = [_as_object(call) for call in calls if call is not None]
    return tuple(valid) if len(valid) == len(items) else ()


def _is_tool(value: object) -> bool:
    """Return whether the value describes a tool with a name, directly or inside OpenAI's `function`."""
    inner = value.get("function", value) if isinstance(value, Mapping) else None
    return isinstance(inner, Mapping) and isinstance(inner.get("name"), str)


def _as_call(value: Any) -> dict[str, Any] | None:
    """Return a call in normalized form; None if the object is not a call."""
    arguments = next((value[key] for key in ARGUMENTS if key in value), None)
    arguments = _parsed(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(value.get("name"), str) or not isinstance(arguments, dict) or not _is_json(arguments):
        return None
    return {"name": value["name"], "arguments": arguments}


def _is_json(value: object) -> bool:
    """Return whether a value can be written as JSON; NaN, dates and bytes cannot."""
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return False
    return True


def _as_object(call: Mapping[str, Any]) -> Call:
    return Call(call["name"], json.dumps(call["arguments"], ensure_ascii=False))


def _call(item: object, where: str) -> Call:
    """Parse one call and normalize its arguments."""
    inner = item.get("function", item) if isinstance(item, Mapping) else {}
    fields = inner if isinstance(inner, Mapping) else {}
    given = {key: value for key, value in fields.items() if value is not None}
    call = _as_call(given if any(key in given for key in ARGUMENTS) else {**given, "arguments": {}})
    if call is None:
        raise DataError(
            f"{where}: tool call without a name or without a JSON object of arguments; "
            'write {"name": ..., "arguments": {...}}'
        )
    return _as_object(call)


def _parsed(text: object) -> Any:
    """Parse JSON; return the text itself if it is invalid."""
    try:
        return STRICT_JSON.decode(str(text))
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        return text
