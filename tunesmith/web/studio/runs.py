"""Screen "Runs": their table, the live page of one, its report in a frame, and the differences between two."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.files import move
from tunesmith.errors import TunesmithError
from tunesmith.metrics.resampling import ALPHA
from tunesmith.metrics.significance import holm
from tunesmith.report.run_diff import diff_runs, differing_settings
from tunesmith.training.run_folder import exclusive_lock
from tunesmith.web.studio.live import Follower, follow, new_records, points, read_if_there
from tunesmith.web.studio.screen import Route, Screen, redirect
from tunesmith.web.studio.tune import copy_of, free_run, original_of
from tunesmith.web.studio.workspace import WorkspaceError

MOST_COMPARED = 6  # runs next to each other
DELETED = "deleted"  # folder of deleted runs, from which they are restored
FRAME = (
    "default-src 'none'; img-src data:; style-src {styles}; script-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'"
)
STYLE_ATTRIBUTE = re.compile(r' style="([^"]*)"')
STYLE_BLOCK = re.compile(r"<style>(.*?)</style>", re.DOTALL)


class Runs(Screen):
    """The screen."""

    def routes(self) -> Sequence[Route]:
        """Return the routes."""
        return (
            ("GET", "/runs", self._table),
            ("GET", "/diff", self._diff),
            ("POST", "/runs/restore", self._restore),
            ("POST", "/runs/purge", self._purge),
            ("GET", "/runs/{name}", self._one),
            ("GET", "/runs/{name}/events", self._events),
            ("GET", "/runs/{name}/report", self._report),
            ("POST", "/runs/{name}/resume", self._resume),
            ("POST", "/runs/{name}/delete", self._delete),
        )

    @property
    def _gone(self) -> Path:
        return self.workspace.kept / DELETED

    def _table(self, deleted: str = "") -> Any:
        states = {job.command.subject: job.state().name for job in reversed(self.jobs.active())}
        gone = sorted(path.name for path in self._gone.iterdir()) if self._gone.is_dir() else []
        values = {"runs": self.studio.runs(), "states": states, "gone": gone}
        return self.studio.render("runs", here="runs", deleted=deleted if deleted in gone else "", **values)

    def _one(self, name: str) -> Any:
        job = self.jobs.about(f"runs/{self.workspace.new_name(name)}", "tune")
        folder = self.workspace.runs / name
        if not folder.is_dir() and job is None:
            self.workspace.run(name)  # raises
        waiting = [other.name for other in self.jobs.waiting()]
        values = {
            "name": name,
            "job": job,
            "entry": next(iter(self.studio.runs(name)), None),
            "saved": saved_step(folder),
            "ahead": waiting.index(job.name) if job and job.name in waiting else None,
            "again": f"runs/{free_run(self, name)}",
            "recipe": original_of(job.command.words[1]) if job else "",
        }
        return self.studio.render("run", here="runs", **values)

    async def _events(self, name: str, request: Any, last: str = "") -> Any:
        from fastapi.responses import StreamingResponse

        folder = self.workspace.runs / self.workspace.new_name(name)
        job = await asyncio.to_thread(self.jobs.about, f"runs/{name}", "tune")
        follower = Follower(folder, job, request.headers.get("last-event-id", last))
        return StreamingResponse(follow(follower, request), media_type="text/event-stream")

    def _report(self, name: str) -> Any:
        from fastapi.responses import HTMLResponse

        html = (self.workspace.run(name) / "report.html").read_text(encoding="utf-8")
        page, policy = framed(html)
        return HTMLResponse(page, headers={"content-security-policy": policy})

    def _resume(self, name: str) -> Any:
        job = self.jobs.about(f"runs/{self.workspace.new_name(name)}", "tune")
        if job is None:
            raise WorkspaceError(f"runs/{name}: started elsewhere; resume it there, with the command that started it")
        if job.is_active:
            raise WorkspaceError(f"runs/{name}: runs or waits already; stop it first")
        recipe = job.command.words[1]
        if (self.workspace.folder / (copy := copy_of(recipe, name))).is_file():  # the recipe may have been edited since
            recipe = copy
        self.studio.start("tune", recipe, "--out", f"runs/{name}", subject=f"runs/{name}")
        return redirect(f"/runs/{name}")

    def _delete(self, name: str) -> Any:
        folder, job = self.workspace.run(name), self.jobs.about(f"runs/{name}", "tune")
        if job is not None and job.is_active:
            raise WorkspaceError(f"runs/{name}: still running; stop it first")
        self._gone.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder):  # one that was started elsewhere may still write to it
            entry = self._gone / f"{name}@{int(time.time())}"
            move(folder, entry)
        return redirect("/runs", deleted=entry.name)

    def _restore(self, fields: dict[str, str]) -> Any:
        entry = self._gone / Path(fields["entry"]).name
        name = self.workspace.new_name(entry.name.rpartition("@")[0])
        if not entry.is_dir() or free_run(self, name) != name:
            raise WorkspaceError(f"runs/{name}: cannot be restored; a run of this name exists, or it was removed")
        move(entry, self.workspace.runs / name)
        return redirect("/runs")

    def _purge(self) -> Any:
        shutil.rmtree(self._gone, ignore_errors=True)
        return redirect("/runs")

    def _diff(self, request: Any) -> Any:
        """Compare the runs that the address names as `run`, or two as `a` and `b`."""
        query = request.query_params
        names = list(dict.fromkeys(query.getlist("run") or [query.get("a", ""), query.get("b", "")]))[:MOST_COMPARED]
        folders = [self.workspace.run(name) for name in names]
        if len(folders) < 2:
            raise WorkspaceError("runs: choose two or more in the table to compare them")
        curves = {run.name: points(new_records(run / "journal.jsonl", 0)[0]) for run in folders}
        values = {"names": names, "curves": curves, "against": against_first(folders)}
        return self.studio.render("diff", here="runs", settings=differing_settings(folders), **values)


def saved_step(folder: Path) -> int:
    """Return the step from which a run would be resumed; 0 if none is saved."""
    state = read_if_there(folder / "checkpoints" / "last" / "state.json")
    return int(state["step"]) if state else 0


def against_first(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Compare runs with the first one on the same test rows; p-values are adjusted for the number of comparisons."""
    found: list[dict[str, Any]] = []
    for folder in folders[1:]:
        entry: dict[str, Any] = {"name": folder.name, "diff": None, "problem": "", "verdict": "not comparable"}
        try:
            entry["diff"] = diff_runs(folders[0], folder)
        except TunesmithError as error:
            entry["problem"] = str(error).replace(f"{folder.parent}/", "")
        found.append(entry)
    comparable = {n: entry for n, entry in enumerate(found) if entry["diff"]}
    for n, p_value in holm({n: entry["diff"].p_value for n, entry in comparable.items()}).items():
        verdict = found[n]["diff"].verdict
        by_chance = verdict in ("better", "worse") and p_value > ALPHA
        found[n] |= {"p_value": p_value, "verdict": "inconclusive" if by_chance else verdict}
    return found


def framed(html: str) -> tuple[str, str]:
    """Return a report for a frame, and the policy that allows its styles by their hashes, and nothing else.

    Style attributes cannot be allowed by a hash without allowing all others, so they move into a style block.
    """
    rules: dict[str, str] = {}

    def moved(match: re.Match[str]) -> str:
        name = rules.setdefault(match[1], str(len(rules)))
        return f' data-style="{name}"'

    page = STYLE_ATTRIBUTE.sub(moved, html)
    # `!important`, since a style attribute wins over every selector of the page.
    extra = "".join(f'[data-style="{name}"]{{{_important(rule)}}}' for rule, name in rules.items())
    page = page.replace("</head>", f"<style>{extra}</style></head>", 1)
    hashes = [hashlib.sha256(block.encode()).digest() for block in STYLE_BLOCK.findall(page)]
    styles = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes)
    return page, FRAME.format(styles=styles)


def _important(rule: str) -> str:
    return ";".join(f"{part.strip()} !important" for part in rule.replace("&quot;", '"').split(";") if part.strip())
