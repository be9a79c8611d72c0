"""Screen "People": sessions in which people judge answers or label rows, their votes, and loops of rounds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.report.run_list import Describe, list_runs
from tunesmith.web.studio.jobs import Job
from tunesmith.web.studio.screen import Route, Screen, redirect, writes
from tunesmith.web.studio.workspace import WorkspaceError, clean_name

SESSIONS = ("feedback", "label")
SHOWN = 10  # newest sessions
LOOPS = "loops"
COLUMNS = ("--text=", "--label=")
# Fields of the form of a loop -> keys of its recipe.
KEYS = {"rounds": "loop.rounds", "pairs": "loop.prompts", "judge": "loop.judge", "final_judge": "loop.final_judge"}


class People(Screen):
    """The screen."""

    def routes(self) -> Sequence[Route]:
        """Return the routes."""
        return (
            ("GET", "/people", self._screen),
            ("GET", "/people/votes/{name}", self._votes),
            ("GET", "/people/loop/{name}", self._loop),
            ("POST", "/people/feedback", self._feedback),
            ("POST", "/people/label", self._label),
            ("POST", "/people/rows/{name}", self._rows),
            ("POST", "/people/loop", self._run_loop),
            ("POST", "/people/loop/{name}/judge", self._judge),
        )

    def _screen(self) -> Any:
        sessions = [job for job in self.jobs if job.command.words[0] in SESSIONS]
        loops = {path.parent.name for path in (self.workspace.folder / LOOPS).glob("*/recipe.yaml")}
        loops |= {Path(job.command.subject).name for job in self.jobs if job.command.words[0] == "rlhf"}
        writing = [run for run in self.studio.finished_runs() if writes(run["report"])]
        values = {"runs": writing, "files": self.workspace.data()}
        values |= {"recipes": self.workspace.recipes(), "loops": [self._timeline(name) for name in sorted(loops)]}
        values["sessions"] = [job for job in sessions if "--export" not in job.command.words][:SHOWN]
        return self.studio.render("people", here="people", votes_of=self._summary, **values)

    def _feedback(self, fields: dict[str, str]) -> Any:
        run = self.workspace.run(fields.get("run", ""))
        words = ["feedback", run.relative_to(self.workspace.folder).as_posix(), "--rows", fields.get("rows") or "100"]
        against = fields.get("against", "")
        if against == "thumbs":
            words += ["--thumbs"]
        elif against:
            words += ["--against", against if against == "base" else f"runs/{self.workspace.run(against).name}"]
        if fields.get("prompts"):
            self.workspace.path(fields["prompts"])
            words += ["--prompts", fields["prompts"]]
        return self._start(words, fields, subject=f"runs/{run.name}")

    def _label(self, fields: dict[str, str]) -> Any:
        path = self.workspace.path(fields["path"]).relative_to(self.workspace.folder).as_posix()
        options = [f"--{role}={fields[role]}" for role in ("text", "label") if fields.get(role)]
        if labels := re.findall(r"[^\s,]+", fields.get("labels", "")):
            options += [f"--{'spans' if fields.get('spans') == 'on' else 'labels'}={','.join(labels)}"]
        elif fields.get("spans") == "on":
            raise WorkspaceError("write the labels of the spans first")
        return self._start(["label", path, *options], fields, subject=path)

    def _judge(self, name: str, fields: dict[str, str]) -> Any:
        """Open the page on which pairs of a loop wait for votes, by the command that the loop has named."""
        words = page_command(self.jobs.about(f"{LOOPS}/{name}", "rlhf"))
        if not words:
            raise WorkspaceError(f"{LOOPS}/{name}: no pairs wait for votes; continue the loop")
        return self._start(words, fields, subject=f"{LOOPS}/{name}")

    def _start(self, words: list[str], fields: dict[str, str], *, subject: str) -> Any:
        if fields.get("overlap"):
            words += ["--overlap", fields["overlap"]]
        if fields.get("shared") == "on":  # other machines may connect, with the token in the link
            words += ["--host", "0.0.0.0"]
        if any(job.is_active and job.command.words[:2] == words[:2] for job in self.jobs):
            raise WorkspaceError(f"{words[0]} {words[1]}: a session is open already; use its link, or close it first")
        self.studio.start(*words, "--port", "0", subject=subject, queued=False)
        return redirect("/people")

    def _votes(self, name: str) -> Any:
        job = self.jobs.get(name)
        return self.studio.render("votes", job=job, votes=self._summary(job))

    def _summary(self, job: Job) -> dict[str, Any] | None:
        """Return the votes of a session, or the `problem` with its store; None until it has opened."""
        opened = job.output()
        path = self.workspace.folder / str(opened.get("store", "")) if isinstance(opened, dict) else None
        if path is None or not path.is_file():
            return None
        try:
            rows = self._labelled(job.command.words) if job.command.words[0] == "label" else None
            return {**votes_of(path, rows), "items": opened["items"]}
        except TunesmithError as error:  # in its panel; the other sessions are shown
            return {"problem": str(error)}

    def _labelled(self, words: Sequence[str]) -> LabelledRows:
        named = dict(word[2:].partition("=")[::2] for word in words if word.startswith(COLUMNS))
        path = self.workspace.folder / words[1]
        return LabelledRows(path, path.stat().st_mtime_ns if path.exists() else 0, **named)

    def _rows(self, name: str) -> Any:
        """Write the votes of a session as rows."""
        job = self.jobs.get(name)
        source = job.command.words[1]
        columns = [word for word in job.command.words if word.startswith(COLUMNS)]
        words = ["label", source, *columns, "--export", f"{Path(source).with_suffix('')}-labelled.jsonl"]
        if job.command.words[0] == "feedback":
            words = ["votes", "export", str(job.output()["store"]), f"ratings-{Path(source).name}.jsonl"]
        return self.follow(self.studio.start(*words, subject=source, queued=False))

    def _run_loop(self, fields: dict[str, str]) -> Any:
        """Start a loop from a recipe, or continue one from the recipe in its folder."""
        recipe = self.workspace.path(fields["recipe"]).relative_to(self.workspace.folder)
        name = recipe.parts[1] if recipe.parts[0] == LOOPS else clean_name(recipe.stem)
        folder = f"{LOOPS}/{self.workspace.new_name(name)}"
        changes = [f"{key}={fields[field].strip()}" for field, key in KEYS.items() if fields.get(field, "").strip()]
        options = [word for change in changes for word in ("--set", change)]
        active = {job.command.words[0]: job for job in self.jobs.active() if job.command.subject == folder}
        if "rlhf" in active:
            raise WorkspaceError(f"{folder}: the loop runs already; wait for it, or stop it first")
        if "feedback" in active:  # its pairs are judged
            active["feedback"].stop()
        self.studio.start("rlhf", str(recipe), "--out", folder, *options, subject=folder)
        return redirect("/people")

    def _loop(self, name: str) -> Any:
        return self.studio.render("loop", **self._timeline(self.workspace.new_name(name)))

    def _timeline(self, name: str) -> dict[str, Any]:
        """Return a loop and what it waits for."""
        job, page = (self.jobs.about(f"{LOOPS}/{name}", command) for command in ("rlhf", "feedback"))
        active = job is not None and job.is_active  # looked at once: the page follows the loop while it is true
        words = [] if active else page_command(job)
        is_open = page is not None and page.is_active and page.command.words[: len(words)] == words  # of this round
        values = {"name": name, "job": job, "active": active, "waits": bool(words)}
        values["page"] = page if words and is_open else None
        try:
            return {**values, "problem": "", **loop_of(self.workspace.folder / LOOPS / name, self.studio.known_runs)}
        except TunesmithError as error:  # in its panel; the other loops are shown
            return {**values, "problem": str(error), "rounds": [], "report": None}


def page_command(job: Job | None) -> list[str]:
    """Return the words of `feedback` for the votes that a loop waits for; none if it does not wait."""
    document = job.output() if job is not None else None
    return document.get("error", {}).get("command", [])[1:] if isinstance(document, dict) else []


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """The rows of a session that labels them."""

    path: Path
    changed: int  # time in nanoseconds; 0 if the file is gone
    text: str = ""  # columns, empty if they are detected
    label: str = ""


@lru_cache(maxsize=SHOWN)
def _keys(rows: LabelledRows, *, spans: bool) -> frozenset[str]:
    """Return the keys of the texts of a file."""
    from tunesmith.annotation.label_rows import Columns, items_of
    from tunesmith.data.readers.read import read_rows

    return frozenset(items_of(read_rows(str(rows.path)), Columns(rows.text, rows.label), spans=spans).keys)


def votes_of(store: Path, rows: LabelledRows | None = None) -> dict[str, Any]:
    """Return the number of `judged` items, the `raters`, their `agreement`, and the ranking of `models`.

    Args:
        store: the file of votes.
        rows: what is labelled, as votes on deleted rows do not count; None for votes on answers.
    """
    from tunesmith.annotation.agreement import agreement
    from tunesmith.annotation.import_export import summarise_votes
    from tunesmith.annotation.labelling import WHAT
    from tunesmith.annotation.span_votes import WHAT as SPANS
    from tunesmith.annotation.span_votes import SpanVotes, span_agreement
    from tunesmith.annotation.vote_state import VoteState
    from tunesmith.annotation.vote_store import VoteStore

    if rows is None:
        return summarise_votes(store).model_dump()
    spans = VoteStore.kind(store) == SPANS
    keys = _keys(rows, spans=spans)
    with closing(VoteStore(store, what=SPANS if spans else WHAT, read_only=True)) as opened:
        votes = (SpanVotes if spans else VoteState)(event for event in opened.since() if event.item in keys)
    raters = [{"rater": name, "votes": count} for name, count in votes.counts().most_common()]
    both = (span_agreement if spans else agreement)(votes.units()).model_dump()
    return {"judged": len(votes.items()), "raters": raters, "agreement": both, "models": []}


def loop_of(folder: Path, describe: Describe | None = None) -> dict[str, Any]:
    """Return the `rounds` of a loop with their states, and the `report` once it has ended.

    Args:
        folder: of the loop, as `tunesmith rlhf` writes it.
        describe: as in `list_runs`.
    """
    from tunesmith.config import load_recipe
    from tunesmith.data.files import read_page

    if not (folder / "recipe.yaml").is_file():  # it has just started
        return {"rounds": [], "report": None}
    settings = load_recipe(folder / "recipe.yaml")[0].loop
    report = read_page(folder / "rlhf.json", dict[str, Any]) if (folder / "rlhf.json").is_file() else None
    rounds = [_round(folder, number, describe) for number in range(1, settings.rounds + 1)]
    for item, known in zip(rounds, report["rounds"] if report else (), strict=False):
        item["won"] = known["over_start"]
    ended = report is not None and len(report["rounds"]) == len(rounds)
    return {"rounds": rounds, "report": report if ended else None}


def _round(folder: Path, number: int, describe: Describe | None) -> dict[str, Any]:
    place = folder / f"round-{number}"
    store = place / "votes.db"
    votes = votes_of(store) if store.is_file() and store.stat().st_size else None
    learned = [run for name in ("reward", "policy") for run in list_runs(place / name, describe=describe)]
    if (place / "replies.json").exists() or (folder / f"round-{number + 1}").exists():
        state = "finished"
    elif learned:
        state = "training"
    elif votes and votes["items"]:
        state = "judging" if votes["judged"] < votes["items"] else "judged"
    else:
        state = "answering" if place.is_dir() else "ahead"
    return {"number": number, "state": state, "votes": votes, "learned": learned, "won": None}
