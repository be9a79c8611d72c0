"""Tools for chat templates without tool support: offers, calls and results as plain text in the Hermes format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from tunesmith.data.calls import as_words
from tunesmith.data.examples import Message

OFFER = (
    "You may call these tools:\n<tools>\n{tools}\n</tools>\n"
    'Call one with its name and arguments as JSON: <tool_call>\n{{"name": ..., "arguments": {{...}}}}\n</tool_call>'
)
RESULT = "<tool_response>\n{content}\n</tool_response>"


def in_words(messages: Sequence[Message]) -> list[Message]:
    """Render tools, calls and results into the contents of the messages; results become user turns."""
    rendered: list[Message] = []
    for message in messages:
        content = message.content
        if message.tools:
            offer = OFFER.format(tools="\n".join(json.dumps(t, ensure_ascii=False) for t in json.loads(message.tools)))
            content = f"{content}\n\n{offer}" if message.role == "system" else f"{offer}\n\n{content}"
        if message.calls:
            content = "\n".join(filter(None, [content, as_words(message.calls)]))
        if message.role == "tool":
            result = RESULT.format(content=content)
            if rendered and rendered[-1].role == "user":  # several results in one turn
                rendered[-1] = replace(rendered[-1], content=f"{rendered[-1].content}\n{result}")
                continue
            message, content = replace(message, role="user"), result
        rendered.append(Message(message.role, content))
    return rendered
