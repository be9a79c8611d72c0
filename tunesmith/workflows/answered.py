"""What every arm answers to the test rows, how fast, and on which chunks its answers rest; kept as it comes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

from tunesmith.data.examples import Example, Message
from tunesmith.data.files import read_page, write_whole
from tunesmith.decision.prompts import cited, shown_in
from tunesmith.events import StageStarted
from tunesmith.workflows.asking import BatchAnswers, say
from tunesmith.workflows.contest import ArmAnswers, Contest
from tunesmith.workflows.lessons import Lesson, raft_run, taught_run, tuned_run
from tunesmith.workflows.ways import LabellingArm, Prompted, way_of

# Rows that are asked one at a time, fewer of them where that takes long: enough for a median; the 95th percentile lies
# between the two slowest.
ALONE, FEWEST, LONG_ENOUGH = 16, 5, 15.0
# Questions after which the answers are written down, and seconds from one line about them to the next.
PORTION, LINE = 64, 5.0


# What is tuned for an arm, where something is.
LESSONS: dict[str, Callable[[Contest], Lesson]] = {
    "tuned": tuned_run,
    "tuned-30%": partial(tuned_run, percent=30),
    "tuned-10%": partial(tuned_run, percent=10),
    "tuned+rag": tuned_run,
    "raft": raft_run,
    "taught": taught_run,
}


def answered(contest: Contest, name: str) -> ArmAnswers:
    """What an arm says to the test rows: from the disk, or asked now and kept."""
    if (kept := contest.kept(name)) is not None:
        return kept
    run = LESSONS[name](contest) if name in LESSONS else None
    way = way_of(contest, name, contest.tuned(run.folder) if run else None)
    found = _prompted(contest, name, way) if isinstance(way, Prompted) else _labelled(contest, name, way)
    found = found.model_copy(update=way.known)
    return contest.keep(run.built(found) if run else found)


def _prompted(contest: Contest, name: str, way: Prompted) -> ArmAnswers:
    """The answers of an arm to all test rows, with its pace; what it finds and shows is in it."""
    contest.on_event(StageStarted(f"{name}: {len(contest.test)} questions"))
    began = time.perf_counter()
    batch = way.ask(contest.test)
    finding = time.perf_counter() - began
    said = _in_portions(contest, name, way, batch)
    cites, fewer = _cites(contest, way, batch, said.given)
    return ArmAnswers(
        name=name,
        detail=way.detail + (f"; fewer fitted above {fewer} of {len(batch)} questions" if fewer else ""),
        given=said.given,
        cites=cites,
        finished=said.finished,
        seconds=finding + said.seconds,
        latencies=_alone(contest, lambda row: say(way.model, way.ask([row]), contest.objective)),
        prompt_tokens=said.prompt_tokens,
    )


def _in_portions(contest: Contest, name: str, way: Prompted, batch: Sequence[list[Message]]) -> BatchAnswers:
    """What a model answers to all; kept portion by portion, so that a fault or a kill loses one at most."""
    asked = hashlib.sha256(json.dumps([[asdict(turn) for turn in one] for one in batch]).encode()).hexdigest()
    kept = contest.portions(name)
    found, told = BatchAnswers(), time.monotonic()
    for number, first in enumerate(range(0, len(batch), PORTION)):
        place = kept / f"{asked[:16]}-{number}.json"
        if place.exists():
            found += read_page(place, BatchAnswers)
            continue
        said = say(way.model, batch[first : first + PORTION], contest.objective)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, said.model_dump_json())
        found += said
        if len(found.given) < len(batch) and time.monotonic() - told >= LINE:
            told = time.monotonic()
            contest.on_event(StageStarted(f"{name}: {len(found.given)} of {len(batch)} answered"))
    return found


def _alone(contest: Contest, ask: Callable[[Example], object]) -> list[float]:
    """Seconds of some rows, each asked by itself."""
    alone: list[float] = []
    for row in contest.test[:ALONE]:
        if len(alone) >= FEWEST and sum(alone) > LONG_ENOUGH:
            break
        began = time.perf_counter()
        ask(row)
        alone.append(time.perf_counter() - began)
    return alone


def _labelled(contest: Contest, name: str, way: LabellingArm) -> ArmAnswers:
    """The answers of something that reads no prompt, with its pace."""
    contest.on_event(StageStarted(f"{name}: {len(contest.test)} questions"))
    began = time.perf_counter()
    given = way.label(contest.test)
    seconds = time.perf_counter() - began
    latencies = _alone(contest, lambda row: way.label([row]))
    return ArmAnswers(name=name, detail=way.detail, given=given, seconds=seconds, latencies=latencies)


def _cites(
    contest: Contest, way: Prompted, batch: Sequence[list[Message]], given: Sequence[str]
) -> tuple[list[str], int]:
    """The chunk that each answer rests on, of those that were shown, and above how many questions not all fitted."""
    most = int(way.known.get("shown", 0))
    if not most:
        return [], 0
    found = [hits[:most] for hits in contest.retrieval().hits(contest.test)]
    seen = [shown_in(asked, hits) for asked, hits in zip(batch, found, strict=True)]
    fewer = sum(len(some) < len(all_) for some, all_ in zip(seen, found, strict=True))
    return [cited(answer, hits) for answer, hits in zip(given, seen, strict=True)], fewer
