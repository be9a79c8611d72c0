"""OpenAI-compatible server as an ASGI app, with ranking, `/classify`, `/predict`, `/feedback` and administration."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import re
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tunesmith.annotation.thumbs import Thumbs
from tunesmith.annotation.vote_store import Unwritten
from tunesmith.data.files import read_json
from tunesmith.errors import RecipeError, TunesmithError, briefly, key_of
from tunesmith.inference.serving.live_answer import CompletionChunk
from tunesmith.inference.serving.protocol import AnsweringEngine, Busy, Model
from tunesmith.inference.serving.request import AskError, GenerationRequest, UnknownModel
from tunesmith.inference.serving.shadow.paid import PaidError
from tunesmith.inference.serving.traffic_split import Splits
from tunesmith.web.openai.metrics import Metrics
from tunesmith.web.openai.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    ModelName,
    RatingRequest,
    RerankRequest,
    TextsRequest,
)
from tunesmith.web.openai.responses import CallSplitter, ChatCompletionBuilder, ranking, wrong
from tunesmith.web.openai.shadow import Shadow
from tunesmith.web.openai.stream import CompletionStream, InternalError, Late
from tunesmith.web.security import Refusal, RequestPolicy

MOST_BYTES = 512 * 1024  # of a request body
# Errors of the web framework. An internal error is reported without its traceback, which is in the log.
FRAMEWORK_ERRORS = {
    404: "no such route; docs/reference/http-api.md lists all routes",
    405: "method not allowed; use GET or POST as listed in docs/reference/http-api.md",
    500: "internal error in tunesmith; see the log of the server",
}
# Leading folders of a path, removed from error messages: clients must not learn the file system of the server.
FOLDERS = re.compile(r"(?<![^\s'\"(])(?:[A-Za-z]:)?[\\/](?:[^\s\\/:;,'\"]+[\\/])*")
Handler = Callable[[Any], Awaitable[Any]]
Body = TypeVar("Body", bound=BaseModel)
# Exception -> HTTP status, OpenAI error type and code.
ERRORS: dict[type[Exception], tuple[int, str, str | None]] = {
    UnknownModel: (404, "invalid_request_error", "model_not_found"),
    Busy: (429, "rate_limit_error", "queue_full"),
    Late: (504, "timeout", "took_too_long"),
    InternalError: (500, "server_error", None),
    Unwritten: (503, "server_error", None),
    TunesmithError: (400, "invalid_request_error", None),
}


def refuses(refused: Refusal) -> Any:
    """Return the body of a request rejected by `Guard` in OpenAI's error schema."""
    return wrong(refused.text, code="no_token" if refused.status == 401 else None)


POLICY = RequestPolicy(own_header=False, most_bytes=MOST_BYTES, refuses=refuses)


