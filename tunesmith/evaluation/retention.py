"""General ability before and after tuning: loss on a general text and 400 multiple-choice questions.

The rise of cross-entropy on a general text, in nats per token, is also what PEFT's benchmark calls forgetting.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby

import torch

from tunesmith.config import Retention as Extent
from tunesmith.data.text.domain_terms import general_text
from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.data.tokenization.tokenizer import frame
from tunesmith.metrics.significance import compare_paired
from tunesmith.models.batch import collate
from tunesmith.models.generation.generate import option_scores
from tunesmith.models.policy import Policy
from tunesmith.models.world import current_world
from tunesmith.progress import measuring, track

# Tokens per window and windows. 12 of 256 suffice: only the paired difference matters, and its variance is small.
WINDOW = 256
WINDOWS = 12
ROWS_PER_PASS = 8
FULL = Extent()


@dataclass(frozen=True, slots=True)
class ProbeItem:
    """One multiple-choice question of the probe; `answer` is the index of the right option."""

    field: str
    question: str
    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class GeneralAbility:
    """General ability of one model: loss in nats per token, and for each probe item whether it was right."""

    nll: float | None  # None if no text was scored
    right: list[bool]


def items() -> list[ProbeItem]:
    """Load the shipped probe: 400 items in 8 fields."""
    lines = (files("tunesmith") / "shipped_data" / "probe.jsonl").read_text(encoding="utf-8").splitlines()
    rows = (json.loads(line) for line in lines)
    return [ProbeItem(row["field"], row["question"], tuple(row["options"]), row["answer"]) for row in rows]


def spread(questions: Sequence[ProbeItem], count: int) -> list[ProbeItem]:
    """Return at most `count` items, evenly spread over all of them and so over their fields."""
    count = min(count, len(questions))
    return [questions[i * len(questions) // count] for i in range(count)]


def measure(policy: Policy, template: Template, *, window: int = WINDOW, extent: Extent = FULL) -> GeneralAbility:
    """Measure the general ability of a decoder in its current state, without its chat format.

    Args:
        policy: the decoder.
        template: its tokenizer.
        window: tokens per window of the general text.
        extent: how many texts and questions; without texts there is no loss.
    """
    nll = general_nll(policy, template, window=window, texts=extent.texts) if extent.texts else None
    questions = spread(items(), extent.questions)
    return GeneralAbility(nll, probe(policy, template, questions) if questions else [])


@torch.inference_mode()
def general_nll(policy: Policy, template: Template, *, window: int = WINDOW, texts: int = 0) -> float:
    """Return the loss on the shipped general text in nats per token.

    Args:
        policy: the decoder.
        template: its tokenizer.
        window: tokens per window; the windows are separate texts.
        texts: windows to score; 0 for WINDOWS, the most.
    """
    count = min(texts or WINDOWS, WINDOWS)
    ids = [i for text in general_text() for i in _ids(template, text)]
    before, _ = frame(template.tokenizer)
    windows = [ids[start : start + window] for start in range(0, len(ids) - window, window)][:count]
    learn = [False] * (len(before) + 1) + [True] * (window - 1)
    rows = [Encoded((Tokens([*before, *chunk], learn),), "general") for chunk in windows]
    world = current_world()
    total = 0.0
    mine = [rows[i] for i in world.share([1.0] * len(rows))]
    passes = [mine[start : start + ROWS_PER_PASS] for start in range(0, len(mine), ROWS_PER_PASS)]
    for part in track(passes, "scoring general texts", unit="texts", size=len):
        batch = collate(part, share=False).to(policy.device)
        with policy.scoring():
            total += float(policy.sum_nll(batch))
    return sum(world.collect(lambda: total)) / (len(rows) * (window - 1))


def probe(policy: Policy, template: Template, questions: Sequence[ProbeItem]) -> list[bool]:
    """Return for each item whether the option with the highest log-probability per character is the right one.

    Items are scored as plain text without a chat format.
    """
    before, _ = frame(template.tokenizer)
    prompts = [[*before, *_ids(template, item.question)] for item in questions]
    options = [[_ids(template, f" {option}") for option in item.options] for item in questions]
    with policy.scoring(), measuring("answering general questions", len(questions), unit="questions"):
        scores = option_scores(policy, prompts, options)
    lengths = torch.tensor([[len(option) for option in item.options] for item in questions])
    chosen = (scores / lengths).argmax(dim=1).tolist()
    return [choice == item.answer for choice, item in zip(chosen, questions, strict=True)]


def _ids(template: Template, text: str) -> list[int]:
    return list(template.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def by_field(questions: Sequence[ProbeItem], right: Sequence[bool]) -> dict[str, float]:
    """Return the share of right items in each field."""
    pairs = sorted(zip([item.field for item in questions], right, strict=True))
    grouped = {field: [ok for _, ok in rows] for field, rows in groupby(pairs, key=lambda pair: pair[0])}
    return {field: sum(marks) / len(marks) for field, marks in grouped.items()}


def flips(base: GeneralAbility, tuned: GeneralAbility) -> tuple[int, int, float]:
    """Return items lost, items gained, and the p-value of the difference (exact McNemar)."""
    lost = sum(b and not t for b, t in zip(base.right, tuned.right, strict=True))
    won = sum(t and not b for b, t in zip(base.right, tuned.right, strict=True))
    comparison = compare_paired([float(b) for b in base.right], [float(t) for t in tuned.right])
    return lost, won, comparison.p_value
