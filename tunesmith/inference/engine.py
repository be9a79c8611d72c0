"""Many questions at once to the runs on a shelf: one thread that owns the networks, a queue with limits, and tickets.

No web in here. What a question gets back is told from the engine's thread, piece by piece.
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
from tunesmith.inference.answering import Busy, Counts, Limits
from tunesmith.inference.ask import Ask, AskError, places_left
from tunesmith.inference.beginnings import Beginnings
from tunesmith.inference.decoding import Decoding
from tunesmith.inference.row import End, LiveAnswer, Piece, Told
from tunesmith.inference.shelf import Ground, ServedModel, Shelf
from tunesmith.inference.texts import Kind, Texts, read_on, together
from tunesmith.model.grammar import Grammar


@dataclass(slots=True, eq=False)
class Ticket:
    """A question that was taken; `cancel` when nobody waits for its answer any more."""

    run: ServedModel
    ask: Ask
    told: Told
    until: float
    cancelled: bool = False
    row: LiveAnswer | None = None

    def cancel(self) -> None:
        """Nobody waits any more."""
        self.cancelled = True


class Engine:
    """Answers from the runs on a shelf; `failed` is told the traceback of what must not happen."""

    def __init__(self, shelf: Shelf, *, limits: Limits, failed: Callable[[str], None]) -> None:
        self.shelf, self.limits, self.counts = shelf, limits, Counts()
        self._failed = failed
        self._beginnings = Beginnings(limits.kept_bytes)
        self._decodings: dict[int, Decoding] = {}
        self._grammars: dict[int, Grammar] = {}
        self._runs: Set[int] = frozenset()
        self._waiting, self._wholes, self._tickets = deque[Ticket](), deque[Texts](), list[Ticket]()
        self._changed, self._ending, self._moved = Condition(), False, False
        shelf.changed = self._let_go_of_gone
        self._thread = Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def ask(self, ask: Ask, told: Told) -> Ticket:
        """Take a question; raises UnknownModel, and Busy where too many wait."""
        run = self.shelf.get(ask.model)
        ask.check(run.model, most=self.limits.new_tokens)
        ticket = Ticket(run, ask, told, time.monotonic() + self.limits.seconds)
        with self._changed:
            self._admit()
            self._waiting.append(ticket)
        return ticket

    def whole(self, name: str, kind: Kind, texts: Sequence[str]) -> Future[Any]:
        """`LocalModel.classify` of the texts, or of each the state and its tokens, when their turn comes."""
        job = Texts(self.shelf.get(name), kind, texts, time.monotonic() + self.limits.seconds)
        with self._changed:
            self._admit()
            self._wholes.append(job)
        return job.future

    @property
    def at_work(self) -> int:
        """Answers being written."""
        return len(self._tickets)

    @property
    def queued(self) -> int:
        """Questions that wait."""
        return len(self._waiting) + len(self._wholes)

    def close(self, seconds: float = 30.0) -> None:
        """Take nothing more, end what was taken, and stop after so many seconds at the latest."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(seconds)

    def _let_go_of_gone(self) -> None:
        """Have the thread forget runs that are gone now, not only when the next question comes."""
        with self._changed:
            self._moved = True
            self._changed.notify()

    def _admit(self) -> None:
        if self._ending:
            raise Busy("server: it is ending; ask again when it is back")
        if self.queued >= self.limits.waiting:
            raise Busy(f"server: {self.queued} questions wait already; ask again later")
        self.counts.asked += 1
        self._changed.notify()

    def _work(self) -> None:
        """The engine's thread."""
        while True:
            with self._changed:
                while not (self._waiting or self._wholes or self._tickets or self._moved):
                    if self._ending:
                        return
                    self._changed.wait()
                self._moved = False
            try:
                self._round()
            except Exception:  # our own bug: told, and whoever waits is told too; the server stays
                self._failed(traceback.format_exc())
                self._give_up()

    def _round(self) -> None:
        """What is overdue goes, some texts are labelled, some questions read, and every answer grows by a token."""
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
        """Let go of answers that nobody waits for, and of those that took too long."""
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
            self._decoding(ticket.run.ground).drop(ticket.row, end, why)
            return
        with self._changed:
            self._waiting.remove(ticket)
        ticket.told(Piece(end=end, why=why))

    def _tidy(self) -> None:
        """Forget what belongs to runs that are gone and answer nothing any more."""
        at_work = [ticket.run for ticket in [*self._tickets, *self._waiting]]
        runs = {run.number: run for run in [*self.shelf.runs(), *at_work]}
        if runs.keys() == self._runs:
            return
        self._runs = runs.keys()
        self._beginnings.forget(list(runs))
        self._grammars = {number: made for number, made in self._grammars.items() if number in runs}
        grounds = {id(run.ground) for run in runs.values()}
        for decoding in self._decodings.values():
            decoding.forget()
        self._decodings = {key: made for key, made in self._decodings.items() if key in grounds and made.rows}

    def _give_up(self) -> None:
        """Tell everybody who is answered now that it failed."""
        failed, self._tickets, self._decodings = self._tickets, [], {}
        self.counts.failed += len(failed)
        for ticket in failed:
            ticket.told(Piece(end="broken", why="a bug in tunesmith; its log says more"))

    def _read_texts(self) -> None:
        """Labels or states of some texts that wait; of few, where answers wait to grow. Those with more wait again."""
        with self._changed:
            chosen = together(self._wholes)
            tokens = self.limits.read if self._tickets or self._waiting else None
        if chosen:
            going = read_on(chosen, tokens=tokens)
            with self._changed:
                self._wholes.extend(going)  # last, so that a few texts of another run are not behind a thousand

    def _let_in(self) -> None:
        """Read the questions that wait, as many as there is room for, those over one base together."""
        with self._changed:
            room = self.limits.rows - len(self._tickets)
            chosen = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        self._tickets += chosen  # whatever goes wrong from here on, they are told
        self._runs = self._runs | {
            ticket.run.number for ticket in chosen
        }  # some may be gone, and go again in this round
        ready: dict[int, list[LiveAnswer]] = {}
        for ticket in chosen:
            if (row := self._prepare(ticket)) is not None:
                ready.setdefault(id(ticket.run.ground), []).append(row)
            else:
                self._tickets.remove(ticket)
        later: list[LiveAnswer] = []
        for rows in ready.values():
            decoding = self._decoding(rows[0].run.ground)
            before = decoding.tokens_reused
            later += decoding.join(rows, tokens=self.limits.read)
            self.counts.reused += decoding.tokens_reused - before
        back = [ticket for ticket in chosen if ticket.row in later]
        self._tickets = [ticket for ticket in self._tickets if ticket not in back]
        with self._changed:
            self._waiting.extendleft(reversed(back))

    def _prepare(self, ticket: Ticket) -> LiveAnswer | None:
        """The question as a row; None, and what is wrong with it is told, where it cannot be one."""
        if ticket.row is not None:
            return ticket.row
        ask, run = ticket.ask, ticket.run
        try:
            follower = self._grammar(run).follow(ask.schema) if ask.schema is not None else None
            limit = min(run.limit, run.model.room(ask.sampling.max_new_tokens))  # as `.reply` reads it
            ids, shortened = ask.ids(run.template, limit=limit)
            left = places_left(run.model, run.virtual + len(ids))
            if left < 1:
                raise AskError(f"messages: {len(ids)} tokens leave no room for an answer; send fewer")
        except TunesmithError as error:
            ticket.told(Piece(end="wrong", why=str(error)))
            return None
        except Exception:  # our own bug: told, and no reason to end what others wait for
            self._failed(traceback.format_exc())
            self.counts.failed += 1
            ticket.told(Piece(end="broken", why="a bug in tunesmith; its log says more"))
            return None
        sampling = replace(ask.sampling, max_new_tokens=min(ask.sampling.max_new_tokens, left))
        row = LiveAnswer(run, ids, sampling, ticket.told, follower, ask.best, ask.in_pieces, ask.text is not None)
        row.shortened, ticket.row = shortened, row
        return ticket.row

    def _grammar(self, run: ServedModel) -> Grammar:
        if run.number not in self._grammars:
            words = run.model.policy.network.get_output_embeddings().weight.shape[0]
            self._grammars[run.number] = Grammar(run.model.template, words=words)
        return self._grammars[run.number]

    def _decoding(self, ground: Ground) -> Decoding:
        """The answers over a base."""
        if id(ground) not in self._decodings:
            self._decodings[id(ground)] = Decoding(ground, self._beginnings)
        return self._decodings[id(ground)]
