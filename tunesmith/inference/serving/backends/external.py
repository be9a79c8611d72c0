"""An engine over an external program with its own batching (llama.cpp, vLLM or SGLang).

The program receives token ids, so a prompt has the same ids in every engine. Everything here runs in the event loop of
the server.
"""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Protocol

from tunesmith.config import AnyObjective
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.errors import TunesmithError
from tunesmith.inference.defaults import sampling_of, thinking_mode
from tunesmith.inference.serving.live_answer import ChunkHandler, CompletionChunk, ScoredToken
from tunesmith.inference.serving.protocol import Busy, Counts, Limits
from tunesmith.inference.serving.request import AskError, GenerationRequest, UnknownModel
from tunesmith.inference.serving.text_batches import Item, Kind
from tunesmith.models.families import prompt_limit
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.generation.thoughts import ThoughtSplitter


@dataclass(frozen=True, slots=True)
class ExternalModel:
    """A model of an external program."""

    name: str
    template: Template
    objective: AnyObjective
    limit: int  # greatest prompt length, in tokens
    positions: int  # of prompt and completion together
    version: int = 1
    thinks: bool | None = None  # whether it thinks unless a request says otherwise; None: as trained

    @property
    def sampling(self) -> Sampling:
        """Default sampling options: greedy, with the length of the training answers and thoughts."""
        return self.sampling_for()

    def sampling_for(self, thinking: bool | None = None) -> Sampling:
        """Return the default sampling options of a mode."""
        return sampling_of(self.objective, thinking=self.thinking_mode(thinking))

    def thinking_mode(self, thinking: bool | None = None) -> bool | None:
        """Return the mode of a prompt for a requested one; raise RecipeError if the model does not have it."""
        default = self.objective.thinks if self.thinks is None else self.thinks
        return thinking_mode(self.template, thinking, default=default)


class Program(Protocol):
    """An external program."""

    @property
    def title(self) -> str:
        """Its name in messages."""
        ...

    @property
    def models(self) -> Mapping[str, ExternalModel]:
        """Its models by name."""
        ...

    def draw(
        self, model: ExternalModel, ids: list[int], request: GenerationRequest
    ) -> AsyncGenerator[CompletionChunk, None]:
        """Generate a completion in chunks, the last one with its end; raise AskError."""
        ...

    def close(self) -> None:
        """Stop it."""
        ...


