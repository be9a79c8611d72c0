"""One session of a client: its budget of time, its confirmed plans, and the processes that it starts."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from tunesmith.cli.mcp.folders import KEPT, RUN_NAME, Folders, McpRefusal, digest_of, shown
from tunesmith.config import Recipe, load_recipe, make_recipe
from tunesmith.config.aliases import changed_keys
from tunesmith.config.load import save_recipe
from tunesmith.config.resolve import as_changes
from tunesmith.data.files import is_recipe
from tunesmith.objectives import OBJECTIVES
from tunesmith.web.studio.jobs import Job, Jobs

Work = Literal["tune", "compare"]
READ_ONLY_MINUTES = 60.0  # budget of plans that cannot be started
READ_SECONDS = 300.0  # longest work of a tool that only reads
VALID_SECONDS = 900.0  # of a token
POLL = 0.2  # seconds between two looks at a process
# Keys of files and models, which are relative to the folders of the server.
PLACES = ("model", *(f"data.{key}" for key in ("train", "validation", "test")))
PLACES += ("replay.source", "documents.source", "documents.encoder", "teacher.model", "teacher.rows")
# Those of objectives, which are vetted with the objective that they belong to.
OBJECTIVE_PLACES = {f"objective.{key}" for one in OBJECTIVES for key in one.file_keys}
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
        state = job.state().name
        if state != "stopped" and (error := job.error()):
            raise McpRefusal(error)
        if state != "finished" or (document := job.output()) is None:
            raise McpRefusal(f"{words[0]}: no result within {READ_SECONDS:.0f} s; use fewer rows or a smaller model")
        return document

    def new_file(self) -> Path:
        """Return a path for a recipe; calls of tools overlap."""
        return self.scratch / f"{secrets.token_hex(8)}.yaml"

    async def draft(self, path: Path, *changes: str) -> tuple[Recipe, dict[str, Any]]:
        """Return the recipe that `init` proposes for a file of rows, and the whole of its document."""
        words = ["--quick", "--json", "--offline", "--out", str(self.new_file())]
        found = await self.read("init", str(path), *words, *(f"--set={change}" for change in changes))
        return Recipe.model_validate(found["recipe"]), found

    async def plan(self, work: Work, source: str, settings: dict[str, Any], *, run: str, minutes: float | None) -> Plan:
        """Return a plan without a forecast. The same recipe for the same rows has the same name of the run again.

        Raises:
            TunesmithError: a value is invalid, reaches outside of the folders, or exceeds the budget.
        """
        minutes = self._allowed(minutes)
        path = self.folders.source(source)
        recipe = self.folders.recipe(await self._recipe(path, as_changes(settings)))
        if recipe.data.audit == "note" and not (is_recipe(path) and load_recipe(path)[0].data.audit == "note"):
            raise McpRefusal("data.audit: only the user may train in spite of blocking findings; leave it out")
        if isinstance(longest := recipe.verdict.minutes, float) and longest > (self.minutes or READ_ONLY_MINUTES):
            raise McpRefusal(f"verdict.minutes: {longest:g} exceeds the budget of {self.minutes:g}; leave it out")
        data = await asyncio.to_thread(digest_of, recipe, path)
        name = run or f"{work}-{hashlib.sha256(f'{recipe.model_dump_json()} {data}'.encode()).hexdigest()[:10]}"
        self.folders.run(name, new=True)
        if work == "tune" and recipe.verdict.minutes == "auto":
            # Part of what identifies a run: one that is resumed keeps the value that it was started with.
            started = self.folders.kept() / f"{name}.yaml"
            share = load_recipe(started)[0].verdict.minutes if started.exists() else round(SCORING * minutes, 2)
            verdict = recipe.verdict.model_copy(update={"minutes": share})
            recipe = recipe.model_copy(update={"verdict": verdict})
        return Plan(work, name, path, recipe, minutes, data, time.monotonic())

    async def _recipe(self, path: Path, changes: list[str]) -> Recipe:
        """Return the recipe of a file; what is missing for a file of rows is proposed by `init`, which reads them."""
        if is_recipe(path):
            return load_recipe(path, changes=changes)[0]
        named = changed_keys(changes)
        if is_named := bool({"objective", "objective.kind"} & named):
            vetted = changes
        elif OBJECTIVE_PLACES & named:
            raise McpRefusal(f"{', '.join(sorted(OBJECTIVE_PLACES & named))}: set objective.kind as well")
        else:  # `init` finds it, and the places that the other settings name are vetted with any objective
            vetted = ["objective=classify", *(c for c in changes if not c.startswith("objective."))]
        raw = {"data": {"train": str(path)}, "technique": {"kind": "lora"}}
        recipe = self.folders.recipe(make_recipe(raw, place=path.name, changes=vetted)[0])
        if is_named and "model" in named:
            return recipe
        places = [f"{key}={json.dumps(attrgetter(key)(recipe))}" for key in PLACES if {key, key.split(".")[0]} & named]
        return (await self.draft(path, *changes, *places))[0]

    def _allowed(self, minutes: float | None) -> float:
        """Return the budget of a run. Raises McpRefusal if it is not within that of the session."""
        left = self.left if self.minutes else READ_ONLY_MINUTES
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
        kept = self.folders.kept()
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
        self.folders.kept()
        known = ((job, job.command.subject) for job in self.jobs)
        return next((job for job, name in known if run in ("", name) and RUN_NAME.fullmatch(name)), None)

    def stop(self, run: str) -> None:
        """Stop a run of this session, the newest if none is named. Raises McpRefusal if it does not run."""
        for job in reversed(self._started):
            if run in ("", job.command.subject) and job.is_active:
                return job.stop()
        raise McpRefusal(f"run {shown(run)!r}: has ended, or was not started in this session; see `status`")
