"""Request bodies in the schema of OpenAI's API, and their conversion to generation requests."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tunesmith.data.tokenization.messages import Message, check_order
from tunesmith.data.tokenization.tool_calls import read_calls, read_tools
from tunesmith.errors import DataError
from tunesmith.inference.serving.request import AskError, GenerationRequest
from tunesmith.models.generation.sampling import Sampling

Name = Annotated[str, Field(min_length=1, max_length=200)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Longest = Annotated[int, Field(ge=1)]
TURNS = 256  # turns per chat
TOOLS = 256  # tools per chat
TEXTS = 1024  # texts per request
ANYTHING = {"type": "object"}  # JSON schema of response_format json_object


class _Sent(BaseModel):
    """Base of request bodies: null means the default, as OpenAI's client assumes."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Any) -> Any:
        return {key: value for key, value in body.items() if value is not None} if isinstance(body, dict) else body


class ContentPart(_Sent):
    """A part of a turn; only text is supported."""

    type: Literal["text"]
    text: str


class ChatTurn(_Sent):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    # Thoughts of an earlier answer, under the names of vLLM. The chat template decides whether the model sees them.
    reasoning_content: str | None = None
    reasoning: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _texts(cls, content: Any) -> Any:
        if isinstance(content, list) and any(isinstance(part, dict) and part.get("type") != "text" for part in content):
            raise ValueError("only parts of type text are supported")
        return content

    @property
    def text(self) -> str:
        """Return all text of the turn."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)  # as in training rows
        return self.content or ""

    def message(self, *, tools: str = "") -> Message:
        """Convert the turn to a message, the first one with the tools of the request as JSON.

        Raises DataError for a malformed tool call.
        """
        role = "system" if self.role == "developer" else self.role
        calls = [_with_arguments(call) for call in self.tool_calls or []]
        thoughts = (self.reasoning_content or self.reasoning or "") if role == "assistant" else ""
        return Message(role, self.text, read_calls({"tool_calls": calls}, "messages: a turn"), tools, thoughts=thoughts)


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """Replace empty arguments by {}: some clients send "" for tools without parameters."""
    function = call.get("function")
    if isinstance(function, dict) and function.get("arguments") == "":
        return call | {"function": function | {"arguments": "{}"}}
    return call


class StreamOptions(_Sent):
    """Options of a streamed response."""

    include_usage: bool = False


class Schema(_Sent):
    """A named JSON schema."""

    name: str = ""
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(_Sent):
    """Required format of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None

    @property
    def schema_(self) -> Mapping[str, Any] | None:
        """Return the JSON schema, None for any text. Raises AskError if there is none for the type json_schema."""
        if self.type == "json_schema":
            if self.json_schema is None:
                raise AskError("response_format: json_schema is missing; send the schema")
            return self.json_schema.schema_
        return ANYTHING if self.type == "json_object" else None


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
NO_THOUGHTS = ("none", "minimal")


class TemplateSettings(_Sent):
    """Variables of the chat template, as vLLM takes them; only the switch of thinking is supported."""

    model_config = ConfigDict(extra="forbid")

    enable_thinking: bool | None = None
    thinking: bool | None = None  # the name of DeepSeek's templates
    reasoning_effort: Effort | None = None


class SamplingFields(_Sent):
    """Sampling options of a request; defaults are those of the model."""

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
    # Unsupported options that would change the answer are rejected, except for their neutral value.
    logit_bias: dict[str, Literal[0]] = {}
    top_k: int = 0
    min_p: Literal[0] = 0
    repetition_penalty: Literal[1] = 1

    def sampling(self, default: Sampling) -> Sampling:
        """Return the options of this request over the model's. Raises AskError for top_k at a temperature above 0."""
        temperature = default.temperature if self.temperature is None else self.temperature
        if temperature and self.top_k > 0:
            raise AskError("top_k: not supported; use top_p, or temperature 0")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            max_new_tokens=default.max_new_tokens if self.longest is None else self.longest,
            temperature=temperature,
            top_p=default.top_p if self.top_p is None else self.top_p,
            stop=stop,
            seed=secrets.randbelow(2**31) if self.seed is None else self.seed,
        )

    @property
    def longest(self) -> int | None:
        """Return the maximum number of new tokens."""
        return self.max_tokens


