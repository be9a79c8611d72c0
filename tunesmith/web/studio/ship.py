"""Screen "Ship": exports with their check, a server with its snippets, and how a run is used from code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.errors import CheckpointError
from tunesmith.report.code_snippets import ask_line, python_lines, transformers_lines
from tunesmith.report.run_data import read_run_data
from tunesmith.web.studio.screen import Route, Screen

FORMATS = ("merged", "gguf", "adapter")


class Ship(Screen):
    """The screen."""

    def routes(self) -> Sequence[Route]:
        """Return the routes."""
        return (
            ("GET", "/ship", self._screen),
            ("POST", "/ship/export", self._export),
            ("POST", "/ship/serve", self._serve),
        )

    def _screen(self, run: str = "") -> Any:
        runs = self.studio.finished_runs()
        chosen = self.workspace.run(run) if run else None
        subject = f"runs/{run}"
        snippets = {}
        if chosen is not None:
            try:
                data = read_run_data(chosen)
                snippets = {
                    "On the command line": ask_line(data.report, chosen),
                    "In Python": "\n".join(python_lines(data)),
                    "In transformers": "\n".join(transformers_lines(data, base=data.report.model)),
                }
            except CheckpointError as error:
                snippets = {"Not available": str(error)}
        values = {
            "runs": runs,
            "run": run,
            "snippets": snippets,
            "formats": FORMATS,
            "exported": self.jobs.about(subject, "export"),
            "server": self.jobs.about(subject, "serve"),
        }
        return self.studio.render("ship", here="ship", **values)

    def _export(self, fields: dict[str, str]) -> Any:
        run = self.workspace.run(fields["run"])
        kind = fields["format"] if fields["format"] in FORMATS else FORMATS[0]
        job = self.studio.start("export", f"runs/{run.name}", "--format", kind, subject=f"runs/{run.name}")
        return self.follow(job)

    def _serve(self, fields: dict[str, str]) -> Any:
        run = self.workspace.run(fields["run"])
        words = ["serve", f"runs/{run.name}", "--port", fields.get("port") or "0"]
        job = self.studio.start(*words, subject=f"runs/{run.name}", queued=False)
        return self.follow(job)
