"""Screen "Runs": their table, the live page of one, its report in a frame, and the differences between two."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from tunesmith.report.run_diff import diff_runs
from tunesmith.report.run_list import list_runs
from tunesmith.web.studio.jobs import Job
from tunesmith.web.studio.screen import Route, Screen, redirect
from tunesmith.web.studio.workspace import WorkspaceError

TICK = 0.4  # seconds between two looks at the journal
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

    def _table(self) -> Any:
        runs = list_runs(self.workspace.runs)[::-1] if self.workspace.runs.is_dir() else []
        started = {job.command.subject for job in self.jobs.active()}
        gone = sorted(path.name for path in self._gone.iterdir()) if self._gone.is_dir() else []
        return self.studio.render("runs", here="runs", runs=runs, started=started, gone=gone)

    def _one(self, name: str) -> Any:
        job = self.jobs.about(f"runs/{self.workspace.new_name(name)}", "tune")
        folder = self.workspace.runs / name
        if not folder.is_dir() and job is None:
            self.workspace.run(name)  # raises
        entry = next(iter(list_runs(folder)), None) if folder.is_dir() else None
        values = {"name": name, "job": job, "entry": entry, "prediction": prediction_of(folder)}
        return self.studio.render("run", here="runs", **values)

    async def _events(self, name: str, request: Any) -> Any:
        from fastapi.responses import StreamingResponse

        folder, job = self.workspace.runs / self.workspace.new_name(name), self.jobs.about(f"runs/{name}", "tune")
        return StreamingResponse(follow(folder, job, request), media_type="text/event-stream")

    def _report(self, name: str) -> Any:
        from fastapi.responses import HTMLResponse

        html = (self.workspace.run(name) / "report.html").read_text(encoding="utf-8")
        page, policy = framed(html)
        return HTMLResponse(page, headers={"content-security-policy": policy})

    def _resume(self, name: str) -> Any:
        folder = self.workspace.run(name)
        job = self.jobs.about(f"runs/{name}", "tune")
        words = job.command.words if job else ["tune", str(folder / "recipe.yaml"), "--out", f"runs/{name}", "--json"]
        self.jobs.start(words, subject=f"runs/{name}")
        return redirect(f"/runs/{name}")

    def _delete(self, name: str) -> Any:
        folder, job = self.workspace.run(name), self.jobs.about(f"runs/{name}", "tune")
        if job is not None and job.is_active:
            raise WorkspaceError(f"runs/{name}: still running; stop it first")
        self._gone.mkdir(parents=True, exist_ok=True)
        folder.rename(self._gone / f"{name}@{int(time.time())}")
        return redirect("/runs")

    def _restore(self, fields: dict[str, str]) -> Any:
        entry = self._gone / Path(fields["entry"]).name
        name = self.workspace.new_name(entry.name.rpartition("@")[0])
        if not entry.is_dir() or (self.workspace.runs / name).exists():
            raise WorkspaceError(f"runs/{name}: cannot be restored; a run of this name exists, or it was removed")
        entry.rename(self.workspace.runs / name)
        return redirect("/runs")

    def _purge(self) -> Any:
        shutil.rmtree(self._gone, ignore_errors=True)
        return redirect("/runs")

    def _diff(self, a: str, b: str) -> Any:
        found = diff_runs(self.workspace.run(a), self.workspace.run(b))
        curves = {name: columns(new_records(self.workspace.run(name) / "journal.jsonl", 0)[0]) for name in (a, b)}
        return self.studio.render("diff", here="runs", a=a, b=b, diff=found, curves=curves)


def prediction_of(folder: Path) -> dict[str, Any]:
    """Return what the run was expected to need; None before it is known."""
    found: dict[str, Any] = {"prediction": None, "forecast": None}
    for name in found:
        try:
            found[name] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            continue
    return found


def new_records(path: Path, start: int) -> tuple[list[dict[str, Any]], int]:
    """Return the whole lines of a journal from a byte on, and the byte after them; from 0 if it was rewritten."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = start if start <= size else 0
            file.seek(start)
            block = file.read()
    except FileNotFoundError:
        return [], 0
    whole = block[: block.rfind(b"\n") + 1]
    records = []
    for line in whole.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records, start + len(whole)


def columns(records: list[dict[str, Any]]) -> dict[str, list[list[float]]]:
    """Return steps and values of each curve."""
    keys = {"train": "loss", "validation": "validation_loss", "rate": "tokens_per_second", "gradient": "grad_norm"}
    return {
        curve: [[r["step"] for r in found], [r[key] for r in found]]
        for curve, key in keys.items()
        if (found := [record for record in records if isinstance(record.get(key), int | float)])
    }


async def follow(folder: Path, job: Job | None, request: Any) -> AsyncIterator[str]:
    """Yield server-sent events: the new points of the curves, the last record, the state and the end of the log."""
    at = 0
    last_log = ""
    while not await request.is_disconnected():
        state = await asyncio.to_thread(job.state) if job else None
        records, now_at = await asyncio.to_thread(new_records, folder / "journal.jsonl", at)
        log = (await asyncio.to_thread(job.log))[-8000:] if job else ""
        ended = state is None or state.name not in ("waiting", "running")
        if records or log != last_log or at == 0 or ended:
            last = next((record for record in reversed(records) if "steps" in record), None)
            event = {
                "restarted": now_at < at,
                "curves": columns(records),
                "last": last,
                "state": state.name if state else "",
                "log": log if log != last_log else None,
                "memory": await asyncio.to_thread(memory_of, state.runner[0]) if state and not ended else None,
            }
            yield f"data: {json.dumps(event)}\n\n"
        at, last_log = now_at, log
        if ended:
            yield "event: end\ndata: {}\n\n"
            return
        await asyncio.sleep(TICK)


def memory_of(runner: int) -> int:
    """Return the resident bytes of the processes that a runner has started."""
    import psutil

    total = 0
    try:
        for process in psutil.Process(runner).children(recursive=True):
            total += process.memory_info().rss
    except psutil.Error:
        pass
    return total


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
