"""The server that programs ask: OpenAI's routes, `/classify`, health, metrics and administration, as an ASGI app."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import ValidationError

from tunesmith.errors import TunesmithError, key_of
from tunesmith.feedback.store import Unwritten
from tunesmith.inference.answering import AnsweringEngine, Busy, Model
from tunesmith.inference.ask import Ask, AskError, UnknownModel
from tunesmith.inference.row import Piece, ScoredToken
from tunesmith.inference.split import Splits
from tunesmith.model.sampling import Sampling
from tunesmith.objectives import Classify, Multitask
from tunesmith.web.guard import Manner, Refusal
from tunesmith.web.metrics import Metrics
from tunesmith.web.pieces import InternalError, Late, Pieces
from tunesmith.web.told import Call, Telling, split_calls, wrong
from tunesmith.web.wanted import ChatWanted, NameWanted, TextsWanted, TextWanted, ThumbWanted
from tunesmith.workflows.thumbs import Thumbs

MOST_BYTES = 512 * 1024
# What the web server itself says no with; a bug of ours is told without its traceback, which the log has.
SAID = {
    404: "no such route; docs/reference/http-api.md lists them",
    405: "not asked in that way; use GET or POST as docs/reference/http-api.md says",
    500: "a bug in tunesmith; the log of the server says more",
}
# What a path begins with: where a file lies is nobody's business but that of who runs the server.
FOLDERS = re.compile(r"(?<![^\s'\"(])(?:[A-Za-z]:)?[\\/](?:[^\s\\/:;,'\"]+[\\/])*")
Handler = Callable[[Any], Awaitable[Any]]
# What is raised -> HTTP status, kind and code of the error that is told.
TOLD: dict[type[Exception], tuple[int, str, str | None]] = {
    UnknownModel: (404, "invalid_request_error", "model_not_found"),
    Busy: (429, "rate_limit_error", "queue_full"),
    Late: (504, "timeout", "took_too_long"),
    InternalError: (500, "server_error", None),
    Unwritten: (503, "server_error", None),
    TunesmithError: (400, "invalid_request_error", None),
}


def refuses(refused: Refusal) -> Any:
    """What the guard says no with, in OpenAI's shape."""
    return wrong(refused.text, code="no_token" if refused.status == 401 else None)


MANNER = Manner(own_header=False, most_bytes=MOST_BYTES, refuses=refuses)


