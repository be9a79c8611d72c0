"""Answers of a model in the shapes of OpenAI's API."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

from tunesmith.data.calls import placed_calls
from tunesmith.data.examples import Message
from tunesmith.data.template import Template
from tunesmith.inference.row import Piece, ScoredToken

# How a tokenizer writes a byte that is a part of a character.
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
SPACE = "▁"
# What models write before the first call: a mark of their own, a fence, a list's bracket.
OPENING = re.compile(r"(?:<[^<>\s/][^<>\s]{0,40}>)?\s{0,4}(?:```\w{0,20})?\s{0,4}(?:\[[A-Z_]{1,40}\])?\s{0,4}\[?$")
ENDS = {"stop": "stop", "length": "length"}
Call = Mapping[str, Any]


class Telling:
    """One answer being told: its name, its time, and the model that gives it."""

    def __init__(self, model: str, template: Template, *, chat: bool) -> None:
        self.model, self._template, self._chat = model, template, chat
        self._tokens = self._letters = 0  # told so far
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        self._created = int(time.time())

    def whole(
        self, text: str, scored: Sequence[ScoredToken], last: Piece, calls: Sequence[Call] = ()
    ) -> dict[str, Any]:
        """The answer in one."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": _ended(last.end, calls)}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text or (None if calls else ""), **_calls(calls)}
        else:
            choice["text"] = text
        choice["logprobs"] = self._scores(scored)
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(last)}

    def part(self, piece: Piece, *, first: bool = False, calls: Sequence[Call] = ()) -> dict[str, Any]:
        """A piece of the answer."""
        end = _ended(piece.end, calls)
        choice: dict[str, Any] = {"index": 0, "finish_reason": end, "logprobs": self._scores(piece.scored)}
        if self._chat:
            delta = {"role": "assistant"} if first else {}
            choice["delta"] = {**delta, **({"content": piece.text} if piece.text or first else {}), **_calls(calls)}
        else:
            choice["text"] = piece.text
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def counted(self, last: Piece) -> dict[str, Any]:
        """What the answer took, as the last part of a stream."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(last)}

    def _head(self, kind: str) -> dict[str, Any]:
        kind = kind if self._chat else "text_completion"
        return {"id": self._id, "object": kind, "created": self._created, "model": self.model}

    def _scores(self, scored: Sequence[ScoredToken]) -> dict[str, Any] | None:
        if not scored:
            return None
        placed = [(one, not self._tokens and place == 0) for place, one in enumerate(scored)]
        self._tokens += len(scored)
        if self._chat:
            told = [
                {
                    **self._token(first, one.id, one.logprob),
                    "top_logprobs": [self._token(first, *of) for of in one.best],
                }
                for one, first in placed
            ]
            return {"content": told, "refusal": None}
        words = [self._word(one.id, first) for one, first in placed]
        begins = list(accumulate(map(len, words), initial=self._letters))
        self._letters = begins[-1]
        return {
            "tokens": words,
            "token_logprobs": [one.logprob for one in scored],
            "top_logprobs": [
                {self._word(token, first): logprob for token, logprob in one.best} for one, first in placed
            ],
            "text_offset": begins[:-1],
        }

    def _token(self, first: bool, token: int, logprob: float) -> dict[str, Any]:
        word = self._word(token, first)
        return {"token": word, "logprob": logprob, "bytes": self._bytes(token, word)}

    def _bytes(self, token: int, word: str) -> list[int] | None:
        """The bytes of a token, also of one that is a part of a character; None where they cannot be told."""
        if "\ufffd" not in word:
            return list(word.encode())
        piece = str(self._template.tokenizer.convert_ids_to_tokens(token))
        if alone := BYTE.fullmatch(piece):
            return [int(alone[1], 16)]
        letters = _letters()
        return [letters[letter] for letter in piece] if letters.keys() >= set(piece) else None

    def _word(self, token: int, first: bool) -> str:
        """What a token adds to the text. A lone one loses its first space where ▁ stands for spaces."""
        tokenizer = self._template.tokenizer
        word, piece = str(tokenizer.decode([token])), str(tokenizer.convert_ids_to_tokens(token))
        lost = (len(piece) - len(piece.lstrip(SPACE))) - (len(word) - len(word.lstrip(" ")))
        return word if first else " " * lost + word


@cache
def _letters() -> dict[str, int]:
    """The byte that each letter of byte-level tokens stands for."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}


def _ended(end: str, calls: Sequence[Call]) -> str | None:
    """Why an answer ended, in OpenAI's words: one that was cut may lack a call."""
    return "tool_calls" if calls and end != "length" else ENDS.get(end)


def split_calls(text: str, messages: Sequence[Message]) -> tuple[str, list[Call]]:
    """What an answer says, and which of the tools that it may call it calls."""
    if not messages or not messages[0].tools:
        return text, []
    known = [tool.get("function", tool).get("name") for tool in json.loads(messages[0].tools)]
    placed = [(place, call) for place, call in placed_calls(text) if call["name"] in known]
    return _unopened(text[: placed[0][0]]) if placed else text, [call for _, call in placed]


def _unopened(text: str) -> str:
    """The text without the mark, fence and bracket that open what comes after it."""
    return OPENING.sub("", text.rstrip()).strip()


def usage(last: Piece) -> dict[str, Any]:
    """Tokens of question and answer, and `shortened` where the question was not read whole."""
    both = last.prompt_tokens + last.new_tokens
    counts = {"prompt_tokens": last.prompt_tokens, "completion_tokens": last.new_tokens, "total_tokens": both}
    return {**counts, "shortened": True} if last.shortened else counts


def wrong(text: str, *, kind: str = "invalid_request_error", code: str | None = None) -> Mapping[str, Any]:
    """An error; its text is one line: place, finding, cure."""
    place = text.partition(":")[0]
    return {"error": {"message": text, "type": kind, "param": place if place.isidentifier() else None, "code": code}}


def _calls(calls: Sequence[Call]) -> dict[str, Any]:
    if not calls:
        return {}
    told = [
        {
            "index": number,
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)},
        }
        for number, call in enumerate(calls)
    ]
    return {"tool_calls": told}
