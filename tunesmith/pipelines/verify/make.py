"""Making of a challenge: prompts whose greedy answer the base and damaged copies of the tuned model do not give.

Letters: M tokens of answers, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.data.examples.types import Chat, LabelledText
from tunesmith.data.readers.read import read_rows
from tunesmith.data.tokenization.messages import Message, turn_of, turns_in
from tunesmith.data.tokenization.tokens import Tokens
from tunesmith.display import model_label
from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluation.retention import items, spread
from tunesmith.inference.identify import identify
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.open_model import open_model
from tunesmith.models.batch import pack
from tunesmith.models.generation.generate import AnswerIds, generate
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.generation.thoughts import ThoughtSplitter
from tunesmith.models.loading.load import Base, load_base
from tunesmith.models.loading.locate import AS_THEY_ARE
from tunesmith.models.policy import Policy
from tunesmith.models.world import current_world
from tunesmith.objectives.instruct import asked
from tunesmith.pipelines.verify.challenge import (
    TURNS,
    CertainAnswer,
    Challenge,
    Prompt,
    Turn,
    compared,
    digest_of,
)
from tunesmith.pipelines.verify.verdict import NEEDED
from tunesmith.training.prepare import TrainingContext, training_options

T = TypeVar("T")

PROMPTS = 32  # of a challenge, of each kind
ANSWER_TOKENS = 12
PROMPT_TOKENS = 160  # longer prompts are left out
# Candidates from rows and from shipped questions, and how many are tried before counting again: 32 take 9 to 20 s for
# the 135M decoder on two cores. At the end of a run there are fewer of them, and the first count is earlier.
ROWS, GENERAL, PORTION = 256, 64, 32
ROWS_OF_RUN, FIRST_OF_RUN = 64, 12
# An answer ends for a challenge where rounding alone could change it, in nats.
LEAST_LEAD = 0.25
SCORED_ROWS = 8  # answers whose logits are in memory at once
# Noise on the outputs of each layer, relative to them: that of weights of a normal distribution in groups of 32,
# rounded to 2 bits (4.1 deviations in 3 steps), is 0.40, and to 3 bits 0.17.
NOISE = 0.25

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


def challenge_of_run(
    prepared: TrainingContext, model: LocalModel, *, name: str, unchanged: Collection[str] = ()
) -> Challenge | None:
    """Make the challenge of a run that ends, from its test rows and general questions.

    Args:
        prepared: the run.
        model: the tuned model.
        name: the run.
        unchanged: places of test rows that the tuned model answers as its base does, which distinguish nothing.

    Returns:
        The challenge; None for a model that does not answer in words.

    Raises:
        RecipeError: the model is sharded, or gives too few answers that neither its base nor damaged copies give.
    """
    recipe, base = prepared.recipe, prepared.base
    if model.policy.head is not None or model.policy.family != "decoder":
        return None
    if current_world().lockstep:
        raise RecipeError("the weights are divided among processes; make one from an export with `tunesmith verify`")
    options = training_options(recipe, prepared.machine)
    reference = _base_of(model.policy, lambda: load_base(recipe.model, options=options, offline=True))
    rows = [one for context in prepared.tasks.values() for one in _row_candidates(context, unchanged)]
    return make_challenge(model, reference, rows, name=name, base_name=base.pinned or recipe.model, gives_up_early=True)


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
    base_model = _base_of(model.policy, lambda: load_base(base_name, options=AS_THEY_ARE, offline=offline))
    return make_challenge(model, base_model, rows, name=model_label(found.name), base_name=base_name)


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


def _row_candidates(prepared: TrainingContext, unchanged: Collection[str]) -> Iterator[Candidate]:
    """Yield the prompts of test rows as the model was tuned on them."""
    for example in spread_over([row for row in prepared.test if row.where not in unchanged], ROWS_OF_RUN):
        if isinstance(example, LabelledText) and prepared.recipe.objective.produces == "labels":
            yield Candidate(example.where, [prepared.recipe.objective.user_message(example.text)])
        elif isinstance(example, Chat) and not any(turn.tools or turn.calls for turn in example.messages):
            yield Candidate(example.where, asked(example))


def make_challenge(
    model: LocalModel,
    base: BasePolicy,
    rows: Sequence[Candidate],
    *,
    name: str,
    base_name: str,
    gives_up_early: bool = False,
) -> Challenge:
    """Choose prompts whose answers distinguish a tuned model from its base and from damaged copies.

    Args:
        model: the tuned model, a decoder.
        base: a context with the policy of the base model.
        rows: prompts of the kind that the model was tuned on.
        name: run or adapter.
        base_name: the base.
        gives_up_early: stop as soon as there would be too few if all candidates were like those that were tried. With
            two labels, damaged copies give most answers too, and a search through all rows takes as long as tuning.

    Raises:
        RecipeError: there are too few of them for a verdict.
    """
    start = time.perf_counter()
    template, thinking = model.template, model.thinking_mode()
    longest = min(PROMPT_TOKENS, model.prompt_budget(ANSWER_TOKENS))
    candidates = [
        one
        for one in [*spread_over(rows, ROWS), *general_candidates()]
        if len(one.chat) <= TURNS
        and all(template.harmless(turn.content) == turn.content for turn in one.chat)
        and len(template.prompt(one.chat, thinking=thinking)) <= longest
    ]
    splitter = ThoughtSplitter.of(template, thinking=thinking)
    answers, tried = _Answers(model, base, thinking, splitter), list[_Tried]()
    count = 0
    with model.policy.full_precision():
        while len(tried) < len(candidates):
            portion = candidates[len(tried) :][: FIRST_OF_RUN if gives_up_early and not tried else PORTION]
            tried += answers.compare(portion)
            count = sum(one.tuned is not None for one in tried)
            if count >= PROMPTS or (gives_up_early and count * len(candidates) < NEEDED * len(tried)):
                break
        if count < NEEDED:
            few = f"{count} of {len(tried)} prompts have a certain answer that neither the base nor damaged"
            fix = (
                "`tunesmith verify make RUN --rows FILE` searches longer"
                if gives_up_early
                else "give more prompts with --rows"
            )
            raise RecipeError(f"{name}: {few} copies give, {NEEDED} are needed; {fix}")
        found = answers.with_base(tried)
    sensitive = [prompt for prompt in found if prompt.tuned][:PROMPTS]
    others = [prompt for prompt in found if not prompt.tuned]
    chosen = [*sensitive, *others[: max(0, PROMPTS - sum(prompt.base is not None for prompt in sensitive))]]
    return Challenge(
        name=name,
        base=base_name,
        rendered=digest_of([template.prompt(prompt.chat, thinking=thinking) for prompt in chosen]),
        tokens=ANSWER_TOKENS,
        thinking=thinking,
        seconds=round(time.perf_counter() - start, 2),
        prompts=tuple(chosen),
    )


@dataclass(frozen=True, slots=True)
class _Tried:
    """A candidate with the greedy answers of the tuned model and its base."""

    candidate: Candidate
    ids: list[int]  # of the prompt
    tuned: CertainAnswer | None  # None if it is uncertain, or if the base or a damaged copy gives it, too
    whole: str  # of the tuned model, with what is uncertain
    of_base: AnswerIds


@dataclass(frozen=True, slots=True)
class _Answers:
    """Greedy answers of a tuned model, its base and damaged copies.

    Equal answers are dropped before anything is computed about certainty: with two labels, these are nearly all.
    """

    model: LocalModel
    base: BasePolicy
    thinking: bool | None
    splitter: ThoughtSplitter

    def compare(self, candidates: Sequence[Candidate]) -> list[_Tried]:
        """Compare the answers of all models to candidates; a damaged copy answers only what is still undecided."""
        policy = self.model.policy
        given = [self.model.template.prompt(one.chat, thinking=self.thinking) for one in candidates]
        made = self._generated(policy, given)
        whole = [self._text(one.ids) for one in made]
        with self.base() as other, other.full_precision():
            of_base = self._generated(other, given)
        elsewhere = [[self._text(one.ids)] for one in of_base]  # what base and copies answer
        undecided = [i for i, text in enumerate(whole) if text not in elsewhere[i]]

        def ask(damage: Callable[[Policy], AbstractContextManager[None]], indices: Sequence[int]) -> None:
            with damage(policy):
                copies = self._generated(policy, [given[i] for i in indices])
            for i, copy in zip(indices, copies, strict=True):
                elsewhere[i].append(self._text(copy.ids))

        if _lora(policy):
            ask(_halved, undecided)
            undecided = [i for i in undecided if whole[i] not in elsewhere[i]]
        certain = self._certain(policy, [given[i] for i in undecided], [made[i] for i in undecided])

        def left() -> dict[int, CertainAnswer]:
            return {
                i: mine
                for i, mine in zip(undecided, certain, strict=True)
                if mine and not any(map(mine.given_by, elsewhere[i]))
            }

        ask(_noisy, list(left()))
        sensitive = left()
        return [
            _Tried(candidate, given[i], sensitive.get(i), whole[i], of_base[i])
            for i, candidate in enumerate(candidates)
        ]

    def with_base(self, tried: Sequence[_Tried]) -> list[Prompt]:
        """Return the prompts that distinguish anything, with the answers of the base as far as these are certain."""
        asked = {i: one for i, one in enumerate(tried) if self._text(one.of_base.ids) != one.whole}
        with self.base() as other, other.full_precision():
            certain = self._certain(other, [one.ids for one in asked.values()], [one.of_base for one in asked.values()])
        of_base = dict(zip(asked, certain, strict=True))
        found = []
        for i, one in enumerate(tried):
            theirs = of_base.get(i)
            distinct = theirs if theirs and not theirs.given_by(one.whole) else None
            if one.tuned or distinct:
                turns = tuple(Turn(role=turn.role, content=turn.content) for turn in one.candidate.chat)
                found.append(Prompt(where=one.candidate.where, messages=turns, tuned=one.tuned, base=distinct))
        return found

    def _generated(self, writer: Policy, prompts: Sequence[list[int]]) -> list[AnswerIds]:
        return generate(writer, prompts, sampling=Sampling(max_new_tokens=ANSWER_TOKENS), template=self.model.template)

    def _text(self, ids: Sequence[int]) -> str:
        return compared(*self.splitter.split(self.splitter.decode(ids)))

    def _certain(
        self, writer: Policy, prompts: Sequence[list[int]], answers: Sequence[AnswerIds]
    ) -> list[CertainAnswer | None]:
        """Return each answer up to its first uncertain token, None if nothing of it is certain."""
        certain: list[CertainAnswer | None] = []
        for one, count in zip(answers, _certain_lengths(writer, prompts, answers), strict=True):
            found, broken, _ = self._text(one.ids[:count]).partition("\ufffd")  # a token may hold a part of a character
            answer = CertainAnswer(text=found.strip(), ends=count > len(one.ids) and not broken)
            certain.append(answer if answer.text else None)
        return certain


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


@contextmanager
def _noisy(policy: Policy) -> Iterator[None]:
    """Add noise to the outputs of the layers in a context, as rounding their weights to few bits would."""
    chance = torch.Generator().manual_seed(0)

    def disturb(layer: nn.Module, inputs: object, output: Tensor) -> Tensor:
        noise = torch.randn(output.shape, generator=chance).to(output)
        return output + NOISE * output.std(dim=-1, keepdim=True, correction=0) * noise  # a gate may have one output

    layers = [layer for layer in policy.network.modules() if isinstance(layer, nn.Linear | Conv1D)]
    hooks = [layer.register_forward_hook(disturb) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def spread_over(rows: Sequence[T], count: int) -> list[T]:
    """Return at most `count` rows, evenly spread over all of them."""
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


@torch.inference_mode()
def _certain_lengths(policy: Policy, prompts: Sequence[list[int]], answers: Sequence[AnswerIds]) -> list[int]:
    """Return how many tokens of each answer, its end included, come before the first uncertain one."""
    rows = [Tokens.of(ids, [*one.ids, *one.end]) for ids, one in zip(prompts, answers, strict=True)]
    counts: list[int] = []
    for first in range(0, len(rows), SCORED_ROWS):
        part = rows[first : first + SCORED_ROWS]
        batch = pack(part).to(policy.device)
        states = policy.learned(batch).to(policy.network.dtype)
        logits, targets = policy.words.logits(states).float(), batch.targets[:, None]  # [M, V], [M, 1]
        best_other = logits.scatter(1, targets, -torch.inf).amax(dim=1)
        certain = (logits.gather(1, targets)[:, 0] - best_other >= LEAST_LEAD).int()
        counts += [int(of_row.cumprod(dim=0).sum()) for of_row in certain.split([row.learned for row in part])]
    return counts
