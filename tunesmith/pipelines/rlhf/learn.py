"""Learning in a round of the loop: all votes so far as preference pairs, and the runs that are trained on them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.annotation.import_export import preference_rows
from tunesmith.annotation.vote_rows import PAIRS
from tunesmith.config import VOTES, Data, Gates, Loop, Recipe, Schedule
from tunesmith.data.files import read_text, write_whole
from tunesmith.errors import CheckpointError
from tunesmith.events import Note, StageStarted
from tunesmith.objectives import Reward
from tunesmith.pipelines.rlhf.judge import as_rows
from tunesmith.pipelines.rlhf.setup import POLICY, REWARD, LoopState
from tunesmith.pipelines.tune.tune import Run, tune_recipe

# The schedule of a reward model that learns from a few hundred votes.
REWARD_SCHEDULE = Schedule(epochs=3, batch_rows=8)
ROWS = "votes.jsonl"
# From this number on, a test split of a fifth and a validation split of a tenth have at least one row each.
FEWEST_PROMPTS = 5


def votes_so_far(loop: LoopState, number: int) -> list[dict[str, Any]]:
    """Return the preference pairs of all votes up to a round, and write them to the folder of the round.

    Once training has started in the round they do not change any more; otherwise it could not resume.
    """
    path = loop.round(number) / ROWS
    stores = map(loop.votes, range(1, number + 1))
    rows = [row for store in stores for row in preference_rows(store, PAIRS).rows]
    # Training has started, or there was too little to learn from and the next round has started.
    fixed = loop.left(number) or any((loop.round(number) / run).exists() for run in (POLICY, REWARD))
    if not path.exists() or not fixed:
        write_rows(path, rows)
        return rows
    # Not `splitlines`: in JSON a text may contain line separators such as U+2028.
    lines = read_text(path).split("\n")
    try:
        recorded: list[dict[str, Any]] = [json.loads(line) for line in lines if line]
        now, before = (
            {json.dumps([row["prompt"], row["chosen"], row["rejected"]]) for row in r} for r in (rows, recorded)
        )
    except (ValueError, KeyError, TypeError):  # in a folder of an earlier version, which lists no digests
        raise CheckpointError(f"{path}: changed since it was written; restore it or run again") from None
    if changed := len(now ^ before):
        loop.callbacks.on_event(
            Note(f"round {number}: training had started; {changed} rows changed by later votes are ignored")
        )
    return recorded


def enough(rows: Sequence[dict[str, Any]]) -> bool:
    """Return whether the rows have enough different prompts for held-out splits."""
    return len({json.dumps(row["prompt"]) for row in rows}) >= FEWEST_PROMPTS


def train_round(loop: LoopState, folder: Path) -> list[Run]:
    """Train a policy, and with `rl` first a reward model, on all votes so far, starting from the base model.

    Returns the runs of the round, the policy last. Unfinished runs resume.
    """

    def tuned(recipe: Recipe, name: str) -> Run:
        loop.callbacks.on_event(StageStarted(f"{folder / name}: {recipe.objective.kind}"))
        return tune_recipe(recipe, out=folder / name, callbacks=loop.callbacks, offline=loop.offline)

    recipe, objective = loop.recipe, loop.recipe.objective
    data = Data(train=str(folder / ROWS), audit="note", max_tokens=recipe.data.max_tokens)
    votes = recipe.model_copy(update={"data": data, "loop": Loop()})
    if not objective.samples_completions:
        detected = dict.fromkeys(("prompt", "chosen", "rejected", "answer", "label", "instruction"), "")
        own = objective.model_copy(update={**detected, "max_new_tokens": loop.longest})
        return [tuned(votes.model_copy(update={"objective": own}), POLICY)]
    # The gates of the recipe are about the policy; no one uses the reward model on general text.
    reward = {"objective": Reward(), "schedule": REWARD_SCHEDULE, "gates": Gates()}
    judge = tuned(votes.model_copy(update=reward), REWARD)
    rewards = {str(judge.folder) if name == VOTES else name: weight for name, weight in objective.rewards.items()}
    prompts = {"prompt": "", "answer": "", "instruction": "", "messages": "messages", "max_new_tokens": loop.longest}
    own = objective.model_copy(update={**prompts, "reward": rewards})
    policy = {"objective": own, "data": _write_prompts(loop, folder), "loop": Loop()}
    return [judge, tuned(recipe.model_copy(update=policy), POLICY)]


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write rows as JSON lines."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))


def _write_prompts(loop: LoopState, folder: Path) -> Data:
    """Write the loop's prompts as files of chats, one per split, and return them as a section of a recipe."""
    files: dict[str, str | float] = {"validation": 0.0}
    # A file without any group is refused if a group column is named.
    grouped = all(any(prompt.group for prompt in part) for part in loop.prompts.values() if part)
    group = loop.recipe.data.group if grouped else ""
    for name, part in loop.prompts.items():
        if part:
            path = folder / f"{name}.jsonl"
            write_rows(path, [{group: "", **row} if group else row for row in as_rows(part)])
            files[name] = str(path)
    return loop.recipe.data.model_copy(update={**files, "split": "", "group": group, "where": {}, "audit": "note"})
