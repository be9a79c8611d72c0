"""The inference engine: one thread that owns the networks, a bounded queue, and tickets for requests.

Independent of HTTP. Completions are reported in chunks from the thread of the engine.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence, Set
from concurrent.futures import Future
from dataclasses import dataclass, replace
from threading import Condition, Thread
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.inference.serving.continuous_batching import ContinuousBatch
from tunesmith.inference.serving.live_answer import ActiveRequest, ChunkHandler, CompletionChunk, End
from tunesmith.inference.serving.prefix_cache import PrefixCache
from tunesmith.inference.serving.protocol import Busy, Counts, Limits
from tunesmith.inference.serving.registry import ModelRegistry, ServedModel, SharedBase
from tunesmith.inference.serving.request import AskError, GenerationRequest, places_left
from tunesmith.inference.serving.text_batches import Item, Kind, Texts, read_on, together
from tunesmith.models.generation.json_grammar import Grammar
from tunesmith.models.generation.thoughts import ThoughtSplitter


@dataclass(slots=True, eq=False)
class Ticket:
    """An accepted request."""

    run: ServedModel
    request: GenerationRequest
    on_chunk: ChunkHandler
    until: float
    cancelled: bool = False
    row: ActiveRequest | None = None

    def cancel(self) -> None:
        """Cancel the request before the next step."""
        self.cancelled = True


class Engine:
    """An engine over the models of a registry; `failed` receives the traceback of an internal error."""

    def __init__(self, registry: ModelRegistry, *, limits: Limits, failed: Callable[[str], None]) -> None:
        self.registry = registry
        self.limits = limits
        self.counts = Counts()
        self._failed = failed
        self._prefix_cache = PrefixCache(limits.kept_bytes)
        self._decodings: dict[int, ContinuousBatch] = {}
        self._grammars: dict[int, Grammar] = {}
        self._runs: Set[int] = frozenset()
        self._waiting = deque[Ticket]()
        self._wholes = deque[Texts]()
        self._tickets = list[Ticket]()
        self._changed = Condition()
        self._ending = False
        self._moved = False  # models were loaded or unloaded
        registry.changed = self._let_go_of_gone
        self._thread = Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def ask(self, request: GenerationRequest, on_chunk: ChunkHandler) -> Ticket:
        """Accept a request, as `AnsweringEngine.ask` does."""
        run = self.registry.get(request.model)
        request.check(run.model, most=self.limits.new_tokens)
        ticket = Ticket(run, request, on_chunk, time.monotonic() + self.limits.seconds)
        with self._changed:
            self._admit()
            self._waiting.append(ticket)
        return ticket

    def whole(self, name: str, kind: Kind, texts: Sequence[Item]) -> Future[Any]:
        """Classify, embed or rank texts; embeddings and scores come with the number of tokens of each text.

        Args:
            name: the model.
            kind: what to compute.
            texts: the texts; for `relevance` a query with a passage each.
        """
        job = Texts(self.registry.get(name), kind, texts, time.monotonic() + self.limits.seconds)
        with self._changed:
            self._admit()
            self._wholes.append(job)
        return job.future

    @property
    def at_work(self) -> int:
        """Number of running requests."""
        return len(self._tickets)

    @property
    def queued(self) -> int:
        """Number of queued requests."""
        return len(self._waiting) + len(self._wholes)

    def close(self, seconds: float = 30.0) -> None:
        """Reject new requests, finish the accepted ones, and stop after at most this many seconds."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(seconds)

    def _let_go_of_gone(self) -> None:
        """Wake the thread, so that it releases unloaded runs before the next request."""
        with self._changed:
            self._moved = True
            self._changed.notify()

    def _admit(self) -> None:
        if self._ending:
            raise Busy("server: shutting down; retry after the restart")
        if self.queued >= self.limits.waiting:
            raise Busy(f"server: {self.queued} requests are queued; retry later")
        self.counts.asked += 1
        self._changed.notify()

    def _work(self) -> None:
        """Run the loop of the engine thread."""
        while True:
            with self._changed:
                while not (self._waiting or self._wholes or self._tickets or self._moved):
                    if self._ending:
                        return
                    self._changed.wait()
                self._moved = False
            try:
                self._round()
            except Exception:  # an internal error: logged and reported to the running requests; the server continues
                self._failed(traceback.format_exc())
                self._give_up()

    def _round(self) -> None:
        """Drop expired requests, process some texts and prompts, and generate one token per running request."""
        self._sweep()
        self._read_texts()
        self._let_in()
        for decoding in list(self._decodings.values()):
            self.counts.tokens += decoding.step()
            self.counts.steps += 1
        at_work = {id(row) for decoding in self._decodings.values() for row in decoding.rows}
        self._tickets = [ticket for ticket in self._tickets if id(ticket.row) in at_work]
        self._tidy()

    def _sweep(self) -> None:
        """Drop cancelled and expired requests."""
        now = time.monotonic()
        for ticket in [*self._tickets, *self._waiting]:
            if ticket.cancelled or now > ticket.until:
                self._let_go(ticket, "gone" if ticket.cancelled else "late")
        with self._changed:
            self._wholes = deque(job for job in self._wholes if not job.overdue(now))

    def _let_go(self, ticket: Ticket, end: End) -> None:
        why = f"took more than {self.limits.seconds:.0f} s" if end == "late" else ""
        if ticket in self._tickets and ticket.row is not None:
            self._tickets.remove(ticket)
            self._decoding(ticket.run.shared_base).drop(ticket.row, end, why)
            return
        with self._changed:
            self._waiting.remove(ticket)
        ticket.on_chunk(CompletionChunk(end=end, why=why))

    def _tidy(self) -> None:
        """Release everything of unloaded runs without running requests."""
        at_work = [ticket.run for ticket in [*self._tickets, *self._waiting]]
        runs = {run.number: run for run in [*self.registry.runs(), *at_work]}
        if runs.keys() == self._runs:
            return
        self._runs = runs.keys()
        self._prefix_cache.forget(list(runs))
        self._grammars = {number: made for number, made in self._grammars.items() if number in runs}
        grounds = {id(run.shared_base) for run in runs.values()}
        for decoding in self._decodings.values():
            decoding.forget()
        self._decodings = {key: made for key, made in self._decodings.items() if key in grounds and made.rows}

    def _give_up(self) -> None:
        """Report an internal error to all running requests."""
        failed = self._tickets
        self._tickets = []
        self._decodings = {}
        self.counts.failed += len(failed)
        for ticket in failed:
            ticket.on_chunk(CompletionChunk(end="broken", why="internal error; see the server log"))

    def _read_texts(self) -> None:
        """Process a slice of the queued texts, a small one if there are generation requests."""
        with self._changed:
            chosen = together(self._wholes)
            tokens = self.limits.read if self._tickets or self._waiting else None
        if chosen:
            unfinished = read_on(chosen, tokens=tokens)
            with self._changed:
                self._wholes.extend(unfinished)  # at the end, so that short requests do not wait for long ones

    def _let_in(self) -> None:
        """Run the prompts of queued requests up to the limit of rows, grouped by base."""
        with self._changed:
            free = self.limits.rows - len(self._tickets)
            chosen = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        self._tickets += chosen  # from here on, errors are reported to them
        # Some of these runs may be unloaded already, and are released at the end of this round.
        self._runs = self._runs | {ticket.run.number for ticket in chosen}
        ready: dict[int, list[ActiveRequest]] = {}
        for ticket in chosen:
            if (row := self._prepare(ticket)) is not None:
                ready.setdefault(id(ticket.run.shared_base), []).append(row)
            else:
                self._tickets.remove(ticket)
        later: list[ActiveRequest] = []
        for rows in ready.values():
            decoding = self._decoding(rows[0].run.shared_base)
            before = decoding.tokens_reused
            later += decoding.join(rows, tokens=self.limits.read)
            self.counts.reused += decoding.tokens_reused - before
        back = [ticket for ticket in chosen if ticket.row in later]
        self._tickets = [ticket for ticket in self._tickets if ticket not in back]
        with self._changed:
            self._waiting.extendleft(reversed(back))

    def _prepare(self, ticket: Ticket) -> ActiveRequest | None:
        """Encode a request; report the error and return None if it is invalid."""
        if ticket.row is not None:
            return ticket.row
        ask, run = ticket.request, ticket.run
        try:
            follower = self._grammar(run).follow(ask.schema) if ask.schema is not None else None
            limit = min(run.limit, run.model.prompt_budget(ask.sampling.max_new_tokens))  # as in `LocalModel.reply`
            ids, shortened = ask.ids(run.template, limit=limit)
            left = places_left(run.model, run.virtual + len(ids))
            if left < 1:
                raise AskError(f"messages: {len(ids)} tokens fill the context of the model; send fewer")
        except TunesmithError as error:
            ticket.on_chunk(CompletionChunk(end="wrong", why=str(error)))
            return None
        except Exception:  # an internal error: logged and reported; other requests continue
            self._failed(traceback.format_exc())
            self.counts.failed += 1
            ticket.on_chunk(CompletionChunk(end="broken", why="internal error; see the server log"))
            return None
        sampling = replace(ask.sampling, max_new_tokens=min(ask.sampling.max_new_tokens, left))
        row = ActiveRequest(
            run, ids, sampling, ticket.on_chunk, follower, ask.best, ask.in_pieces, ask.text is not None
        )
        row.shortened = shortened
        if ask.text is None:
            row.splitter = ThoughtSplitter.of(run.template, thinking=ask.thinking)
        ticket.row = row
        return row

    def _grammar(self, run: ServedModel) -> Grammar:
        if run.number not in self._grammars:
            words = run.model.policy.network.get_output_embeddings().weight.shape[0]
            self._grammars[run.number] = Grammar(run.model.template, words=words)
        return self._grammars[run.number]

    def _decoding(self, shared_base: SharedBase) -> ContinuousBatch:
        """Return the running batch of a base."""
        if id(shared_base) not in self._decodings:
            self._decodings[id(shared_base)] = ContinuousBatch(shared_base, self._prefix_cache)
        return self._decodings[id(shared_base)]