class FixedModels:
    """The models of a program, which cannot be loaded or unloaded."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def get(self, name: str) -> ExternalModel:
        """Return a model by name; raise UnknownModel."""
        if name not in self._program.models:
            known = ", ".join(self._program.models)
            raise UnknownModel(f"model: {name[:100]!r} is not served here; there are {known}")
        return self._program.models[name]

    def runs(self) -> list[ExternalModel]:
        """Return all models."""
        return list(self._program.models.values())

    def load(self, name: str) -> NoReturn:
        """Raise AskError: the models are fixed."""
        known = self.get(name).name
        raise AskError(f"model: {known} stays loaded in {self._program.title}; start the server again to change it")

    unload = roll_back = load


class ExternalEngine:
    """An engine over a program; `failed` receives the traceback of an internal error."""

    def __init__(self, program: Program, *, limits: Limits, failed: Callable[[str], None]) -> None:
        self.registry = FixedModels(program)
        self.limits = limits
        self.counts = Counts()
        self.at_work = 0
        self._program = program
        self._failed = failed
        self._slots = asyncio.Semaphore(limits.rows)
        self._tasks = set[asyncio.Task[None]]()
        self._reader = ThreadPoolExecutor(1, "reader")  # tokenizers are not thread-safe

    @property
    def queued(self) -> int:
        """Number of queued requests."""
        return len(self._tasks) - self.at_work

    def ask(self, request: GenerationRequest, on_chunk: ChunkHandler) -> asyncio.Task[None]:
        """Accept a request, as `AnsweringEngine.ask` does."""
        model = self.registry.get(request.model)
        request.check_size(limit=model.limit, most=self.limits.new_tokens)
        if self.queued >= self.limits.waiting:
            raise Busy(f"server: {self.queued} requests are queued; retry later")
        self.counts.asked += 1
        task = asyncio.get_running_loop().create_task(self._answer(model, request, on_chunk))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def whole(self, name: str, kind: Kind, texts: Sequence[Item]) -> Future[Any]:
        """Raise AskError: external programs only generate text."""
        model = self.registry.get(name)
        refused = {"labels": "scores no labels", "values": "predicts no values", "relevance": "ranks no passages"}
        output = refused.get(kind, "gives no embeddings")
        fix = "serve the run itself with --engine torch"
        raise AskError(f"model: {model.name} is served by {self._program.title}, which {output} here; {fix}")

    def close(self, seconds: float = 30.0) -> None:
        """Stop the program; running requests have been finished by the server."""
        self._reader.shutdown(wait=False)
        self._program.close()

    async def _answer(self, model: ExternalModel, request: GenerationRequest, on_chunk: ChunkHandler) -> None:
        """Wait for a slot, generate, and report any error."""
        try:
            async with asyncio.timeout(self.limits.seconds), self._slots:
                self.at_work += 1
                try:
                    await self._draw(model, request, on_chunk)
                finally:
                    self.at_work -= 1
        except TimeoutError:
            on_chunk(CompletionChunk(end="late", why=f"took more than {self.limits.seconds:.0f} s"))
        except TunesmithError as error:
            on_chunk(CompletionChunk(end="wrong", why=str(error)))
        except Exception:  # an internal error or one of the program: logged and reported; the server continues
            self.counts.failed += 1
            self._failed(traceback.format_exc())
            on_chunk(CompletionChunk(end="broken", why="internal error; see the server log"))

    async def _draw(self, model: ExternalModel, request: GenerationRequest, on_chunk: ChunkHandler) -> None:
        """Report the output of the program, for chats without surrounding whitespace, as the torch engine does."""
        loop = asyncio.get_running_loop()
        limit = prompt_limit(request.sampling.max_new_tokens, positions=model.positions, limit=model.limit)
        ids, shortened = await loop.run_in_executor(self._reader, lambda: request.ids(model.template, limit=limit))
        free = model.positions - len(ids)
        if free < 1:
            raise AskError(f"messages: {len(ids)} tokens fill the context of the model; send fewer")
        sampling = replace(request.sampling, max_new_tokens=min(request.sampling.max_new_tokens, free))
        splitter = ThoughtSplitter.of(model.template, thinking=request.thinking) if request.text is None else None
        text = ""
        final, sent = CompletionChunk(), CompletionChunk()
        scored = list[ScoredToken]()
        last = CompletionChunk()
        async with aclosing(self._program.draw(model, ids, replace(request, sampling=sampling))) as pieces:
            async for last in pieces:
                text += last.text
                scored += last.scored
                self.counts.steps += 1
                final = _parts(text, splitter, ended=bool(last.end))
                if last.end:
                    break
                if request.in_pieces and (new := _since(sent, final)):
                    on_chunk(replace(new, scored=tuple(scored)))
                    sent = final
                    scored = []
        if not last.end:
            raise RuntimeError(f"{self._program.title} ended a completion without a reason")
        self.counts.tokens += last.new_tokens
        rest = _since(sent, final) or CompletionChunk()
        on_chunk(
            replace(
                last,
                text=rest.text,
                thoughts=rest.thoughts,
                thought_tokens=_thought_tokens(text, last.new_tokens, splitter),
                scored=tuple(scored),
                prompt_tokens=len(ids),
                shortened=shortened,
            )
        )


def _parts(text: str, splitter: ThoughtSplitter | None, *, ended: bool) -> CompletionChunk:
    """Return the thoughts and the answer in a text that may still grow."""
    if splitter is None:
        return CompletionChunk(text)
    thoughts, answer = splitter.split(text) if ended else splitter.ready(text)
    return CompletionChunk(answer.strip(), thoughts=thoughts.strip())


def _since(sent: CompletionChunk, final: CompletionChunk) -> CompletionChunk | None:
    """Return what has been added to the thoughts and the answer; None if nothing was."""
    text, thoughts = final.text[len(sent.text) :], final.thoughts[len(sent.thoughts) :]
    return CompletionChunk(text, thoughts=thoughts) if text or thoughts else None


def _thought_tokens(text: str, new_tokens: int, splitter: ThoughtSplitter | None) -> int:
    """Return how many of the new tokens come before the answer; the program reports text, so it is encoded again."""
    if splitter is None or not splitter.template.thinks:
        return 0
    ids = splitter.template.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return min(new_tokens, splitter.thought_tokens(ids))


async def lines_of(parts: AsyncIterator[str]) -> AsyncGenerator[str, None]:
    """Yield the lines of a text that comes in parts, in linear time however short the parts are.

    httpx2 would also split at U+2028 and similar characters, which are valid inside JSON strings.
    """
    rest: list[str] = []
    async for part in parts:
        *lines, last = part.split("\n")
        for line in lines:
            yield "".join([*rest, line]).rstrip("\r")
            rest = []
        rest.append(last)
    if line := "".join(rest):
        yield line


def refused(title: str, status: int, body: bytes, request: GenerationRequest) -> Exception:
    """Return AskError for an invalid request, RuntimeError for an internal error of a program."""
    try:
        page = json.loads(body)
        reason = str(page.get("error", page)["message"])  # SGLang's errors are not nested
    except (ValueError, KeyError, TypeError, AttributeError):
        reason = body.decode(errors="replace")
    if 400 <= status < 500:
        field = "messages" if request.schema is None else "response_format"
        return AskError(f"{field}: rejected by {title} ({' '.join(reason.split())[:200]}); change the request")
    return RuntimeError(f"{title} answered {status}: {reason[:500]}")
