"""Response bodies in the schema of OpenAI's API."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

from tunesmith.data.tokenization.chat_template import Template
from tunesmith.data.tokenization.messages import Message
from tunesmith.data.tokenization.tool_calls import PlacedCall, placed_calls
from tunesmith.inference.serving.live_answer import CompletionChunk, ScoredToken
from tunesmith.web.openai.requests import RerankRequest

# Token of a single byte in tokenizers with byte fallback.
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
SPACE = "▁"
# What models write before the first tool call: a special tag, a code fence, an opening bracket.
OPENING = re.compile(r"(?:<[^<>\s/][^<>\s]{0,40}>)?\s{0,4}(?:```\w{0,20})?\s{0,4}(?:\[[A-Z_]{1,40}\])?\s{0,4}\[?$")
# Where a call or what is written before it may begin; everything before is text.
MARK = re.compile(r"[{\[<]|```|`{1,2}$")
ENDS = {"stop": "stop", "length": "length"}
Call = Mapping[str, Any]


class ChatCompletionBuilder:
    """Builds the response bodies of one answer, whole or as a stream of chunks.

    With `chat` in the schema of chat completions, otherwise of text completions.
    """

    def __init__(self, model: str, template: Template, *, chat: bool) -> None:
        self.model, self._template, self._chat = model, template, chat
        self._tokens = 0  # scored tokens so far
        self._letters = 0  # characters of scored tokens so far
        self._called = 0  # tool calls so far
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        self._created = int(time.time())

    def whole(
        self, text: str, scored: Sequence[ScoredToken], last: CompletionChunk, calls: Sequence[Call] = ()
    ) -> dict[str, Any]:
        """Return the body of a complete answer.

        Args:
            text: the answer without tool calls.
            scored: its tokens with log-probabilities, if requested.
            last: the final piece, with end reason and token counts, and with all thoughts.
            calls: tool calls of the answer.
        """
        choice: dict[str, Any] = {"index": 0, "finish_reason": _finish_reason(last.end, len(calls))}
        if self._chat:
            thoughts = {"reasoning_content": last.thoughts} if last.thoughts else {}
            content = text or (None if calls else "")
            choice["message"] = {"role": "assistant", **thoughts, "content": content, **self._calls(calls)}
        else:
            choice["text"] = text
        choice["logprobs"] = self._scores(scored)
        return {**self._head("chat.completion"), "choices": [choice], "usage": self._usage(last)}

    def answer(self, last: CompletionChunk, messages: Sequence[Message]) -> dict[str, Any]:
        """Return the body of an answer in one piece to messages, with its tool calls apart."""
        text, calls = split_calls(last.text, messages, self._template)
        return self.whole(text, last.scored, last, calls)

    def part(self, piece: CompletionChunk, *, first: bool = False, calls: Sequence[Call] = ()) -> dict[str, Any]:
        """Return the body of one chunk of a stream.

        Args:
            piece: new text and scored tokens.
            first: whether it is the first chunk, which carries the role.
            calls: tool calls that are complete with this chunk.
        """
        called = self._calls(calls)
        end = _finish_reason(piece.end, self._called)
        choice: dict[str, Any] = {"index": 0, "finish_reason": end, "logprobs": self._scores(piece.scored)}
        if self._chat:
            delta = {"role": "assistant"} if first else {}
            delta |= {"reasoning_content": piece.thoughts} if piece.thoughts else {}
            choice["delta"] = {**delta, **({"content": piece.text} if piece.text or first else {}), **called}
        else:
            choice["text"] = piece.text
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def counted(self, last: CompletionChunk) -> dict[str, Any]:
        """Return the final chunk of a stream, with token counts."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage(last)}

    def _usage(self, last: CompletionChunk) -> dict[str, Any]:
        """Return token counts; those of thoughts only for a model that may have some."""
        counts = usage(last)
        if self._chat and self._template.thinks:
            counts["completion_tokens_details"] = {"reasoning_tokens": last.thought_tokens}
        return counts

    def _calls(self, calls: Sequence[Call]) -> dict[str, Any]:
        """Return the key `tool_calls`, numbered on from the calls before; nothing without calls."""
        first, self._called = self._called, self._called + len(calls)
        bodies = [
            {
                "index": index,
                "id": f"call_{secrets.token_hex(12)}",
                "type": "function",
                "function": {"name": call["name"], "arguments": _arguments(call)},
            }
            for index, call in enumerate(calls, first)
        ]
        return {"tool_calls": bodies} if bodies else {}

    def _head(self, kind: str) -> dict[str, Any]:
        kind = kind if self._chat else "text_completion"
        return {"id": self._id, "object": kind, "created": self._created, "model": self.model}

    def _scores(self, scored: Sequence[ScoredToken]) -> dict[str, Any] | None:
        if not scored:
            return None
        with_first = [(token, not self._tokens and index == 0) for index, token in enumerate(scored)]
        self._tokens += len(scored)
        if self._chat:
            content = [
                {
                    **self._token(first, token.id, token.logprob),
                    "top_logprobs": [self._token(first, *best) for best in token.best],
                }
                for token, first in with_first
            ]
            return {"content": content, "refusal": None}
        texts = [self._text(token.id, first) for token, first in with_first]
        offsets = list(accumulate(map(len, texts), initial=self._letters))
        self._letters = offsets[-1]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in scored],
            "top_logprobs": [
                {self._text(best, first): logprob for best, logprob in token.best} for token, first in with_first
            ],
            "text_offset": offsets[:-1],
        }

    def _token(self, first: bool, token: int, logprob: float) -> dict[str, Any]:
        text = self._text(token, first)
        encoded: list[int] | None = list(text.encode())
        if "\ufffd" in text:  # the token is part of a character
            piece = str(self._template.tokenizer.convert_ids_to_tokens(token))
            if single := BYTE.fullmatch(piece):
                encoded = [int(single[1], 16)]
            else:
                byte_of = _byte_of_letter()
                encoded = [byte_of[letter] for letter in piece] if byte_of.keys() >= set(piece) else None
        return {"token": text, "logprob": logprob, "bytes": encoded}

    def _text(self, token: int, first: bool) -> str:
        """Return the text that a token adds. Decoding a single token drops a leading space written as ▁."""
        tokenizer = self._template.tokenizer
        text = str(tokenizer.decode([token]))
        piece = str(tokenizer.convert_ids_to_tokens(token))
        dropped = (len(piece) - len(piece.lstrip(SPACE))) - (len(text) - len(text.lstrip(" ")))
        return text if first else " " * dropped + text