class ChatCompletionRequest(SamplingFields):
    """POST /v1/chat/completions."""

    messages: list[ChatTurn] = Field(min_length=1, max_length=TURNS)
    max_completion_tokens: Longest | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] = Field([], max_length=TOOLS)
    tool_choice: Literal["auto", "none"] = "auto"
    functions: Annotated[list[Any], Field(max_length=0)] = []  # deprecated predecessor of tools
    # The switch of thinking: as Qwen's API, vLLM and OpenAI name it.
    enable_thinking: bool | None = None
    chat_template_kwargs: TemplateSettings = TemplateSettings()
    reasoning_effort: Effort | None = None

    @property
    def thinking_switches(self) -> dict[str, bool]:
        """Return whether thoughts are requested, by each key that was sent."""
        settings = self.chat_template_kwargs
        effort, inner_effort = self.reasoning_effort, settings.reasoning_effort
        switches = {
            "enable_thinking": self.enable_thinking,
            "chat_template_kwargs": settings.thinking if settings.enable_thinking is None else settings.enable_thinking,
            "reasoning_effort": None if effort is None else effort not in NO_THOUGHTS,
        }
        if switches["chat_template_kwargs"] is None and inner_effort is not None:
            switches["chat_template_kwargs"] = inner_effort not in NO_THOUGHTS
        return {key: value for key, value in switches.items() if value is not None}

    @property
    def effort(self) -> str:
        """Return the effort for templates that take one: low, medium or high; empty for their default."""
        effort = self.reasoning_effort or self.chat_template_kwargs.reasoning_effort or ""
        return "high" if effort == "xhigh" else "" if effort in NO_THOUGHTS else effort

    @property
    def thinking(self) -> bool | None:
        """Return whether thoughts are requested, None if nothing is said. Raises AskError if two keys contradict."""
        switches = self.thinking_switches
        if len(set(switches.values())) > 1:
            *others, last = switches
            raise AskError(f"{last}: contradicts {' and '.join(others)}; send one of them")
        return next(iter(switches.values()), None)

    @property
    def longest(self) -> int | None:
        """Return the maximum number of new tokens, by either name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def ask(self, name: str, default: Sampling, *, thinking: bool | None = None) -> GenerationRequest:
        """Convert the body to a request to the model `name`, with `default` sampling options.

        Args:
            name: the model.
            default: its sampling options.
            thinking: mode of the prompt.

        Raises:
            AskError: the request is invalid.
        """
        if _has_empty_user_turn(self.messages):
            raise AskError("messages: a user turn is empty; add text")
        first, *others = self.messages
        tools = read_tools(self.tools if self.tool_choice == "auto" else [], "tools")
        return GenerationRequest(
            name,
            (first.message(tools=tools), *(turn.message() for turn in others)),
            sampling=self.sampling(default),
            schema=self.response_format.schema_ if self.response_format else None,
            best=self.top_logprobs if self.logprobs else -1,
            in_pieces=self.stream,
            thinking=thinking,
            effort=self.effort if thinking else "",
        )


class CompletionRequest(SamplingFields):
    """POST /v1/completions: continue a text without a chat format."""

    prompt: Annotated[str, Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = False
    best_of: Literal[1] = 1
    suffix: Literal[""] = ""

    @field_validator("prompt", mode="before")
    @classmethod
    def _single_text(cls, prompt: Any) -> Any:
        if not isinstance(prompt, list):
            return prompt
        if len(prompt) == 1 and isinstance(prompt[0], str):  # sent by some clients
            return prompt[0]
        raise ValueError("expected one text, not several or token ids; send each text in its own request")

    thinking: ClassVar[None] = None  # a text is continued without a chat template

    def ask(self, name: str, default: Sampling, *, thinking: bool | None = None) -> GenerationRequest:
        """Convert the body to a request to the model `name`, with `default` sampling options."""
        best = -1 if self.logprobs is None else self.logprobs
        return GenerationRequest(
            name, text=self.prompt, sampling=self.sampling(default), best=best, in_pieces=self.stream
        )


class TextsRequest(_Sent):
    """POST /v1/embeddings, /classify, /predict and /answer."""

    model: Name
    input: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] = Field(max_length=2**20)
    user: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    # Whether the texts are queries or passages, as Cohere, Voyage and NVIDIA name it.
    input_type: Literal["query", "search_query", "passage", "document", "search_document"] = "query"

    @field_validator("input", mode="before")
    @classmethod
    def _no_ids(cls, texts: Any) -> Any:
        # Clients that send token ids use OpenAI's tokenizer.
        if isinstance(texts, list) and any(isinstance(text, int | list) for text in texts):
            raise ValueError("token ids are not supported; send texts (LangChain: check_embedding_ctx_length=False)")
        return texts

    @property
    def is_passage(self) -> bool:
        """Return whether the texts are passages, not queries."""
        return self.input_type in ("passage", "document", "search_document")

    @property
    def texts(self) -> list[str]:
        """Return the texts. Raises AskError if there are none, or more than TEXTS."""
        texts = [self.input] if isinstance(self.input, str) else self.input
        if not 1 <= len(texts) <= TEXTS:
            fix = "send several requests" if texts else "send at least one"
            raise AskError(f"input: expected 1 to {TEXTS} texts, got {len(texts)}; {fix}")
        return texts


class RankedDocument(_Sent):
    """A document to rank, as an object."""

    text: str = Field(min_length=1)


class RerankRequest(_Sent):
    """POST /v1/rerank, as clients of Cohere, Jina and vLLM send it."""

    model: Name
    query: str = Field(min_length=1)
    documents: list[Annotated[str, Field(min_length=1)] | RankedDocument] = Field(max_length=2**20)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = True
    user: str = ""
    # Unsupported options that would change the scores are rejected.
    max_tokens_per_doc: None = None
    max_chunks_per_doc: None = None
    truncate_prompt_tokens: None = None
    rank_fields: Annotated[list[Literal["text"]], Field(max_length=1)] = []

    @field_validator("documents", mode="before")
    @classmethod
    def _only_texts(cls, documents: Any) -> Any:
        """Raise ValueError for a document of another form, in one line instead of one for each form."""
        for number, document in enumerate(documents if isinstance(documents, list) else [], 1):
            text = document.get("text") if isinstance(document, dict) else document
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f'document {number} is not a text, or empty; send texts, or {{"text": ...}}')
        return documents

    @property
    def texts(self) -> list[str]:
        """Return the texts of the documents. Raises AskError for none, more than TEXTS, or an empty query."""
        if not self.query.strip():
            raise AskError("query: empty; send a text")
        if not 1 <= len(self.documents) <= TEXTS:
            count = len(self.documents)
            fix = "send several requests" if count else "send at least one"
            raise AskError(f"documents: expected 1 to {TEXTS} documents, got {count}; {fix}")
        return [document if isinstance(document, str) else document.text for document in self.documents]


class RatingRequest(_Sent):
    """POST /feedback: a rating of one answer."""

    model: Name
    messages: list[ChatTurn] = Field(min_length=1, max_length=TURNS)
    answer: str = Field(min_length=1)
    good: bool
    rater: str = Field("", max_length=40)

    @property
    def by(self) -> str:
        """Return the rater; without a name a new one each time, since a later vote replaces an earlier one."""
        return self.rater.strip() or f"anonymous {secrets.token_hex(8)}"

    def judged(self) -> list[Message]:
        """Return the turns before the answer. Raises AskError if the chat could not become a training row."""
        turns = [turn.message() for turn in self.messages]
        if not self.answer.strip():
            raise AskError("answer: empty; send the answer that is rated")
        if not any(turn.role == "user" for turn in turns) or _has_empty_user_turn(self.messages):
            raise AskError("messages: no user turn, or an empty one; send the prompt")
        try:
            check_order([*turns, Message("assistant", self.answer)], "messages")
        except DataError as error:
            raise AskError(str(error)) from error
        return turns


class ModelName(BaseModel):
    """POST /admin/...: name of a registered model."""

    model: Name


def _has_empty_user_turn(turns: Sequence[ChatTurn]) -> bool:
    return any(turn.role == "user" and not turn.text.strip() for turn in turns)
