"""Descriptions of calls, as OpenAPI or JSON schema: a document to read, and the calls themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tunesmith.data.collect.document import Block, Document, QuestionAnswer, Tool, clean, markdown, one_line, tidy
from tunesmith.errors import DataError

METHODS = ("get", "put", "post", "delete", "patch", "head", "options", "trace")
MOST_TOOLS, DEEPEST = 5_000, 12


def tools_document(value: object) -> Document:
    """Each call with its arguments as a section, and question-answer pairs about it. Raises DataError for none."""
    title = ""
    if isinstance(value, Mapping) and ("openapi" in value or "swagger" in value):
        info = value.get("info")
        title = one_line(str(info.get("title") or "")) if isinstance(info, Mapping) else title
        found = list(_operations(value))
    else:
        found = [tool for item in _listed(value) if (tool := _tool(item))]
    if not found:
        raise DataError("describes no call; give an OpenAPI file, or JSON schemas with a name or title")
    if len(found) > MOST_TOOLS:
        raise DataError(f"{len(found)} calls; split it into files of at most {MOST_TOOLS}")
    blocks = [Block("heading", title, 1)] if title else []
    blocks += [block for tool in found for block in describe(tool)]
    return Document(tuple(blocks), title, tuple(pair for tool in found for pair in _pairs(tool)), tuple(found))


def _listed(value: object) -> list[Mapping[str, Any]]:
    """The JSON schemas and function descriptions in a value: one, a list, or a list below `tools`."""
    if isinstance(value, Mapping) and isinstance(value.get("tools") or value.get("functions"), list):
        value = value.get("tools") or value.get("functions")
    items = value if isinstance(value, list) else [value]
    inner = [item.get("function") if isinstance(item, Mapping) and "function" in item else item for item in items]
    good = [item for item in inner if isinstance(item, Mapping) and _schema(item) is not None]
    return good if good and len(good) == len(items) else []


def _schema(item: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The arguments of a described function, or a titled schema itself."""
    for key in ("parameters", "input_schema", "inputSchema"):
        if isinstance(item.get(key), Mapping) and isinstance(item.get("name"), str):
            return item[key]  # type: ignore[no-any-return]
    named = isinstance(item.get("title") or item.get("$id"), str)
    return item if named and isinstance(item.get("properties"), Mapping) else None


def _tool(item: Mapping[str, Any]) -> Tool | None:
    schema = _schema(item)
    name = item.get("name") if schema is not item else item.get("title") or item.get("$id")
    if schema is None or not isinstance(name, str) or not one_line(name):
        return None
    properties = schema.get("properties") if isinstance(schema.get("properties"), Mapping) else {}
    assert isinstance(properties, Mapping)
    arguments = {clean(str(key)): _argument(part, item) for key, part in properties.items()}
    required = [key for key in _strings(schema.get("required")) if key in arguments]
    return _made(name, item.get("description"), arguments, required)


def _operations(spec: Mapping[str, Any]) -> Iterator[Tool]:
    """Every operation of an OpenAPI file: path, query and body arguments as one object."""
    paths = spec.get("paths")
    for path, item in paths.items() if isinstance(paths, Mapping) else ():
        for method in METHODS:
            operation = item.get(method) if isinstance(item, Mapping) else None
            if isinstance(operation, Mapping):
                shared = item.get("parameters")
                yield _operation(spec, f"{method}_{path}", operation, shared if isinstance(shared, list) else [])


def _operation(spec: Mapping[str, Any], place: str, operation: Mapping[str, Any], shared: list[Any]) -> Tool:
    own = operation.get("parameters")
    arguments: dict[str, dict[str, Any]] = {}
    required: list[str] = []
    for given in [*shared, *(own if isinstance(own, list) else [])]:
        parameter = _resolved(given, spec)
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
    name = operation.get("operationId") or re.sub(r"[\W_]+", "_", place).strip("_")
    texts = [operation.get("summary"), operation.get("description")]
    about = "\n".join(dict.fromkeys(text.strip() for text in texts if isinstance(text, str) and text.strip()))
    return _made(str(name), about, arguments, required)


