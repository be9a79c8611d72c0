"""Answers that are made before people judge them: in batches, kept in the store, gone on with where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.data.examples import Message
from tunesmith.data.files import sha256_of_file
from tunesmith.errors import DataError, RecipeError
from tunesmith.feedback.items import ANSWER, AnswerSide, prompt_key
from tunesmith.feedback.store import Entry, VoteStore
from tunesmith.inference.folder import ModelManifest, read_manifest
from tunesmith.inference.open import ModelSource, identify, open_model
from tunesmith.model.sampling import Sampling
from tunesmith.objectives.instruct import with_wording
from tunesmith.workflows.questions import OWN_BASE, chosen_wording

# Answers that are on disk together: what a stop loses at most.
BATCH = 32
# Tokens of a prompt that a model without a run reads.
LONGEST_PROMPT = 512
SILENT = ("classify", "domain", "reward")


@dataclass(frozen=True, slots=True)
class CompletionSource:
    """A model and how it is asked: within the limit of a run, with a plain wording added to every prompt.

    `longer` is where a person may allow longer answers.
    """

    found: ModelSource
    sampling: Sampling
    limit: int = LONGEST_PROMPT
    wording: str = ""
    longer: str = "--max-new-tokens"

    @property
    def weights(self) -> str:
        """Digest of the numbers that answer."""
        place = self.found.folder or Path(self.found.name)
        files = sorted(place.rglob("*.safetensors")) if place.is_dir() else [place]
        return hashlib.sha256("".join(sha256_of_file(file) for file in files).encode()).hexdigest()[:16]

    def drawing(self, weights: str) -> str:
        """Digest of all that decides an answer."""
        values: list[Any] = [weights, self.found.base, self.wording, self.limit, asdict(self.sampling)]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def completion_sources(name: str, against: str, sampling: Sampling, *, offline: bool) -> list[CompletionSource]:
    """Who answers: the model and the other one, or the model twice by another chance. Raises RecipeError."""
    found = identify(name, offline=offline)
    first = CompletionSource(found, sampling, _limit(found))
    if not against:
        return [first, replace(first, sampling=replace(sampling, seed=sampling.seed + 1))]
    if against == OWN_BASE and not found.base:
        raise RecipeError(f"{name}: it is a base itself; name another model after --against")
    other = identify(found.base if against == OWN_BASE else against, offline=offline)
    if other.kind == "run":
        return [first, CompletionSource(other, sampling, _limit(other))]
    wording = chosen_wording(found) if other.name == found.base else ""
    return [first, CompletionSource(other, sampling, first.limit, wording)]


def usual_sampling(name: str, *, offline: bool) -> Sampling:
    """Answers as long as a run's training answers were."""
    about = _about(identify(name, offline=offline))
    longest = about.objective.max_new_tokens if about is not None else 0
    return Sampling(max_new_tokens=longest or Sampling().max_new_tokens)


def generate_side(
    asker: CompletionSource,
    prompts: Sequence[Sequence[Message]],
    store: VoteStore,
    *,
    log: Callable[[str], None],
    offline: bool,
) -> AnswerSide:
    """An answer to each prompt: those that the store has, the others made now and put into it."""
    weights = asker.weights
    name = _called(store, asker.found.name, weights)
    about = {"by": name, "weights": weights, "drawing": asker.drawing(weights)}
    known, keys = _kept(store, about), [prompt_key(messages) for messages in prompts]
    open_ones = [i for i, key in enumerate(keys) if key not in known]
    if not open_ones:
        return AnswerSide(name, [known[key] for key in keys])
    log(f"{name} answers {len(open_ones)} prompts" + (f"; {len(known)} are answered" if known else ""))
    model = open_model(asker.found.name, offline=offline, limit=asker.limit)  # by its place, not by the store's word
    model.limit = asker.limit  # a run has one of its own
    cut = 0
    for start in range(0, len(open_ones), BATCH):
        some = open_ones[start : start + BATCH]
        replies = model.replies([with_wording(prompts[i], asker.wording) for i in some], sampling=asker.sampling)
        made = {keys[i]: reply for i, reply in zip(some, replies, strict=True)}
        said = {key: {"text": reply.text, "finished": reply.finished} for key, reply in made.items()}
        store.append(*(Entry("", ANSWER, key, {**about, **body}) for key, body in said.items()))
        known |= {key: reply.text for key, reply in made.items()}
        cut += sum(not reply.finished for reply in replies)
        log(f"{name}: {min(start + BATCH, len(open_ones))} of {len(open_ones)} answers")
    if cut:
        log(f"{name}: {cut} answers were cut at {asker.sampling.max_new_tokens} tokens; see {asker.longer}")
    return AnswerSide(name, [known[key] for key in keys])


def _called(store: VoteStore, name: str, weights: str) -> str:
    """What the store calls these numbers already: votes stay theirs where a folder was moved or is spelled otherwise.

    Raises DataError where the model of this place is another by now.
    """
    made = [event.body for event in store.since() if event.kind == ANSWER]
    if known := next((str(body["by"]) for body in made if body["weights"] == weights), ""):
        return known
    if any(Path(str(body["by"])).expanduser().resolve() == Path(name).expanduser().resolve() for body in made):
        cure = "name another file with --store"
        raise DataError(f"{store.path}: holds answers of {name} before it was tuned again; {cure}")
    return name


def _kept(store: VoteStore, about: Mapping[str, str]) -> dict[str, str]:
    """Prompt -> the answer that the same model drew before."""
    made = [event for event in store.since() if event.kind == ANSWER]
    same = [event for event in made if {name: event.body[name] for name in about} == about]
    return {event.item: str(event.body["text"]) for event in same}


def _about(found: ModelSource) -> ModelManifest | None:
    """The page about a run, None for what is no run. Raises RecipeError for one that does not write answers."""
    if found.kind != "run" or found.folder is None:
        return None
    about = read_manifest(found.folder)
    if about.family != "decoder" or about.objective.kind in SILENT:
        cure = "give a run that answers prompts"
        raise RecipeError(f"{found.name}: tuned to {about.objective.kind}, and people judge written answers; {cure}")
    return about


def _limit(found: ModelSource) -> int:
    """The longest prompt that a model is asked, in tokens."""
    about = _about(found)
    return LONGEST_PROMPT if about is None else about.limit
