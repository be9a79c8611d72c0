"""Formats in which chat templates write tool calls, which of them a template writes, and tool use as plain text.

A format is found by rendering a probe chat and parsing the calls back, never by a model's name. A completion in
another format than JSON is rewritten: everything behind the tokenizer (metrics, reports, the server) sees JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tunesmith.data.tokenization.messages import RESULT, Message
from tunesmith.data.tokenization.tool_calls import STRICT_JSON, Call, PlacedCall, as_words, placed_calls, schemas_of
from tunesmith.errors import OverBudgetError, TemplateError

# Parameter name -> JSON schema, by name of the offered function.
Parameters = Mapping[str, Mapping[str, Mapping[str, Any]]]
# <function=NAME><parameter=KEY>VALUE</parameter></function>: Qwen3-Coder, Qwen3.5, Nemotron.
_FUNCTION = re.compile(r"<function=([^<>\n]+)>(.*?)</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^<>\n]+)>(.*?)</parameter>", re.DOTALL)
# <tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>: GLM-4.5 and later.
_KEYED = re.compile(r"<tool_call>\s*([^<>\s{]+)\s*((?:<arg_key>.*?)?)</tool_call>", re.DOTALL)
_PAIR = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
OFFER = (
    "You may call these tools:\n<tools>\n{tools}\n</tools>\n"
    'Call one with its name and arguments as JSON: <tool_call>\n{{"name": ..., "arguments": {{...}}}}\n</tool_call>'
)
# The tools of a probe chat, its calls, and the words by which an offer and a result are found in the rendered text.
_PROBED = {"zqkey": {"type": "integer"}, "zqtext": {"type": "string"}, "zqlist": {"type": "array"}}
_PROBED_TOOL = {
    "name": "zqtool",
    "description": "zqoffer",
    "parameters": {"type": "object", "properties": _PROBED},
}
_TOOL_OFFER = json.dumps([{"type": "function", "function": _PROBED_TOOL}])
_PROBED_CALLS = (
    Call("zqtool", '{"zqkey": 1, "zqtext": "2", "zqlist": [{"b": true}]}'),
    Call("zqtool", '{"zqkey": 0}'),
)
_TOOL_WORDS = ("zqoffer", "zqresult")
# Tags around a call belong to it.
_TAG_BEFORE = re.compile(r"(?:<tool_call>\s*)?$")
_TAG_BEHIND = re.compile(r"\s*</tool_call>")


@dataclass(frozen=True, slots=True)
class CallFormat:
    """The format in which a template writes calls."""

    # returns the calls in a text, given the parameters of the offered functions
    parse: Callable[[str, Parameters], list[PlacedCall]]
    json: bool = False  # whether the calls are JSON objects with name and arguments already
    # pattern of the tags that end a value, which no text of a value may contain; None: values are JSON
    closing: re.Pattern[str] | None = None
    marked: bool = True  # whether a call begins with a mark that text rarely contains: `{`, `[`, `<` or a code fence

    def harmless(self, call: Call) -> Call:
        """Return the call with a space inside each closing tag in its arguments, so that no text can end its value."""
        if self.closing is None:
            return call
        return Call(call.name, self.closing.sub(lambda match: f"{match[0][0]} {match[0][1:]}", call.arguments))

    def in_json(self, text: str, tools: str) -> str:
        """Return a completion with its calls as JSON, and without the text between and behind them."""
        if self.json or not tools:
            return text
        calls = self.parse(text, parameters_of(tools))
        if not calls:
            return text
        written = as_words([Call(call.name, json.dumps(call.arguments, ensure_ascii=False)) for call in calls])
        return "\n".join(filter(None, [text[: calls[0].start].rstrip(), written]))


def in_words(messages: Sequence[Message], escape: Callable[[str], str] = str) -> list[Message]:
    """Render tools, calls and results into the contents of the messages; results become user turns.

    `escape` is applied to the JSON of tools and calls.
    """
    rendered: list[Message] = []
    for message in messages:
        content = message.content
        if message.tools:
            tools = [escape(json.dumps(tool, ensure_ascii=False)) for tool in json.loads(message.tools)]
            offer = OFFER.format(tools="\n".join(tools))
            content = f"{content}\n\n{offer}" if message.role == "system" else f"{offer}\n\n{content}"
        if message.calls:
            content = "\n".join(filter(None, [content, as_words(message.calls, escape)]))
        if message.role == "tool":
            result = f"{RESULT[0]}\n{content}\n{RESULT[1]}"
            if rendered and rendered[-1].role == "user":  # several results in one turn
                rendered[-1] = replace(rendered[-1], content=f"{rendered[-1].content}\n{result}")
                continue
            message, content = replace(message, role="user"), result
        rendered.append(replace(message, content=content, calls=(), tools=""))
    return rendered


def parameters_of(tools: str) -> Parameters:
    """Return the schema of each parameter of each tool; `tools` is JSON text."""
    found: dict[str, Mapping[str, Mapping[str, Any]]] = {}
    for name, schema in schemas_of(tools).items():
        properties = schema.get("properties")
        named = properties if isinstance(properties, Mapping) else {}
        found[name] = {key: value for key, value in named.items() if isinstance(value, Mapping)}
    return found


def json_calls(text: str, parameters: Parameters) -> list[PlacedCall]:
    """Parse calls that are JSON objects (Hermes, Qwen, Llama 3, Mistral, Granite)."""
    return placed_calls(text)


def tagged_calls(text: str, parameters: Parameters) -> list[PlacedCall]:
    """Parse `<function=NAME><parameter=KEY>VALUE</parameter></function>`."""
    calls = []
    for match in _FUNCTION.finditer(text):
        name = match[1].strip()
        # The format writes a line end before and behind each value.
        values = {k.strip(): v.removeprefix("\n").removesuffix("\n") for k, v in _PARAMETER.findall(match[2])}
        calls.append(_placed(text, match, name, _typed_arguments(values, parameters.get(name, {}))))
    return calls


def keyed_calls(text: str, parameters: Parameters) -> list[PlacedCall]:
    """Parse `<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>`."""
    calls = []
    for match in _KEYED.finditer(text):
        values = {key.strip(): value for key, value in _PAIR.findall(match[2])}
        calls.append(_placed(text, match, match[1], _typed_arguments(values, parameters.get(match[1], {}))))
    return calls


def separated_calls(text: str, parameters: Parameters, *, lead: str, between: str) -> list[PlacedCall]:
    """Parse calls that write the name, then a separator, then the arguments as JSON (DeepSeek, Kimi).

    `lead` is the text before the name, as decoded without special tokens. Digits in the separator count the calls.
    """
    separator = re.sub(r"\d+", r"\\d+", re.escape(between))
    names = "|".join(map(re.escape, sorted(parameters, key=len, reverse=True)))
    calls: list[PlacedCall] = []
    for match in re.finditer(rf"(?:{re.escape(lead)})?({names}){separator}(?=\{{)", text) if names else ():
        if calls and match.start() < calls[-1].end:  # inside the arguments of the call before
            continue
        try:
            arguments, end = STRICT_JSON.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            continue
        calls.append(PlacedCall(match.start(), end, match[1], arguments))
    return calls


def calls_as_content(message: Message, write: Callable[[Sequence[Message]], str]) -> Message:
    """Return a message with its calls as a part of its content, each as the template writes a single call.

    `write` renders a chat and returns its last turn without its end.
    """
    offer = Message("user", "q", tools=_TOOL_OFFER)
    written = [write([offer, Message("assistant", "", (call,))]) for call in message.calls]
    return replace(message, content="\n".join(filter(None, [message.content, *written])), calls=())


def format_of_template(
    write: Callable[[Sequence[Message]], tuple[str, str]], *, last_only: bool, several: bool = False
) -> CallFormat | None:
    """Return the format in which a template writes a turn with calls, in a chat with two questions.

    Some templates offer the tools only before the last question, and the turns before it cannot be learned then.

    Args:
        write: renders a chat; returns it, and its last turn decoded like a completion.
        last_only: learn the last turn only, so that the template may rewrite earlier ones.
        several: two calls in one turn.

    Returns:
        The format; None if the template renders no such turn, or its calls cannot be parsed back.
    """
    calls = _PROBED_CALLS[: 2 if several else 1]
    last = Message("assistant", "", calls)
    results = [Message("tool", _TOOL_WORDS[1])] * len(calls)
    context = [Message("user", "q", tools=_TOOL_OFFER), last, *results, Message("assistant", "zq")]
    if last_only:
        context = [replace(message, weight=0.0) for message in context]
    try:
        chat, learned = write([*context, Message("user", "q"), last])
    except OverBudgetError:
        raise
    except TemplateError:
        return None
    return find_call_format(learned, calls, _TOOL_OFFER) if all(word in chat for word in _TOOL_WORDS) else None


def find_call_format(learned: str, calls: Sequence[Call], tools: str) -> CallFormat | None:
    """Return the format in which a template wrote calls; None if they cannot be parsed back.

    `learned` is what it rendered for the calls, decoded as a completion is.
    """
    name, arguments = calls[0].name, re.search(re.escape(calls[0].name) + r"([^{]*)\{", learned)
    candidates = [
        CallFormat(json_calls, json=True),
        CallFormat(tagged_calls, closing=re.compile(r"</?(?:parameter|function)\b")),
        CallFormat(keyed_calls, closing=re.compile(r"</?(?:arg_key|arg_value|tool_call)>")),
    ]
    if arguments is not None:
        # A part of the template, which is sent to other processes: no function inside of another.
        parse = partial(separated_calls, lead=learned[: learned.index(name)].strip(), between=arguments[1])
        candidates.append(CallFormat(parse, marked=False))
    wanted = [call.plain() for call in calls]
    parameters = parameters_of(tools)
    return next((one for one in candidates if [c.plain() for c in one.parse(learned, parameters)] == wanted), None)


def _placed(text: str, match: re.Match[str], name: str, arguments: dict[str, Any]) -> PlacedCall:
    """Return a call, with the `<tool_call>` tags around it as its part."""
    before = _TAG_BEFORE.search(text, 0, match.start())
    behind = _TAG_BEHIND.match(text, match.end())
    start = before.start() if before else match.start()
    return PlacedCall(start, behind.end() if behind else match.end(), name, arguments)


def _typed_arguments(values: Mapping[str, str], schemas: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {key: _typed(value, schemas.get(key, {})) for key, value in values.items()}


def _typed(value: str, schema: Mapping[str, Any]) -> Any:
    """Return a value as its schema types it; a text stays a text, whatever it looks like."""
    kinds = schema.get("type", "string" if "enum" in schema else None)
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if kinds == ["string"]:
        return value
    # Templates write Python's values of plain arguments.
    constant = {"True": True, "False": False, "None": None}
    try:
        read = constant[value] if value in constant else STRICT_JSON.decode(value)
    except (ValueError, RecursionError):
        return value
    # With several types, a number stays text; only objects, lists and null are certain.
    return value if "string" in kinds and not isinstance(read, dict | list) and read is not None else read