def _body(operation: Mapping[str, Any], spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of what an operation is sent as JSON or as a form."""
    content = _resolved(operation.get("requestBody"), spec).get("content")
    kinds = content if isinstance(content, Mapping) else {}
    first: object = kinds.get("application/json") or next(iter(kinds.values()), {})
    return _resolved(first.get("schema"), spec) if isinstance(first, Mapping) else {}


def _add_body(
    arguments: dict[str, dict[str, Any]], required: list[str], schema: Mapping[str, Any], spec: Mapping[str, Any]
) -> None:
    properties = schema.get("properties")
    for key, part in properties.items() if isinstance(properties, Mapping) else ():
        arguments.setdefault(clean(str(key)), _argument(part, spec))
    required += [key for key in _strings(schema.get("required")) if key in arguments and key not in required]


def _resolved(value: object, spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The object that a chain of `$ref` inside the file leads to; references to elsewhere are not followed."""
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
    """What there is to say about an argument in JSON schema's words, the texts cleaned."""
    schema = _resolved(part, spec)
    kept = {key: schema[key] for key in ("type", "enum", "default", "example", "format") if key in schema}
    examples = schema.get("examples")
    if "example" not in kept and isinstance(examples, list) and examples:
        kept["example"] = examples[0]
    if isinstance(schema.get("description"), str):
        kept["description"] = tidy(schema["description"])
    return {key: _cleaned(value) for key, value in kept.items() if _is_small(value)}


def _cleaned(value: Any) -> Any:
    """The value with its texts cleaned."""
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return clean(value) if isinstance(value, str) else value


def _is_small(value: object) -> bool:
    """Whether a value is a word, a number, or a short list of them."""
    if isinstance(value, list):
        return len(value) <= 100 and all(isinstance(item, str | int | float | None) for item in value)
    return isinstance(value, str | int | float | None)


def _made(name: str, about: object, arguments: dict[str, dict[str, Any]], required: list[str]) -> Tool:
    description = tidy(about) if isinstance(about, str) else ""
    return Tool(one_line(name), description, {"type": "object", "properties": arguments, "required": required})


def describe(tool: Tool) -> list[Block]:
    """A call as people read it: what it does, then a table of its arguments."""
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
    """What the description itself answers: what the call does, what it takes, and its own example as a call."""
    if tool.description:
        yield QuestionAnswer(f"What does the call `{tool.name}` do?", tool.description, "tool")
    table = [block for block in describe(tool) if block.kind == "table"]
    if table:
        yield QuestionAnswer(f"Which arguments does the call `{tool.name}` take?", markdown(table), "tool")
    example = _example(tool)
    if example and tool.description:
        task = tool.description.split("\n")[0].rstrip(".")
        given = ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in example.items())
        yield QuestionAnswer(f"Write the call for this: {task} ({given}).", call(tool.name, example), "tool")


def _example(tool: Tool) -> dict[str, Any]:
    """Arguments from the description's own examples, if all that are needed have one."""
    given: Mapping[str, Any] = tool.parameters["properties"]
    found = {key: part["example"] for key, part in given.items() if "example" in part}
    return found if set(tool.parameters["required"]) <= set(found) else {}


def call(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as JSON, in the form that OpenAI-compatible servers and most chat formats use."""
    return json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)


def faults(arguments: object, tool: Tool) -> str:
    """What is wrong with the arguments of a call, or nothing."""
    if not isinstance(arguments, Mapping):
        return "the arguments are no object"
    known: Mapping[str, Mapping[str, Any]] = tool.parameters["properties"]
    if missing := [key for key in tool.parameters["required"] if key not in arguments]:
        return f"{missing[0]} is missing"
    for key, value in arguments.items():
        if key not in known:
            return f"there is no argument {key}"
        kinds = known[key].get("type")
        allowed = kinds if isinstance(kinds, list) else [kinds]
        if kinds and not any(_is_a(value, str(kind)) for kind in allowed):
            return f"{key} is not of the kind {kinds}"
        if known[key].get("enum") and value not in known[key]["enum"]:
            return f"{key} is none of the listed values"
    return ""


def _is_a(value: object, kind: str) -> bool:
    """Whether a value is of a kind in JSON schema's words; true and false are no numbers there."""
    kinds: dict[str, tuple[type, ...]] = {
        "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list,),
        "object": (dict,), "null": (type(None),),
    }  # fmt: skip
    if isinstance(value, bool):
        return kind == "boolean"
    return kind not in kinds or isinstance(value, kinds[kind])


def _strings(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