@cache
def _byte_of_letter() -> dict[str, int]:
    """Return the byte encoded by each letter of byte-level BPE tokens."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}


def _finish_reason(end: str, calls: int) -> str | None:
    """Return OpenAI's finish_reason; a truncated answer keeps "length", as calls may be missing."""
    return "tool_calls" if calls and end != "length" else ENDS.get(end)


def split_calls(text: str, messages: Sequence[Message], template: Template) -> tuple[str, list[Call]]:
    """Split an answer into the text before the first tool call and the calls of tools that the prompt lists."""
    text = template.in_json(text, messages)
    calls = _offered(text, messages)
    return _text_before(text, calls), [call.plain() for call in calls]


def _offered(text: str, messages: Sequence[Message]) -> list[PlacedCall]:
    """Return the calls of a text whose function is offered."""
    if not messages or not messages[0].tools:
        return []
    names = [tool.get("function", tool).get("name") for tool in json.loads(messages[0].tools)]
    return [call for call in placed_calls(text) if call.name in names]


def _text_before(text: str, calls: Sequence[PlacedCall]) -> str:
    """Return the text before the first call, without what models write to open it; the whole text without calls."""
    return OPENING.sub("", text[: calls[0].start].rstrip()).strip() if calls else text


class CallSplitter:
    """Splits a growing answer into text and tool calls. In the end both are those of `split_calls`.

    Text is passed on up to the first character with which a call may begin. A call is passed on when it is complete
    and nothing before it is open, in which it could turn out to be an argument; JSON is passed on at the end if the
    calls of the model have another format.

    Args:
        messages: the prompt; its first message lists the tools.
        template: the chat template.
    """

    def __init__(self, messages: Sequence[Message], template: Template) -> None:
        self._messages, self._template = messages, template
        self._answer = ""
        self._sent = ""  # text passed on
        self._calls = 0  # calls passed on

    def take(self, text: str, *, final: bool) -> tuple[str, list[Call]]:
        """Add a piece of the answer, or the final one; return the text and calls that have become certain."""
        if not (self._messages and self._messages[0].tools):
            return text, []
        self._answer += text
        mark = MARK.search(self._answer)
        content = self._answer[: mark.start() if mark else None].rstrip()
        calls: list[Call] = []
        if self._template.call_format is not None and not self._template.call_format.marked:
            content = ""  # the name of a function may be text as well
        if final:
            content, calls = split_calls(self._answer, self._messages, self._template)
        elif mark and ("}" in text or ">" in text):  # no call ends with another character
            answer = self._template.in_json(self._answer, self._messages)
            # In a format other than JSON, JSON alone may be the beginning of an argument.
            own = self._template.call_format is None or self._template.call_format.json or answer != self._answer
            if own and (certain := _certain(answer, self._messages)):
                content, calls = _text_before(answer, certain), [call.plain() for call in certain]
        new_text, new_calls = content[len(self._sent) :], calls[self._calls :]
        self._sent += new_text
        self._calls += len(new_calls)
        return new_text, new_calls


