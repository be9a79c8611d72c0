"""What a round of the loop learns from: all judgements so far as rows, and the runs on them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.annotation.import_export import preference_rows
from tunesmith.annotation.vote_rows import PAIRS
from tunesmith.config import VOTES, Data, Gates, Loop, Recipe, Schedule
from tunesmith.data.files import write_whole
from tunesmith.events import Note, StageStarted
from tunesmith.objectives import Preference, Reward, Rl
from tunesmith.pipelines.rlhf.judge import as_rows
from tunesmith.pipelines.rlhf.setup import POLICY, REWARD, LoopState
from tunesmith.pipelines.tune.tune import Run, tune_recipe

# How a reward is learned from a few hundred votes.
BRIEF = Schedule(epochs=3, batch_rows=8)
ROWS = "votes.jsonl"
# A fifth to test on and a tenth to validate on are a row each from so many on.
FEWEST_PROMPTS = 5


def votes_so_far(loop: LoopState, number: int) -> list[dict[str, Any]]:
    """The rows that all judgements so far make; they lie in the round's folder.

    Once the round has begun to learn they stay as they are, or the run that was begun could not go on.
    """
    place = loop.round(number)
    stores = map(loop.votes, range(1, number + 1))
    rows = [row for store in stores for row in preference_rows(store, PAIRS).rows]
    if not (place / ROWS).exists() or not _begun(loop, number):
        write_rows(place / ROWS, rows)
        return rows
    # Not `splitlines`: JSON lets line separators such as U+2028 stand inside a text.
    lines = (place / ROWS).read_text(encoding="utf-8").split("\n")
    kept: list[dict[str, Any]] = [json.loads(line) for line in lines if line]
    if later := len(_preferences(rows) ^ _preferences(kept)):
        loop.callbacks.on_event(
            Note(f"round {number}: training had started; {later} rows changed by later votes are ignored")
        )
    return kept


def enough(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether rows are on so many prompts that some can be held out of them."""
    return len({json.dumps(row["prompt"]) for row in rows}) >= FEWEST_PROMPTS


def learned(loop: LoopState, place: Path) -> list[Run]:
    """The round's runs, the policy last: from the untuned model on, by all judgements so far."""
    recipe, objective = loop.recipe, loop.recipe.objective
    data = Data(train=str(place / ROWS), audit="note", max_tokens=recipe.data.max_tokens)
    votes = recipe.model_copy(update={"data": data, "loop": Loop()})
    if isinstance(objective, Preference):
        blank = dict.fromkeys(("prompt", "chosen", "rejected", "answer", "label", "instruction"), "")
        plain = objective.model_copy(update={**blank, "max_new_tokens": loop.longest})
        return [_tuned(loop, votes.model_copy(update={"objective": plain}), place / POLICY)]
    assert isinstance(objective, Rl)
    # The recipe's gates are about the policy: what a reward costs general text, nobody ever reads.
    reward = {"objective": Reward(), "schedule": BRIEF, "gates": Gates()}
    judge = _tuned(loop, votes.model_copy(update=reward), place / REWARD)
    sources = {str(judge.folder) if name == VOTES else name: part for name, part in objective.rewards.items()}
    asked = {"prompt": "", "answer": "", "instruction": "", "messages": "messages", "max_new_tokens": loop.longest}
    practice = {
        "objective": objective.model_copy(update={**asked, "reward": sources}),
        "data": _prompts(loop, place),
        "loop": Loop(),
    }
    return [judge, _tuned(loop, recipe.model_copy(update=practice), place / POLICY)]


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write rows as JSON lines."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))


def _prompts(loop: LoopState, place: Path) -> Data:
    """The loop's prompts as files of whole turns, split and grouped as they are."""
    files: dict[str, str | float] = {"validation": 0.0}
    # A file in which no row names its group is refused where a column of groups is named.
    grouped = all(any(one.group for one in part) for part in loop.prompts.values() if part)
    group = loop.recipe.data.group if grouped else ""
    for name, part in loop.prompts.items():
        if part:
            write_rows(place / f"{name}.jsonl", [{group: "", **row} if group else row for row in as_rows(part)])
            files[name] = str(place / f"{name}.jsonl")
    plain = {"group": group, "where": {}, "audit": "note"}
    return loop.recipe.data.model_copy(update={**files, **plain})


def _begun(loop: LoopState, number: int) -> bool:
    """Whether a round has begun to learn from its rows, or had nothing to learn and was left."""
    return loop.left(number) or any((loop.round(number) / run).exists() for run in (POLICY, REWARD))


def _preferences(rows: Sequence[dict[str, Any]]) -> set[str]:
    """What rows prefer, whoever said so."""
    return {json.dumps([row["prompt"], row["chosen"], row["rejected"]]) for row in rows}


def _tuned(loop: LoopState, recipe: Recipe, out: Path) -> Run:
    """A finished run of the loop, gone on with where it stopped."""
    loop.callbacks.on_event(StageStarted(f"{out}: {recipe.objective.kind}"))
    return tune_recipe(recipe, out=out, callbacks=loop.callbacks, offline=loop.offline)
