"""How much general ability is left: a general text, and 400 questions anybody could answer.

PEFT's "forgetting" is the same measure: the rise of cross-entropy on a general text, in nats per token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby

import torch

from tunesmith.data.template import Encoded, Template, Tokens
from tunesmith.data.terms import general_text
from tunesmith.data.tokenizer import frame
from tunesmith.evaluation.significance import compare_paired
from tunesmith.model.batch import collate
from tunesmith.model.generate import option_scores
from tunesmith.model.policy import Policy

# 12 windows of 256 tokens: only the paired difference matters, and it varies far less than the mean.
WINDOW = 256
WINDOWS = 12
ROWS_PER_PASS = 8


@dataclass(frozen=True, slots=True)
class ProbeItem:
    """One question of the probe with its options."""

    field: str
    question: str
    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class GeneralAbility:
    """General ability of one model: nats per token, and for each item whether it was right."""

    nll: float
    right: list[bool]


def items() -> list[ProbeItem]:
    """The shipped probe: 400 items in 8 fields."""
    lines = (files("tunesmith") / "shipped_data" / "probe.jsonl").read_text(encoding="utf-8").splitlines()
    found = (json.loads(line) for line in lines)
    return [ProbeItem(row["field"], row["question"], tuple(row["options"]), row["answer"]) for row in found]


def measure(policy: Policy, template: Template, *, window: int = WINDOW) -> GeneralAbility:
    """General ability of a decoder as it is now."""
    return GeneralAbility(general_nll(policy, template, window=window), probe(policy, template, items()))


@torch.inference_mode()
def general_nll(policy: Policy, template: Template, *, window: int = WINDOW) -> float:
    """Nats per token on the shipped general text, in windows of so many tokens that do not see each other."""
    ids = [
        i
        for text in general_text()
        for i in template.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    ]
    before, _ = frame(template.tokenizer)
    windows = [ids[start : start + window] for start in range(0, len(ids) - window, window)][:WINDOWS]
    learn = [False] * (len(before) + 1) + [True] * (window - 1)
    rows = [Encoded((Tokens([*before, *some], learn),), "general") for some in windows]
    total = 0.0
    for start in range(0, len(rows), ROWS_PER_PASS):
        batch = collate(rows[start : start + ROWS_PER_PASS], share=False).to(policy.device)
        total += float(policy.sum_nll(batch))
    return total / (len(rows) * (window - 1))


def probe(policy: Policy, template: Template, questions: Sequence[ProbeItem]) -> list[bool]:
    """For each item whether the likeliest option, per character, is the right one. Plain text, no chat format."""

    def ids(text: str) -> list[int]:
        return list(template.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    before, _ = frame(template.tokenizer)
    prompts = [[*before, *ids(item.question)] for item in questions]
    options = [[ids(f" {option}") for option in item.options] for item in questions]
    scores = option_scores(policy, prompts, options)
    lengths = torch.tensor([[len(option) for option in item.options] for item in questions])
    chosen = (scores / lengths).argmax(dim=1).tolist()
    return [choice == item.answer for choice, item in zip(chosen, questions, strict=True)]


def by_field(questions: Sequence[ProbeItem], right: Sequence[bool]) -> dict[str, float]:
    """Share of right items in each field."""
    pairs = sorted(zip([item.field for item in questions], right, strict=True))
    grouped = {field: [ok for _, ok in rows] for field, rows in groupby(pairs, key=lambda pair: pair[0])}
    return {field: sum(found) / len(found) for field, found in grouped.items()}


def flips(base: GeneralAbility, tuned: GeneralAbility) -> tuple[int, int, float]:
    """Items lost, items won, and the p-value of the difference (exact McNemar)."""
    lost = sum(b and not t for b, t in zip(base.right, tuned.right, strict=True))
    won = sum(t and not b for b, t in zip(base.right, tuned.right, strict=True))
    found = compare_paired([float(b) for b in base.right], [float(t) for t in tuned.right])
    return lost, won, found.p_value
