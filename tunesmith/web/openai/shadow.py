"""Chats to a paid model with the tuned model in its shadow, which answers them itself where that has been shown."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from tunesmith.data.files import read_json, sha256_of_file
from tunesmith.data.tokenization.messages import Message
from tunesmith.data.tokenization.tool_calls import read_calls
from tunesmith.errors import DataError, TunesmithError, briefly
from tunesmith.inference.openai_client import Endpoint
from tunesmith.inference.serving.live_answer import CompletionChunk
from tunesmith.inference.serving.protocol import AnsweringEngine, Model
from tunesmith.inference.serving.request import AskError, GenerationRequest, UnknownModel
from tunesmith.inference.serving.shadow.comparisons import Background, agreement_of, metric_of
from tunesmith.inference.serving.shadow.decision import Comparison, Row
from tunesmith.inference.serving.shadow.ledger import Ledger
from tunesmith.inference.serving.shadow.paid import KEY, PaidAnswer, PaidError, PaidModel
from tunesmith.metrics.task_scores import LABEL_BREAK
from tunesmith.web.openai.requests import ChatCompletionRequest
from tunesmith.web.openai.responses import ChatCompletionBuilder, split_calls
from tunesmith.web.openai.stream import CompletionStream

if TYPE_CHECKING:
    from fastapi import Response

CONSENT = "x-tunesmith-keep"  # header of a request: yes or no
# Files of a model; others in its folder, such as ratings, change while it is served.
MODEL_FILES = (".safetensors", ".json", ".jinja", ".txt", ".model", ".gguf", ".bin")
MakeRequest = Callable[[Model, ChatCompletionRequest], GenerationRequest]


@dataclass(frozen=True, slots=True)
class ShadowRequest:
    """The options of a shadow. Raises DataError if the address of the paid model is refused."""

    name: str  # of the tuned model
    source: Path
    address: str  # URL#MODEL of the paid model
    folder: Path
    margin: float = 0.05
    control: float = 0.05  # share of requests that always go to the paid model, chosen at random
    price: Sequence[float] | None = None  # of a million tokens of the paid model, in and out
    keep: Literal["none", "asked", "all"] = "none"  # texts that are kept: none, with the header CONSENT, or all
    offline: bool = False
    plain_http: bool = False
    engine: str = ""  # the engine and its options that change answers

    def __post_init__(self) -> None:
        self.paid(1.0)

    def paid(self, seconds: float) -> PaidModel:
        """Return the paid model with a limit of seconds per answer."""
        url, _, model = self.address.partition("#")
        if not model:
            raise DataError(f"{url}: no model is named; write {url.rstrip('/')}#MODEL")
        endpoint = Endpoint(url, model, os.environ.get(KEY, ""))
        return PaidModel(endpoint, seconds=seconds, offline=self.offline, plain_http=self.plain_http)

    @contextmanager
    def over(self, engine: AnsweringEngine, failed: Callable[[str], None]) -> Iterator[Shadow]:
        """Open the folder, and close it at the end.

        Args:
            engine: runs the tuned model.
            failed: receives one line about a failure in the background.
        """
        run = engine.registry.get(self.name)
        if run.objective.produces not in ("labels", "text"):
            raise DataError(f"{self.source}: cannot answer chats; give a run tuned for labels or text")
        identity = "|".join((*_digests(self.source), self.address, metric_of(run), str(self.margin), self.engine))
        ledger = Ledger(self.folder, hashlib.sha256(identity.encode()).hexdigest()[:16], self.margin)
        try:
            yield Shadow(engine, self, ledger, failed)
        finally:
            ledger.close()


@dataclass(frozen=True, slots=True)
class TunedAnswer:
    """An answer of the tuned model."""

    text: str  # with its tool calls
    confidence: float
    seconds: float
    last: CompletionChunk  # with the token counts


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request on its way."""

    body: dict[str, Any]
    run: Model
    asked: ChatCompletionRequest | None  # None: something that only the paid model can do, such as images
    request: GenerationRequest | None  # to a tuned model that writes
    attempt: int  # of the decision
    control: bool
    keep: bool
    started: float = field(default_factory=time.perf_counter)
    tuned: TunedAnswer | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self.started


