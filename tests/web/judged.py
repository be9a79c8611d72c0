"""Answers that a tiny model is said to have given, so that a page of judgements opens without asking it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tunesmith.annotation.items import ANSWER, prompt_key
from tunesmith.annotation.pair_judging import WHAT
from tunesmith.annotation.vote_store import Entry, VoteStore
from tunesmith.data.tokenization.messages import Message
from tunesmith.pipelines.feedback import completion_sources
from tunesmith.pipelines.requests import FeedbackRequest


def write_prompts(path: Path, count: int) -> Path:
    """Prompts that are told apart by a number."""
    path.write_text("".join(json.dumps({"prompt": f"Prompt {n}"}) + "\n" for n in range(count)), "utf-8")
    return path


def give_answers(wish: FeedbackRequest, sides: Sequence[Sequence[str]]) -> None:
    """Put answers to prompts 0, 1, ... into the store of the wish, as if its models had given them."""
    assert wish.store is not None
    store = VoteStore(wish.store, what=WHAT)
    for who, answers in zip(
        completion_sources(wish.model, wish.against, wish.sampling, offline=True), sides, strict=False
    ):
        weights = who.weights
        about = {"by": who.found.name, "weights": weights, "drawing": who.drawing(weights)}
        for n, text in enumerate(answers):
            key = prompt_key([Message("user", f"Prompt {n}")])
            store.append(Entry("", ANSWER, key, {**about, "text": text}))
    store.close()
