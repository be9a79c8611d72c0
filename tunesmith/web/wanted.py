"""What programs send to the server, in the words of OpenAI's API, and the question to a model that it becomes."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from tunesmith.data.calls import read_calls, read_tools
from tunesmith.data.examples import Message
from tunesmith.data.turns import check_order
from tunesmith.errors import DataError
from tunesmith.inference.ask import Ask, AskError
from tunesmith.model.sampling import Sampling

Name = Annotated[str, Field(min_length=1, max_length=200)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Longest = Annotated[int, Field(ge=1)]
TURNS = TOOLS = 256
TEXTS = 1024
ANYTHING = {"type": "object"}


class _Sent(BaseModel):
    """What a program sends: what is null is not asked for, as OpenAI's own client says."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, sent: Any) -> Any:
        return {key: value for key, value in sent.items() if value is not None} if isinstance(sent, dict) else sent


class ContentPart(_Sent):
    """A part of a turn; only texts are read here."""

    type: Literal["text"]
    text: str


class ChatTurn(_Sent):
    """A turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    tool_calls: list[dict[str, Any]] | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _texts(cls, sent: Any) -> Any:
        """Parts of which all are texts."""
        if isinstance(sent, list) and any(isinstance(part, dict) and part.get("type") != "text" for part in sent):
            raise ValueError("only parts of the type text are read here")
        return sent

    @property
    def text(self) -> str:
        """Its text as one."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)  # as in rows that are learned
        return self.content or ""

    def message(self, *, tools: str = "") -> Message:
        """The turn as every responder takes it."""
        role = "system" if self.role == "developer" else self.role
        calls = [_with_arguments(call) for call in self.tool_calls or []]
        return Message(role, self.text, read_calls({"tool_calls": calls}, "messages: a turn"), tools)


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """The call; of a tool that takes nothing some programs write no arguments at all."""
    told = call.get("function")
    return (
        call | {"function": told | {"arguments": "{}"}}
        if isinstance(told, dict) and told.get("arguments") == ""
        else call
    )


class StreamOptions(_Sent):
    """What is told at the end of a stream."""

    include_usage: bool = False


class Schema(_Sent):
    """A schema with its name."""

    name: str = ""
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(_Sent):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None

    @property
    def schema_(self) -> Mapping[str, Any] | None:
        """The schema, None for any text."""
        if self.type == "json_schema" and self.json_schema is None:
            raise AskError("response_format: json_schema is missing; send the schema in it")
        if self.type == "json_schema" and self.json_schema is not None:
            return self.json_schema.schema_
        return ANYTHING if self.type == "json_object" else None


class SamplingFields(_Sent):
    """How an answer is to be drawn; what is not asked for is as in training, at temperature 0."""

    model: Name
    max_tokens: Longest | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str = ""
    n: Literal[1] | None = 1
    frequency_penalty: Literal[0] = 0
    presence_penalty: Literal[0] = 0
    # What would change the answer and is not done here is refused, unless it is set to what changes nothing.
    logit_bias: dict[str, Literal[0]] = {}
    top_k: int = 0
    min_p: Literal[0] = 0
    repetition_penalty: Literal[1] = 1

    def sampling(self, default: Sampling) -> Sampling:
        """The model's own settings with these in their place."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        longest = self.longest
        temperature = default.temperature if self.temperature is None else self.temperature
        if temperature and self.top_k > 0:
            raise AskError("top_k: not done here; send top_p, or temperature 0")
        return Sampling(
            max_new_tokens=default.max_new_tokens if longest is None else longest,
            temperature=temperature,
            top_p=default.top_p if self.top_p is None else self.top_p,
            stop=stop,
            seed=secrets.randbelow(2**31) if self.seed is None else self.seed,
        )

    @property
    def longest(self) -> int | None:
        """Tokens of the longest answer."""
        return self.max_tokens


class ChatWanted(SamplingFields):
    """POST /v1/chat/completions."""

    messages: list[ChatTurn] = Field(min_length=1, max_length=TURNS)
    max_completion_tokens: Longest | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] = Field([], max_length=TOOLS)
    tool_choice: Literal["auto", "none"] = "auto"
    functions: Annotated[list[Any], Field(max_length=0)] = []  # the older word for tools

    @property
    def longest(self) -> int | None:
        """Tokens of the longest answer, by either name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def ask(self, name: str, default: Sampling) -> Ask:
        """The question to a model."""
        if _has_empty_question(self.messages):
            raise AskError("messages: a user turn is empty; write something")
        first, *others = self.messages
        tools = read_tools(self.tools if self.tool_choice == "auto" else [], "tools")
        return Ask(
            name,
            (first.message(tools=tools), *(turn.message() for turn in others)),
            sampling=self.sampling(default),
            schema=self.response_format.schema_ if self.response_format else None,
            best=self.top_logprobs if self.logprobs else -1,
            in_pieces=self.stream,
        )