class Shadow:
    """Answers chats by the paid model, and by the tuned one where its agreement has been shown.

    Comparisons run in the background, after the reply. A failure of the tuned model or of the disk never fails a reply.
    """

    def __init__(
        self, engine: AnsweringEngine, asked: ShadowRequest, ledger: Ledger, failed: Callable[[str], None]
    ) -> None:
        self.ledger, self._asked = ledger, asked
        self.background = Background(ledger, failed)
        self._engine = engine
        self._run = engine.registry.get(asked.name)
        self._reloading = asyncio.Lock()
        self._paid = asked.paid(engine.limits.seconds)
        self._random = Random()

    async def chat(self, content: bytes, headers: Mapping[str, str], make: MakeRequest) -> Response | None:
        """Return the response to a chat completion; None if it is for neither the tuned nor the paid model.

        Args:
            content: the body, JSON.
            headers: of the request; none is passed on.
            make: converts a body to a request to the tuned model.

        Raises:
            AskError: the body is not JSON.
            PaidError: the paid model failed, and the tuned one may not answer instead.
        """
        try:
            body = read_json(content)
        except (ValueError, RecursionError) as error:
            raise AskError(f"body: {briefly(error)}; see docs/reference/http-api.md") from None
        if not isinstance(body, dict) or body.get("model") not in (self._asked.name, self._paid.endpoint.model):
            return None
        available = await self._notice_reload()
        exchange = self._exchange(body, headers, make if available else None)
        if not exchange.control:
            exchange = await self._with_tuned(exchange)
            if self._allowed(exchange.tuned):
                return self._tuned_reply(exchange)
        try:
            return await self._paid_reply(exchange)
        except PaidError:
            exchange = await self._with_tuned(exchange)
            if self._allowed(exchange.tuned):
                return self._tuned_reply(exchange)
            self.background.add(Row("failed", exchange.seconds))
            raise

    def summary(self) -> dict[str, Any]:
        """Return the state of the shadow, for `/admin/shadow`."""
        work = self.background
        more = {"waiting": work.waiting, "left_out": work.left_out, "failures": work.failures}
        asked = {"model": self._asked.name, "paid": self._asked.address, "control_share": self._asked.control}
        return {**asked, "metric": metric_of(self._run), **more, **self.ledger.summary()}

    async def close(self) -> None:
        """Finish the comparisons that wait, for some seconds, and stop."""
        await self.background.close()
        await self._paid.close()

    async def _notice_reload(self) -> bool:
        """Begin again if the tuned model was loaded again; return whether it can be asked."""
        if not self._is_loaded(self._run):
            try:
                run = self._engine.registry.get(self._asked.name)
            except UnknownModel:  # unloaded
                return False
            async with self._reloading:
                if run is not self._run:
                    self.ledger.reloaded()
                    if not await self.background.write(self.ledger.restart, "the model was loaded again"):
                        return False
                    self._run = run
        return True

    def _is_loaded(self, run: Model) -> bool:
        try:
            return self._engine.registry.get(self._asked.name) is run
        except UnknownModel:
            return False

    def _exchange(self, body: dict[str, Any], headers: Mapping[str, str], make: MakeRequest | None) -> Exchange:
        asked = request = None
        with suppress(ValidationError, TunesmithError, UnicodeEncodeError):
            json.dumps(body, ensure_ascii=False).encode()  # no tokenizer reads half of a surrogate pair
            found = ChatCompletionRequest.model_validate(body)
            if make is not None and self._can_answer(found):
                request = make(self._run, found) if self._run.objective.produces == "text" else None
                asked = found
        consent = headers.get(CONSENT, "").strip().lower()
        keep = consent == "yes" if self._asked.keep == "asked" else self._asked.keep == "all" and consent != "no"
        control = self._random.random() < self._asked.control
        return Exchange(body, self._run, asked, request, self.ledger.state.attempt, control, keep)

    def _can_answer(self, asked: ChatCompletionRequest) -> bool:
        """Return whether the tuned model can do what is asked; a classifier only takes texts and gives labels."""
        if self._run.objective.produces == "text":
            return not asked.logprobs
        form = asked.response_format is not None and asked.response_format.type != "text"
        return asked.messages[-1].role == "user" and not (asked.logprobs or asked.tools or form)

    def _allowed(self, tuned: TunedAnswer | None) -> bool:
        return tuned is not None and self.ledger.allows(tuned.confidence)

    async def _with_tuned(self, exchange: Exchange) -> Exchange:
        """Add the answer of the tuned model, if it may answer some requests and can answer this one."""
        if exchange.tuned is not None or not self.ledger.allows(1.0):
            return exchange
        return replace(exchange, tuned=await self._tuned(exchange))

    async def _tuned(self, exchange: Exchange) -> TunedAnswer | None:
        """Return the answer of the tuned model, None if it has none."""
        started = time.perf_counter()
        if exchange.asked is None:
            return None
        try:
            if exchange.request is None:
                text, confidence, last = await self._label(exchange.asked.messages[-1].text)
            else:
                text, confidence, last = await self._completion(exchange.request)
        except TunesmithError:
            return None
        except Exception as error:  # a bug in the shadow must not fail the reply of the paid model
            self.background.fail(f"{type(error).__name__}: {error}")
            return None
        answer = TunedAnswer(text, confidence, time.perf_counter() - started, last)
        return answer if self._is_loaded(exchange.run) else None

    async def _label(self, text: str) -> tuple[str, float, CompletionChunk]:
        future = asyncio.wrap_future(self._engine.whole(self._asked.name, "labels", [text]))
        await asyncio.wait([future])
        if future.cancelled():
            raise AskError("server: time limit exceeded; send the request again")
        (result,) = future.result()
        several = self._run.objective.label_mode == "multi"
        # Several labels are as sure as the least sure decision about one of them.
        confidence = min(max(p, 1 - p) for p in result.probabilities.values()) if several else result.confidence
        return LABEL_BREAK.join(result.labels), float(confidence), CompletionChunk(end="stop")

    async def _completion(self, request: GenerationRequest) -> tuple[str, float, CompletionChunk]:
        """Return a completion with its likelihood per token (geometric mean) as confidence."""
        stream = CompletionStream(None, lambda last: None)
        try:
            stream.ticket = self._engine.ask(replace(request, in_pieces=False, best=0), stream.on_chunk)
            last = await stream.whole()
        finally:
            stream.release()
        if not last.scored:
            raise AskError("messages: no answer; change the request")
        confidence = math.exp(sum(token.logprob for token in last.scored) / len(last.scored))
        return last.text, confidence, replace(last, scored=())

    def _tuned_reply(self, exchange: Exchange) -> Response:
        tuned, body = exchange.tuned, exchange.asked
        assert tuned is not None, "only an answer is allowed"
        assert body is not None, "only a request that was read is answered"
        builder = ChatCompletionBuilder(self._asked.name, exchange.run.template, chat=True)
        messages = exchange.request.messages if exchange.request else ()
        last = replace(tuned.last, text=tuned.text)
        if body.stream:
            text, calls = split_calls(tuned.text, messages, exchange.run.template) if messages else (tuned.text, [])
            chunks = [builder.part(replace(last, text=text), first=True, calls=calls)]
            chunks += [builder.counted(last)] if body.stream_options.include_usage else []
            reply = _events([f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"])
        else:
            reply = _json(builder.answer(last, messages) if messages else builder.whole(tuned.text, (), last))
        self.background.add(Row("tuned", exchange.seconds))
        return reply

    async def _paid_reply(self, exchange: Exchange) -> Response:
        if exchange.body.get("stream") is not True:
            answer = await self._paid.answer(exchange.body)
            self._after_reply(exchange, answer)
            return _json(answer.body)
        answer = PaidAnswer()
        options = exchange.body.get("stream_options")
        options = options if isinstance(options, dict) else {}
        chunks = self._paid.stream({**exchange.body, "stream_options": {**options, "include_usage": True}}, answer)
        first = await anext(chunks, None)  # awaited before the response starts, so that an error has its own status

        async def relay() -> AsyncIterator[str]:
            """Yield the events; the token counts only if the client has asked for them."""
            chunk, end, failed = first, "[DONE]", False
            try:
                async with aclosing(chunks):
                    while chunk is not None:
                        if chunk["choices"] or options.get("include_usage") is True:
                            yield f"data: {json.dumps(chunk)}\n\n"
                        chunk = await anext(chunks, None)
            except PaidError as error:
                end, failed = json.dumps({"error": {"message": str(error), "type": "server_error"}}), True
            finally:  # counted even if the client has left
                self._after_reply(exchange, answer, failed=failed)
            yield f"data: {end}\n\n"

        return _events(relay())

    def _after_reply(self, exchange: Exchange, answer: PaidAnswer, *, failed: bool = False) -> None:
        """Count a reply of the paid model in the background, and compare it if it is complete."""
        cost = None
        if self._asked.price is not None and answer.tokens is not None:
            cost = sum(price * n for price, n in zip(self._asked.price, answer.tokens, strict=True)) / 1e6
        row = Row("failed" if failed else "both" if exchange.tuned else "paid", exchange.seconds, answer.tokens, cost)
        comparable = answer.finished and not failed and exchange.asked is not None
        self.background.add(row, (lambda: self._compare(exchange, answer, row)) if comparable else None)

    async def _compare(self, exchange: Exchange, answer: PaidAnswer, row: Row) -> None:
        """Compare both answers to a request and write the figures, and the texts with consent."""
        tuned, asked = exchange.tuned or await self._tuned(exchange), exchange.asked
        if tuned is None or asked is None:
            return
        figures = Comparison(
            tuned.confidence,
            agreement_of(exchange.run, answer.whole, tuned.text),
            exchange.attempt,
            self.ledger.digest(asked.model_dump_json(include={"messages", "tools"})),
            row.seconds - (exchange.tuned.seconds if exchange.tuned else 0.0),
            row.cost,
        )
        await self.background.write(self.ledger.compare, figures)
        if exchange.keep:
            await self.background.write(self.ledger.keep, _kept(asked, answer, tuned, figures))


def _kept(asked: ChatCompletionRequest, answer: PaidAnswer, tuned: TunedAnswer, figures: Comparison) -> dict[str, Any]:
    """Return a chat and both answers as a row of `tunesmith tune`, not masked; raise DataError for a malformed call."""
    called = [{**call, "arguments": call["arguments"] or "{}"} for call in answer.calls.values()]
    calls = read_calls({"tool_calls": called}, "the paid answer")
    turns = [*(turn.message() for turn in asked.messages), Message("assistant", answer.text, calls)]
    more = {"tuned": tuned.text, "agreement": figures.agreement, "confidence": figures.confidence}
    return {"messages": [_turn(turn) for turn in turns], **({"tools": asked.tools} if asked.tools else {}), **more}


def _turn(message: Message) -> dict[str, Any]:
    calls = {"tool_calls": [call.plain() for call in message.calls]} if message.calls else {}
    thoughts = {"reasoning_content": message.thoughts} if message.thoughts else {}
    return {"role": message.role, "content": message.content, **thoughts, **calls}


def _digests(source: Path) -> list[str]:
    """Return the digests of the files of a model; its name if it has no folder here."""
    folder = source / "model" if (source / "model").is_dir() else source
    files = [folder] if folder.is_file() else sorted(folder.glob("*"))
    found = [f"{path.name} {sha256_of_file(path)}" for path in files if path.suffix in MODEL_FILES and path.is_file()]
    return found or [str(source)]


def _events(events: AsyncIterator[str] | list[str]) -> Response:
    from fastapi.responses import StreamingResponse

    return StreamingResponse(events, media_type="text/event-stream")


def _json(body: Any) -> Response:
    from fastapi.responses import Response

    return Response(json.dumps(body), media_type="application/json")  # ASCII: servers send halves of surrogate pairs
