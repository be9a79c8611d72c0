"""Making of a challenge: greedy answers of tuned and base model to the same prompts, and their margins.

Letters: M tokens of answers, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from tunesmith.data.examples.types import Chat, LabelledText
from tunesmith.data.readers.read import read_rows
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.data.tokenization.messages import Message, turn_of, turns_in
from tunesmith.data.tokenization.tokens import Tokens
from tunesmith.display import model_label
from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluation.retention import items, spread
from tunesmith.inference.identify import identify
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.open_model import open_model
from tunesmith.models.batch import Batch, pack
from tunesmith.models.generation.generate import AnswerIds, generate
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.loading.load import Base, fingerprint_of, load_base
from tunesmith.models.loading.locate import AS_THEY_ARE, locate
from tunesmith.models.policy import Policy
from tunesmith.models.world import current_world
from tunesmith.objectives import Classify
from tunesmith.objectives.instruct import asked
from tunesmith.pipelines.verify.challenge import Challenge, Margins, Prompt, Turn, most_telling
from tunesmith.training.prepare import TrainingContext, training_options

T = TypeVar("T")

PROMPTS, FEWEST = 32, 8  # prompts of a challenge; with fewer than the least there is none
ANSWER_TOKENS = 12
PROMPT_TOKENS = 96  # longer prompts are left out, because of the time they take
# Candidates from shipped questions, and from the rows of the run.
GENERAL, ROWS = 28, 16
# An answer ends for a challenge where rounding alone could change it, in nats.
LEAST_LEAD = 0.5
SCORED_ROWS = 8  # answers whose logits are in memory at once

PROMPT_COLUMNS = ("prompt", "question", "instruction", "text", "input")

# A context in which a policy computes as the base model does.
BasePolicy = Callable[[], AbstractContextManager[Policy]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prompt that may become a part of a challenge."""

    where: str
    chat: Sequence[Message]


def general_candidates() -> list[Candidate]:
    """Return shipped questions, spread over their fields."""
    return [
        Candidate(f"general question {i + 1}", [Message("user", item.question)])
        for i, item in enumerate(spread(items(), GENERAL))
    ]


def prompts_in(file: str, *, offline: bool = False) -> list[Candidate]:
    """Return the prompts of a file of rows: chats up to their last answer, or the first column of PROMPT_COLUMNS.

    Raises:
        DataError: the file cannot be read, or has no such column.
    """
    found = []
    for row in read_rows(file, offline=offline):
        turns = [turn_of(turn, row.where) for turn in turns_in(row.fields.get("messages"), row.where)]
        last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=len(turns))
        text = next((str(row.fields[name]) for name in PROMPT_COLUMNS if row.fields.get(name)), "")
        if turns[:last] or text.strip():
            found.append(Candidate(row.where, turns[:last] or [Message("user", text)]))
    if not found:
        raise DataError(f"{file}: no prompts; name their column {', '.join(PROMPT_COLUMNS)}, or write messages")
    return found


def challenge_of_run(prepared: TrainingContext, model: LocalModel, *, name: str) -> Challenge | None:
    """Make the challenge of a run that ends, from its test rows and general questions.

    Args:
        prepared: the run.
        model: the tuned model.
        name: the run.

    Returns:
        The challenge; None for a model that does not answer in words, is sharded, or answers as its base does.
    """
    recipe, base = prepared.recipe, prepared.base
    if model.policy.head is not None or model.policy.family != "decoder" or current_world().lockstep or not PROMPTS:
        return None
    options = training_options(recipe, prepared.machine)
    reference = _base_of(model.policy, lambda: load_base(recipe.model, options=options, offline=True))
    rows = [one for context in prepared.tasks.values() for one in _row_candidates(context)]
    found = make_challenge(
        model, reference, rows, name=name, base_name=base.pinned or recipe.model, fingerprint=base.fingerprint
    )
    return found if len(found.prompts) >= FEWEST else None


