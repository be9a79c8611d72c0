"""A model, prompts and perhaps another model become pairs of answers that people can sit down to judge."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tunesmith.data.examples import Chat, Message, Pair, UnpairedPreference
from tunesmith.data.prompts import prompts
from tunesmith.data.rows import columns_of, read_rows
from tunesmith.errors import DataError, RecipeError, Refused
from tunesmith.feedback.items import Item, prompt_key, read_items, sample
from tunesmith.feedback.preferences import read_votes
from tunesmith.feedback.store import VoteStore
from tunesmith.feedback.turns import NO_OVERLAP, Overlap
from tunesmith.inference.folder import read_manifest
from tunesmith.inference.open import ModelSource, identify
from tunesmith.model.sampling import Sampling
from tunesmith.objectives import Instruct, Preference
from tunesmith.objectives.instruct import asked
from tunesmith.recipe import load_recipe
from tunesmith.workflows.ahead import completion_sources, generate_side
from tunesmith.workflows.lineage import recipe_file
from tunesmith.workflows.panel import WHAT, PairSession
from tunesmith.workflows.prepare import read_data

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
