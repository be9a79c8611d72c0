"""`tunesmith verify`: ask what answers somewhere the prompts of a challenge, and decide which model it is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tunesmith.display import Display, Displayed, model_label
from tunesmith.errors import ModelError
from tunesmith.events import EventHandler, StageStarted
from tunesmith.inference.identify import identify
from tunesmith.inference.openai_client import Endpoint, ask_endpoint, only_model
from tunesmith.models.loading.locate import locate
from tunesmith.pipelines.requests import SERVER_KEY
from tunesmith.pipelines.verify.challenge import Challenge, Prompt
from tunesmith.pipelines.verify.chat import ChatDifference, difference_at, difference_of, read_contract
from tunesmith.pipelines.verify.verdict import Verdict, decided, judge

# Prompts that are sent before the evidence is looked at again.
STEP = 8
# Context of a GGUF file, in tokens: the longest prompt and its answer, with tools.
POSITIONS = 2048
SHOWN = 3

# Returns the answer to each prompt.
Asker = Callable[[Sequence[Prompt]], list[str]]


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
    error_rate: float  # probability that the verdict is wrong
    prompts: int  # that were sent
    tuned: int  # answers equal to those of the tuned model
    base: int  # answers equal to those of the base
    seconds: float
    differences: tuple[DifferentAnswer, ...] = ()

    def display(self) -> Display:
        """Show the verdict with its error rate, and the first answers that differ."""
        shown = [f"{one.where}: expected {one.expected!r}, found {one.found!r}" for one in self.differences[:SHOWN]]
        return Display(f"Verified({self.target}): {self.sentence()}", shown)

    def sentence(self) -> str:
        """Return the verdict as one sentence."""
        rate = "below 0.0001" if self.error_rate < 1e-4 else f"{self.error_rate:.4f}"
        return (
            f"{self.verdict} (error rate {rate}): {self.tuned} of {self.prompts} answers are those of the tuned model, "
            f"{self.base} those of its base"
        )


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
    with opened(challenge, target, offline=offline, key=key) as ask:
        on_event(StageStarted(f"asking {len(challenge.prompts)} prompts"))
        answers: list[str] = []
        prompts = challenge.prompts
        while len(answers) < len(prompts) and not decided(prompts[: len(answers)], answers):
            answers += ask(prompts[len(answers) : len(answers) + STEP])
    asked = prompts[: len(answers)]
    found = judge(asked, answers)
    differences = tuple(
        DifferentAnswer(
            where=prompt.where,
            prompt=prompt.messages[-1].content,
            expected=prompt.tuned,
            base=prompt.base,
            found=answer,
        )
        for prompt, answer in zip(asked, answers, strict=True)
        if not prompt.by_tuned(answer)
    )
    return Verified(
        run=challenge.name,
        target=target,
        verdict=found.verdict,
        error_rate=found.error_rate,
        prompts=len(asked),
        tuned=found.tuned,
        base=found.base,
        seconds=round(time.perf_counter() - start, 2),
        differences=differences,
    )


class ChatVerified(Displayed, BaseModel):
    """The comparison of a target with the chat contract of a run."""

    model_config = ConfigDict(frozen=True)

    run: str
    target: str
    conversations: int  # of the contract
    difference: ChatDifference | None  # the first one
    seconds: float

    def display(self) -> Display:
        """Show the first difference."""
        return Display(f"ChatVerified({self.target}): {self.sentence()}")

    def sentence(self) -> str:
        """Return the result as one sentence."""
        if self.difference is None:
            return f"{self.conversations} conversations are rendered and parsed as in training"
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
            difference = difference_of(contract, template_of(target))
        else:
            difference = difference_at(contract, server, template_of(str(run)) if run.is_dir() else None)
    return ChatVerified(
        run=str(run),
        target=target,
        conversations=sum(not golden.refused for golden in contract.conversations),
        difference=difference,
        seconds=round(time.perf_counter() - start, 2),
    )


@contextmanager
def served(target: str, *, offline: bool, key: str = "") -> Iterator[Endpoint | None]:
    """Return the server at an address, or one over a GGUF file that ends with the context; None for a folder."""
    if target.startswith(("http://", "https://")):
        url, _, model = target.partition("#")
        key = key or os.environ.get(SERVER_KEY, "")
        server = Endpoint(url, model, key, temperature=0.0, naming="its name after the address: URL#MODEL")
        yield replace(server, model=model or only_model(server, offline=offline))
    elif target.lower().endswith(".gguf"):
        from tunesmith.data.cpu_count import cores
        from tunesmith.inference.llamacpp import LlamaCpp

        if not Path(target).is_file():
            raise ModelError(f"{target}: no such file; check the path")
        program = LlamaCpp(Path(target), threads=cores(), positions=POSITIONS)
        key = program.headers["authorization"].removeprefix("Bearer ")
        yield Endpoint(f"{program.address}/v1", "default", key, temperature=0.0)
    else:
        yield None


@contextmanager
def opened(challenge: Challenge, target: str, *, offline: bool, key: str = "") -> Iterator[Asker]:
    """Open a target that answers prompts; the context ends what was started for it."""
    with served(target, offline=offline, key=key) as found:
        if found is not None:
            thinking = {"enable_thinking": challenge.thinking}
            extra = {} if challenge.thinking is None else {"chat_template_kwargs": thinking}
            server = replace(found, max_tokens=challenge.tokens, extra=extra)
            yield lambda prompts: ask_server(server, prompts, offline=offline)
            return
        from tunesmith.inference.open_model import open_model
        from tunesmith.models.generation.sampling import Sampling

        local = open_model(target, offline=offline)
        sampling = Sampling(max_new_tokens=challenge.tokens)
        mode = challenge.thinking if local.template.thinks else None
        yield lambda prompts: [
            reply.text.strip()
            for reply in local.replies([prompt.chat for prompt in prompts], sampling=sampling, thinking=mode)
        ]


def ask_server(endpoint: Endpoint, prompts: Sequence[Prompt], *, offline: bool) -> list[str]:
    """Return the answer of a server to each prompt."""
    answers = dict(ask_endpoint(endpoint, [prompt.chat for prompt in prompts], offline=offline))
    return [answers[i].text.strip() for i in range(len(prompts))]
