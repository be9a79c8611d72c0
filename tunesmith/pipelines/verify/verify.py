"""`tunesmith verify`: ask what answers somewhere the prompts of a challenge, and decide which model it is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from tunesmith.data.tokenization.thinking import switch_values
from tunesmith.display import Display, Displayed, model_label
from tunesmith.errors import ModelError
from tunesmith.events import EventHandler, StageStarted
from tunesmith.inference.identify import identify
from tunesmith.inference.openai_client import Endpoint, ask_endpoint, check, only_model
from tunesmith.models.loading.locate import locate
from tunesmith.pipelines.requests import SERVER_KEY
from tunesmith.pipelines.verify.challenge import Challenge, Prompt, compared, digest_of
from tunesmith.pipelines.verify.chat import ChatDifference, compare_server, compare_template, read_contract
from tunesmith.pipelines.verify.verdict import Verdict, judge

# Context of a GGUF file, in tokens: the longest prompt and its answer, with tools.
POSITIONS = 2048
SHOWN = 3

if TYPE_CHECKING:
    from tunesmith.inference.llamacpp import LlamaCpp


@dataclass(frozen=True, slots=True)
class Target:
    """A model that is verified."""

    ask: Callable[[Sequence[Prompt]], list[str]]  # returns the answer to each prompt
    rendered: str = ""  # digest of the token ids of all prompts; empty if a server does not return them


class DifferentAnswer(BaseModel):
    """An answer that is not the tuned model's."""

    where: str
    prompt: str
    expected: str
    base: str
    found: str


class Verified(Displayed, BaseModel):
    """The result of a challenge."""

    model_config = ConfigDict(frozen=True)

    run: str
    target: str
    verdict: Verdict
    error_rate: float | None  # how often a model for which the verdict is wrong gives such answers; None: undecided
    sentence: str  # the verdict with its evidence
    tuned: int  # answers that are those of the tuned model
    of_tuned: int  # prompts at which it is known
    base: int  # answers that are those of the base
    of_base: int
    same_tokens: bool | None  # whether the prompts become the same token ids; None: the server does not return them
    seconds: float
    differences: tuple[DifferentAnswer, ...] = ()

    def display(self) -> Display:
        """Show the verdict with its evidence, and the first answers that differ."""
        shown = [f"{one.where}: expected {one.expected!r}, found {one.found!r}" for one in self.differences[:SHOWN]]
        return Display(f"Verified({self.target}): {self.sentence}", shown)


def verify(
    challenge: Challenge, target: str, *, on_event: EventHandler, offline: bool = False, key: str = ""
) -> Verified:
    """Decide whether a target answers as the tuned model, as its base, as a damaged copy, or as something else.

    Args:
        challenge: the challenge of the run.
        target: address of an OpenAI-compatible server (`URL` or `URL#MODEL`), model folder, run, or GGUF file.
        on_event: receives progress.
        offline: do not access the network.
        key: of the server; default: TUNESMITH_API_KEY.

    Raises:
        DataError: the server cannot be reached, or stops answering.
        ModelError: the folder or file cannot be loaded.
    """
    on_event(StageStarted(f"opening {model_label(target)}"))
    start = time.perf_counter()
    with opened(challenge, target, offline=offline, key=key) as found:
        on_event(StageStarted(f"asking {len(challenge.prompts)} prompts"))
        answers = found.ask(challenge.prompts)
    judgement = judge(challenge.prompts, answers)
    differences = tuple(
        DifferentAnswer(
            where=prompt.where,
            prompt=prompt.messages[-1].content,
            expected=prompt.tuned.text,
            base=prompt.base.text if prompt.base else "",
            found=answer,
        )
        for prompt, answer in zip(challenge.prompts, answers, strict=True)
        if prompt.tuned and not prompt.by_tuned(answer)
    )
    same = found.rendered == challenge.rendered if found.rendered else None
    other = "; its chat template or tokenizer renders the prompts otherwise than in training" if same is False else ""
    return Verified(
        run=challenge.name,
        target=target,
        sentence=judgement.sentence() + other,
        same_tokens=same,
        seconds=round(time.perf_counter() - start, 2),
        differences=differences,
        **asdict(judgement),
    )


class ChatVerified(Displayed, BaseModel):
    """The comparison of a target with the chat contract of a run."""

    model_config = ConfigDict(frozen=True)

    run: str
    target: str
    compared: dict[str, int]  # number of conversations by what was compared of them
    difference: ChatDifference | None  # the first one
    seconds: float

    def display(self) -> Display:
        """Show the first difference."""
        return Display(f"ChatVerified({self.target}): {self.sentence()}")

    def sentence(self) -> str:
        """Return the result as one sentence."""
        if self.difference is None:
            found = ", ".join(f"{kind} of {count}" for kind, count in self.compared.items())
            return f"conversations are rendered and parsed as in training: {found}"
        return self.difference.sentence()


