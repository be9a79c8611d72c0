"""What every arm answers to the test rows, how fast, and on which chunks its answers rest; kept as it comes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

from tunesmith.data.examples.types import Example
from tunesmith.data.files import read_page, write_whole
from tunesmith.data.tokenization.messages import Message
from tunesmith.events import StageStarted
from tunesmith.pipelines.compare.arms import ClassifierArm, PromptArm, arm_for
from tunesmith.pipelines.compare.context import ArmAnswers, ComparisonContext
from tunesmith.pipelines.compare.prompting import BatchAnswers, ask_model
from tunesmith.pipelines.compare.tuned_arms import TunedArm, run_closed_book, run_raft, run_tuned
from tunesmith.retrieval.prompts import cited, shown_in

# Rows that are asked one at a time, fewer of them where that takes long: enough for a median; the 95th percentile lies
# between the two slowest.
LATENCY_ROWS, MIN_LATENCY_ROWS, LATENCY_SECONDS = 16, 5, 15.0
# Questions after which the answers are written down, and seconds from one line about them to the next.
PORTION, LINE = 64, 5.0


# What is tuned for an arm, where something is.
TUNED_ARMS: dict[str, Callable[[ComparisonContext], TunedArm]] = {
    "tuned": run_tuned,
    "tuned-30%": partial(run_tuned, percent=30),
    "tuned-10%": partial(run_tuned, percent=10),
    "tuned+rag": run_tuned,
    "raft": run_raft,
    "closed-book": run_closed_book,
}


def run_arm(context: ComparisonContext, name: str) -> ArmAnswers:
    """What an arm says to the test rows: from the disk, or asked now and kept."""
    if (kept := context.kept(name)) is not None:
        return kept
    run = TUNED_ARMS[name](context) if name in TUNED_ARMS else None
    way = arm_for(context, name, context.tuned(run.folder) if run else None)
    found = _prompted(context, name, way) if isinstance(way, PromptArm) else _labelled(context, name, way)
    found = found.model_copy(update=way.known)
    return context.keep(run.built(found) if run else found)


def _prompted(context: ComparisonContext, name: str, way: PromptArm) -> ArmAnswers:
    """The answers of an arm to all test rows, with its pace; what it finds and shows is in it."""
    context.on_event(StageStarted(f"{name}: {len(context.test)} questions"))
    began = time.perf_counter()
    batch = way.ask(context.test)
    finding = time.perf_counter() - began
    said = _in_portions(context, name, way, batch)
    cites, fewer = _cites(context, way, batch, said.given)
    return ArmAnswers(
        name=name,
        detail=way.detail + (f"; fewer fitted above {fewer} of {len(batch)} questions" if fewer else ""),
        given=said.given,
        cites=cites,
        finished=said.finished,
        seconds=finding + said.seconds,
        latencies=_alone(context, lambda row: ask_model(way.model, way.ask([row]), context.objective)),
        prompt_tokens=said.prompt_tokens,
    )


def _in_portions(context: ComparisonContext, name: str, way: PromptArm, batch: Sequence[list[Message]]) -> BatchAnswers:
    """What a model answers to all; kept portion by portion, so that a fault or a kill loses one at most."""
    asked = hashlib.sha256(json.dumps([[asdict(turn) for turn in one] for one in batch]).encode()).hexdigest()
    kept = context.portions(name)
    found, told = BatchAnswers(), time.monotonic()
    for number, first in enumerate(range(0, len(batch), PORTION)):
        place = kept / f"{asked[:16]}-{number}.json"
        if place.exists():
            found += read_page(place, BatchAnswers)
            continue
        said = ask_model(way.model, batch[first : first + PORTION], context.objective)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, said.model_dump_json())
        found += said
        if len(found.given) < len(batch) and time.monotonic() - told >= LINE:
            told = time.monotonic()
            context.on_event(StageStarted(f"{name}: {len(found.given)} of {len(batch)} answered"))
    return found


def _alone(context: ComparisonContext, ask: Callable[[Example], object]) -> list[float]:
    """Seconds of some rows, each asked by itself."""
    alone: list[float] = []
    for row in context.test[:LATENCY_ROWS]:
        if len(alone) >= MIN_LATENCY_ROWS and sum(alone) > LATENCY_SECONDS:
            break
        began = time.perf_counter()
        ask(row)
        alone.append(time.perf_counter() - began)
    return alone


def _labelled(context: ComparisonContext, name: str, way: ClassifierArm) -> ArmAnswers:
    """The answers of something that reads no prompt, with its pace."""
    context.on_event(StageStarted(f"{name}: {len(context.test)} questions"))
    began = time.perf_counter()
    given = way.label(context.test)
    seconds = time.perf_counter() - began
    latencies = _alone(context, lambda row: way.label([row]))
    return ArmAnswers(name=name, detail=way.detail, given=given, seconds=seconds, latencies=latencies)


def _cites(
    context: ComparisonContext, way: PromptArm, batch: Sequence[list[Message]], given: Sequence[str]
) -> tuple[list[str], int]:
    """The chunk that each answer rests on, of those that were shown, and above how many questions not all fitted."""
    most = int(way.known.get("shown", 0))
    if not most:
        return [], 0
    found = [hits[:most] for hits in context.retrieval().hits(context.test)]
    seen = [shown_in(asked, hits) for asked, hits in zip(batch, found, strict=True)]
    fewer = sum(len(some) < len(all_) for some, all_ in zip(seen, found, strict=True))
    return [cited(answer, hits) for answer, hits in zip(given, seen, strict=True)], fewer