def challenge_of(
    name: str | Path, *, base: str = "", rows: Sequence[Candidate] = (), offline: bool = False
) -> Challenge:
    """Make a challenge for a finished run, or for an adapter of another program.

    Args:
        name: run or adapter folder, or Hub id.
        base: base of an adapter, instead of the one that it names.
        rows: prompts that it was tuned for; without any, there are general questions only.
        offline: do not access the network.

    Raises:
        RecipeError: the model does not answer in words, or as its base does.
    """
    found = identify(name, offline=offline)
    if found.kind == "model":
        raise RecipeError(f"{name}: neither a run nor an adapter; name the tuned model")
    model = open_model(found, base=base, offline=offline)
    if model.policy.head is not None or model.policy.family != "decoder":
        raise RecipeError(f"{name}: does not answer in words; verify a decoder without a head")
    base_name = base or found.base
    made = make_challenge(
        model,
        _base_of(model.policy, lambda: load_base(base_name, options=AS_THEY_ARE, offline=offline)),
        rows,
        name=model_label(found.name),
        base_name=base_name,
        fingerprint=fingerprint_of(locate(base_name, offline=offline), where=base_name),
    )
    if len(made.prompts) < FEWEST:
        fix = "give prompts that it was tuned for with --rows"
        raise RecipeError(f"{name}: answers {len(made.prompts)} prompts otherwise than its base, too few; {fix}")
    return made


def _base_of(policy: Policy, load: Callable[[], Base]) -> BasePolicy:
    """Return the base of a policy: itself without its adapter, or loaded again where all weights were trained."""

    @contextmanager
    def without_adapter() -> Iterator[Policy]:
        with policy.reference():
            yield policy

    if policy.adapter is not None or policy.virtual is not None:
        return without_adapter
    base = Policy.over(load().network, family=policy.family)
    base.train(False)
    return lambda: nullcontext(base)


def _row_candidates(prepared: TrainingContext) -> Iterator[Candidate]:
    """Yield the prompts of test rows as the model was tuned on them."""
    for example in spread_over(prepared.test, ROWS):
        if isinstance(example, LabelledText) and isinstance(prepared.recipe.objective, Classify):
            yield Candidate(example.where, prepared.recipe.objective.messages(example.text))
        elif isinstance(example, Chat) and not any(turn.tools or turn.calls for turn in example.messages):
            yield Candidate(example.where, asked(example))


def make_challenge(
    model: LocalModel, base: BasePolicy, rows: Sequence[Candidate], *, name: str, base_name: str, fingerprint: str
) -> Challenge:
    """Choose the prompts whose answers distinguish a tuned model best from its base and from a damaged copy.

    Args:
        model: the tuned model, a decoder.
        base: a context with the policy of the base model.
        rows: prompts of the kind that the model was tuned on.
        name: run or adapter.
        base_name: the base.
        fingerprint: of the weights of the base.
    """
    start = time.perf_counter()
    template = model.template
    thinking = False if template.thinks else None
    longest = min(PROMPT_TOKENS, model.prompt_budget(ANSWER_TOKENS))
    prompts: dict[int, list[int]] = {}
    candidates = [*spread_over(rows, ROWS), *general_candidates()]
    for i, one in enumerate(candidates):
        clean = all(template.harmless(turn.content) == turn.content for turn in one.chat)
        if clean and len(ids := template.prompt(one.chat, thinking=thinking)) <= longest:
            prompts[i] = ids
    sampling = Sampling(max_new_tokens=ANSWER_TOKENS)
    policy, given = model.policy, list(prompts.values())
    with policy.full_precision():
        tuned = generate(policy, given, sampling=sampling, template=template)
        with base() as other, other.full_precision():
            untuned = generate(other, given, sampling=sampling, template=template)
        with _halved(policy):
            damaged = generate(policy, given, sampling=sampling, template=template) if _lora(policy) else []
        differ = [i for i, (a, b) in enumerate(zip(tuned, untuned, strict=True)) if a.ids and b.ids and a.ids != b.ids]
        margins = _margins(policy, base, [given[i] for i in differ], [(tuned[i], untuned[i]) for i in differ])
    order = list(prompts)
    found = [
        _prompt(candidates[order[i]], template, answers=(tuned[i], untuned[i], *damaged[i : i + 1]), margins=both)
        for i, both in zip(differ, margins, strict=True)
    ]
    chosen = most_telling([prompt for prompt in found if prompt is not None], PROMPTS)
    rendered = [template.prompt(prompt.chat, thinking=thinking) for prompt in chosen]
    return Challenge(
        name=name,
        base=base_name,
        fingerprint=fingerprint,
        template=template.hash,
        tokenizer=sha256(repr(rendered).encode()).hexdigest()[:16],
        tokens=ANSWER_TOKENS,
        thinking=thinking,
        seconds=round(time.perf_counter() - start, 2),
        prompts=tuple(chosen),
    )


