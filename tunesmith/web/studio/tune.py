"""Screen "Tune": a recipe as a form and as YAML, each changing the other; its preview, and the start of a run."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tunesmith.config.load import make_recipe
from tunesmith.config.messages import invalid_yaml
from tunesmith.data.bounded_yaml import parse_yaml
from tunesmith.data.files import write_whole
from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.web.studio.recipe_form import parse, sections
from tunesmith.web.studio.screen import Route, Screen, redirect
from tunesmith.web.studio.workspace import RECIPES, Workspace, WorkspaceError, clean_name
from tunesmith.web.studio.yaml_edit import set_value

NEW = "model: smollm2-135m\ndata: {train: }\nobjective: classify\ntechnique: lora\n"


class Tune(Screen):
    """The screen."""

    def routes(self) -> Sequence[Route]:
        """Return the routes."""
        return (
            ("GET", "/tune", self._screen),
            ("POST", "/tune/edit", self._edit),
            ("POST", "/tune/save", self._save),
            ("POST", "/tune/new", self._new),
            ("POST", "/tune/preview", self._preview),
            ("POST", "/tune/start", self._start),
        )

    def _screen(self, recipe: str = "") -> Any:
        recipes = self.workspace.recipes()
        if not recipe:
            return self.studio.render("tune", here="tune", recipes=recipes)
        text = self.workspace.path(recipe).read_text(encoding="utf-8")
        preview = self.jobs.about(f"preview of {recipe}", "tune")
        values = {
            "recipe": recipe,
            "preview": preview,
            "run_name": free_run(self, clean_name(Path(recipe).stem)),
            "busy": self._first_of_queue(),
        }
        return self.studio.render("recipe", here="tune", **values, **form_values(text, recipe))

    def _edit(self, fields: dict[str, str]) -> Any:
        """Set one key of the recipe, or take its text as typed, and show both again."""
        text, problem = fields.get("yaml", ""), ""
        if key := fields.get("key"):
            try:
                text = set_value(text, key, parse(fields.get(key, "")))
            except TunesmithError as error:
                problem = str(error)
        values = form_values(text, fields["recipe"])
        return self.studio.render(
            "recipe_editor", recipe=fields["recipe"], **{**values, **({"problem": problem} if problem else {})}
        )

    def _save(self, fields: dict[str, str]) -> Any:
        save_text(self.workspace, fields["recipe"], fields["yaml"])
        return self.studio.render("saved", recipe=fields["recipe"])

    def _new(self, fields: dict[str, str]) -> Any:
        name = self.workspace.new_name(fields["name"] if fields["name"].endswith(RECIPES) else f"{fields['name']}.yaml")
        if (self.workspace.folder / name).exists():
            raise WorkspaceError(f"{name}: exists already; choose another name for the recipe")
        write_whole(self.workspace.folder / name, NEW)
        return redirect("/tune", recipe=name)

    def _preview(self, fields: dict[str, str]) -> Any:
        recipe = fields["recipe"]
        save_text(self.workspace, recipe, fields["yaml"])
        job = self.studio.start("tune", recipe, "--dry-run", subject=f"preview of {recipe}", queued=False)
        return self.follow(job)

    def _start(self, fields: dict[str, str]) -> Any:
        recipe, name = fields["recipe"], self.workspace.new_name(fields["name"])
        checked(parsed(fields["yaml"], recipe), fields["yaml"], recipe)
        if free_run(self, name) != name:
            raise WorkspaceError(
                f"runs/{name}: exists already, or waits; choose another name, or resume it on the page of the run"
            )
        save_text(self.workspace, recipe, fields["yaml"])
        copy = copy_of(recipe, name)
        shutil.copyfile(self.workspace.folder / recipe, self.workspace.folder / copy)
        if self._first_of_queue():  # the recipe may be edited before the run begins
            recipe = copy
        self.studio.start("tune", recipe, "--out", f"runs/{name}", subject=f"runs/{name}")
        return redirect(f"/runs/{name}")

    def _first_of_queue(self) -> str:
        """Return the command that a new run would have to wait for; empty if it starts at once."""
        return next((job.line for job in self.jobs.active() if job.command.queued), "")


def free_run(screen: Screen, name: str) -> str:
    """Return a name that neither a run nor an active job has: the name itself, or with a count at its end."""
    taken = {job.command.subject for job in screen.jobs.active()}
    names = itertools.chain((name,), (f"{name}-{count}" for count in itertools.count(2)))
    return next(free for free in names if f"runs/{free}" not in taken and not (screen.workspace.runs / free).exists())


def copy_of(recipe: str, run: str) -> str:
    """Return the copy of a recipe that is kept for a run; next to it, since paths in a recipe are relative to it."""
    path = Path(original_of(recipe))
    return str(path.with_name(f".{run}@{path.name}"))


def original_of(recipe: str) -> str:
    """Return the recipe from which `copy_of` made this path; without a copy, the path itself."""
    run, _, name = Path(recipe).name.partition("@")
    return str(Path(recipe).with_name(name)) if run.startswith(".") and name else recipe


def form_values(text: str, recipe: str) -> dict[str, Any]:
    """Return what the editor of a recipe shows: its text, its form, and the first problem in one line."""
    problem = ""
    raw: object = {}
    try:
        raw = parsed(text, recipe)
        checked(raw, text, recipe)
    except TunesmithError as error:
        problem = str(error).partition("\n")[0]
    return {"yaml": text, "sections": sections(raw if isinstance(raw, Mapping) else {}), "problem": problem}


def parsed(text: str, recipe: str) -> object:
    """Return the values of a recipe. Raises RecipeError if it is not YAML."""
    try:
        return parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(invalid_yaml(recipe, error)) from None


def checked(raw: object, text: str, recipe: str) -> None:
    """Raise RecipeError if the values are not those of a valid recipe."""
    make_recipe(raw if isinstance(raw, dict) else {}, place=recipe, text=text)


def save_text(workspace: Workspace, recipe: str, text: str) -> None:
    """Replace the text of a recipe in the working folder."""
    path = workspace.path(recipe)
    if path.suffix not in RECIPES:
        raise WorkspaceError(f"{recipe}: not a recipe; its name must end in .yaml")
    write_whole(path, text.replace("\r\n", "\n"))
