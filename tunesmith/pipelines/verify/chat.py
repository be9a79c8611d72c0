"""The chat contract: golden conversations with token ids, learned spans and parsed answers, for any target.

An engine that renders a chat otherwise than training did answers worse, without an error. The conversations are the
same for every run and quote no row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.resources import files
from itertools import chain, groupby, zip_longest
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tunesmith.data.files import read_page
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.data.tokenization.messages import turn_of
from tunesmith.data.tokenization.tool_calls import calls_in
from tunesmith.errors import CheckpointError, DataError, TemplateError
from tunesmith.inference.openai_client import Endpoint, client_of, exchange
from tunesmith.models.generation.thoughts import ThoughtSplitter

FILE = "chat.json"
ANSWER_TOKENS = 48  # of the answers of a server that are looked at for calls and thoughts


class Golden(BaseModel):
    """A conversation as training renders it, and its last answer parsed back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    thinking: bool | None = None  # whether the last answer has thoughts; None: as the template writes it by default
    tools: tuple[dict[str, Any], ...] = ()
    messages: tuple[dict[str, Any], ...] = Field(min_length=2, max_length=16)
    refused: str = ""  # why the template does not render it
    prompt: tuple[int, ...] = ()  # token ids before the last answer
    ids: tuple[int, ...] = ()  # token ids of the whole conversation
    learned: tuple[tuple[int, int], ...] = ()  # ranges of `ids` that are learned
    content: str = ""
    thoughts: str = ""
    calls: tuple[dict[str, Any], ...] = ()


class ChatContract(BaseModel):
    """All conversations of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(1, ge=1, le=1)
    template: str  # digest of the chat template
    thinking: bool  # whether the template has thoughts
    conversations: tuple[Golden, ...] = Field(max_length=64)


class ChatDifference(BaseModel):
    """The first difference between a target and the contract."""

    conversation: str
    what: str
    expected: str
    found: str

    def sentence(self) -> str:
        """Return the difference on one line."""
        return f"conversation {self.conversation!r}: {self.what}: expected {self.expected}, found {self.found}"


def read_contract(run: Path) -> ChatContract:
    """Read the chat contract of a run. Raises CheckpointError if there is none, or it is damaged."""
    place = run if run.is_file() else (run.parent if run.name == "model" else run) / FILE
    if not place.is_file():
        raise CheckpointError(f"{run}: no {FILE} in it, which runs of decoders write; tune again or name another run")
    return read_page(place, ChatContract)


def contract_of(template: Template) -> ChatContract:
    """Render all conversations with a chat template, and parse the answers back."""
    lines = (files("tunesmith") / "shipped_data" / "conversations.jsonl").read_text(encoding="utf-8").splitlines()
    made = tuple(_rendered(Golden.model_validate_json(line), template) for line in lines)
    return ChatContract(template=template.hash, thinking=template.thinks, conversations=made)


def _rendered(golden: Golden, template: Template) -> Golden:
    """Return a conversation with its tokens, or with the reason why the template does not render it."""
    turns = [turn_of(turn, golden.name) for turn in golden.messages]
    if golden.tools:
        turns[0] = replace(turns[0], tools=json.dumps(golden.tools))
    mode = golden.thinking if template.thinks else None
    try:
        prompt = template.prompt(turns[:-1], thinking=mode)
        tokens = template.chat(turns, thinking=bool(mode))
        context = [replace(turn, weight=0.0) if turn.role == "assistant" else turn for turn in turns[:-1]]
        last = template.chat([*context, turns[-1]], thinking=bool(mode))
    except TemplateError as error:
        return golden.model_copy(update={"refused": str(error)})
    splitter = ThoughtSplitter.of(template, thinking=mode)
    written = [token for token, learn in zip(last.ids, last.learn, strict=True) if learn]
    thoughts, text = splitter.split(splitter.decode(written))
    text = template.in_json(text.strip(), turns)
    calls = calls_in(text) if golden.tools else []
    found = {"prompt": prompt, "ids": tokens.ids, "learned": list(_ranges(tokens.learn)), "thoughts": thoughts.strip()}
    return golden.model_validate({**golden.model_dump(), **found, "content": "" if calls else text, "calls": calls})


def _ranges(learn: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Yield start and end of each range of learned tokens."""
    start = 0
    for learned, group in groupby(learn):
        end = start + len(list(group))
        if learned:
            yield start, end
        start = end


