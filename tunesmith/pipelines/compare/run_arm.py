"""Run an arm: its answers to the test rows, their speed, and the chunks they rest on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial

from tunesmith.data.examples.types import Example
from tunesmith.data.files import read_page, write_whole
from tunesmith.data.tokenization.messages import Message
from tunesmith.events import Note, StageStarted
from tunesmith.inference.local_model import LocalModel
from tunesmith.phases import Phases, phase, timing
from tunesmith.pipelines.compare.answers import ArmAnswers, BatchAnswers
from tunesmith.pipelines.compare.arm_kinds import kind_of
from tunesmith.pipelines.compare.arms import ClassifierArm, PromptArm, arm_for
from tunesmith.pipelines.compare.context import ComparisonContext
from tunesmith.pipelines.compare.prompting import ask_model
from tunesmith.pipelines.compare.tuned_arms import TunedArm, run_closed_book, run_raft, run_tuned
from tunesmith.pipelines.compare.tuned_retriever import run_reranker, run_retriever
from tunesmith.progress import track
from tunesmith.report.formatting import metric_name, reused_line
from tunesmith.retrieval.prompts import cited

# Rows answered one at a time: enough for a median; the 95th percentile is between the two slowest. Slow arms stop after
# MIN_LATENCY_ROWS once they took LATENCY_SECONDS.
LATENCY_ROWS = 16
MIN_LATENCY_ROWS = 5
LATENCY_SECONDS = 15.0
PORTION = 64  # answers between two writes to disk

# The runs that arms need, by `ArmKind.run` and `ArmKind.retriever`.
TUNED_ARMS: dict[str, Callable[[ComparisonContext], TunedArm]] = {
    "tuned": run_tuned,
    "tuned-30%": partial(run_tuned, percent=30),
    "tuned-10%": partial(run_tuned, percent=10),
    "tuned-retriever": run_retriever,
    "tuned-retriever+rerank": run_reranker,
    "raft": run_raft,
    "closed-book": run_closed_book,
}


def run_arm(context: ComparisonContext, name: str) -> ArmAnswers:
    """Return the answers of an arm to all test rows, from disk if they are stored; new ones are stored."""
    if (stored := context.stored(name)) is not None:
        return stored
    kind = kind_of(name)
    retriever = TUNED_ARMS[kind.retriever](context) if kind.retriever else None
    reranker = TUNED_ARMS[kind.reranker](context) if kind.reranker else None
    run = TUNED_ARMS[kind.run](context) if kind.run else None
    tuned = context.tuned(run.folder) if run else None
    searches = {"retriever": retriever, "reranker": reranker}
    folders = {part: str(own.folder) for part, own in searches.items() if own}
    arm = arm_for(context, name, tuned, **folders)
    context.on_event(StageStarted(f"{name}: {len(context.test)} questions"))
    if isinstance(arm, PromptArm):
        with timing(Phases()) as phases, phase(name):
            answers = _prompt_rows(context, name, arm)
        if phases.reused:
            context.on_event(Note(reused_line(phases.reused)))
    else:
        assert isinstance(arm, ClassifierArm)
        label = arm.label
        began = time.perf_counter()
        given = label(context.test)
        seconds = time.perf_counter() - began
        latencies = _latencies(context, name, lambda row: label([row]))
        answers = ArmAnswers(name=name, detail=arm.detail, given=given, seconds=seconds, latencies=latencies)
    task = context.score(answers)
    context.on_event(Note(f"{name}: {metric_name(task.metric)} {task}"))
    costs = {"labelled_rows": arm.labelled_rows, "build_seconds": arm.build_seconds}
    answers = answers.model_copy(update={**costs, "task": task})
    answers = run.add_cost(answers) if run else answers
    answers = retriever.add_search(answers) if retriever else answers
    return context.store(reranker.add_ranking(answers) if reranker else answers)


def _prompt_rows(context: ComparisonContext, name: str, arm: PromptArm) -> ArmAnswers:
    """Return the answers of an arm that prompts a model; its time includes building the prompts."""
    began = time.perf_counter()
    prompts = arm.prompts(context.test)
    prompt_seconds = time.perf_counter() - began
    answers = _in_portions(context, name, arm, [prompt.messages for prompt in prompts])

    alone = arm.model
    if isinstance(alone, LocalModel):  # a kept answer takes no time
        alone = replace(alone, policy=replace(alone.policy, kept=None))

    def answer_alone(row: Example) -> None:
        (prompt,) = arm.prompts([row])
        ask_model(alone, [prompt.messages], context.objective)

    dropped = sum(prompt.dropped > 0 for prompt in prompts) if arm.shown else 0
    cites = [cited(answer, prompt.hits) for answer, prompt in zip(answers.given, prompts, strict=True)]
    return ArmAnswers(
        name=name,
        detail=arm.detail + (f"; {dropped} of {len(prompts)} prompts hold fewer" if dropped else ""),
        given=answers.given,
        cites=cites if arm.shown else [],
        finished=answers.finished,
        seconds=prompt_seconds + answers.seconds,
        latencies=_latencies(context, name, answer_alone),
        prompt_tokens=answers.prompt_tokens,
        shown=arm.shown,
        form=arm.form,
    )


def _in_portions(context: ComparisonContext, name: str, arm: PromptArm, batch: Sequence[list[Message]]) -> BatchAnswers:
    """Answer a batch in portions that are stored at once, so that an interruption loses one at most."""
    digest = hashlib.sha256(json.dumps([[asdict(turn) for turn in turns] for turns in batch]).encode()).hexdigest()
    folder = context.portions(name)
    answers = BatchAnswers()
    portions = [batch[first : first + PORTION] for first in range(0, len(batch), PORTION)]
    for number, questions in enumerate(track(portions, name, unit="questions", size=len)):
        file = folder / f"{digest[:16]}-{number}.json"
        if file.exists():
            answers += read_page(file, BatchAnswers)
            continue
        portion = ask_model(arm.model, questions, context.objective)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, portion.model_dump_json())
        answers += portion
    return answers


def _latencies(context: ComparisonContext, name: str, ask: Callable[[Example], object]) -> list[float]:
    """Return the seconds of the first test rows, each answered by itself."""
    latencies: list[float] = []
    for row in track(context.test[:LATENCY_ROWS], f"{name}: timing single questions", unit="questions"):
        if len(latencies) >= MIN_LATENCY_ROWS and sum(latencies) > LATENCY_SECONDS:
            break
        began = time.perf_counter()
        ask(row)
        latencies.append(time.perf_counter() - began)
    return latencies