def _lora(policy: Policy) -> list[Tensor]:
    """Return the second matrices of a LoRA adapter, which scale it; empty for other techniques."""
    return [value for name, value in policy.network.named_parameters() if ".lora_B." in name]


@contextmanager
def _halved(policy: Policy) -> Iterator[None]:
    """Halve a LoRA adapter in a context: by powers of two, so that it returns to the same bits."""
    with torch.no_grad():
        for value in _lora(policy):
            value.mul_(0.5)
        try:
            yield
        finally:
            for value in _lora(policy):
                value.mul_(2.0)


def _prompt(
    candidate: Candidate,
    template: Template,
    *,
    answers: tuple[AnswerIds, ...],
    margins: tuple[Margins, Margins],
) -> Prompt | None:
    """Return a prompt with the certain beginnings of the answers of tuned model and base; None if they do not differ.

    A third answer is that with half the adapter.
    """
    whole = [template.decode(answer.ids).strip() for answer in answers]
    tuned, base = (
        template.decode(answer.ids[: len(each.leads)]).strip()
        for answer, each in zip(answers[:2], margins, strict=True)
    )
    # A token may hold a part of a character.
    if not tuned or whole[1].startswith(tuned) or "\ufffd" in tuned:
        return None
    if whole[0].startswith(base) or "\ufffd" in base:
        base = ""  # does not distinguish the base
    turns = tuple(Turn(role=turn.role, content=turn.content) for turn in candidate.chat)
    return Prompt(
        where=candidate.where,
        messages=turns,
        tuned=tuned,
        base=base,
        tuned_margins=margins[0],
        base_margins=margins[1],
        robust=any(text.startswith(tuned) for text in whole[2:]),
    )


def spread_over(rows: Sequence[T], count: int) -> list[T]:
    """Return at most `count` rows, evenly spread over all of them."""
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


@torch.inference_mode()
def _margins(
    policy: Policy, base: BasePolicy, prompts: Sequence[list[int]], answers: Sequence[tuple[AnswerIds, AnswerIds]]
) -> list[tuple[Margins, Margins]]:
    """Return the margins of the tuned and of the base answer to each prompt."""
    rows = [
        Tokens.of(ids, [*answer.ids, *answer.end])
        for ids, both in zip(prompts, answers, strict=True)
        for answer in both
    ]
    found: list[Margins] = []
    for first in range(0, len(rows), SCORED_ROWS):
        part = rows[first : first + SCORED_ROWS]
        batch = pack(part).to(policy.device)
        own = _logprobs(policy, batch)
        with base() as other:
            others = _logprobs(other, batch)
        start = 0
        for i, row in enumerate(part):
            end = start + row.learned
            mine, theirs = (own, others) if i % 2 == 0 else (others, own)
            found.append(_margins_of(mine[start:end], theirs[start:end], batch.targets[start:end]))
            start = end
    return list(zip(found[::2], found[1::2], strict=True))


def _margins_of(own: Tensor, other: Tensor, targets: Tensor) -> Margins:
    """Return the margins of an answer [M] up to its first uncertain token, from log-probabilities [M, V] of both."""
    leads = _leads(own, targets)
    certain = int((leads >= LEAST_LEAD).int().cumprod(dim=0).sum())
    if not certain:
        return Margins(logprob=0.0, other_logprob=0.0, leads=(), halfway=0.0)
    own, other, targets = own[:certain], other[:certain], targets[:certain]
    return Margins(
        logprob=round(float(own.gather(1, targets[:, None]).sum()), 3),
        other_logprob=round(float(other.gather(1, targets[:, None]).sum()), 3),
        leads=tuple(round(lead, 3) for lead in leads[:certain].tolist()),
        halfway=round(float(_leads((own + other) / 2, targets).min()), 3),
    )


def _leads(values: Tensor, targets: Tensor) -> Tensor:
    """Return the lead [M] of each target over the largest other value of [M, V]."""
    of_target = values.gather(1, targets[:, None])[:, 0]
    return of_target - values.scatter(1, targets[:, None], -torch.inf).amax(dim=1)


def _logprobs(policy: Policy, batch: Batch) -> Tensor:
    """Return the log-probabilities [M, V] of every token at the learned positions of a batch, row by row."""
    states = policy.learned(batch).to(policy.network.dtype)
    return policy.words.logits(states).float().log_softmax(dim=1)
