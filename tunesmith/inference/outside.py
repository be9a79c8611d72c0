"""Questions to a program that batches by itself, llama.cpp or vLLM: its slots, and our limits, words and ids around it.

The program gets ids that our template made, so a question is the same ids in every engine. Everything here runs in the
loop of the server.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

from tunesmith.data.template import Template
from tunesmith.errors import TunesmithError
from tunesmith.inference.answering import Busy, Counts, Limits
from tunesmith.inference.ask import Ask, AskError, UnknownModel
from tunesmith.inference.local import sampling_of
from tunesmith.inference.row import Piece, ScoredToken, Told
from tunesmith.inference.texts import Kind
from tunesmith.model.families import room_before
from tunesmith.model.sampling import Sampling
from tunesmith.recipe import AnyObjective


@dataclass(frozen=True, slots=True)
class Known:
    """A model that another program answers for; `positions` are what a question and its answer have together."""

    name: str
    template: Template
    objective: AnyObjective
    limit: int
    positions: int
    version: int = 1

    @property
    def sampling(self) -> Sampling:
        """Greedy, as long as the training answers were."""
        return sampling_of(self.objective)


class Program(Protocol):
    """Another program that answers."""

    @property
    def title(self) -> str:
        """Its name, as errors say it."""
        ...

    @property
    def models(self) -> Mapping[str, Known]:
        """What it answers with."""
        ...

    def draw(self, model: Known, ids: list[int], ask: Ask) -> AsyncGenerator[Piece, None]:
        """An answer after these ids in pieces, the last with its end. Raises AskError."""
        ...

    def close(self) -> None:
        """Stop it."""
        ...


class FixedModels:
    """The models of a program, which stay as they were when the server started."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def get(self, name: str) -> Known:
        """The model of that name."""
        if name not in self._program.models:
            known = ", ".join(self._program.models)
            raise UnknownModel(f"model: {name[:100]!r} is not served here; there are {known}")
        return self._program.models[name]

    def runs(self) -> list[Known]:
        """All of them."""
        return list(self._program.models.values())

    def load(self, name: str) -> Known:
        """Nothing. Raises AskError."""
        raise self._stays(name)

    def unload(self, name: str) -> None:
        """Nothing. Raises AskError."""
        raise self._stays(name)

    def roll_back(self, name: str) -> Known:
        """Nothing. Raises AskError."""
        raise self._stays(name)

    def _stays(self, name: str) -> AskError:
        known = self.get(name).name
        return AskError(f"model: {known} stays loaded in {self._program.title}; start the server again to change it")


class Outside:
    """An engine over a program; `failed` is told the traceback of what must not happen."""

    def __init__(self, program: Program, *, limits: Limits, failed: Callable[[str], None]) -> None:
        self.shelf, self.limits, self.counts, self.at_work = FixedModels(program), limits, Counts(), 0
        self._program, self._failed = program, failed
        self._slots, self._tasks = asyncio.Semaphore(limits.rows), set[asyncio.Task[None]]()
        self._reader = ThreadPoolExecutor(1, "reader")  # a tokenizer is no two threads' at once

    @property
    def queued(self) -> int:
        """Questions that wait."""
        return len(self._tasks) - self.at_work

    def ask(self, ask: Ask, told: Told) -> asyncio.Task[None]:
        """Take a question; raises UnknownModel, AskError, and Busy where too many wait."""
        model = self.shelf.get(ask.model)
        ask.check_size(limit=model.limit, most=self.limits.new_tokens)
        if self.queued >= self.limits.waiting:
            raise Busy(f"server: {self.queued} questions wait already; ask again later")
        self.counts.asked += 1
        task = asyncio.get_running_loop().create_task(self._answer(model, ask, told))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def whole(self, name: str, kind: Kind, texts: Sequence[str]) -> Future[Any]:
        """Nothing: such programs write here and do no more. Raises AskError."""
        model, what = self.shelf.get(name), {"labels": "scores no labels", "states": "gives no embeddings"}[kind]
        cure = "serve the run itself with --engine torch"
        raise AskError(f"model: {model.name} is answered by {self._program.title}, which {what} here; {cure}")

    def close(self, seconds: float = 30.0) -> None:
        """Stop the program; the server has ended what was begun."""
        self._reader.shutdown(wait=False)
        self._program.close()

    async def _answer(self, model: Known, ask: Ask, told: Told) -> None:
        """Wait for a slot and answer, whatever comes."""
        try:
            async with asyncio.timeout(self.limits.seconds), self._slots:
                self.at_work += 1
                try:
                    await self._draw(model, ask, told)
                finally:
                    self.at_work -= 1
        except TimeoutError:
            told(Piece(end="late", why=f"took more than {self.limits.seconds:.0f} s"))
        except TunesmithError as error:
            told(Piece(end="wrong", why=str(error)))
        except Exception:  # a bug of ours or of the program: told, and whoever waits is told too; the server stays
            self.counts.failed += 1
            self._failed(traceback.format_exc())
            told(Piece(end="broken", why="a bug in tunesmith; its log says more"))

    async def _draw(self, model: Known, ask: Ask, told: Told) -> None:
        """Tell what the program says, without the space around an answer that our own engine leaves out too."""
        ids, shortened = await self._ids(model, ask)
        room = model.positions - len(ids)
        if room < 1:
            raise AskError(f"messages: {len(ids)} tokens leave no room for an answer; send fewer")
        sampling = replace(ask.sampling, max_new_tokens=min(ask.sampling.max_new_tokens, room))
        text, said, scored, last = "", "", list[ScoredToken](), Piece()
        async with aclosing(self._program.draw(model, ids, replace(ask, sampling=sampling))) as drawn:
            async for last in drawn:
                text, scored = text + last.text, [*scored, *last.scored]
                self.counts.steps += 1
                sure = text if ask.text is not None else text.strip()
                if last.end:
                    break
                if ask.in_pieces and len(sure) > len(said):
                    told(Piece(sure[len(said) :], tuple(scored)))
                    said, scored = sure, []
        if not last.end:
            raise RuntimeError(f"{self._program.title} ended an answer without saying how")
        self.counts.tokens += last.new_tokens
        told(replace(last, text=sure[len(said) :], scored=tuple(scored), prompt_tokens=len(ids), shortened=shortened))

    async def _ids(self, model: Known, ask: Ask) -> tuple[list[int], bool]:
        """The question as our own engine would put it."""
        loop = asyncio.get_running_loop()
        limit = room_before(ask.sampling.max_new_tokens, positions=model.positions, limit=model.limit)
        return await loop.run_in_executor(self._reader, lambda: ask.ids(model.template, limit=limit))