class Api:
    """The routes over one engine."""

    def __init__(self, engine: AnsweringEngine, *, splits: Splits, metrics: Metrics, thumbs: Thumbs) -> None:
        self._engine, self._splits, self._metrics, self._thumbs = engine, splits, metrics, thumbs

    def app(self) -> Any:
        """The app; no pages of documentation, which load from elsewhere."""
        from fastapi import FastAPI

        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        for method, path, handler in self._routes():
            app.add_route(path, self._guarded(path, handler), methods=[method])
        for status, text in SAID.items():
            app.exception_handler(status)(_says(status, text))
        return app

    def _routes(self) -> Sequence[tuple[str, str, Handler]]:
        return (
            ("POST", "/v1/chat/completions", self._chat),
            ("POST", "/v1/completions", self._text),
            ("POST", "/v1/embeddings", self._embeddings),
            ("POST", "/classify", self._classify),
            ("POST", "/feedback", self._thumb),
            ("GET", "/v1/models", self._models),
            ("GET", "/v1/models/{name:path}", self._model),
            ("GET", "/health", self._health),
            ("GET", "/metrics", self._count),
            ("POST", "/admin/load", self._load),
            ("POST", "/admin/unload", self._unload),
            ("POST", "/admin/rollback", self._roll_back),
        )

    def _guarded(self, path: str, handler: Handler) -> Handler:
        """The handler whose errors are answers, and whose answers are counted."""

        async def answered(request: Any) -> Any:
            began = time.perf_counter()
            try:
                answer = await handler(request)
            except (TunesmithError, ValidationError) as error:
                answer = _error(error)
            self._metrics.answered(path, answer.status_code, time.perf_counter() - began)
            return answer

        return answered

    async def _chat(self, request: Any) -> Any:
        wanted = ChatWanted.model_validate_json(await request.body())
        run = self._run(wanted.model, wanted.user)
        return await self._draw(request, run, wanted.ask(run.name, self._usual(run)), wanted.stream_options)

    async def _text(self, request: Any) -> Any:
        wanted = TextWanted.model_validate_json(await request.body())
        run = self._run(wanted.model, wanted.user)
        return await self._draw(request, run, wanted.ask(run.name, self._usual(run)), wanted.stream_options)

    def _usual(self, run: Model) -> Sampling:
        """How a model answers where nothing is asked for: as it was trained, no longer than is served."""
        longest = min(run.sampling.max_new_tokens, self._engine.limits.new_tokens)
        return replace(run.sampling, max_new_tokens=longest)

    def _run(self, name: str, who: str = "") -> Model:
        return self._engine.shelf.get(self._splits.choose(name, who=who))

    async def _draw(self, request: Any, run: Model, ask: Ask, options: Any) -> Any:
        """An answer, in one or as it comes."""
        from fastapi.responses import StreamingResponse

        pieces = Pieces(request, lambda last: self._metrics.drew(run.name, last))
        pieces.ticket = self._engine.ask(ask, pieces.told)
        telling = Telling(run.name, run.template, chat=ask.text is None)
        if not ask.in_pieces:
            return _json(await self._whole(pieces, ask, telling))
        first = await anext(aiter(pieces), None)  # what is wrong with the question still has a status of its own
        parts = _stream(first, pieces, telling, ask, usage_too=options.include_usage)
        return StreamingResponse(parts, media_type="text/event-stream")

    async def _whole(self, pieces: Pieces, ask: Ask, telling: Telling) -> Any:
        text, scored, last = "", list[ScoredToken](), Piece(end="stop")
        async for piece in pieces:
            text, last = text + piece.text, piece
            scored += piece.scored
        text, calls = split_calls(text, ask.messages)
        return telling.whole(text, scored, last, calls)

    async def _embeddings(self, request: Any) -> Any:
        wanted = TextsWanted.model_validate_json(await request.body())
        run = self._run(wanted.model, wanted.user)
        read = await self._read(run, "states", wanted.texts)
        vectors, tokens = [vector for vector, _ in read], sum(count for _, count in read)
        if wanted.dimensions not in (None, wide := len(vectors[0])):
            raise AskError(f"dimensions: {run.name} gives {wide} and was not trained for fewer; leave it out")
        told = [_vector(vector, wanted.encoding_format) for vector in vectors]
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(told)]
        counts = {"prompt_tokens": tokens, "total_tokens": tokens}
        return _json({"object": "list", "model": run.name, "data": data, "usage": counts})

    async def _classify(self, request: Any) -> Any:
        wanted = TextsWanted.model_validate_json(await request.body())
        run = self._run(wanted.model, wanted.user)
        if not isinstance(run.objective, Classify):
            tasks = [*run.objective.tasks] if isinstance(run.objective, Multitask) else []
            cure = f"name one of its tasks, such as {run.name}/{tasks[0]}" if tasks else "ask for an answer or a vector"
            raise AskError(f"model: {run.name} was not tuned to label; {cure}")
        found = await self._read(run, "labels", wanted.texts)
        data = [{"index": i, "label": one.label, "labels": one.labels, "probabilities": one.probabilities}
                for i, one in enumerate(found)]  # fmt: skip
        return _json({"object": "list", "model": run.name, "data": data})

    async def _read(self, run: Model, kind: Any, texts: Sequence[str]) -> Any:
        try:
            return await asyncio.wrap_future(self._engine.whole(run.name, kind, texts))
        except asyncio.CancelledError as error:
            raise Late(f"server: took more than {self._engine.limits.seconds:.0f} s; ask for less at once") from error

    async def _thumb(self, request: Any) -> Any:
        wanted = ThumbWanted.model_validate_json(await request.body())
        if wanted.model in self._splits.shares:
            raise AskError(f"model: {wanted.model} stands for several; send the `model` that stands in the answer")
        run, messages = self._run(wanted.model), wanted.judged()
        keep = partial(self._thumbs.keep, by=run.name, good=wanted.good, rater=wanted.by)
        await asyncio.to_thread(keep, messages, wanted.answer)
        return _json({"kept": True})

    async def _models(self, request: Any) -> Any:
        data = [_card(run) for run in self._engine.shelf.runs()]
        data += [{**_named(name), "split": dict(shares)} for name, shares in self._splits.shares.items()]
        return _json({"object": "list", "data": data})

    async def _model(self, request: Any) -> Any:
        name = request.path_params["name"]
        return _json(_named(name) if name in self._splits.shares else _card(self._engine.shelf.get(name)))

    async def _health(self, request: Any) -> Any:
        engine = self._engine
        loaded = [run.name for run in engine.shelf.runs()]
        return _json({"status": "ok", "models": loaded, "answering": engine.at_work, "waiting": engine.queued})

    async def _count(self, request: Any) -> Any:
        from fastapi.responses import Response

        text, kind = self._metrics.page(self._engine)
        return Response(text, media_type=kind)

    async def _load(self, request: Any) -> Any:
        wanted = NameWanted.model_validate_json(await request.body())
        return _json(_card(await asyncio.to_thread(self._engine.shelf.load, wanted.model)))

    async def _unload(self, request: Any) -> Any:
        wanted = NameWanted.model_validate_json(await request.body())
        await asyncio.to_thread(self._engine.shelf.unload, wanted.model)  # which waits while another is read
        return _json({"id": wanted.model, "loaded": False})

    async def _roll_back(self, request: Any) -> Any:
        wanted = NameWanted.model_validate_json(await request.body())
        return _json(_card(await asyncio.to_thread(self._engine.shelf.roll_back, wanted.model)))


