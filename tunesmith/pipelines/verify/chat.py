"""The chat contract: golden conversations with token ids, learned spans and parsed answers, for any target.

An engine that renders a chat otherwise than training did answers worse, without an error. The conversations are the
same for every run and quote no row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.resources import files
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from tunesmith.data.files import read_page
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.data.tokenization.messages import turn_of
from tunesmith.data.tokenization.thinking import switch_values
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
    conversations: tuple[Golden, ...] = Field(min_length=1, max_length=64)


class ChatDifference(BaseModel):
    """The first difference between a target and the contract."""

    conversation: str
    what: str
    expected: str
    found: str

    def sentence(self) -> str:
        """Return the difference on one line."""
        return f"conversation {self.conversation!r}: {self.what}: expected {self.expected}, found {self.found}"


@dataclass(slots=True)
class Comparison:
    """A comparison with the contract: counts, and the first difference."""

    counts: Counter[str] = field(default_factory=Counter)  # conversations, by what was compared of them
    difference: ChatDifference | None = None

    def differs(self, name: str, what: str, expected: object, found: object, *, kind: str) -> bool:
        """Count a comparison, and keep it if it is the first difference."""
        self.counts[kind] += 1
        if expected != found and self.difference is None:
            shown = {"expected": str(expected)[:200], "found": str(found)[:200]}
            self.difference = ChatDifference(conversation=name, what=what, **shown)
        return self.difference is not None


def read_contract(run: Path) -> ChatContract:
    """Read the chat contract of a run.

    Args:
        run: run folder, its model folder, or the file.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    place = run if run.is_file() else (run.parent if run.name == "model" else run) / FILE
    if not place.is_file():
        when = "runs of decoders write it, unless the recipe has `challenge: false`"
        raise CheckpointError(f"{run}: no {FILE} in it; {when}; name another run")
    return read_page(place, ChatContract)


def contract_of(template: Template) -> ChatContract:
    """Return the shipped conversations, rendered with a chat template, and their answers parsed back."""
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


def compare_template(contract: ChatContract, template: Template) -> Comparison:
    """Compare the chat template of a folder: tokens, learned spans and parsed answers, up to the first difference."""
    result = Comparison()
    for expected in contract.conversations:
        found, name = _rendered(expected.model_copy(update={"refused": ""}), template), expected.name
        if result.differs(name, "refused", expected.refused, found.refused, kind="conversations"):
            break
        if expected.refused:
            continue
        if _tokens_differ(result, expected, "prompt", found.prompt, template=template):
            break
        if _tokens_differ(result, expected, "chat", found.ids, template=template):
            break
        if result.differs(name, "learned", expected.learned, found.learned, kind="learned ranges"):
            break
        for part in ("thoughts", "content", "calls"):
            result.differs(name, part, getattr(expected, part), getattr(found, part), kind=f"parsed {part}")
        if result.difference:
            break
    return result


def _tokens_differ(
    result: Comparison, golden: Golden, what: str, found: Sequence[int], *, template: Template | None
) -> bool:
    """Compare token ids; the difference is the first token, with its text if there is a tokenizer."""

    def shown(token: int | None) -> str:
        text = "" if template is None or token is None else f" {template.tokenizer.decode([token])!r}"
        return "the end" if token is None else f"{token}{text}"

    expected, name = golden.prompt if what == "prompt" else golden.ids, golden.name
    kind = f"token ids of the {what}"
    for i, (ours, theirs) in enumerate(zip_longest(expected, found)):
        if ours != theirs:
            return result.differs(name, f"token {i + 1} of the {what}", shown(ours), shown(theirs), kind=kind)
    return result.differs(name, what, None, None, kind=kind)


# Responses of servers, which are not trusted.
Token = Annotated[int, Field(ge=0, lt=2**31)]


class _Rendered(BaseModel):
    prompt: str


class _Tokens(BaseModel):
    tokens: list[Token]


class _Usage(BaseModel):
    prompt_tokens: int | None = None


class _Message(BaseModel):
    content: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(BaseModel):
    message: _Message


class _Response(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


Shape = TypeVar("Shape", bound=BaseModel)


def compare_server(contract: ChatContract, server: Endpoint, template: Template | None) -> Comparison:
    """Compare a server, up to the first difference: the tokens of prompts, and what it leaves unparsed in an answer.

    Token ids are those of `/tokenize` (vLLM), after `/apply-template` (llama.cpp). Of other servers, the number of
    prompt tokens in the response is compared.

    Args:
        contract: the contract of the run.
        server: the server and its model.
        template: decodes tokens and finds thoughts, if there is one.

    Raises:
        DataError: the server does not answer, or nothing of it can be compared.
    """
    import httpx2

    root = replace(server, url=server.url.rstrip("/").removesuffix("/v1"))
    result = Comparison()
    with client_of(server) as client:

        def post(endpoint: Endpoint, path: str, body: Mapping[str, Any], shape: type[Shape]) -> Shape | str:
            """Return the response, or the text of one that has another shape."""
            try:
                status, _, text = exchange(client, endpoint, path, dict(body))
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                problem = f"cannot be reached ({type(error).__name__}); start it, or check the address"
                raise DataError(f"{server.url}: {problem}") from None
            with suppress(ValueError, RecursionError):  # ValidationError is a ValueError
                if status == 200:
                    return shape.model_validate_json(text)
            return f"{status} {text[:120]}"

        for golden in (one for one in contract.conversations if not one.refused):
            body: dict[str, Any] = {"model": server.model, "messages": golden.messages[:-1]}
            body |= {"tools": golden.tools} if golden.tools else {}
            if contract.thinking:
                body["chat_template_kwargs"] = switch_values(bool(golden.thinking))
            text = post(root, "apply-template", body, _Rendered)
            asked = (
                body if isinstance(text, str) else {"content": text.prompt, "add_special": True, "parse_special": True}
            )
            ids = post(root, "tokenize", asked, _Tokens)
            options = {"max_tokens": ANSWER_TOKENS, "temperature": 0.0}
            answered = post(server, "chat/completions", {**body, **options}, _Response)
            if not isinstance(ids, str):
                _tokens_differ(result, golden, "prompt", ids.tokens, template=template)
            if isinstance(answered, str):
                result.differs(golden.name, "response", "choices with a message", answered, kind="responses")
            else:
                _compare_answer(result, golden, answered, template, counted=isinstance(ids, str))
            if result.difference:
                break
    if not result.counts:
        raise DataError(f"{server.url}: returns no tokens of prompts, so nothing can be compared; verify its folder")
    return result


def _compare_answer(
    result: Comparison, golden: Golden, response: _Response, template: Template | None, *, counted: bool
) -> None:
    """Compare the number of tokens of a prompt, and look for calls and thoughts in the text of an answer."""
    if counted and response.usage and response.usage.prompt_tokens is not None:
        what = "number of prompt tokens"
        result.differs(golden.name, what, len(golden.prompt), response.usage.prompt_tokens, kind=what)
    message = response.choices[0].message
    content = message.content or ""
    if golden.tools and not message.tool_calls:
        found = f"the call as text: {content!r}" if calls_in(content) else "tool_calls"
        result.differs(golden.name, "parsed answer", "tool_calls", found, kind="calls in answers")
    if template is not None and template.thinks:
        # Text before an end of thoughts, or after their beginning.
        mixed = template.split_thoughts(content, open=True)[1] or template.split_thoughts(content, open=False)[0]
        expected = "thoughts apart from the answer"
        found = f"both: {content!r}" if mixed else expected
        result.differs(golden.name, "parsed answer", expected, found, kind="thoughts in answers")
