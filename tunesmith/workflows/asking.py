"""Questions put to a model, a batch for the throughput and some one at a time for the latency."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from pydantic import BaseModel, ConfigDict

from tunesmith.data.collect.document import plain
from tunesmith.data.examples import Example, Labelled, Message
from tunesmith.data.files import write_whole
from tunesmith.decision.index import Hit
from tunesmith.decision.prompts import cited, question_of, with_passages
from tunesmith.inference.local import LocalModel
from tunesmith.inference.remote import Remote
from tunesmith.model.sampling import Sampling
from tunesmith.objectives import Classify, Instruct
from tunesmith.workflows.answers import answer
from tunesmith.workflows.contest import Answered, Contest

# Rows that are asked one at a time, fewer of them where that takes long: enough for a median; the 95th percentile lies
# between the two slowest.
ALONE, FEWEST, LONG_ENOUGH = 16, 5, 15.0
# The longest answer to a question about labels of a server, which gives no probabilities.
LABEL_TOKENS = 24

# Turns that ask each of some rows.
Ask = Callable[[Sequence[Example]], list[list[Message]]]


# Questions after which the answers are written down, and seconds from one line about them to the next.
PORTION, LINE = 64, 5.0


class Said(BaseModel):
    """Answers to a batch."""

    model_config = ConfigDict(frozen=True)

    given: list[str] = []
    finished: list[bool] = []
    prompt_tokens: list[int] = []
    seconds: float = 0.0

    def __add__(self, more: Said) -> Said:
        return Said(
            given=self.given + more.given,
            finished=self.finished + more.finished,
            prompt_tokens=self.prompt_tokens + more.prompt_tokens,
            seconds=self.seconds + more.seconds,
        )


def say(model: LocalModel | Remote, batch: Sequence[Sequence[Message]], objective: Classify | Instruct) -> Said:
    """What a model answers: the likeliest label, or its own words."""
    began = time.perf_counter()
    if isinstance(objective, Classify) and isinstance(model, LocalModel):
        scores = model.options(batch, objective.labels)
        given = [objective.labels[place] for place in scores.argmax(dim=1).tolist()]
        read = [len(model.prompt(messages)) for messages in batch]
        return Said(given=given, prompt_tokens=read, seconds=time.perf_counter() - began)
    longest = objective.max_new_tokens or LABEL_TOKENS
    replies = model.replies(batch, sampling=Sampling(max_new_tokens=longest))
    given = [reply.text for reply in replies]
    if isinstance(objective, Classify):
        given = [label_in(text, objective.labels) for text in given]
    return Said(
        given=given,
        finished=[reply.finished for reply in replies],
        prompt_tokens=[reply.prompt_tokens for reply in replies],
        seconds=time.perf_counter() - began,
    )


def label_in(text: str, labels: Sequence[str]) -> str:
    """The label that an answer names first, the longer one where two begin alike; the answer itself if none."""
    said = f" {plain(text)} "
    found = [(said.find(f" {plain(label)} "), -len(label), label) for label in labels]
    named = [place for place in found if place[0] >= 0]
    return min(named)[2] if named else text


def ask_all(contest: Contest, name: str, model: LocalModel | Remote, ask: Ask, *, detail: str) -> Answered:
    """The answers of an arm to all test rows, with its pace; `ask` finds and shows whatever the arm shows."""
    contest.listen({"event": "stage", "text": f"{name}: {len(contest.test)} questions"})
    began = time.perf_counter()
    batch = ask(contest.test)
    finding = time.perf_counter() - began
    said = _in_portions(contest, name, model, batch)
    return Answered(
        name=name,
        detail=detail,
        given=said.given,
        finished=said.finished,
        seconds=finding + said.seconds,
        latencies=_alone(contest, lambda row: say(model, ask([row]), contest.objective)),
        prompt_tokens=said.prompt_tokens,
    )


def _in_portions(contest: Contest, name: str, model: LocalModel | Remote, batch: Sequence[list[Message]]) -> Said:
    """What a model answers to all; kept portion by portion, so that a fault or a kill loses one at most."""
    asked = hashlib.sha256(json.dumps([[asdict(turn) for turn in one] for one in batch]).encode()).hexdigest()
    kept = contest.portions(name)
    found, told = Said(), time.monotonic()
    for number, first in enumerate(range(0, len(batch), PORTION)):
        place = kept / f"{asked[:16]}-{number}.json"
        if place.exists():
            found += Said.model_validate_json(place.read_text(encoding="utf-8"))
            continue
        said = say(model, batch[first : first + PORTION], contest.objective)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, said.model_dump_json())
        found += said
        if len(found.given) < len(batch) and time.monotonic() - told >= LINE:
            told = time.monotonic()
            contest.listen({"event": "stage", "text": f"{name}: {len(found.given)} of {len(batch)} answered"})
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


def ask_tuned(contest: Contest, name: str, model: LocalModel, *, detail: str) -> Answered:
    """The same for a tuned model that is asked as it was tuned, through its head where it has one."""
    if model.policy.head is None:
        return ask_all(contest, name, model, lambda rows: plainly(contest, rows), detail=detail)
    found = pace(contest, name, lambda rows: answer(model, rows).given)
    return found.model_copy(update={"detail": detail})


def pace(contest: Contest, name: str, answers: Callable[[Sequence[Example]], list[str]]) -> Answered:
    """The answers of something that reads no prompt, with its pace."""
    contest.listen({"event": "stage", "text": f"{name}: {len(contest.test)} questions"})
    began = time.perf_counter()
    given = answers(contest.test)
    seconds = time.perf_counter() - began
    latencies = _alone(contest, lambda row: answers([row]))
    return Answered(name=name, detail="", given=given, seconds=seconds, latencies=latencies)


def plainly(contest: Contest, rows: Sequence[Example], wording: str = "") -> list[list[Message]]:
    """The rows' own questions."""
    return [question_of(contest.objective, row, wording) for row in rows]


def worded(model: LocalModel, example: Example, wording: str) -> list[Message]:
    """A row's question in a wording, its text shortened where the model cannot read all of it."""
    if isinstance(example, Labelled):
        return model.about(example.text, wording)
    assert isinstance(model.objective, Instruct)
    return question_of(model.objective, example, wording)


def within(model: LocalModel, asked: Sequence[Message], hits: Sequence[Hit], form: str) -> list[Message]:
    """The question below as many of the passages, the best first, as the model can read with it."""
    return fitting(model, len(hits), lambda count: with_passages(asked, hits[:count], form))


def fitting(model: LocalModel, most: int, make: Callable[[int], list[Message]]) -> list[Message]:
    """The messages with as many things beside the question, up to `most`, as the model can read with it."""
    for count in range(most, 0, -1):
        messages = make(count)
        if len(model.template.prompt(messages)) <= model.limit:
            return messages
    return make(0)


def with_cites(contest: Contest, found: Answered) -> Answered:
    """The same with the chunk that each answer rests on."""
    hits = contest.retrieval().hits(contest.test)
    cites = [cited(given, hit[: found.shown]) for given, hit in zip(found.given, hits, strict=True)]
    return found.model_copy(update={"cites": cites})