def _certain(text: str, messages: Sequence[Message]) -> list[PlacedCall]:
    """Return the calls of an unfinished answer before which every brace is closed."""
    certain: list[PlacedCall] = []
    end = 0
    for call in _offered(text, messages):
        if "{" in text[end : call.start]:
            break
        certain.append(call)
        end = call.end
    return certain


def usage(last: CompletionChunk) -> dict[str, Any]:
    """Return token counts of prompt and answer, with `shortened` if the prompt was truncated."""
    total = last.prompt_tokens + last.new_tokens
    counts = {"prompt_tokens": last.prompt_tokens, "completion_tokens": last.new_tokens, "total_tokens": total}
    return {**counts, "shortened": True} if last.shortened else counts


def ranking(model: str, body: RerankRequest, scored: Sequence[tuple[float, int, bool]]) -> dict[str, Any]:
    """Return the body of a ranking, the best document first.

    Args:
        model: name of the model.
        body: the request.
        scored: of each document its score, the tokens that were read, and whether a text was shortened.
    """
    texts, tokens = body.texts, sum(count for _, count, _ in scored)
    best = sorted(range(len(texts)), key=lambda index: -scored[index][0])[: body.top_n]
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": scored[index][0]} for index in best]
    if body.return_documents:
        results = [{**result, "document": {"text": texts[result["index"]]}} for result in results]
    counts: dict[str, Any] = {"prompt_tokens": tokens, "total_tokens": tokens}
    if any(shortened for _, _, shortened in scored):
        counts["shortened"] = True
    return {"id": f"rerank-{secrets.token_hex(12)}", "model": model, "results": results, "usage": counts}


def wrong(text: str, *, kind: str = "invalid_request_error", code: str | None = None) -> Mapping[str, Any]:
    """Return an error body.

    Args:
        text: one line `place: problem; fix`; the place becomes `param` if it is an identifier.
        kind: OpenAI's error type.
        code: OpenAI's error code.
    """
    param = text.partition(":")[0]
    return {"error": {"message": text, "type": kind, "param": param if param.isidentifier() else None, "code": code}}


def _arguments(call: Call) -> str:
    """Return the arguments as JSON; half a surrogate pair, which a model may write as an escape, stays escaped."""
    text = json.dumps(call["arguments"], ensure_ascii=False)
    return text if text.encode(errors="replace").decode() == text else json.dumps(call["arguments"])
