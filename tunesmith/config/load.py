"""Load a recipe from YAML or plain values, apply changes, and save it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from tunesmith.config.aliases import translate, translate_change, translate_sections
from tunesmith.config.messages import explain, invalid_yaml
from tunesmith.config.recipe import PEOPLE, SELF, VOTES, Recipe, expanded
from tunesmith.data.bounded_yaml import BoundedLoader
from tunesmith.data.files import function_in, is_there, refuse_pipe, report_edit, write_whole
from tunesmith.data.readers.text_file import locate
from tunesmith.data.remote import remote_url
from tunesmith.display import under_home
from tunesmith.errors import RecipeError, suggestion
from tunesmith.objectives import Multitask, Objective, Rl
from tunesmith.objectives.multitask import TaskRows
from tunesmith.plugins import missing
from tunesmith.techniques import Lora

# Values that take precedence over a file of that name; `./votes` is the file.
WORDS = (VOTES, PEOPLE, SELF)
TAG = "tag:yaml.org,2002:"
P = TypeVar("P", bound=BaseModel)
R = TypeVar("R", bound=TaskRows)
S = TypeVar("S", bound=Objective)


class _Once(BoundedLoader):
    """A loader that rejects booleans as keys, and duplicate keys (YAML silently keeps the last).

    Booleans are `true` and `false` only, as in YAML 1.2: `no` may be Norwegian, and `[yes, no]` two labels.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping. Raises ConstructorError with the line of an invalid key."""
        seen = set[str]()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            problem = ""
            if key.tag == f"{TAG}bool":
                problem = f"the key {key.value!r} is a boolean, quote it"
            elif key.value in seen and key.tag != f"{TAG}merge":
                problem = f"duplicate key {key.value!r}"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Once.yaml_implicit_resolvers = {
    first: [resolver for resolver in resolvers if resolver[0] != f"{TAG}bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Once.add_implicit_resolver(f"{TAG}bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))


def load_recipe(path: str | Path, *, changes: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """Load a recipe file.

    Args:
        path: YAML or JSON file; paths in it are relative to its folder.
        changes: `key=value` changes, applied in order.

    Returns:
        The recipe, and a note for each name that was translated.

    Raises:
        RecipeError: the file cannot be read, or a key or value is invalid.
    """
    path = Path(path)
    refuse_pipe(path, RecipeError)
    try:
        report_edit(path)
        text = path.read_text(encoding="utf-8-sig")
        raw = _plain_values(text, as_json=path.suffix.lower() == ".json")
    except FileNotFoundError:
        near = suggestion(path.name, [p.name for p in path.parent.glob("*.y*ml")])
        raise RecipeError(f"{path}: no such file; {near or '`tunesmith init DATA` writes one'}") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: is a folder; name the recipe in it") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: not UTF-8; save the file as UTF-8 (it may be UTF-16 or latin-1)") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(invalid_yaml(path, error)) from None
    if not isinstance(raw, dict):
        got = "an empty file" if raw is None else type(raw).__name__
        raise RecipeError(f"{path}: expected a mapping of keys, got {got}; `tunesmith init DATA` writes a recipe")
    fix = ""
    with suppress(OSError, ValueError, AttributeError):  # none, or not ours
        fix = missing(json.loads(path.with_name("run.json").read_bytes()).get("plugins"))
    if fix:
        raise RecipeError(f"{path}: needs an extension that is not installed; {fix}")
    return make_recipe(raw, place=str(path), folder=path.parent, changes=changes, text=text)


def _plain_values(text: str, *, as_json: bool) -> Any:
    """Parse YAML, or JSON if `as_json`: YAML covers JSON except tabs and surrogate pairs."""
    if as_json:
        with suppress(ValueError):  # the YAML parser reports the line of the error
            return json.loads(text, object_pairs_hook=_once)
    return yaml.load(text, _Once)  # a SafeLoader


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a mapping. Raises ValueError for a duplicate key."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("duplicate key")
    return dict(pairs)


def make_recipe(
    raw: Mapping[str, Any],
    *,
    place: str,
    folder: Path | None = None,
    changes: Sequence[str] = (),
    text: str = "",
) -> tuple[Recipe, list[str]]:
    """Validate a recipe given as plain values.

    Args:
        raw: the values, as parsed from YAML.
        place: file or command, for error messages.
        folder: folder that paths are relative to; None leaves them unchanged.
        changes: `key=value` changes, applied in order.
        text: the YAML of `raw`, in which error messages find the line.

    Returns:
        The recipe, and a note for each name that was translated.

    Raises:
        RecipeError: a key or value is invalid.
    """
    # A section whose lines are all comments is None in YAML.
    values, notes = translate({key: value for key, value in raw.items() if value is not None})
    change_of: dict[str, str] = {}
    for change in changes:
        translated, change_notes = translate_change(change)
        _apply(values, translated)
        change_of[translated.partition("=")[0]] = change
        notes += change_notes
    if isinstance(values.get("data"), str):
        values["data"] = {"train": values["data"]}
    notes += translate_sections(values)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(explain(error, place, changes=change_of, text=text)) from None
    if folder:
        return _anchored(recipe, folder), notes
    return with_places(recipe, rows=str, code=lambda name: _in_folders(name, Path())), notes


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe as YAML."""
    write_whole(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def _anchored(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with its relative paths resolved against its folder, if they exist there."""

    def anchor(value: str) -> str:
        if not value or value in WORDS or Path(value).is_absolute() or remote_url(value):
            return value
        path = folder / value
        if path == Path(value):
            return value  # as written: `./votes` is the file, `votes` is not
        # A missing file is reported relative to the recipe; a name without suffix may be a data set of the Hub.
        missing = bool(path.suffix) and is_there(path.parent) and not is_there(value)
        return str(path) if is_there(path) or locate(path) or missing else value

    def model(name: str) -> str:
        return under_home(anchor(name)) if {"/", "\\"} & set(name) or name.endswith(".gguf") else name

    placed = with_places(recipe, rows=anchor, code=lambda name: _in_folders(name, folder, Path()), model=model)
    return _changed(
        placed,
        model=model(recipe.model),
        compare=_changed(recipe.compare, model=model(recipe.compare.model)),
        documents=_changed(placed.documents, encoder=model(recipe.documents.encoder)),
    )


Place = Callable[[str], str]


def with_places(recipe: Recipe, *, rows: Place, code: Place, model: Place = str) -> Recipe:
    """Return the recipe with changed paths.

    Args:
        recipe: the recipe.
        rows: maps the path of a file of rows, texts or documents.
        code: maps the name of a reward or judge.
        model: maps the name of a model that the objective uses.
    """

    def placed(data: R) -> R:
        files = {"train": data.train, "validation": data.validation, "test": data.test}
        named = {name: rows(value) for name, value in files.items() if isinstance(value, str)}
        return _changed(data, **named)

    def with_files(one: S) -> S:
        places = {**dict.fromkeys(one.file_keys, rows), **dict.fromkeys(one.model_keys, model)}
        return _changed(one, **{key: place(getattr(one, key)) for key, place in places.items()})

    objective = with_files(recipe.objective)
    if isinstance(objective, Multitask):
        tasks = {
            name: _changed(part, data=placed(part.data), objective=with_files(part.objective))
            for name, part in objective.tasks.items()
        }
        objective = _changed(objective, tasks=tasks)
    if isinstance(objective, Rl):
        rewards = objective.reward
        reward = code(rewards) if isinstance(rewards, str) else {code(name): w for name, w in rewards.items()}
        objective = _changed(objective, reward=reward)
    teacher, loop = recipe.teacher, recipe.loop
    return _changed(
        recipe,
        data=placed(recipe.data),
        objective=objective,
        replay=_changed(recipe.replay, source=rows(recipe.replay.source)),
        documents=_changed(recipe.documents, source=rows(recipe.documents.source)),
        teacher=_changed(teacher, model=code(teacher.model), rows=rows(teacher.rows)),
        loop=_changed(loop, judge=code(loop.judge), final_judge=code(loop.final_judge)),
    )


def _changed(part: P, **values: Any) -> P:
    """Return a copy with these values; a default stays unset, so that `tunesmith init` does not write it."""
    return part.model_copy(update={key: value for key, value in values.items() if value != getattr(part, key)})


def _in_folders(reward: str, *folders: Path) -> str:
    """Return the path of a reward run or module in the first folder that has it, other names unchanged.

    The working folder is one of them, because the command of an installed package imports no modules from there.
    """
    module, function = function_in(reward)
    if not reward or reward in WORDS or Path(module).is_absolute():
        return reward
    name = module if not function or module.endswith(".py") else f"{module.replace('.', '/')}.py"
    file = next((folder / name for folder in folders if is_there(folder / name)), Path(module))
    if file == Path(module):
        return reward  # as written: `./votes` is the file, `votes` is not
    return f"{file}:{function}" if function else str(file)


def _apply(values: dict[str, Any], change: str) -> None:
    """Set one dotted key, as in `technique.rank=8`."""
    key, sign, text = change.partition("=")
    if not sign or not key:
        raise RecipeError(f"--set {change}: expected KEY=VALUE; write for example --set technique.rank=8")
    *parents, last = key.split(".")
    section = values
    for name in parents:
        inner = section.get(name)
        if inner is None:
            # The default technique, with one option changed.
            inner = {"kind": Lora().kind} if name == "technique" else {}
        inner = expanded(name, inner)
        section[name] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        section = inner
    try:
        # `key=` sets an empty string, not YAML's null.
        value = _plain_values(text, as_json=text[0] in '"[{') if text else text
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RecipeError(f"--set {change}: the value is invalid YAML; quote it") from None
    sentence = isinstance(value, Mapping) and not text.lstrip().startswith("{")
    if sentence or (isinstance(value, str) and " #" in text and text.lstrip()[0] not in "\"'"):
        value = text  # "Summarise in one line:" is not a mapping, "Answer question #3" has no comment
    section[last] = value