def verify_chat(run: Path, target: str, *, on_event: EventHandler, offline: bool = False) -> ChatVerified:
    """Compare how a target renders and parses the conversations of a run's chat contract.

    Args:
        run: run folder, or the file of its contract.
        target: as in `verify`.
        on_event: receives progress.
        offline: do not access the network.

    Raises:
        CheckpointError: the run has no contract.
        DataError: the server cannot be reached, or stops answering.
        ModelError: the folder or file cannot be loaded.
    """
    from tunesmith.data.tokenization.chat_template import Template
    from tunesmith.models.loading.load import read_tokenizer

    contract = read_contract(run)
    on_event(StageStarted(f"opening {model_label(target)}"))
    start = time.perf_counter()

    def template_of(name: str) -> Template:
        found = identify(name, offline=offline)
        folder = found.folder or locate(name, offline=offline)
        if found.base and not (folder / "tokenizer_config.json").exists():
            folder = locate(found.base, offline=offline)
        return Template(read_tokenizer(folder, where=name))

    with served(target, offline=offline) as server:
        if server is None:
            result = compare_template(contract, template_of(target))
        else:
            result = compare_server(contract, server, template_of(str(run)) if run.is_dir() else None)
    return ChatVerified(
        run=str(run),
        target=target,
        compared=dict(result.counts),
        difference=result.difference,
        seconds=round(time.perf_counter() - start, 2),
    )


@contextmanager
def served(target: str, *, offline: bool, key: str = "") -> Iterator[Endpoint | None]:
    """Return the server at an address, or one over a GGUF file; None for a folder."""
    if target.startswith(("http://", "https://")):
        url, _, model = target.partition("#")
        key = key or os.environ.get(SERVER_KEY, "")
        server = Endpoint(url, model, key, temperature=0.0, naming="its name after the address: URL#MODEL")
        check(server, offline=offline)
        yield replace(server, model=model or only_model(server, offline=offline))
    elif target.lower().endswith(".gguf"):
        program = _program(target, thinking=None)  # it listens as long as this name holds it
        yield _endpoint_of(program)
    else:
        yield None


def _program(target: str, *, thinking: bool | None) -> LlamaCpp:
    """Return llama.cpp over a GGUF file; it listens until it is deleted."""
    from tunesmith.data.cpu_count import cores
    from tunesmith.inference.llamacpp import LlamaCpp

    if not Path(target).is_file():
        raise ModelError(f"{target}: no such file; check the path")
    return LlamaCpp(Path(target), threads=cores(), positions=POSITIONS, template_values=switch_values(thinking))


def _endpoint_of(program: LlamaCpp) -> Endpoint:
    key = program.headers["authorization"].removeprefix("Bearer ")
    return Endpoint(f"{program.address}/v1", "default", key, temperature=0.0)


@contextmanager
def opened(challenge: Challenge, target: str, *, offline: bool, key: str = "") -> Iterator[Target]:
    """Open a target that answers prompts; the context ends what was started for it."""
    chats = [prompt.chat for prompt in challenge.prompts]
    if target.lower().endswith(".gguf") and "://" not in target:
        program = _program(target, thinking=challenge.thinking)
        ask = partial(ask_server, _asked(_endpoint_of(program), challenge), offline=offline)
        yield Target(ask, digest_of(program.prompts(chats)))
        return
    with served(target, offline=offline, key=key) as found:
        if found is not None:
            yield Target(partial(ask_server, _asked(found, challenge), offline=offline))
            return
        from tunesmith.inference.open_model import open_model
        from tunesmith.models.generation.sampling import Sampling

        local = open_model(target, offline=offline)
        sampling = Sampling(max_new_tokens=challenge.tokens)
        mode = challenge.thinking if local.template.thinks else None
        yield Target(
            lambda prompts: [
                compared(reply.thoughts, reply.text)
                for reply in local.replies([prompt.chat for prompt in prompts], sampling=sampling, thinking=mode)
            ],
            digest_of([local.template.prompt(chat, thinking=mode) for chat in chats]),
        )


def _asked(server: Endpoint, challenge: Challenge) -> Endpoint:
    """Return the server with the options of the answers of a challenge."""
    values = switch_values(challenge.thinking)
    return replace(server, max_tokens=challenge.tokens, extra={"chat_template_kwargs": values} if values else {})


def ask_server(endpoint: Endpoint, prompts: Sequence[Prompt], *, offline: bool) -> list[str]:
    """Return the answer of a server to each prompt."""
    answers = dict(ask_endpoint(endpoint, [prompt.chat for prompt in prompts], offline=offline))
    return [compared(answers[i].thoughts, answers[i].text) for i in range(len(prompts))]
