"""What the start says to the rows of a run, computed once and kept in its folder, and what they gained since."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.data.files import write_whole
from tunesmith.data.template import Encoded
from tunesmith.events import EventHandler, StageStarted
from tunesmith.model.policy import Policy
from tunesmith.model.reference import add_reference_logprobs
from tunesmith.workflows.batches import tokens_of
from tunesmith.workflows.prepare import TrainingContext

# Examples whose log-probabilities are computed and written down together.
PART = 256
# Nats that each id of the preferred answers may lose before an alarm is raised.
FALL = 0.1


def precompute_reference_logprobs(
    prepared: TrainingContext, out: Path, *, policy: Policy, on_event: EventHandler
) -> TrainingContext:
    """The rows with the log-probability of each answer under the untuned model, where the objective asks for it."""
    objective = prepared.recipe.objective
    if objective.reference == "none" or objective.samples_completions:
        return prepared
    folder = out / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    on_event(StageStarted("computing reference log-probabilities"))
    most = tokens_of(prepared.recipe)
    train, validation = (_kept(rows, folder, policy, on_event, most) for rows in (prepared.train, prepared.validation))
    return replace(prepared, train=train, validation=validation)


def _kept(rows: Sequence[Encoded], folder: Path, policy: Policy, on_event: EventHandler, tokens: int) -> list[Encoded]:
    """The rows with their log-probabilities, read from the folder as far as they lie there."""
    found: list[Encoded] = []
    for start in range(0, len(rows), PART):
        part = rows[start : start + PART]
        said = [[(tokens.ids, tokens.learn) for tokens in row.sequences] for row in part]
        page = folder / f"{hashlib.sha256(repr((said, policy.autocast_dtype)).encode()).hexdigest()[:16]}.json"
        if not page.exists():
            known = [row.reference for row in add_reference_logprobs(part, policy, tokens=tokens)]
            write_whole(page, json.dumps(known))
            on_event(StageStarted(f"reference log-probabilities of {start + len(part)} of {len(rows)} rows"))
        told = json.loads(page.read_text(encoding="utf-8"))
        found += [replace(row, reference=tuple(known)) for row, known in zip(part, told, strict=True)]
    return found


def preference_metrics(prepared: TrainingContext, policy: Policy) -> dict[str, float]:
    """What the validation answers have gained since the start: the liked ones in nats an id, and pairs in margin.

    Nothing where the start was not asked.
    """
    rows = prepared.validation
    if not rows or not rows[0].reference:
        return {}
    gains: list[float] = []
    margins: list[float] = []
    for row, now in zip(rows, add_reference_logprobs(rows, policy, tokens=tokens_of(prepared.recipe)), strict=True):
        gained = [after - before for after, before in zip(now.reference, row.reference, strict=True)]
        liked = [i for i, good in enumerate(row.label) if good > 0]
        gains += [gained[i] / max(1, row.sequences[i].learned) for i in liked]
        margins += [gained[0] - gained[1]] if len(gained) == 2 else []
    found = {"chosen_gain": sum(gains) / max(1, len(gains))}
    if margins:
        found |= {"margin": sum(margins) / len(margins)}
        found |= {"preferred_more": sum(margin > 0 for margin in margins) / len(margins)}
    return found


def chosen_logprob_warning(entry: Mapping[str, Any]) -> str:
    """An alarm where a validation found that the preferred answers lost probability; else nothing."""
    lost = -entry.get("chosen_gain", 0.0)
    if lost <= FALL:
        return ""
    cure = "raise objective.nll or lower schedule.learning_rate"
    return f"alarm: the preferred answers lost {lost:.2f} nats an id since the start; {cure}"
