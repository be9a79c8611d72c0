"""Base class of the screens, what they share, and their templates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

from tunesmith.report import formatting
from tunesmith.report.run_list import Entry, KnownRuns, list_runs
from tunesmith.web.security import ANSWER_HEADERS, CSP
from tunesmith.web.studio.jobs import Job, Jobs
from tunesmith.web.studio.measured import measured_of
from tunesmith.web.studio.workspace import Workspace

# The screens in the order of the work: address, name, question.
SCREENS = (
    ("data", "Data", "What do I have?"),
    ("decide", "Decide", "Should I tune?"),
    ("tune", "Tune", "How do I tune?"),
    ("runs", "Runs", "Did it help?"),
    ("playground", "Playground", "What does it answer?"),
    ("people", "People", "What do people prefer?"),
    ("ship", "Ship", "How do I use it?"),
)
# Commands whose JSON document has a separate template.
RESULTS = ("audit", "init", "collect", "plan", "learning-curve", "compare", "export", "verify", "preview", "votes")
# As of the other pages, with reports in a frame, and forms that open another page of this server.
POLICY = dict(ANSWER_HEADERS)[CSP].decode().replace("form-action 'none'", "form-action 'self'") + "; frame-src 'self'"
Route = tuple[str, str, Callable[..., Any]]  # method, path, handler


class Studio:
    """Working folder, jobs and templates, shared by the screens.

    Args:
        folder: the working folder.
        offline: commands get `--offline`.
    """

    def __init__(self, folder: Path, *, offline: bool = False) -> None:
        self.workspace = Workspace(folder.resolve())
        self.jobs = Jobs(self.workspace.kept / "jobs", self.workspace.folder)
        self.offline = offline
        self._templates = _templates()
        self.known_runs = KnownRuns()

    def start(self, *words: str, subject: str = "", queued: bool = True) -> Job:
        """Start a command with `--json`; arguments as in `Jobs.start`."""
        options = ["--json", *(["--offline"] if self.offline else [])]
        return self.jobs.start([*words, *options], subject=subject, queued=queued)

    def runs(self, name: str = "") -> list[Entry]:
        """Return all runs, or one, as `list_runs` does, newest first."""
        folder = self.workspace.runs / name
        return list_runs(folder, describe=self.known_runs)[::-1] if folder.is_dir() else []

    def finished_runs(self) -> list[Entry]:
        """Return the finished runs, newest first."""
        return [run for run in self.runs() if run["report"]]

    def render(self, template: str, **values: Any) -> Any:
        """Return a page or a part of one as a response."""
        from fastapi.responses import HTMLResponse

        html = self._templates.get_template(f"studio/{template}.html.jinja").render(
            folder=self.workspace.folder, screens=SCREENS, now=time.time(), result_of=result_of, writes=writes, **values
        )
        return HTMLResponse(html, headers={"content-security-policy": POLICY})


class Screen:
    """A screen: its routes, which are methods.

    Args:
        studio: what the screens share.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio, self.workspace, self.jobs = studio, studio.workspace, studio.jobs

    def routes(self) -> Sequence[Route]:
        """Return the routes of the screen."""
        raise NotImplementedError

    def follow(self, job: Job) -> Any:
        """Return the part of a page that follows a job until it has ended."""
        return self.studio.render("job_part", job=job)


def writes(report: Mapping[str, Any]) -> bool:
    """Return whether the model of a run, from an entry of `list_runs`, writes answers that people can judge."""
    return str(report["what"]).startswith(("instruct", "preference", "rl", "multitask"))


def result_of(words: Sequence[str]) -> str:
    """Return the template of a command's result; empty if it has none."""
    name = "preview" if "--dry-run" in words else "votes" if "--export" in words else words[0]
    return name if name in RESULTS else ""


def redirect(address: str, **query: str) -> Any:
    """Return the response to a posted form that opens another page."""
    from fastapi.responses import Response

    place = quote(address) + (f"?{urlencode(query)}" if query else "")
    return Response(status_code=204, headers={"HX-Redirect": place})


@cache
def _templates() -> Environment:
    made = Environment(loader=PackageLoader("tunesmith.web", "templates"), autoescape=True, undefined=StrictUndefined)
    made.globals["measured_of"] = measured_of
    made.filters.update(
        figure=formatting.figure,
        count=formatting.count,
        size=formatting.size,
        share=formatting.share,
        duration=formatting.duration,
        metric=formatting.metric_name,
        signed=formatting.signed,
        p_value=formatting.p_value,
        bounds=partial(formatting.bounds, sign=True),
        interval=formatting.bounds,
        date=lambda seconds: time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)),
        query=lambda value: urlencode({"": value})[1:],
    )
    made.tests["contains"] = lambda values, value: value in values
    return made