class TextWanted(SamplingFields):
    """POST /v1/completions: a text to go on with, no chat around it."""

    prompt: Annotated[str, Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = False
    best_of: Literal[1] = 1
    suffix: Literal[""] = ""

    @field_validator("prompt", mode="before")
    @classmethod
    def _one(cls, sent: Any) -> Any:
        """The text of a list of one, as some programs send it."""
        if not isinstance(sent, list):
            return sent
        if len(sent) == 1 and isinstance(sent[0], str):
            return sent[0]
        raise ValueError("one text is gone on with; send each in a request of its own, and texts, not token ids")

    def ask(self, name: str, default: Sampling) -> Ask:
        """The question to a model."""
        best = -1 if self.logprobs is None else self.logprobs
        return Ask(name, text=self.prompt, sampling=self.sampling(default), best=best, in_pieces=self.stream)


class TextsWanted(_Sent):
    """POST /v1/embeddings and /classify: texts."""

    model: Name
    input: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] = Field(max_length=2**20)
    user: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _no_ids(cls, sent: Any) -> Any:
        """Texts: what programs cut into tokens by themselves they cut with another model's tokenizer."""
        if isinstance(sent, list) and any(isinstance(one, int | list) for one in sent):
            raise ValueError("token ids of another tokenizer; send texts (LangChain: check_embedding_ctx_length=False)")
        return sent

    @property
    def texts(self) -> list[str]:
        """All of them. Raises AskError for none and for too many."""
        texts = [self.input] if isinstance(self.input, str) else self.input
        if not 1 <= len(texts) <= TEXTS:
            raise AskError(f"input: {len(texts)} texts, 1 to {TEXTS} are read; send them in parts")
        return texts


class ThumbWanted(_Sent):
    """POST /feedback: what was asked, what was answered, and whether that was good."""

    model: Name
    messages: list[ChatTurn] = Field(min_length=1, max_length=TURNS)
    answer: str = Field(min_length=1)
    good: bool
    rater: str = Field("", max_length=40)

    @property
    def by(self) -> str:
        """Who says so; without a name somebody new each time, for one person's later vote replaces the earlier."""
        return self.rater.strip() or f"somebody {secrets.token_hex(8)}"

    def judged(self) -> list[Message]:
        """The turns before the answer. Raises AskError for a chat that no row could be made of later."""
        turns = [turn.message() for turn in self.messages]
        if not self.answer.strip():
            raise AskError("answer: is empty; a thumb is for an answer with words")
        if not any(turn.role == "user" for turn in turns) or _has_empty_question(self.messages):
            raise AskError("messages: no user turn, or an empty one; send what was asked")
        try:
            check_order([*turns, Message("assistant", self.answer)], "messages")
        except DataError as error:
            raise AskError(str(error)) from error
        return turns


class NameWanted(BaseModel):
    """POST /admin/...: a registered name."""

    model: Name


def _has_empty_question(turns: Sequence[ChatTurn]) -> bool:
    return any(turn.role == "user" and not turn.text.strip() for turn in turns)