async def _stream(
    first: Piece | None, pieces: Pieces, telling: Telling, ask: Ask, *, usage_too: bool
) -> AsyncIterator[str]:
    """Server-sent events: a part for each piece, what it took if that is wanted, and [DONE].

    With tools an answer may be calls, which are only known when it is whole, so it comes in one part.
    """
    piece, held, begun = first, "", False
    try:
        while piece is not None:
            calls: Sequence[Call] = ()
            if ask.messages and ask.messages[0].tools:
                held += piece.text
                text, calls = split_calls(held, ask.messages) if piece.end else ("", ())
                piece = replace(piece, text=text)
            yield f"data: {json.dumps(telling.part(piece, first=not begun, calls=calls))}\n\n"
            begun = True
            if piece.end and usage_too:
                yield f"data: {json.dumps(telling.counted(piece))}\n\n"
            piece = await anext(aiter(pieces), None)
        yield "data: [DONE]\n\n"
    except TunesmithError as error:  # the status is out already: an event says so
        yield f"data: {json.dumps(_told_of(error)[1])}\n\n"
    finally:
        pieces.let_go()


def _card(run: Model) -> dict[str, Any]:
    """A model as `/v1/models` lists it."""
    objective = run.objective
    about: dict[str, Any] = {"version": run.version, "objective": objective.kind, "limit": run.limit}
    if isinstance(objective, Classify):
        about["labels"] = list(objective.labels)
    if objective.instruction:
        about["instruction"] = objective.instruction
    return {**_named(run.name), **about}


def _named(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tunesmith"}


def _vector(vector: Sequence[float], form: str) -> Any:
    """Numbers, or 32-bit floats in base64, which OpenAI's own client asks for."""
    if form == "float":
        return list(vector)
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _json(told: Any, status: int = 200) -> Any:
    from fastapi.responses import JSONResponse

    return JSONResponse(told, status_code=status)


def _error(error: Exception) -> Any:
    status, told = _told_of(error)
    answer = _json(told, status)
    if status >= 500 and not isinstance(error, Unwritten):
        answer.headers["x-should-retry"] = "false"  # the same question would take as long again
    return answer


def _told_of(error: Exception) -> tuple[int, Any]:
    """Status and body for what was raised."""
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(key_of(first["loc"]))[:100] or "body"
        return 400, wrong(f"{place}: {first['msg']}; see docs/reference/http-api.md")
    status, kind, code = next(told for kind_of, told in TOLD.items() if isinstance(error, kind_of))
    asked = isinstance(error, AskError | UnknownModel | Busy | Late | InternalError)
    return status, wrong(str(error) if asked else FOLDERS.sub("", str(error)), kind=kind, code=code)


def _says(status: int, text: str) -> Callable[[Any, Exception], Awaitable[Any]]:
    async def told(_: Any, error: Exception) -> Any:
        return _json(wrong(text, kind="server_error" if status == 500 else "invalid_request_error"), status)

    return told