class Api:
    """Routes of the server.

    Args:
        engine: generates answers, embeddings, labels and scores.
        splits: names that distribute requests over several models.
        metrics: counters of requests and tokens.
        thumbs: store of ratings sent to /feedback.
        thinking: whether models that can think do so unless a request says otherwise; None: as each was trained.
        shadow: answers chats by a paid model, and by a tuned one where its agreement has been shown.
        at_start: work in the background, from when the server accepts requests until it ends.
    """

    def __init__(
        self,
        engine: AnsweringEngine,
        *,
        splits: Splits,
        metrics: Metrics,
        thumbs: Thumbs,
        thinking: bool | None = None,
        shadow: Shadow | None = None,
        at_start: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self._shadow = shadow
        self._at_start = at_start
        self._engine = engine
        self._splits = splits
        self._metrics = metrics
        self._thumbs = thumbs
        self._thinking = thinking

    def app(self) -> Any:
        """Create the ASGI app, without FastAPI's documentation pages, which load scripts from a CDN."""
        from fastapi import FastAPI

        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=self._lifespan)
        routes: Sequence[tuple[str, str, Handler]] = (
            ("POST", "/v1/chat/completions", self._chat),
            ("POST", "/v1/completions", self._text),
            ("POST", "/v1/embeddings", self._embeddings),
            ("POST", "/v1/rerank", self._rerank),
            ("POST", "/v2/rerank", self._rerank),
            ("POST", "/classify", self._classify),
            ("POST", "/predict", self._predict),
            ("POST", "/answer", self._answer),
            ("POST", "/feedback", self._thumb),
            ("GET", "/v1/models", self._models),
            ("GET", "/v1/models/{name:path}", self._model),
            ("GET", "/health", self._health),
            ("GET", "/metrics", self._count),
            ("POST", "/admin/load", self._load),
            ("POST", "/admin/unload", self._unload),
            ("POST", "/admin/rollback", self._roll_back),
            ("GET", "/admin/shadow", self._show_shadow),
        )
        for method, path, handler in routes:
            app.add_route(path, self._guarded(path, handler), methods=[method])
        for status, text in FRAMEWORK_ERRORS.items():
            app.exception_handler(status)(_framework_error(status, text))
        return app

    @asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        """Start work in the background, and finish comparisons when the server ends."""
        task = self._at_start and asyncio.create_task(self._at_start())
        yield
        if task is not None:
            task.cancel()
        if self._shadow is not None:
            await self._shadow.close()

    def _guarded(self, path: str, handler: Handler) -> Handler:
        """Wrap a handler so that errors become responses and every response is counted."""

        async def answered(request: Any) -> Any:
            started = time.perf_counter()
            try:
                answer = await handler(request)
            except (TunesmithError, ValidationError) as error:
                status, body = _status_and_body(error)
                answer = _json(body, status)
                if isinstance(error, PaidError):
                    answer.headers.update({"retry-after": error.retry_after} if error.retry_after else {})
                elif status >= 500 and not isinstance(error, Unwritten):
                    answer.headers["x-should-retry"] = "false"  # a retry would take as long again
            self._metrics.count_request(path, answer.status_code, time.perf_counter() - started)
            return answer

        return answered

    async def _chat(self, request: Any) -> Any:
        if self._shadow is not None:
            answer = await self._shadow.chat(await request.body(), request.headers, self._asked)
            if answer is not None:
                return answer
        return await self._generate(request, await _parsed(ChatCompletionRequest, request))

    async def _text(self, request: Any) -> Any:
        return await self._generate(request, await _parsed(CompletionRequest, request))

    def _run(self, name: str, who: str = "") -> Model:
        return self._engine.registry.get(self._splits.choose(name, who=who))

    async def _generate(self, request: Any, body: ChatCompletionRequest | CompletionRequest) -> Any:
        """Answer with one body or with a stream of server-sent events."""
        from fastapi.responses import StreamingResponse

        run = self._run(body.model, body.user)
        ask = self._asked(run, body)
        stream = CompletionStream(request, lambda last: self._metrics.count_tokens(run.name, last))
        stream.ticket = self._engine.ask(ask, stream.on_chunk)
        builder = ChatCompletionBuilder(run.name, run.template, chat=ask.text is None)
        if ask.in_pieces:
            # Awaited before the response starts, so that an invalid request still gets its own status.
            first = await anext(aiter(stream), None)
            splitter = CallSplitter(ask.messages, run.template)
            chunks = _stream(first, stream, builder, splitter, usage_too=body.stream_options.include_usage)
            return StreamingResponse(chunks, media_type="text/event-stream")
        return _json(builder.answer(await stream.whole(), ask.messages))

    def _asked(self, run: Model, body: ChatCompletionRequest | CompletionRequest) -> GenerationRequest:
        """Convert a body to a request to a model, with its defaults."""
        thinking = self._thinking_mode(run, body)
        sampling = run.sampling_for(thinking)
        longest = min(sampling.max_new_tokens, self._engine.limits.new_tokens)
        return body.ask(run.name, replace(sampling, max_new_tokens=longest), thinking=thinking)

    async def _embeddings(self, request: Any) -> Any:
        body = await _parsed(TextsRequest, request)
        run = self._run(body.model, body.user)
        states = await self._read(run, "passages" if body.is_passage else "states", body.texts)
        tokens = sum(count for _, count in states)
        sizes = sorted({len(states[0][0]), *run.objective.vector_sizes})
        if body.dimensions not in (None, *sizes):
            expected = " or ".join(map(str, sizes))
            raise AskError(f"dimensions: expected {expected} for {run.name}, got {body.dimensions}; omit it")
        vectors = [_first(vector, body.dimensions) for vector, _ in states]
        encoded: list[Any] = vectors
        if body.encoding_format == "base64":  # the default of OpenAI's client: float32
            packed = (struct.pack(f"<{len(vector)}f", *vector) for vector in vectors)
            encoded = [base64.b64encode(content).decode() for content in packed]
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(encoded)]
        counts = {"prompt_tokens": tokens, "total_tokens": tokens}
        return _json({"object": "list", "model": run.name, "data": data, "usage": counts})

    async def _rerank(self, request: Any) -> Any:
        body = await _parsed(RerankRequest, request)
        run = self._run(body.model, body.user)
        if run.objective.produces != "ranking":
            raise AskError(f"model: {run.name} ranks nothing; use another route, or a run tuned with rerank")
        pairs = [(body.query, text) for text in body.texts]
        return _json(ranking(run.name, body, await self._read(run, "relevance", pairs)))

    async def _classify(self, request: Any) -> Any:
        body = await _parsed(TextsRequest, request)
        run = self._run(body.model, body.user)
        if run.objective.produces != "labels":
            task = next(iter(run.objective.task_objectives))
            fix = f"use one of its tasks, such as {run.name}/{task}" if task else "use another route or model"
            raise AskError(f"model: {run.name} is not a classifier; {fix}")
        results = await self._read(run, "labels", body.texts)
        data = [{"index": i, "label": result.label, "labels": result.labels, "probabilities": result.probabilities,
                 "reliable": result.reliable} for i, result in enumerate(results)]  # fmt: skip
        return _json({"object": "list", "model": run.name, "data": data})

    async def _predict(self, request: Any) -> Any:
        body = await _parsed(TextsRequest, request)
        run = self._run(body.model, body.user)
        if run.objective.produces != "number":
            raise AskError(f"model: {run.name} predicts no values; use another route, or a run tuned with regress")
        numbers = await self._read(run, "values", body.texts)
        data = [{"index": i, "number": number} for i, number in enumerate(numbers)]
        return _json({"object": "list", "model": run.name, "data": data})

    async def _answer(self, request: Any) -> Any:
        body = await _parsed(TextsRequest, request)
        run = self._run(body.model, body.user)
        if run.objective.route != "answer":
            raise AskError(f"model: {run.name} answers at /{run.objective.route or 'none'}; use that route")
        data = [{"index": i, **found} for i, found in enumerate(await self._read(run, "answers", body.texts))]
        return _json({"object": "list", "model": run.name, "data": data})

    async def _read(self, run: Model, kind: Any, texts: Sequence[Any]) -> Any:
        try:
            return await asyncio.wrap_future(self._engine.whole(run.name, kind, texts))
        except asyncio.CancelledError as error:
            limit = f"{self._engine.limits.seconds:.0f} s"
            raise Late(f"server: time limit of {limit} exceeded; send fewer texts per request") from error

    async def _thumb(self, request: Any) -> Any:
        body = await _parsed(RatingRequest, request)
        if body.model in self._splits.shares:
            raise AskError(f"model: {body.model} is a traffic split; send the `model` of the response")
        run = self._run(body.model)
        messages = body.judged()
        keep = partial(self._thumbs.keep, by=run.name, good=body.good, rater=body.by)
        await asyncio.to_thread(keep, messages, body.answer)
        return _json({"kept": True})

    async def _models(self, request: Any) -> Any:
        data = [self._card(run) for run in self._engine.registry.runs()]
        data += [{**_named(name), "split": dict(shares)} for name, shares in self._splits.shares.items()]
        return _json({"object": "list", "data": data})

    async def _model(self, request: Any) -> Any:
        name = request.path_params["name"]
        return _json(_named(name) if name in self._splits.shares else self._card(self._engine.registry.get(name)))

    async def _health(self, request: Any) -> Any:
        engine = self._engine
        loaded = [run.name for run in engine.registry.runs()]
        return _json({"status": "ok", "models": loaded, "answering": engine.at_work, "waiting": engine.queued})

    async def _count(self, request: Any) -> Any:
        from fastapi.responses import Response

        text, kind = self._metrics.page(self._engine)
        return Response(text, media_type=kind)

    async def _load(self, request: Any) -> Any:
        body = await _parsed(ModelName, request)
        return _json(self._card(await asyncio.to_thread(self._engine.registry.load, body.model)))

    async def _unload(self, request: Any) -> Any:
        body = await _parsed(ModelName, request)
        await asyncio.to_thread(self._engine.registry.unload, body.model)  # blocks while another model is loaded
        return _json({"id": body.model, "loaded": False})

    async def _roll_back(self, request: Any) -> Any:
        body = await _parsed(ModelName, request)
        return _json(self._card(await asyncio.to_thread(self._engine.registry.roll_back, body.model)))

    async def _show_shadow(self, request: Any) -> Any:
        if self._shadow is None:
            raise AskError("shadow: this server has none; start it with --shadow URL#MODEL")
        return _json(await asyncio.to_thread(self._shadow.summary))

    def _thinking_mode(self, run: Model, body: ChatCompletionRequest | CompletionRequest) -> bool | None:
        """Return the mode of the prompt; raise AskError if the model does not have it, naming the key that was sent."""
        if isinstance(body, CompletionRequest):
            return None
        requested = body.thinking
        if requested is None and run.template.thinks:
            schema = body.response_format is not None and body.response_format.type != "text"
            requested = False if schema else self._thinking  # a schema holds from the first token
        try:
            return run.thinking_mode(requested)
        except RecipeError as error:
            key = next(iter(body.thinking_switches))
            raise AskError(f"{key}:{str(error).partition(':')[2]}") from None

    def _card(self, run: Model) -> dict[str, Any]:
        """Return a model as `/v1/models` lists it."""
        objective = run.objective
        about: dict[str, Any] = {"version": run.version, "objective": objective.kind, "limit": run.limit}
        if objective.known_labels:
            about["labels"] = list(objective.known_labels)
        if objective.instruction:
            about["instruction"] = objective.instruction
        if run.template.thinks:
            default = run.thinking_mode(self._thinking)
            about["thinking"] = {"default": bool(default), "switch": run.template.switch}
        return {**_named(run.name), **about}


