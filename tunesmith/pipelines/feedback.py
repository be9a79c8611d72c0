"""A model, prompts and perhaps another model become pairs of answers that people can sit down to judge."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.annotation.assignment import NO_OVERLAP, Overlap
from tunesmith.annotation.items import ANSWER, AnswerSide, Item, prompt_key, read_items, sample
from tunesmith.annotation.pair_judging import WHAT, PairSession
from tunesmith.annotation.vote_rows import read_votes
from tunesmith.annotation.vote_store import Entry, VoteStore
from tunesmith.config import load_recipe
from tunesmith.data.examples.prompts import prompts
from tunesmith.data.examples.types import Chat, Pair, UnpairedPreference
from tunesmith.data.files import sha256_of_file
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import columns_of
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError, RecipeError, Refused
from tunesmith.evaluation.contamination import recipe_file
from tunesmith.inference.open_model import ModelSource, identify, open_model
from tunesmith.inference.saved_model import ModelManifest, read_manifest
from tunesmith.models.generation.sampling import Sampling
from tunesmith.objectives import Instruct, Preference
from tunesmith.objectives.instruct import asked, with_wording
from tunesmith.pipelines.evaluate import OWN_BASE, chosen_wording
from tunesmith.training.prepare import read_data

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


Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class FeedbackRequest:
    """What a person asked to have judged; without `prompts` the run's own test rows, without `store` beside the run.

    `rows` is how many prompts are drawn, 0 for all; `as_written` puts them without the run's instruction, and `limit`
    is how many tokens of one are read, 0 for as many as in training; `thumbs` shows one answer at a time; `warmer` and
    `longer` are where the person may raise the temperature and the length.
    """

    model: str
    against: str = ""
    prompts: str = ""
    column: str = ""
    rows: int = 100
    as_written: bool = False
    limit: int = 0
    thumbs: bool = False
    gold: str = ""
    store: Path | None = None
    overlap: Overlap = NO_OVERLAP
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8, top_p=0.95))
    offline: bool = False
    warmer: str = "--temperature"
    longer: str = "--max-new-tokens"

    @property
    def kept_in(self) -> Path:
        """The file of the votes."""
        if self.store is not None:
            return self.store
        path = Path(self.model)
        return path / "feedback.db" if path.is_dir() else Path(f"{path.name}.feedback.db")


def open_panel(request: FeedbackRequest, *, log: Callable[[str], None]) -> PairSession:
    """The pairs as they stood when they were left; answers that are not there yet are made first.

    Raises DataError for prompts, gold or a store that do not fit, Refused where no two answers differ.
    """
    request.overlap.check()
    if request.thumbs and request.against:
        raise RecipeError("--thumbs: shows one answer, and --against asks for two; leave one of them out")
    found = identify(request.model, offline=request.offline)
    every = _prompts(request, found)
    if not request.prompts:
        log("asked are the run's own test rows: what learns from these votes cannot be scored on them")
    if any(turns[0].tools for turns in every.values()):
        log("tools may be called here, which votes do not keep: judge by them, and tune on calls by objective: rl")
    gold = _gold(request)
    store = VoteStore(request.kept_in, what=WHAT)
    try:
        _same_prompts(store, every, request)
        items = _items(request, _drawn(request, every), store, log)
        known = read_items(store.since())
        new = [item for item in items if item.key not in known]
        mended = [item for item in gold if item.key not in known or known[item.key].gold != item.gold]
        store.append(*(item.entry for item in [*new, *mended]))
    except BaseException:
        store.close()
        raise
    return PairSession([*items, *gold], store, overlap=request.overlap, seed=request.sampling.seed)


def _prompts(request: FeedbackRequest, found: ModelSource) -> dict[str, Messages]:
    """Every prompt of the file, or of the run's test rows, each once."""
    if request.prompts:
        own = read_manifest(found.folder).objective if found.kind == "run" and found.folder else None
        usual, instruction = (own.prompt, own.instruction) if isinstance(own, Instruct | Preference) else ("", "")
        instruction = "" if request.as_written else instruction
        rows = read_rows(request.prompts, offline=request.offline)
        column = request.column or (usual if usual in columns_of(rows) else "")
        return {prompt_key(turns): turns for turns in prompts(rows, column=column, instruction=instruction)}
    page = recipe_file(found)
    if page is None:
        raise RecipeError(f"{request.model}: no recipe that names test rows; name prompts with --prompts FILE")
    split = read_data(load_recipe(page)[0], offline=request.offline).split
    told = [_turns_of(example, request.model) for example in split.test or split.validation]
    return {prompt_key(messages): messages for messages in told}


def _turns_of(example: object, name: str) -> Messages:
    if isinstance(example, Chat):
        return tuple(asked(example))
    if isinstance(example, Pair | UnpairedPreference):
        return example.prompt
    raise RecipeError(f"{name}: its rows hold no prompts; name some with --prompts FILE")


def _drawn(request: FeedbackRequest, every: Mapping[str, Messages]) -> list[Messages]:
    """As many prompts as are wanted, drawn by the seed."""
    keys = list(every)
    if request.rows and request.rows < len(keys):
        keys = random.Random(request.sampling.seed).sample(keys, request.rows)
    return [every[key] for key in keys]


def _items(
    request: FeedbackRequest, some: Sequence[Messages], store: VoteStore, log: Callable[[str], None]
) -> list[Item]:
    """The answers side by side, without those that nobody could choose between."""
    found = completion_sources(request.model, request.against, request.sampling, offline=request.offline)
    who = [replace(one, longer=request.longer, limit=request.limit or one.limit) for one in found]
    sides = [
        generate_side(one, some, store, log=log, offline=request.offline) for one in who[: 1 if request.thumbs else 2]
    ]
    judged = sample(some, sides)
    if judged.same:
        log(f"{judged.same} of {len(some)} prompts are left out: both answers are the same")
    if judged.empty:
        log(f"{judged.empty} of {len(some)} prompts are left out: an answer is empty")
    if not judged.items:
        cure = f"raise {request.warmer}, or give other prompts"
        raise Refused(f"{request.model}: nothing to judge, no prompt has two answers that differ; {cure}")
    return judged.items


def _gold(request: FeedbackRequest) -> list[Item]:
    """Items whose right label is known, to see whether people look. Raises DataError."""
    if not request.gold:
        return []
    rows = read_rows(request.gold, offline=request.offline)
    items = list({brought.item.key: brought.item for brought in read_votes(rows, rater="", gold=True)}.values())
    if any((len(item.answers) == 1) is not request.thumbs for item in items):
        kind = "prompt, completion, label" if request.thumbs else "prompt, chosen, rejected"
        raise DataError(f"{request.gold}: planted among these, its rows must hold {kind}; give such a file to --gold")
    return items


def _same_prompts(store: VoteStore, every: Mapping[str, Messages], request: FeedbackRequest) -> None:
    """Nothing where all that the store holds is on these prompts. Raises DataError."""
    held = [item for item in read_items(store.since()).values() if not item.gold]
    strange = sum(prompt_key(item.messages) not in every for item in held)
    if strange:
        source = request.prompts or f"the test rows of {request.model}"
        cure = "give the prompts that it is on, or name another file with --store"
        raise DataError(f"{store.path}: {strange} of its {len(held)} pairs are on prompts not in {source}; {cure}")
