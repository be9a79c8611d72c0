"""Tools in a chat: what the template is told of them, and the calls that an answer makes.

Calls are read where the template itself asks for them as `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`
(Qwen, Hermes, SmolLM2 and SmolLM3); other families' answers stay text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.template import Template

Turns = Sequence[Mapping[str, Any]]
CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Call:
    """A tool by name, and its arguments as JSON."""

    name: str
    arguments: str


def tool_prompt(template: Template, turns: Turns, tools: Turns) -> list[int]:
    """The ids after which the model is to answer or to call; text in turns and tools cannot open or close a turn."""
    return template.prompt_of(_harmless(template, turns), tools=_harmless(template, tools))


def read_calls(text: str) -> tuple[str, list[Call]]:
    """The answer without its calls, and the calls; what is no call stays in the answer."""
    calls: list[Call] = []

    def taken(found: re.Match[str]) -> str:
        try:
            said = json.loads(found[1])
            calls.append(Call(str(said["name"]), json.dumps(said.get("arguments") or {}, ensure_ascii=False)))
        except (ValueError, KeyError, TypeError, AttributeError):
            return found[0]
        return ""

    return CALL.sub(taken, text).strip(), calls


def _harmless(template: Template, value: Any) -> Any:
    """The same value, special tokens in its texts broken up."""
    if isinstance(value, str):
        return template.harmless(value)
    if isinstance(value, Mapping):
        return {key: _harmless(template, part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_harmless(template, part) for part in value]
    return value