def difference_of(contract: ChatContract, template: Template) -> ChatDifference | None:
    """Return the first difference of the chat template in a folder: in tokens, learned spans, or parsing."""
    for expected, found in zip(contract.conversations, contract_of(template).conversations, strict=False):
        tokens = (
            _first(expected.name, what, ours, theirs, template=template)
            for what, ours, theirs in (("prompt", expected.prompt, found.prompt), ("chat", expected.ids, found.ids))
        )
        fields = (
            _differs(expected.name, name, getattr(expected, name), getattr(found, name))
            for name in ("refused", "learned", "thoughts", "content", "calls")
        )
        if problem := next((one for one in chain(tokens, fields) if one), None):
            return problem
    return None


def _first(
    name: str, what: str, expected: Sequence[int], found: Sequence[int], *, template: Template | None
) -> ChatDifference | None:
    """Return the first token that differs, with its text if there is a tokenizer; None if all are equal."""

    def shown(token: int | None) -> str:
        text = "" if template is None or token is None else f" {template.tokenizer.decode([token])!r}"
        return "the end" if token is None else f"{token}{text}"

    for i, (ours, theirs) in enumerate(zip_longest(expected, found)):
        if ours != theirs:
            return _differs(name, f"token {i + 1} of the {what}", shown(ours), shown(theirs))
    return None


def _differs(name: str, what: str, expected: object, found: object) -> ChatDifference | None:
    if expected == found:
        return None
    return ChatDifference(conversation=name, what=what, expected=str(expected)[:200], found=str(found)[:200])


def difference_at(contract: ChatContract, server: Endpoint, template: Template | None) -> ChatDifference | None:
    """Return the first difference of a server: in the tokens of a prompt, or in what it leaves unparsed in an answer.

    Token ids are those of `/tokenize` (vLLM), after `/apply-template` (llama.cpp). Of other servers, the number of
    prompt tokens in the response is compared.

    Args:
        contract: the contract of the run.
        server: the server and its model.
        template: decodes tokens for the message, if there is one.

    Raises:
        DataError: the server does not answer.
    """
    import httpx2

    root = replace(server, url=server.url.rstrip("/").removesuffix("/v1"))
    with client_of(server) as client:

        def post(endpoint: Endpoint, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
            try:
                status, _, text = exchange(client, endpoint, path, dict(body))
            except httpx2.HTTPError as error:
                problem = f"cannot be reached ({type(error).__name__}); start it, or check the address"
                raise DataError(f"{server.url}: {problem}") from None
            with suppress(ValueError):
                if status == 200 and isinstance(found := json.loads(text), dict):
                    return found
            return {"refused": f"{status} {text[:120]}"}

        for golden in contract.conversations:
            if golden.refused:
                continue
            body: dict[str, Any] = {"model": server.model, "messages": golden.messages[:-1]}
            body |= {"tools": golden.tools} if golden.tools else {}
            if contract.thinking:
                body["chat_template_kwargs"] = {"enable_thinking": bool(golden.thinking)}
            text = post(root, "apply-template", body).get("prompt")
            asked = body if text is None else {"content": text, "add_special": True, "parse_special": True}
            ids = post(root, "tokenize", asked).get("tokens")
            answered = post(server, "chat/completions", {**body, "max_tokens": ANSWER_TOKENS, "temperature": 0.0})
            problem = (
                _first(golden.name, "prompt", golden.prompt, ids, template=template) if isinstance(ids, list) else None
            )
            if problem := problem or _of_answer(golden, answered, counted=ids is None):
                return problem
    return None


def _of_answer(golden: Golden, answered: Mapping[str, Any], *, counted: bool) -> ChatDifference | None:
    """Return the problem of a response to a prompt of the contract, if there is one."""
    if "refused" in answered:
        return _differs(golden.name, "response", "an answer", answered["refused"])
    count = (answered.get("usage") or {}).get("prompt_tokens")
    if counted and count is not None and count != len(golden.prompt):
        return _differs(golden.name, "number of prompt tokens", len(golden.prompt), count)
    try:
        message = answered["choices"][0]["message"]
        content, calls = str(message.get("content") or ""), message.get("tool_calls")
    except (KeyError, IndexError, TypeError, AttributeError):
        return _differs(golden.name, "response", "choices with a message", answered)
    if golden.tools and not calls and calls_in(content):
        return _differs(golden.name, "parsed answer", "tool_calls", f"the call as text: {content!r}")
    if "</think>" in content:
        return _differs(golden.name, "parsed answer", "thoughts apart from the answer", f"both: {content!r}")
    return None
