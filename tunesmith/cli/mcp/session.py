"""One session of a client: its budget of time, its confirmed plans, and the processes that it starts."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from tunesmith.cli.mcp.folders import Folders, McpRefusal, bounded, digest_of, shown
from tunesmith.config import Recipe
from tunesmith.config.load import save_recipe
from tunesmith.config.resolve import as_changes, resolve_recipe
from tunesmith.pipelines.plan.report import Bounds
from tunesmith.web.studio.jobs import Job, Jobs

Work = Literal["tune", "compare"]
READ_SECONDS = 300.0  # longest work of a tool that only reads
VALID_SECONDS = 900.0  # of a token
POLL = 0.2  # seconds between two looks at a process
KEPT = ".mcp"  # folder below the runs with jobs and recipes
# Shares of a run's budget, unless the recipe sets it: scoring of `tune`, answers and training of `compare`.
SCORING, COMPARING = 0.25, 0.8


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that a token confirms; `source` is the file that the client named, and `made` of the monotonic clock."""

    work: Work
    run: str
    source: Path
    recipe: Recipe
    minutes: float
    data_digest: str
    made: float
    seconds: Bounds | None = None
    memory: Bounds | None = None

    @property
    def digest(self) -> str:
        """Return a digest of everything that the token confirms but the contents of the files."""
        text = f"{self.work} {self.minutes} {self.seconds} {self.recipe.model_dump_json()}"
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


class Session:
    """State of a server between the calls of its tools.

    Args:
        folders: what may be read and written.
        minutes: budget of all runs of the session; 0: no run may be started.
        scratch: an empty folder of this process, for commands that only read.
    """

    def __init__(self, folders: Folders, *, minutes: float, scratch: Path) -> None:
        self.folders, self.minutes, self.scratch = folders, minutes, scratch
        self.jobs = Jobs(folders.runs / KEPT / "jobs", scratch)
        self._reads = Jobs(scratch / "jobs", scratch)
        self._one = asyncio.Lock()  # a model needs the memory of the machine for itself
        self._plans: dict[str, Plan] = {}
        self._started: list[Job] = []

    @property
    def left(self) -> float:
        """Return the minutes of the budget that no run of this session has used."""
        states = [job.state() for job in self._started]
        spent = sum((state.ended or time.time()) - state.started for state in states if state.started)
        return max(0.0, self.minutes - spent / 60)

    async def read(self, *words: str) -> Any:
        """Run a command that only reads and return its JSON document; it ends when the client no longer waits."""
        async with self._one:
            job = self._reads.start(words, queued=False, limit=READ_SECONDS, owned=True)
            try:
                while job.is_active:
                    await asyncio.sleep(POLL)
            finally:
                job.stop()
        if error := job.error():
            raise McpRefusal(error)
        if job.state().name != "finished" or (document := job.output()) is None:
            raise McpRefusal(f"{words[0]}: no result within {READ_SECONDS:.0f} s; use fewer rows or a smaller model")
        return bounded(document)

    def plan(self, work: Work, source: str, settings: dict[str, Any], *, run: str, minutes: float | None) -> Plan:
        """Return a plan without a forecast. The same plan has the same name of the run again.

        Raises:
            TunesmithError: a value is invalid, reaches outside of the folders, or exceeds the budget.
        """
        minutes = self._allowed(minutes)
        path = self.folders.source(source)

        def check(recipe: Recipe) -> None:
            self.folders.recipe(recipe)

        resolved = resolve_recipe(path, changes=as_changes(settings), offline=True, check=check)
        recipe = self.folders.recipe(resolved.recipe)
        if work == "tune" and recipe.verdict.minutes == "auto":
            verdict = recipe.verdict.model_copy(update={"minutes": round(SCORING * minutes, 2)})
            recipe = recipe.model_copy(update={"verdict": verdict})
        plan = Plan(work, run, path, recipe, minutes, digest_of(recipe, path), time.monotonic())
        if not run:
            plan = replace(
                plan, run=f"{work}-{hashlib.sha256((plan.digest + plan.data_digest).encode()).hexdigest()[:10]}"
            )
        self.folders.run(plan.run, new=True)
        return plan

    def _allowed(self, minutes: float | None) -> float:
        """Return the budget of a run. Raises McpRefusal if it is not within that of the session."""
        left = self.left if self.minutes else 60.0
        wanted = left if minutes is None else minutes
        if not 0 < wanted <= left:
            raise McpRefusal(f"minutes: {wanted:g} of {left:.2f} that are left; ask for less, or the user for more")
        return wanted

    def issue(self, plan: Plan) -> str:
        """Return a token for a plan; empty if this server may not train."""
        token = secrets.token_urlsafe(16) if self.minutes else ""
        if token:
            self._plans[token] = plan
        return token

    def start(self, work: Work, token: str) -> str:
        """Start what a token confirms, once, and return the name of the run. Raises McpRefusal if it may not start."""
        if not self.minutes:
            raise McpRefusal(f"{work}: this server only reads; the user may start it with --allow-training")
        plan = self._plans.pop(token, None)
        if plan is None or plan.work != work or time.monotonic() - plan.made > VALID_SECONDS:
            raise McpRefusal(f"token: unknown, used, expired or not for {work}; call `plan` and use its token once")
        self._allowed(plan.minutes)
        # Checked again as late as possible: links and contents may have changed since the plan.
        self.folders.source(str(plan.source.relative_to(self.folders.data)))
        recipe = self.folders.recipe(plan.recipe)
        if digest_of(recipe, plan.source) != plan.data_digest:
            raise McpRefusal("token: a file of the plan has changed; call `plan` again")
        kept = self.folders.runs / KEPT
        kept.mkdir(parents=True, exist_ok=True)
        with FileLock(kept / "start.lock"):  # two servers may share the folder
            if busy := self.jobs.active():
                raise McpRefusal(f"{busy[0].command.subject}: still running; wait with `status`, or `stop` it")
            file = kept / f"{plan.run}.yaml"
            save_recipe(recipe, file)
            words = [work, str(file), "--out", str(self.folders.run(plan.run, new=True)), "--json", "--offline"]
            words += ["--budget", f"{COMPARING * plan.minutes:g}"] if work == "compare" else []
            self._started.append(self.jobs.start(words, subject=plan.run, limit=60 * plan.minutes, owned=True))
        return plan.run

    def job(self, run: str = "") -> Job | None:
        """Return the newest job of a run, or of all; None if there is none."""
        return next((job for job in self.jobs if run in ("", job.command.subject)), None)

    def stop(self, run: str) -> None:
        """Stop a run of this session, the newest if none is named. Raises McpRefusal if it does not run."""
        for job in reversed(self._started):
            if run in ("", job.command.subject) and job.is_active:
                return job.stop()
        raise McpRefusal(f"run {shown(run)!r}: has ended, or was not started in this session; see `status`")
