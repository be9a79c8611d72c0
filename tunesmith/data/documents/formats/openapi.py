"""Conversion of API descriptions (OpenAPI, JSON schema) to documents and tools."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tunesmith.data.documents.document import Block, Document, QuestionAnswer, Tool, clean, markdown, one_line, tidy
from tunesmith.data.tokenization.tool_calls import has_json_type
from tunesmith.errors import DataError

METHODS = ("get", "put", "post", "delete", "patch", "head", "options", "trace")
MOST_TOOLS = 5_000
DEEPEST = 12  # references in a chain


def tools_document(value: object) -> Document:
    """Convert each call with its arguments to a section and to question-answer pairs.

    Raises:
        DataError: the value describes no call, or too many.
    """
    title = ""
    if isinstance(value, Mapping) and ("openapi" in value or "swagger" in value):
        info = value.get("info")
        title = one_line(str(info.get("title") or "")) if isinstance(info, Mapping) else title
        tools = list(_operations(value))
    else:
        tools = [tool for item in _function_items(value) if (tool := _tool(item))]
    if not tools:
        raise DataError("no function descriptions; give an OpenAPI file, or JSON schemas with a name or title")
    if len(tools) > MOST_TOOLS:
        raise DataError(f"{len(tools)} calls; split it into files of at most {MOST_TOOLS}")
    blocks = [Block("heading", title, 1)] if title else []
    blocks += [block for tool in tools for block in describe(tool)]
    return Document(tuple(blocks), title, tuple(pair for tool in tools for pair in _pairs(tool)), tuple(tools))


def _function_items(value: object) -> list[Mapping[str, Any]]:
    """Return the JSON schemas and function descriptions in a value: one, a list, or a list below `tools`."""
    if isinstance(value, Mapping) and isinstance(value.get("tools") or value.get("functions"), list):
        value = value.get("tools") or value.get("functions")
    items = value if isinstance(value, list) else [value]
    inner = [item.get("function") if isinstance(item, Mapping) and "function" in item else item for item in items]
    valid = [item for item in inner if isinstance(item, Mapping) and _schema(item) is not None]
    return valid if valid and len(valid) == len(items) else []


def _schema(item: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the schema of a function's arguments, or the item itself if it is a schema with a title."""
    for key in ("parameters", "input_schema", "inputSchema"):
        if isinstance(item.get(key), Mapping) and isinstance(item.get("name"), str):
            return item[key]  # type: ignore[no-any-return]
    has_name = isinstance(item.get("title") or item.get("$id"), str)
    return item if has_name and isinstance(item.get("properties"), Mapping) else None


def _tool(item: Mapping[str, Any]) -> Tool | None:
    schema = _schema(item)
    name = item.get("name") if schema is not item else item.get("title") or item.get("$id")
    if schema is None or not isinstance(name, str) or not one_line(name):
        return None
    properties = schema.get("properties") if isinstance(schema.get("properties"), Mapping) else {}
    assert isinstance(properties, Mapping)
    arguments = {clean(str(key)): _argument(part, item) for key, part in properties.items()}
    required = [key for key in _strings(schema.get("required")) if key in arguments]
    return _make_tool(name, item.get("description"), arguments, required)


def _operations(spec: Mapping[str, Any]) -> Iterator[Tool]:
    """Yield every operation of an OpenAPI file, with path, query and body arguments as one object."""
    paths = spec.get("paths")
    for path, item in paths.items() if isinstance(paths, Mapping) else ():
        for method in METHODS:
            operation = item.get(method) if isinstance(item, Mapping) else None
            if isinstance(operation, Mapping):
                shared = item.get("parameters")
                yield _operation(spec, f"{method}_{path}", operation, shared if isinstance(shared, list) else [])


def _operation(spec: Mapping[str, Any], default_name: str, operation: Mapping[str, Any], shared: list[Any]) -> Tool:
    own = operation.get("parameters")
    arguments: dict[str, dict[str, Any]] = {}
    required: list[str] = []
    for item in [*shared, *(own if isinstance(own, list) else [])]:
        parameter = _resolved(item, spec)
        name = parameter.get("name")
        if not isinstance(name, str) or parameter.get("in") == "header":
            continue
        inner = parameter.get("schema") if isinstance(parameter.get("schema"), Mapping) else parameter
        if parameter.get("in") == "body":
            _add_body(arguments, required, _resolved(inner, spec), spec)
            continue
        arguments[clean(name)] = {**_argument(parameter, spec), **_argument(inner, spec)}
        if parameter.get("required") is True:
            required.append(clean(name))
    _add_body(arguments, required, _body(operation, spec), spec)
    name = operation.get("operationId") or re.sub(r"[\W_]+", "_", default_name).strip("_")
    texts = [operation.get("summary"), operation.get("description")]
    description = "\n".join(dict.fromkeys(text.strip() for text in texts if isinstance(text, str) and text.strip()))
    return _make_tool(str(name), description, arguments, required)


