"""Screen "Decide": what tuning would cost and gain, how much data is enough, and which arm is best."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tunesmith.config import Recipe, load_recipe
from tunesmith.data.files import move
from tunesmith.errors import TunesmithError
from tunesmith.models.loading.locate import local_family
from tunesmith.report.formatting import duration
from tunesmith.training.run_folder import identity_of
from tunesmith.web.studio.jobs import Job
from tunesmith.web.studio.measured import ABOUT, pages
from tunesmith.web.studio.runs import framed
from tunesmith.web.studio.screen import Route, Screen, redirect
from tunesmith.web.studio.tune import free_run
from tunesmith.web.studio.workspace import WorkspaceError, clean_name

# Command -> start of its folder, option of a time limit, and result and report in the folder.
ANSWERS = {
    "compare": ("comparisons/", "--budget", "comparison.json", "report.html"),
    "learning-curve": ("runs/need-", "--minutes", "need.json", "need.html"),
}


class Decide(Screen):
    """The screen."""

    def routes(self) -> Sequence[Route]:
        """Return the routes."""
        return (
            ("GET", "/decide", self._screen),
            ("GET", "/decide/answer", self._answer),
            ("GET", "/decide/report", self._report),
            ("POST", "/decide/keep", self._keep),
            ("POST", "/decide/{command}", self._ask),
        )

    def _screen(self, recipe: str = "") -> Any:
        values: dict[str, Any] = {"recipe": recipe, "recipes": self.workspace.recipes(), "about": ABOUT}
        values |= {"answers": self._answers(), "problem": ""}
        if recipe:
            found = {command: self.jobs.about(recipe, command) for command in ("plan", *ANSWERS)}
            finished = {name for name, job in found.items() if job and job.state().name == "finished"}
            main = "" if "compare" in finished else "compare" if "plan" in finished else "plan"
            try:
                read = self._recipe(recipe)
                values |= {"read": read, "arms": arms_for(read), "time": time_of_run(read, found["plan"])}
            except TunesmithError as error:
                values["problem"] = str(error)
            values |= {"found": found, "main": main}
        return self.studio.render("decide", here="decide", **values)

    def _recipe(self, recipe: str, changes: Sequence[str] = ()) -> Recipe:
        """Read a recipe. Raises WorkspaceError, whose place is relative to the working folder."""
        path = self.workspace.path(recipe)
        try:
            return load_recipe(path, changes=changes)[0]
        except TunesmithError as error:
            raise WorkspaceError(str(error).replace(f"{self.workspace.folder}/", "").partition("\n")[0]) from error

    def _ask(self, command: str, fields: dict[str, str]) -> Any:
        recipe, minutes = fields["recipe"], fields.get("minutes", "").strip()
        changes = self._changes(fields) if command == "compare" else []
        read = self._recipe(recipe, changes)
        words = [command, recipe, *(word for change in changes for word in ("--set", change))]
        if command in ANSWERS:
            place, limit, *_ = ANSWERS[command]
            # A limit is part of what a comparison measures; a learning curve keeps its runs.
            digest = self._digest(read, minutes if command == "compare" else "")
            words += ["--out", f"{place}{Path(recipe).stem}-{digest}", *([limit, minutes] if minutes else [])]
        elif command != "plan":
            raise WorkspaceError(f"{command}: unknown question; use the buttons of the page")
        return self.follow(self.studio.start(*words, subject=recipe))

    def _changes(self, fields: Mapping[str, str]) -> list[str]:
        """Return the changes of the recipe that the form of a comparison asks for."""
        recipe = self._recipe(fields["recipe"])
        arms = [arm for arm in arms_for(recipe) if f"arm {arm}" in fields]
        source = fields.get("documents", "").strip()
        changes = [f"arms=[{', '.join(arms)}]"] if arms != recipe.arms else []
        if source and self.workspace.path(source) != Path(recipe.documents.source):
            changes.append(f"documents.source={source}")
        return changes

    def _digest(self, recipe: Recipe, minutes: str) -> str:
        """Return a digest of a recipe and its files, without its arms: one more keeps the answers of the others."""
        named = (recipe.data.train, recipe.data.validation, recipe.data.test, recipe.documents.source)
        paths = [self.workspace.folder / name for name in named if name and isinstance(name, str)]
        files = [file for path in paths for file in (path, *sorted(path.rglob("*")))]  # of a folder of documents, all
        marks = [file.stat().st_mtime_ns for file in files if file.exists()]
        return identity_of(recipe.model_dump(mode="json", exclude={"arms", "machine", "style"}), marks, minutes)[:6]

    def _answers(self) -> list[dict[str, Any]]:
        """Return the finished comparisons and learning curves of the folder, newest first, whoever started them."""
        found: list[dict[str, Any]] = []
        patterns = [f"{depth}/{result}" for *_, result, _ in ANSWERS.values() for depth in ("*", "*/*")]
        for path in (path for pattern in patterns for path in self.workspace.folder.glob(pattern)):
            for page in pages(path.parent, path.name):
                verdict = page.get("verdict", {})
                text = page.get("sentence") or f"{verdict.get('text')}: {verdict.get('arm')}"
                place = path.parent.relative_to(self.workspace.folder)
                found.append({"folder": place, "text": text, "changed": path.stat().st_mtime})
        return sorted(found, key=lambda entry: -float(entry["changed"]))

    def _answer(self, folder: str) -> Any:
        path = self.workspace.path(folder)
        for command, (*_, result, report) in ANSWERS.items():
            for page in pages(path, result):
                values = {"command": command, "result": page, "report": f"{folder}/{report}", "job": None}
                return self.studio.render("answer", here="decide", place=folder, **values)
        raise WorkspaceError(f"{folder}: no finished comparison or learning curve; run its command again")

    def _report(self, path: str) -> Any:
        from fastapi.responses import HTMLResponse

        report = self.workspace.path(path)
        if report.name not in (names[-1] for names in ANSWERS.values()):
            raise WorkspaceError(f"{path}: not a report; open it from the list of answers")
        page, policy = framed(report.read_text(encoding="utf-8"))
        return HTMLResponse(page, headers={"content-security-policy": policy})

    def _keep(self, fields: dict[str, str]) -> Any:
        """Copy the run of a tuned arm to the runs, where the other screens find it, unless it is there already."""
        run = self.workspace.path(fields["run"])
        if not (run / "report.json").is_file():
            raise WorkspaceError(f"{fields['run']}: not a finished run; it may have been deleted")
        page, runs = "report.json", self.workspace.runs
        same = (kept.parent.name for kept in runs.glob(f"*/{page}") if filecmp.cmp(kept, run / page, shallow=False))
        if not (name := next(same, "")):
            name = free_run(self, clean_name(run.parent.name))
            runs.mkdir(exist_ok=True)
            with TemporaryDirectory(prefix=".", dir=runs) as place:  # a copy that is interrupted is not a run
                move(shutil.copytree(run, Path(place, name)), runs / name)
        return redirect("/ship", run=name)


def arms_for(recipe: Recipe) -> list[str]:
    """Return the arms that can be chosen; none if the rows have no answer that every arm can give."""
    wrong = {"classify": ["raft", "tuned-retriever"], "instruct": ["tf-idf"]}.get(recipe.objective.kind, list(ABOUT))
    if _is_encoder(recipe.compare.model or recipe.model):
        wrong += ["prompt", "few-shot", "rag", "tuned-retriever"]
    if getattr(recipe.objective, "output", "") == "linear" or _is_encoder(recipe.model):
        wrong += ["tuned+rag"]
    return list(dict.fromkeys([*(arm for arm in ABOUT if arm not in wrong), *recipe.arms]))


def _is_encoder(model: str) -> bool:
    """Return whether a model is known to be an encoder, which answers no prompt, without loading it."""
    with suppress(TunesmithError):  # reported by the commands
        return local_family(model) == "encoder"
    return False


def time_of_run(recipe: Recipe, plan: Job | None) -> str:
    """Return how long a run takes, in words, by the plan of the recipe if there is one."""
    options = (plan.output() or {}).get("options", []) if plan else []
    whole = next((part["whole_seconds"] for part in options if part["technique"] == recipe.technique.kind), None)
    if not whole:
        return "a time that the plan predicts"
    return f"about {duration(whole['expected'])} ({duration(whole['low'])} to {duration(whole['high'])})"
