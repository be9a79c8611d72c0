"""`tunesmith feedback`: generate answers of one or two models to prompts, and open a session in which raters judge."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

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
from tunesmith.display import model_label
from tunesmith.errors import DataError, RecipeError, Refused
from tunesmith.evaluation.contamination import recipe_file
from tunesmith.inference.defaults import sampling_of
from tunesmith.inference.identify import ModelManifest, ModelSource, identify, read_manifest
from tunesmith.inference.open_model import open_model
from tunesmith.models.generation.sampling import Sampling
from tunesmith.objectives.instruct import asked, with_wording
from tunesmith.pipelines.evaluate import OWN_BASE, chosen_wording
from tunesmith.pipelines.requests import FeedbackRequest
from tunesmith.training.read import read_data
from tunesmith.training.run_folder import identity_of

# Answers that are written to the store at once; an interrupt loses at most these.
BATCH_SIZE = 32
MAX_PROMPT_TOKENS = 512  # of a model that is not a run

Messages = tuple[Message, ...]


def open_panel(request: FeedbackRequest, *, log: Callable[[str], None]) -> PairSession:
    """Open a judging session, or continue an earlier one; missing answers are generated first.

    Args:
        request: the options.
        log: receives progress and notes.

    Raises:
        DataError: prompts, control items or store do not fit together.
        RecipeError: the options contradict each other, or a model cannot be judged.
        Refused: no prompt has two different answers.
    """
    request.overlap.check()
    if request.thumbs and request.against:
        raise RecipeError("--thumbs: shows one answer, but --against asks for two; omit one of them")
    model = identify(request.model, offline=request.offline)
    all_prompts = _prompts(request, model)
    if not request.prompts:
        log("the prompts are test rows of the run: a model tuned on these votes cannot be evaluated on them")
    if any(messages[0].tools for messages in all_prompts.values()):
        log("the prompts declare tools, which votes do not store; to tune on tool calls, use objective: rl")
    gold: list[Item] = []
    if request.gold:
        judged = read_votes(read_rows(request.gold, offline=request.offline), rater="", gold=True)
        gold = list({vote.item.key: vote.item for vote in judged}.values())
        if any((len(item.answers) == 1) is not request.thumbs for item in gold):
            columns = "prompt, completion, label" if request.thumbs else "prompt, chosen, rejected"
            raise DataError(f"{request.gold}: expected control items with {columns}; give such a file to --gold")
    store = VoteStore(request.kept_in, what=WHAT)
    try:
        stored = [item for item in read_items(store.since()).values() if not item.gold]
        if strange := sum(prompt_key(item.messages) not in all_prompts for item in stored):
            source = request.prompts or f"the test rows of {request.model}"
            fix = "give the prompts of the store, or name another file with --store"
            raise DataError(f"{store.path}: {strange} of its {len(stored)} pairs are on prompts not in {source}; {fix}")
        keys = list(all_prompts)
        if request.rows and request.rows < len(keys):
            keys = random.Random(request.sampling.seed).sample(keys, request.rows)
        items = _items(request, [all_prompts[key] for key in keys], store, log)
        known = read_items(store.since())
        new = [item for item in items if item.key not in known]
        new_gold = [item for item in gold if item.key not in known or known[item.key].gold != item.gold]
        store.append(*(item.entry for item in [*new, *new_gold]))
    except BaseException:
        store.close()
        raise
    return PairSession([*items, *gold], store, overlap=request.overlap, seed=request.sampling.seed)


def _prompts(request: FeedbackRequest, model: ModelSource) -> dict[str, Messages]:
    """Return the prompts of the file, or of the test rows of the run, by key and without duplicates."""
    if request.prompts:
        objective = read_manifest(model.folder).objective if model.kind == "run" and model.folder else None
        settings = objective.model_dump() if objective is not None and objective.produces == "text" else {}
        usual = settings.get("prompt", "")
        instruction = "" if request.as_written else settings.get("instruction", "")
        rows = read_rows(request.prompts, offline=request.offline)
        column = request.column or (usual if usual in columns_of(rows) else "")
        return {prompt_key(messages): messages for messages in prompts(rows, column=column, instruction=instruction)}
    path = recipe_file(model)
    if path is None:
        raise RecipeError(f"{request.model}: no recipe that names test rows; name prompts with --prompts FILE")
    split = read_data(load_recipe(path)[0], offline=request.offline).split
    test_prompts: list[Messages] = []
    for example in split.test or split.validation:
        if isinstance(example, Chat):
            test_prompts.append(tuple(asked(example)))
        elif isinstance(example, Pair | UnpairedPreference):
            test_prompts.append(example.prompt)
        else:
            raise RecipeError(f"{request.model}: its rows contain no prompts; name prompts with --prompts FILE")
    return {prompt_key(messages): messages for messages in test_prompts}


def _items(
    request: FeedbackRequest, chosen: Sequence[Messages], store: VoteStore, log: Callable[[str], None]
) -> list[Item]:
    """Return one item per prompt whose answers differ and are not empty."""
    sources = completion_sources(request.model, request.against, request.sampling, offline=request.offline)
    sides = [
        generate_side(
            replace(source, longer=request.longer, limit=request.limit or source.limit),
            chosen,
            store,
            log=log,
            offline=request.offline,
        )
        for source in sources[: 1 if request.thumbs else 2]
    ]
    sampled = sample(chosen, sides)
    if sampled.same:
        log(f"{sampled.same} of {len(chosen)} prompts left out because both answers are the same")
    if sampled.empty:
        log(f"{sampled.empty} of {len(chosen)} prompts left out because an answer is empty")
    if not sampled.items:
        fix = f"raise {request.warmer}, or give other prompts"
        raise Refused(f"{request.model}: no prompt has two answers that differ; {fix}")
    return sampled.items


@dataclass(frozen=True, slots=True)
class CompletionSource:
    """A model that generates answers, and how it is prompted."""

    found: ModelSource
    sampling: Sampling
    limit: int = MAX_PROMPT_TOKENS  # tokens of a prompt
    wording: str = ""  # text added to every prompt
    longer: str = "--max-new-tokens"  # the option or recipe key that allows longer answers, for messages

    @property
    def weights(self) -> str:
        """Return a digest of the weights."""
        path = self.found.folder or Path(self.found.name)
        files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
        return hashlib.sha256("".join(sha256_of_file(file) for file in files).encode()).hexdigest()[:16]

    def drawing(self, weights: str) -> str:
        """Return a digest of everything that determines an answer to a prompt."""
        return identity_of(weights, self.found.base, self.wording, self.limit, asdict(self.sampling))


def completion_sources(name: str, against: str, sampling: Sampling, *, offline: bool) -> list[CompletionSource]:
    """Return the two sources of answers: the model, and another one, OWN_BASE or itself with another seed.

    Raises RecipeError if a model does not generate text, or has no base.
    """
    model = identify(name, offline=offline)
    first = CompletionSource(model, sampling, _limit(model))
    if not against:
        return [first, replace(first, sampling=replace(sampling, seed=sampling.seed + 1))]
    if against == OWN_BASE and not model.base:
        raise RecipeError(f"{name}: is a base model itself; name another model with --against")
    other = identify(model.base if against == OWN_BASE else against, offline=offline)
    if other.kind == "run":
        return [first, CompletionSource(other, sampling, _limit(other))]
    wording = chosen_wording(model) if other.name == model.base else ""
    return [first, CompletionSource(other, sampling, first.limit, wording)]


def usual_sampling(name: str, *, offline: bool) -> Sampling:
    """Return sampling options with the length of a run's training answers and thoughts."""
    manifest = _manifest(identify(name, offline=offline))
    if manifest is None:
        return Sampling()
    return sampling_of(manifest.objective, thinking=manifest.objective.thinks)