async def _stream(
    first: CompletionChunk | None,
    stream: CompletionStream,
    builder: ChatCompletionBuilder,
    splitter: CallSplitter,
    *,
    usage_too: bool,
) -> AsyncIterator[str]:
    """Yield server-sent events: a chunk per piece, token counts if requested, and [DONE].

    With tools, text is held back while it may become a call, and each call is one chunk.
    """
    piece = first
    started = False
    try:
        while piece is not None:
            text, calls = splitter.take(piece.text, final=bool(piece.end))
            piece = replace(piece, text=text)
            if text or calls or piece.thoughts or piece.scored or piece.end or not started:
                yield f"data: {json.dumps(builder.part(piece, first=not started, calls=calls))}\n\n"
                started = True
            if piece.end and usage_too:
                yield f"data: {json.dumps(builder.counted(piece))}\n\n"
            piece = await anext(aiter(stream), None)
        yield "data: [DONE]\n\n"
    except TunesmithError as error:  # the status line was sent already, so the error is an event
        yield f"data: {json.dumps(_status_and_body(error)[1])}\n\n"
    finally:
        stream.release()


async def _parsed(shape: type[Body], request: Any) -> Body:
    """Parse the body of a request. A repeated key is refused: programs before the server may have read the other one.

    Raises:
        AskError: the body is not JSON, or repeats a key.
        ValidationError: it does not match `shape`.
    """
    text = await request.body()
    try:
        read_json(text)
    except (ValueError, RecursionError) as error:
        raise AskError(f"body: {briefly(error)}; see docs/reference/http-api.md") from None
    return shape.model_validate_json(text)


