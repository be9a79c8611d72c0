"""Chats to a paid model with the tuned model in its shadow, which answers them itself where that has been shown."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Literal

from pydantic import ValidationError

from tunesmith.data.files import read_json, sha256_of_file
from tunesmith.errors import DataError, TunesmithError, briefly
from tunesmith.inference.openai_client import Endpoint
from tunesmith.inference.serving.live_answer import CompletionChunk
from tunesmith.inference.serving.protocol import AnsweringEngine, Model
from tunesmith.inference.serving.request import AskError, GenerationRequest
from tunesmith.inference.serving.shadow.decision import Row
from tunesmith.inference.serving.shadow.ledger import Ledger
from tunesmith.inference.serving.shadow.paid import KEY, PaidAnswer, PaidError, PaidModel
from tunesmith.metrics.task_scores import LABEL_BREAK, PER_ROW, SCALES
from tunesmith.web.openai.requests import ChatCompletionRequest
from tunesmith.web.openai.responses import ChatCompletionBuilder, split_calls

MOST_WAITING = 256  # comparisons; further ones are left out
WORKERS = 4  # comparisons at once
MOST_SEEN = 100_000  # digests of texts that were compared
CONSENT = "x-tunesmith-keep"  # header of a request: yes or no
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
        manifests = (self.source / "model" / "tunesmith.json", self.source / "tunesmith.json", self.source)
        tuned = next((sha256_of_file(path) for path in manifests if path.is_file()), str(self.source))
        identity = "|".join((tuned, self.address, metric_of(run), str(self.margin)))
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
    parsed: ChatCompletionRequest | None  # None: something that only the paid model can do, such as images
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
        self._engine, self._failed = engine, failed
        self._run = engine.registry.get(asked.name)
        self._paid = asked.paid(engine.limits.seconds)
        self._random = Random()
        self._queue: asyncio.Queue[tuple[Exchange, PaidAnswer, float]] = asyncio.Queue(MOST_WAITING)
        self._workers: list[asyncio.Task[None]] = []
        self._counting = set[asyncio.Task[None]]()
        self._seen: dict[bytes, None] = {}
        self._key = secrets.token_bytes(16)  # of the digests, which are in memory only
        self._left_out = self._failures = 0
        self._make: MakeRequest

    async def chat(self, content: bytes, headers: Mapping[str, str], make: MakeRequest) -> Any:
        """Return the response to a chat completion; None if it is for neither the tuned nor the paid model.

        Args:
            content: the body, JSON.
            headers: of the request; none is passed on.
            make: converts a body to a request to the tuned model.

        Raises:
            AskError: the body is not JSON.
            PaidError: the paid model failed, and the tuned one may not answer instead.
        """
        self._make = make
        try:
            body = read_json(content)
        except (ValueError, RecursionError) as error:
            raise AskError(f"body: {briefly(error)}; see docs/reference/http-api.md") from None
        if not isinstance(body, dict) or body.get("model") not in (self._asked.name, self._paid.endpoint.model):
            return None
        self._notice_reload()
        exchange = self._exchange(content, body, headers)
        if not exchange.control:
            exchange = await self._with_tuned(exchange)
            if self._allowed(exchange.tuned):
                return await self._tuned_reply(exchange)
        try:
            return await self._paid_reply(exchange)
        except PaidError:
            exchange = await self._with_tuned(exchange)
            if self._allowed(exchange.tuned):
                return await self._tuned_reply(exchange)
            await self._record(Row("nobody", exchange.seconds))
            raise

    def summary(self) -> dict[str, Any]:
        """Return the state of the shadow, for `/admin/shadow`."""
        more = {"waiting": self._queue.qsize(), "left_out": self._left_out, "failures": self._failures}
        asked = {"model": self._asked.name, "paid": self._asked.address, "control_share": self._asked.control}
        return {**asked, "metric": metric_of(self._run), **more, **self.ledger.state.summary()}

    async def close(self) -> None:
        """Finish the comparisons that wait, for some seconds, and stop."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._queue.join(), 5)
        for worker in self._workers:
            worker.cancel()
        await self._paid.close()

    def _exchange(self, content: bytes, body: dict[str, Any], headers: Mapping[str, str]) -> Exchange:
        parsed = None
        with suppress(ValidationError):
            parsed = ChatCompletionRequest.model_validate_json(content)
            if parsed.messages[-1].role != "user" and self._run.objective.produces == "labels":
                parsed = None
        consent = headers.get(CONSENT, "").strip().lower()
        keep = consent == "yes" if self._asked.keep == "asked" else self._asked.keep == "all" and consent != "no"
        return Exchange(body, parsed, self._random.random() < self._asked.control, keep)

    def _allowed(self, tuned: TunedAnswer | None) -> bool:
        return tuned is not None and self.ledger.state.allows(tuned.confidence)

    async def _with_tuned(self, exchange: Exchange) -> Exchange:
        """Add the answer of the tuned model, if it may answer some requests and can answer this one."""
        if exchange.tuned is not None or exchange.parsed is None or self.ledger.state.threshold is None:
            return exchange
        return replace(exchange, tuned=await self._tuned(exchange.parsed))

    async def _tuned(self, body: ChatCompletionRequest) -> TunedAnswer | None:
        """Return the answer of the tuned model, None if it has none."""
        started = time.perf_counter()
        try:
            if self._run.objective.produces == "labels":
                text, confidence, last = await self._label(body.messages[-1].text)
            else:
                text, confidence, last = await self._completion(self._make(self._run, body))
        except TunesmithError:
            return None
        except Exception as error:  # a bug in the shadow must not fail the reply of the paid model
            self._fail(f"{type(error).__name__}: {error}")
            return None
        return TunedAnswer(text, confidence, time.perf_counter() - started, last)

    async def _label(self, text: str) -> tuple[str, float, CompletionChunk]:
        (result,) = await asyncio.wrap_future(self._engine.whole(self._asked.name, "labels", [text]))
        several = self._run.objective.label_mode == "multi"
        # Several labels are as sure as the least sure decision about one of them.
        confidence = min(max(p, 1 - p) for p in result.probabilities.values()) if several else result.confidence
        return LABEL_BREAK.join(result.labels), float(confidence), CompletionChunk(end="stop")

    async def _completion(self, request: GenerationRequest) -> tuple[str, float, CompletionChunk]:
        """Return a completion with its likelihood per token (geometric mean) as confidence."""
        loop = asyncio.get_running_loop()
        pieces: list[CompletionChunk] = []
        ended = asyncio.Event()

        def on_chunk(piece: CompletionChunk) -> None:
            pieces.append(piece)
            if piece.end:
                with suppress(RuntimeError):  # the event loop is closed
                    loop.call_soon_threadsafe(ended.set)

        ticket = self._engine.ask(replace(request, in_pieces=False, best=0), on_chunk)
        try:
            await ended.wait()
        finally:
            ticket.cancel()
        last = pieces[-1]
        scored = [token.logprob for piece in pieces for token in piece.scored]
        if last.end not in ("stop", "length") or not scored:
            raise AskError(f"messages: no answer ({last.why or last.end}); change the request")
        return "".join(piece.text for piece in pieces), math.exp(sum(scored) / len(scored)), last

    async def _tuned_reply(self, exchange: Exchange) -> Any:
        tuned, body = exchange.tuned, exchange.parsed
        assert tuned is not None, "only an answer is allowed"
        assert body is not None, "only a request that was read is answered"
        builder = ChatCompletionBuilder(self._asked.name, self._run.template, chat=True)
        text, calls = tuned.text, list[Mapping[str, Any]]()
        if self._run.objective.produces == "text":
            text, calls = split_calls(tuned.text, self._make(self._run, body).messages, self._run.template)
        await self._record(Row("tuned", exchange.seconds, tuned.confidence))
        if not body.stream:
            return _json(builder.whole(text, (), replace(tuned.last, text=text), calls))
        chunks = [builder.part(replace(tuned.last, text=text, scored=()), first=True, calls=calls)]
        chunks += [builder.counted(tuned.last)] if body.stream_options.include_usage else []
        return _events([f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"])

    async def _paid_reply(self, exchange: Exchange) -> Any:
        if exchange.body.get("stream") is not True:
            answer = await self._paid.answer(exchange.body)
            self._compare_later(exchange, answer)
            return _json(answer.body)
        answer = PaidAnswer()
        options = exchange.body.get("stream_options")
        options = options if isinstance(options, dict) else {}
        chunks = self._paid.stream({**exchange.body, "stream_options": {**options, "include_usage": True}}, answer)
        first = await anext(chunks, None)  # awaited before the response starts, so that an error has its own status

        async def relay() -> AsyncIterator[str]:
            """Yield the events; the token counts only if the client has asked for them."""
            chunk = first
            try:
                while chunk is not None:
                    if chunk["choices"] or options.get("include_usage") is True:
                        yield f"data: {json.dumps(chunk)}\n\n"
                    chunk = await anext(chunks, None)
            except PaidError as error:
                yield f"data: {json.dumps({'error': {'message': str(error), 'type': 'server_error'}})}\n\n"
                return
            yield "data: [DONE]\n\n"
            self._compare_later(exchange, answer)

        return _events(relay())

    def _compare_later(self, exchange: Exchange, answer: PaidAnswer) -> None:
        """Queue a comparison; with a full queue the chat is counted only, so that replies never wait."""
        if not self._workers:
            self._workers = [asyncio.create_task(self._work()) for _ in range(WORKERS)]
        seconds = exchange.seconds
        try:
            self._queue.put_nowait((exchange, answer, seconds))
        except asyncio.QueueFull:
            self._left_out += 1
            task = asyncio.create_task(self._record(self._row(exchange, answer, seconds)))
            self._counting.add(task)
            task.add_done_callback(self._counting.discard)

    async def _work(self) -> None:
        while True:
            exchange, answer, seconds = await self._queue.get()
            try:
                await self._compare(exchange, answer, seconds)
            except Exception as error:  # logged; the next comparison may succeed
                self._fail(f"{type(error).__name__}: {error}")
            finally:
                self._queue.task_done()

    async def _compare(self, exchange: Exchange, answer: PaidAnswer, seconds: float) -> None:
        """Compare both answers to a request and write the figures, and the texts with consent."""
        tuned, parsed = exchange.tuned, exchange.parsed
        row = self._row(exchange, answer, seconds)
        if tuned is None and parsed is not None and answer.finished:
            tuned = await self._tuned(parsed)
        if tuned is not None and parsed is not None and answer.finished:
            agreement = agreement_of(self._run, answer.whole, tuned.text)
            repeated = self._was_seen(parsed)
            row = replace(row, confidence=tuned.confidence, agreement=agreement, repeated=repeated)
            if exchange.keep:
                turns = [{"role": turn.role, "content": turn.text} for turn in parsed.messages]
                turns.append({"role": "assistant", "content": answer.whole})
                await asyncio.to_thread(self.ledger.keep, turns, {"tuned": tuned.text, **row.plain()})
        await self._record(row)

    def _row(self, exchange: Exchange, answer: PaidAnswer, seconds: float) -> Row:
        """Return the figures of a chat that the paid model answered, before both answers are compared."""
        by, paid_seconds = ("both", seconds - exchange.tuned.seconds) if exchange.tuned else ("paid", seconds)
        tokens, cost = (answer.tokens_in, answer.tokens_out), None
        if self._asked.price is not None:
            cost = sum(price * n for price, n in zip(self._asked.price, tokens, strict=True)) / 1e6
        return Row(by, seconds, paid_seconds=paid_seconds, tokens=tokens, cost=cost)

    async def _record(self, row: Row) -> None:
        try:
            await asyncio.to_thread(self.ledger.record, row)
        except TunesmithError as error:  # a full disk: nothing is decided from what is not stored
            self._fail(str(error))

    def _fail(self, line: str) -> None:
        self._failures += 1
        if self._failures & (self._failures - 1) == 0:  # the first, second, fourth, ...: a full disk fails every row
            self._failed(f"shadow: {line} ({self._failures} failures so far; no reply is affected)")

    def _was_seen(self, body: ChatCompletionRequest) -> bool:
        """Return whether the same messages were compared since startup."""
        text = "\0".join(f"{turn.role}\0{turn.text}" for turn in body.messages)
        digest = hashlib.blake2b(text.encode(errors="replace"), key=self._key, digest_size=12).digest()
        seen = digest in self._seen
        self._seen[digest] = None
        if len(self._seen) > MOST_SEEN:
            del self._seen[next(iter(self._seen))]
        return seen

    def _notice_reload(self) -> None:
        """Begin again if the tuned model was loaded again."""
        if (run := self._engine.registry.get(self._asked.name)) is not self._run:
            self._run = run
            self.ledger.restart("the model was loaded again")


def metric_of(run: Model) -> str:
    """Return the metric of agreement: that of the run if it has a value per row, else that of its kind of answer."""
    if run.objective.label_mode is not None:
        return "sample_f1" if run.objective.label_mode == "multi" else "accuracy"
    metric = str(getattr(run.objective, "metric", ""))
    return metric if metric in PER_ROW else "rouge_l"


def agreement_of(run: Model, paid: str, tuned: str) -> float:
    """Return the agreement of two answers, 0 to 1. Case, quotation marks and full stops of labels do not count."""
    metric = metric_of(run)
    if run.objective.label_mode is not None:
        spelt = {label.casefold(): label for label in run.objective.known_labels}
        parts = paid.replace(",", "\n").replace(";", "\n").split("\n") if metric == "sample_f1" else [paid]
        words = [part.strip(" \t\r\n\"'`*.") for part in parts]
        paid = LABEL_BREAK.join(spelt.get(word.casefold(), word) for word in words if word)
    value = float(PER_ROW[metric]([paid], [tuned])[0]) / SCALES.get(metric, 1.0)
    return min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0


def _events(events: AsyncIterator[str] | list[str]) -> Any:
    from fastapi.responses import StreamingResponse

    return StreamingResponse(events, media_type="text/event-stream")


def _json(body: Any) -> Any:
    from fastapi.responses import Response

    return Response(json.dumps(body), media_type="application/json")  # ASCII: servers send halves of surrogate pairs
