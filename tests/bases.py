"""Fresh tiny bases and policies, their rows, and how two sets of gradients are compared."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.tiny import DECODERS, ENCODERS, MIXTURES, tiny_decoder, tiny_encoder
from tests.tiny_families import FAMILIES
from tunesmith.data.examples.types import Chat, LabelledText, Pair
from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.data.tokenization.messages import Message
from tunesmith.events import Event, Note, Resumed, journal_record
from tunesmith.models.batch import Batch, collate, mismatched
from tunesmith.models.loading.load import Base, load_base
from tunesmith.models.loading.locate import AS_THEY_ARE, LoadOptions
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import Learner
from tunesmith.techniques import Full, Lora
from tunesmith.techniques.base import Technique
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.fit import Trainer, ValidationResult
from tunesmith.training.optim import TrainingPlan
from tunesmith.training.train_state import TrainingState

_ROOT = tempfile.TemporaryDirectory(prefix="tunesmith-tests-")
LORA = Lora(rank=4)
OPENING = (40, 41, 42, 43, 44)  # ids of the text that virtual tokens begin as
QUESTIONS = (
    "What is the capital of France?",
    "Is this review positive or negative? This battery is bad and the phone is good. I like it.",
    "hi",
    "Summarise: the quick brown fox jumps over the lazy dog, the lazy dog jumps over the fox.",
)
ANSWERS = ("Paris.", "negative, they do not like it", "Yes", "A fox is quick")


@cache
def folder(kind: str) -> Path:
    """The folder of a tiny model, made once; no test may write into it."""
    place = Path(_ROOT.name) / kind
    if kind in ENCODERS:
        return tiny_encoder(place, kind)
    return tiny_decoder(place, kind) if kind in DECODERS or kind in MIXTURES else FAMILIES[kind].write(place)


@cache
def _loaded(kind: str, options: LoadOptions) -> Base:
    return load_base(str(folder(kind)), options=options)


def base(kind: str, options: LoadOptions = AS_THEY_ARE) -> Base:
    """A tiny base of its own."""
    return copy.deepcopy(_loaded(kind, options))


@cache
def template(kind: str) -> Template:
    """The chat format of a tiny decoder."""
    return Template(base(kind).tokenizer, chat=kind not in ENCODERS)


def policy(kind: str, technique: Technique | None = None, *, lively: float = 0.0) -> Policy:
    """A tiny base under a technique; with `lively`, noise is added to what moves, so that nothing is zero."""
    technique = technique or Full()
    found = base(kind, technique.load_options())
    made = technique.adapt(found.network, family=found.family, keep_reference=False, start=OPENING)
    if lively:
        chance = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for _, value in made.trainable():
                value.add_(torch.randn(value.shape, generator=chance), alpha=lively)
    made.train(False)
    return made


def chats(count: int = 4) -> list[Chat]:
    """Short rows of an instruct objective, of different lengths."""
    pairs = [(QUESTIONS[i % 4], f"{ANSWERS[i % 4]} {i}") for i in range(count)]
    return [Chat(f"rows:{i}", (Message("user", q), Message("assistant", a))) for i, (q, a) in enumerate(pairs)]


def encoded(kind: str, count: int = 4) -> list[Encoded]:
    """The same rows as ids, of which the answers are learned."""
    return [Encoded((template(kind).chat(chat.messages),), chat.where) for chat in chats(count)]


def labelled(count: int) -> list[LabelledText]:
    """Rows whose label can be read off the text."""
    said = (("good", "positive"), ("bad", "negative"))
    return [LabelledText(f"rows:{i}", f"This phone is {said[i % 2][0]} {i}", (said[i % 2][1],)) for i in range(count)]


def pairs(count: int) -> list[Pair]:
    """Rows of which the answer that likes the phone is preferred."""
    said = ("I like the phone and the battery", "negative, bad, they do not")
    return [Pair(f"rows:{i}", (Message("user", f"q{i}"),), f"{said[0]} {i}", f"{said[1]} {i}") for i in range(count)]


def tokens(ids: Sequence[int], learn: str) -> Tokens:
    """Ids with a mask written as `..xx`."""
    return Tokens(list(ids), [mark == "x" for mark in learn])


def with_mismatched(rows: Sequence[Encoded]) -> Batch:
    """The rows of a step as one batch, with the completions of others that KTO compares with."""
    return replace(collate(rows), mismatched=tuple(chain(*mismatched(rows))))


def gradients(made: Policy) -> dict[str, Tensor]:
    """The gradients as they are now, zero where nothing flows, and none left behind."""
    found = {
        name: torch.zeros_like(value) if value.grad is None else value.grad.clone() for name, value in made.trainable()
    }
    for _, value in made.trainable():
        value.grad = None
    return found


def farthest(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest relative distance between two sets of tensors, tensor by tensor."""
    assert found.keys() == wanted.keys()
    return max(float((found[name] - wanted[name]).norm() / wanted[name].norm().clamp(min=1e-6)) for name in wanted)


def scrambled(network: Any, *, spread: float = 0.5, seed: int = 3) -> None:
    """Random layers that outweigh the embedding, so that greedy answers do not repeat the last word."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.ndim == 2 and "embed" not in name and "wte" not in name:
                value.copy_(torch.randn(value.shape, generator=chance) * spread)


def documents(kind: str, *texts: str) -> list[Encoded]:
    """Texts as an encoder reads them for a head: nothing in them is learned."""
    read = [template(kind).document(text).ids for text in texts]
    return [Encoded((Tokens(ids, [False] * len(ids)),), f"rows:{i}") for i, ids in enumerate(read)]


@dataclass(frozen=True)
class Hooks:
    """What a test passes to `fit`; `record` receives lines as `journal.jsonl` has them."""

    folder: Path
    record: Callable[[Mapping[str, Any]], None]
    validate: Callable[[], float] | None = None
    stop: Callable[[], bool] = lambda: False
    resumed: Callable[[int], None] = lambda step: None
    smaller: Callable[[int], bool] = lambda step: False
    recompute: Callable[[int], bool] = lambda step: False
    clock: Callable[[], float] = time.perf_counter
    note: Callable[[str], None] = lambda text: None


def fit(
    policy: Policy, learner: Learner, window: Callable[[int], Sequence[Batch]], *, plan: TrainingPlan, hooks: Hooks
) -> TrainingState:
    """Run a Trainer over the micro-batches that a function returns."""

    def on_event(event: Event) -> None:
        if isinstance(event, Resumed):
            hooks.resumed(event.step)
        elif isinstance(event, Note):
            hooks.note(event.text)
        else:
            hooks.record(journal_record(event))

    class Window:
        def window(self, step: int) -> Sequence[Batch]:
            return window(step)

        def halve(self, step: int) -> int:
            return int(hooks.smaller(step))

        def recompute(self, step: int) -> bool:
            return hooks.recompute(step)

    return Trainer(
        policy,
        learner,
        Window(),
        plan=plan,
        folder=hooks.folder,
        callbacks=Callbacks(on_event, hooks.stop),
        validate=hooks.validate and (lambda: ValidationResult(hooks.validate())),
        clock=hooks.clock,
    ).run()