def generate_side(
    source: CompletionSource,
    prompts: Sequence[Sequence[Message]],
    store: VoteStore,
    *,
    log: Callable[[str], None],
    offline: bool,
) -> AnswerSide:
    """Return an answer to each prompt; answers that are not in the store are generated and added to it.

    Raises DataError if the store contains answers of an earlier model of the same path.
    """
    weights = source.weights
    name = _stored_name(store, source.found.name, weights)
    about = {"by": name, "weights": weights, "drawing": source.drawing(weights)}
    stored = [event for event in store.since() if event.kind == ANSWER]
    answers = {e.item: str(e.body["text"]) for e in stored if {key: e.body[key] for key in about} == about}
    keys = [prompt_key(messages) for messages in prompts]
    missing = [i for i, key in enumerate(keys) if key not in answers]
    if not missing:
        return AnswerSide(name, [answers[key] for key in keys])
    label = model_label(name)
    log(f"{label}: generating {len(missing)} answers" + (f"; {len(answers)} are in the store" if answers else ""))
    model = open_model(source.found.name, offline=offline, limit=source.limit)  # by its path, not its stored name
    model.limit = source.limit  # replaces the limit of a run
    cut = 0
    for start in range(0, len(missing), BATCH_SIZE):
        batch = missing[start : start + BATCH_SIZE]
        replies = model.replies([with_wording(prompts[i], source.wording) for i in batch], sampling=source.sampling)
        new = {keys[i]: reply for i, reply in zip(batch, replies, strict=True)}
        bodies = {key: {"text": reply.text, "finished": reply.finished} for key, reply in new.items()}
        store.append(*(Entry("", ANSWER, key, {**about, **body}) for key, body in bodies.items()))
        answers |= {key: reply.text for key, reply in new.items()}
        cut += sum(not reply.finished for reply in replies)
        log(f"{label}: {min(start + BATCH_SIZE, len(missing))} of {len(missing)} answers")
    if cut:
        log(f"{label}: {cut} answers were cut at {source.sampling.max_new_tokens} tokens; raise {source.longer}")
    return AnswerSide(name, [answers[key] for key in keys])


def _stored_name(store: VoteStore, name: str, weights: str) -> str:
    """Return the name under which the store knows these weights, so that votes survive a move of the folder.

    Raises DataError if the store contains answers of other weights of the same path.
    """
    answers = [event.body for event in store.since() if event.kind == ANSWER]
    if known := next((str(body["by"]) for body in answers if body["weights"] == weights), ""):
        return known
    path = Path(name).expanduser().resolve()
    if any(Path(str(body["by"])).expanduser().resolve() == path for body in answers):
        fix = "name another file with --store"
        raise DataError(f"{store.path}: contains answers of {name} before it was tuned again; {fix}")
    return name


def _manifest(model: ModelSource) -> ModelManifest | None:
    """Return the manifest of a run, else None; raise RecipeError for a run that does not generate text."""
    if model.kind != "run" or model.folder is None:
        return None
    manifest = read_manifest(model.folder)
    objective = manifest.objective
    if manifest.family != "decoder" or objective.produces != "text":
        raise RecipeError(
            f"{model.name}: tuned with {objective.kind}, but raters judge generated text; give a run that generates"
        )
    return manifest


def _limit(model: ModelSource) -> int:
    """Return the maximum length of a prompt in tokens."""
    manifest = _manifest(model)
    return MAX_PROMPT_TOKENS if manifest is None else manifest.limit
