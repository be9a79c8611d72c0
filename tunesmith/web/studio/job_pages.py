"""Jobs: their list, and what each has printed; a part of a page that follows one until it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.web.studio.screen import Route, Screen, redirect


class JobPages(Screen):
    """The screen."""

    def routes(self) -> Sequence[Route]:
        """Return the routes."""
        return (
            ("GET", "/jobs", self._listed),
            ("GET", "/queue", self._queue),
            ("POST", "/queue/{name}/up", self._up),
            ("POST", "/queue/{name}/remove", self._remove),
            ("GET", "/jobs/{name}", self._one),
            ("GET", "/jobs/{name}/part", self._part),
            ("POST", "/jobs/{name}/stop", self._stop),
            ("POST", "/jobs/{name}/again", self._again),
            ("POST", "/jobs/{name}/delete", self._delete),
        )

    def _listed(self) -> Any:
        return self.studio.render("jobs", here="jobs", jobs=list(self.studio.jobs)[:200])

    def _queue(self) -> Any:
        return self.studio.render("queue", active=self.jobs.active(), waiting=self.jobs.waiting())

    def _up(self, name: str) -> Any:
        self.jobs.move_up(self.jobs.get(name).name)
        return self._queue()

    def _remove(self, name: str) -> Any:
        job = self.jobs.get(name)
        if job in self.jobs.waiting():
            job.stop()
        return self._queue()

    def _one(self, name: str) -> Any:
        return self.studio.render("job", here="jobs", job=self.jobs.get(name))

    def _part(self, name: str) -> Any:
        return self.studio.render("job_part", job=self.jobs.get(name))

    def _stop(self, name: str) -> Any:
        self.jobs.get(name).stop()
        return self._part(name)

    def _again(self, name: str) -> Any:
        command = self.jobs.get(name).command
        job = self.jobs.start(command.words, subject=command.subject, queued=command.queued)
        return redirect(f"/jobs/{job.name}")

    def _delete(self, name: str) -> Any:
        self.jobs.delete(name)
        return redirect("/jobs")