def _named(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tunesmith"}


def _json(body: Any, status: int = 200) -> Any:
    from fastapi.responses import JSONResponse

    return JSONResponse(body, status_code=status)


def _first(vector: Sequence[float], size: int | None) -> list[float]:
    """Return the first `size` entries of a vector, of length 1 again if some are left out (Matryoshka)."""
    first = list(vector[:size])
    length = math.hypot(*first) if len(first) < len(vector) else 1.0
    return [entry / length for entry in first] if length else first


def _status_and_body(error: Exception) -> tuple[int, Any]:
    if isinstance(error, ValidationError):
        first, *others = error.errors(include_input=False, include_url=False)
        # Of a key that takes several types, the one that was meant has another error than its type, or the deepest.
        same = [first, *(other for other in others if other["loc"][:1] == first["loc"][:1])]
        meant = max(same, key=lambda found: (not found["type"].endswith("_type"), len(found["loc"])))
        key = ".".join(key_of(meant["loc"]))[:100] or "body"
        return 400, wrong(f"{key}: {meant['msg'].removeprefix('Value error, ')}; see docs/reference/http-api.md")
    if isinstance(error, PaidError):
        return error.status, wrong(str(error), kind="server_error" if error.status >= 500 else "invalid_request_error")
    status, kind, code = next(values for exception, values in ERRORS.items() if isinstance(error, exception))
    # Messages about the request itself contain the client's own text, all others may contain paths of the server.
    about_request = isinstance(error, AskError | UnknownModel | Busy | Late | InternalError)
    return status, wrong(str(error) if about_request else FOLDERS.sub("", str(error)), kind=kind, code=code)


def _framework_error(status: int, text: str) -> Callable[[Any, Exception], Awaitable[Any]]:
    async def respond(_: Any, error: Exception) -> Any:
        return _json(wrong(text, kind="server_error" if status == 500 else "invalid_request_error"), status)

    return respond
