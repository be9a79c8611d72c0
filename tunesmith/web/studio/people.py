"""Screen "People": sessions in which people judge answers or label rows, and their state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.web.studio.screen import Route, Screen, redirect
from tunesmith.web.studio.workspace import WorkspaceError

SESSIONS = ("feedback", "label")


class People(Screen):
    """The screen."""

    def routes(self) -> Sequence[Route]:
        """Return the routes."""
        return (
            ("GET", "/people", self._screen),
            ("POST", "/people/feedback", self._feedback),
            ("POST", "/people/label", self._label),
        )

    def _screen(self) -> Any:
        runs = self.studio.finished_runs()
        sessions = [job for job in self.jobs if job.command.words[0] in SESSIONS]
        values = {"runs": runs, "files": self.workspace.data(), "sessions": sessions[:50]}
        return self.studio.render("people", here="people", **values)

    def _feedback(self, fields: dict[str, str]) -> Any:
        run = self.workspace.run(fields.get("run", ""))
        words = ["feedback", str(run.relative_to(self.workspace.folder)), "--rows", fields.get("rows") or "100"]
        if fields.get("against"):
            against = fields["against"]
            words += ["--against", against if against == "base" else f"runs/{self.workspace.run(against).name}"]
        return self._start(words, fields, subject=f"runs/{run.name}")

    def _label(self, fields: dict[str, str]) -> Any:
        path = fields.get("path", "")
        labels = ["--labels", ",".join(fields["labels"].split())] if fields.get("labels", "").strip() else []
        self.workspace.path(path)
        return self._start(["label", path, *labels], fields, subject=path)

    def _start(self, words: list[str], fields: dict[str, str], *, subject: str) -> Any:
        if fields.get("shared") == "on":  # other machines may connect, with the token in the link
            words += ["--host", "0.0.0.0"]
        if any(job.is_active and job.command.words[:2] == words[:2] for job in self.jobs):
            raise WorkspaceError(f"{words[0]} {words[1]}: a session is open already; use its link, or close it first")
        self.studio.start(*words, "--port", "0", subject=subject, queued=False)
        return redirect("/people")
