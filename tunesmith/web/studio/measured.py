"""Read what a comparison or a learning curve has measured so far, from its folder and from the log of its job."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from tunesmith.data.bounded_yaml import parse_yaml
from tunesmith.data.files import read_page
from tunesmith.errors import TunesmithError
from tunesmith.web.studio.jobs import Job

ABOUT = {
    "prompt": "the model with your instruction",
    "few-shot": "the model with examples in its prompt",
    "rag": "retrieval: the model with passages of your documents",
    "tuned-retriever": "retrieval whose search is tuned on your rows",
    "tf-idf": "word counts and logistic regression, no language model",
    "tuned": "the model tuned on your rows",
    "tuned+rag": "the tuned model with passages of your documents",
    "raft": "the model tuned on rows with passages",
}
PART = re.compile(r"^(?:arm|run) (\d+) of (\d+): ", re.MULTILINE)


def measured_of(job: Job) -> dict[str, Any] | None:
    """Return what the page shows of a comparison or a learning curve without a result; None for other commands."""
    words, log = job.command.words, job.log().rstrip()
    if words[0] not in ("compare", "learning-curve") or "--out" not in words:
        return None
    folder = Path(job.command.cwd, words[words.index("--out") + 1])
    number, total = map(int, [("0", "0"), *PART.findall(log)][-1])
    if words[0] == "learning-curve":
        return {"total": total, **runs_of(folder)}
    return {"arms": arms_of(folder, number, log.rpartition("\n")[2] if job.is_active else None)}


def arms_of(folder: Path, number: int, doing: str | None) -> list[dict[str, Any]]:
    """Return the arms of a comparison, those that have answered in the form of its result.

    Args:
        folder: of the comparison.
        number: the arm that was started last, from 1; 0 for none.
        doing: what the command does now; None if it has ended.
    """
    answers = {page["name"]: page for page in pages(folder, "answers/*.json")}
    recipe = folder / "recipe.yaml"
    names = parse_yaml(recipe.read_text(encoding="utf-8"))["arms"] if recipe.is_file() else []
    arms: list[dict[str, Any]] = []
    for position, name in enumerate(names, 1):
        now = "unanswered" if doing is None else "running" if position == number else "waiting"
        state = "left out" if position < number else now
        detail = doing if doing and state == "running" else ABOUT.get(name, "")
        arm = {"name": name, "state": state, "detail": detail, "task": None}
        if page := answers.get(name):
            pace = median(page["latencies"]) if page["latencies"] else None
            arm |= {"state": "finished", "detail": page["detail"], "task": page.get("task")}
            arm |= {"cost": page, "latency": {"p50": pace}}
        arms.append(arm)
    return arms


def runs_of(folder: Path) -> dict[str, Any]:
    """Return the scores of a learning curve in the form of its result."""
    scores: dict[int, list[float]] = {}
    for page in pages(folder, "cells/*.json"):
        scores.setdefault(page["rows"], []).append(page["score"])
    return {"sizes": [{"rows": rows, "scores": scores[rows]} for rows in sorted(scores)], "curve": []}


def pages(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """Return the JSON documents of a folder; damaged ones are left out."""
    found = []
    for path in folder.glob(pattern):
        with suppress(TunesmithError):
            found.append(read_page(path, dict[str, Any]))
    return found