def _body(operation: Mapping[str, Any], spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of a JSON or form request body."""
    content = _resolved(operation.get("requestBody"), spec).get("content")
    media_types = content if isinstance(content, Mapping) else {}
    first: object = media_types.get("application/json") or next(iter(media_types.values()), {})
    return _resolved(first.get("schema"), spec) if isinstance(first, Mapping) else {}


def _add_body(
    arguments: dict[str, dict[str, Any]], required: list[str], schema: Mapping[str, Any], spec: Mapping[str, Any]
) -> None:
    properties = schema.get("properties")
    for key, part in properties.items() if isinstance(properties, Mapping) else ():
        arguments.setdefault(clean(str(key)), _argument(part, spec))
    required += [key for key in _strings(schema.get("required")) if key in arguments and key not in required]


def _resolved(value: object, spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow `$ref` inside the file and return the object; references to other files are not followed."""
    for _ in range(DEEPEST):
        if not isinstance(value, Mapping):
            return {}
        reference = value.get("$ref")
        if not isinstance(reference, str):
            return value
        value = spec
        for step in reference.removeprefix("#/").split("/") if reference.startswith("#/") else ():
            step = step.replace("~1", "/").replace("~0", "~")
            value = value.get(step) if isinstance(value, Mapping) else None
        value = None if value is spec else value
    return {}


def _argument(part: object, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of an argument, reduced to scalars and lists of at most 100 scalars, with clean texts."""
    schema = _resolved(part, spec)
    reduced = {key: schema[key] for key in ("type", "enum", "default", "example", "format") if key in schema}
    examples = schema.get("examples")
    if "example" not in reduced and isinstance(examples, list) and examples:
        reduced["example"] = examples[0]
    if isinstance(schema.get("description"), str):
        reduced["description"] = tidy(schema["description"])
    return {key: _cleaned(value) for key, value in reduced.items() if _is_small(value)}


def _cleaned(value: Any) -> Any:
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return clean(value) if isinstance(value, str) else value


def _is_small(value: object) -> bool:
    items = value if isinstance(value, list) else [value]
    return len(items) <= 100 and all(isinstance(item, str | int | float | None) for item in items)


def _make_tool(name: str, description: object, arguments: dict[str, dict[str, Any]], required: list[str]) -> Tool:
    text = tidy(description) if isinstance(description, str) else ""
    return Tool(one_line(name), text, {"type": "object", "properties": arguments, "required": required})


def describe(tool: Tool) -> list[Block]:
    """Return the name and description of a call and a table of its arguments."""
    blocks = [Block("heading", tool.name, 2)]
    if tool.description:
        blocks.append(Block("paragraph", tool.description))
    rows = [_row(name, part, tool) for name, part in tool.parameters["properties"].items()]
    if rows:
        blocks.append(Block("table", "", cells=(("argument", "kind", "needed", "meaning"), *rows)))
    return blocks


def _row(name: str, part: Mapping[str, Any], tool: Tool) -> tuple[str, ...]:
    kind = part.get("type", "")
    kind = " or ".join(map(str, kind)) if isinstance(kind, list) else str(kind)
    meaning = [one_line(str(part.get("description", "")))]
    if part.get("enum"):
        meaning.append("one of " + ", ".join(map(str, part["enum"])))
    if "default" in part:
        meaning.append(f"default {json.dumps(part['default'], ensure_ascii=False)}")
    needed = "yes" if name in tool.parameters["required"] else "no"
    return clean(name), kind, needed, "; ".join(filter(None, meaning))


def _pairs(tool: Tool) -> Iterator[QuestionAnswer]:
    """Yield the pairs that the description answers: what the call does, its arguments, and its example as a call."""
    if tool.description:
        yield QuestionAnswer(f"What does the call `{tool.name}` do?", tool.description, "tool")
    table = [block for block in describe(tool) if block.kind == "table"]
    if table:
        yield QuestionAnswer(f"Which arguments does the call `{tool.name}` take?", markdown(table), "tool")
    properties: Mapping[str, Any] = tool.parameters["properties"]
    example = {key: part["example"] for key, part in properties.items() if "example" in part}
    if example and tool.description and set(tool.parameters["required"]) <= set(example):
        task = tool.description.split("\n")[0].rstrip(".")
        values = ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in example.items())
        yield QuestionAnswer(f"Write the call for this: {task} ({values}).", call(tool.name, example), "tool")


def call(name: str, arguments: Mapping[str, Any]) -> str:
    """Return a call as JSON, in the form that OpenAI-compatible servers and most chat formats use."""
    return json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)


def schema_errors(arguments: object, tool: Tool) -> str:
    """Return the first error in the arguments of a call, or an empty string."""
    if not isinstance(arguments, Mapping):
        return "the arguments are not an object"
    known: Mapping[str, Mapping[str, Any]] = tool.parameters["properties"]
    if missing := [key for key in tool.parameters["required"] if key not in arguments]:
        return f"{missing[0]} is missing"
    for key, value in arguments.items():
        if key not in known:
            return f"unknown argument {key}"
        kinds = known[key].get("type")
        allowed = kinds if isinstance(kinds, list) else [kinds]
        if kinds and not any(has_json_type(value, str(kind)) for kind in allowed):
            return f"{key} is not of type {kinds}"
        if known[key].get("enum") and value not in known[key]["enum"]:
            return f"{key} is not one of the listed values"
    return ""


def _strings(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
