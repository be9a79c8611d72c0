"""Screen "Decide": what tuning would cost and gain, how much data is enough, and which arm is best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.web.studio.screen import Route, Screen
from tunesmith.web.studio.workspace import WorkspaceError

# What can be asked of a recipe: command, title, and what it takes.
QUESTIONS = (
    ("plan", "Plan", "Which techniques fit this machine, and what does each cost and gain? Takes about a minute."),
    (
        "compare",
        "Compare",
        "Prompting, retrieval and tuning on the same held-out rows, with one verdict. Trains models.",
    ),
    ("learning-curve", "Learning curve", "How much would more rows help? Trains on growing parts of the rows."),
)


class Decide(Screen):
    """The screen."""

    def routes(self) -> Sequence[Route]:
        """Return the routes."""
        return (
            ("GET", "/decide", self._screen),
            ("POST", "/decide/{command}", self._ask),
        )

    def _screen(self, recipe: str = "") -> Any:
        recipes = self.workspace.recipes()
        if recipe:
            self.workspace.path(recipe)
        found = {command: self.jobs.about(recipe, command) for command, *_ in QUESTIONS} if recipe else {}
        values = {"recipe": recipe, "recipes": recipes, "questions": QUESTIONS, "found": found}
        return self.studio.render("decide", here="decide", **values)

    def _ask(self, command: str, fields: dict[str, str]) -> Any:
        recipe = fields["recipe"]
        self.workspace.path(recipe)
        name = Path(recipe).stem
        if command not in [question for question, *_ in QUESTIONS]:
            raise WorkspaceError(f"{command}: unknown question; use the buttons of the page")
        words = {
            "plan": ["plan", recipe],
            "compare": ["compare", recipe, "--out", f"comparisons/{name}"],
            "learning-curve": ["learning-curve", recipe, "--out", f"runs/need-{name}"],
        }[command]
        if command == "compare" and fields.get("minutes"):
            words += ["--budget", fields["minutes"]]
        if command == "learning-curve" and fields.get("minutes"):
            words += ["--minutes", fields["minutes"]]
        job = self.studio.start(*words, subject=recipe)
        return self.follow(job)
