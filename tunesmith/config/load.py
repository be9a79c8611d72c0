"""A recipe read from YAML or plain values, changed, and saved."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tunesmith.config.aliases import translate, translate_change, translate_sections
from tunesmith.config.recipe import PEOPLE, SELF, VOTES, Data, Recipe, nearest
from tunesmith.config.unsupported import why_left_out
from tunesmith.data.files import is_there
from tunesmith.errors import RecipeError, key_of
from tunesmith.objectives import OBJECTIVES, Multitask, Rl
from tunesmith.objectives.multitask import TaskRows, TaskSection
from tunesmith.techniques import TECHNIQUES, Lora

# Words that are read before any file of that name; `./votes` is the file.
WORDS = (VOTES, PEOPLE, SELF)
TAG = "tag:yaml.org,2002:"
# What is said for pydantic's words, by the kind of fault.
FINDINGS = {
    "dict_type": "has to be a mapping of keys",
    "model_type": "has to be a mapping of keys",
    "model_attributes_type": "has to be a mapping of keys",
    "string_type": "has to be a text, in quotes where it is a number",
    "tuple_type": "has to be a list, such as [a, b]",
    "list_type": "has to be a list, such as [a, b]",
    "string_pattern_mismatch": "a name begins with a letter of a to z, and only such letters, digits, - and _ follow",
}
# Sections that a word may stand for, and the key that the word is.
SHORT = {"objective": "kind", "technique": "kind", "documents": "source", "data": "train"}
R = TypeVar("R", bound=TaskRows)


class _Once(yaml.SafeLoader):
    """YAML in which no key stands twice beside itself, where the last would silently win, and none is a truth value.

    Truth values are true and false, as in YAML 1.2: `no` is Norwegian, and `[yes, no]` are two labels.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping. Raises ConstructorError, which names the line."""
        seen = set[str]()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            found = ""
            if key.tag == f"{TAG}bool":
                found = f"{key.value!r} is a truth value here, quote it"
            elif key.value in seen and key.tag != f"{TAG}merge":
                found = f"{key.value!r} stands twice"
            if found:
                raise yaml.constructor.ConstructorError(None, None, found, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Once.yaml_implicit_resolvers = {
    first: [one for one in found if one[0] != f"{TAG}bool"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Once.add_implicit_resolver(f"{TAG}bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))


def load_recipe(path: str | Path, *, changes: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """The recipe in a YAML file with `key=value` changes applied, and notes on names that were translated.

    Paths inside it count from the file's folder. Raises RecipeError.
    """
    path = Path(path)
    try:
        raw = _plain_values(path.read_text(encoding="utf-8"), as_json=path.suffix.lower() == ".json")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], 1)
        raise RecipeError(
            f"{path}: no such file; {f'did you mean {near[0]}?' if near else '`tunesmith init DATA` writes one'}"
        ) from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: a folder; name the recipe in it") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: not UTF-8; save the file as UTF-8 (it may be UTF-16 or latin-1)") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
        raise RecipeError(f"{path}: not YAML ({said}); mend that line") from None
    if not isinstance(raw, dict):
        raise RecipeError(
            f"{path}: a recipe is a mapping of keys, found {type(raw).__name__}; `tunesmith init DATA` writes one"
        )
    return make_recipe(raw, place=str(path), folder=path.parent, changes=changes)


def _plain_values(text: str, *, as_json: bool) -> Any:
    """The values in YAML; or in JSON, which is YAML but for tabs and letters written in two halves."""
    if as_json:
        with suppress(ValueError):  # then YAML says what is wrong
            return json.loads(text, object_pairs_hook=_once)
    return yaml.load(text, _Once)  # a SafeLoader


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a mapping. Raises ValueError where a key stands twice."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def make_recipe(
    raw: Mapping[str, Any], *, place: str, folder: Path | None = None, changes: Sequence[str] = ()
) -> tuple[Recipe, list[str]]:
    """A checked recipe from plain values, and notes on names that were translated. Raises RecipeError."""
    # A section of which every line is a comment is as good as not there.
    values, notes = translate({key: value for key, value in raw.items() if value is not None})
    asked: dict[str, str] = {}
    for change in changes:
        ours, told = translate_change(change)
        _apply(values, ours)
        asked[ours.partition("=")[0]] = change
        notes += told
    if isinstance(values.get("data"), str):
        values["data"] = {"train": values["data"]}
    notes += translate_sections(values)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_explain(error, place, asked)) from None
    return (_anchored(recipe, folder) if folder else recipe), notes


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe as YAML."""
    path.write_text(
        yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )


def _anchored(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with data paths that exist beside it made to start from its folder."""

    def anchor(value: str) -> str:
        if not value or value in WORDS or Path(value).is_absolute():
            return value
        beside = folder / value
        # A file that is nowhere is missed beside the recipe, where its neighbours are; other words may name Hub data.
        missed = bool(beside.suffix) and is_there(beside.parent) and not is_there(value)
        return str(beside) if is_there(beside) or missed else value

    def model(name: str) -> str:
        return anchor(name) if "/" in name or name.endswith(".gguf") else name

    placed = with_places(recipe, rows=anchor, code=lambda name: _beside(name, folder))
    models = {
        "model": model(recipe.model),
        "compare": recipe.compare.model_copy(update={"model": model(recipe.compare.model)}),
        "documents": placed.documents.model_copy(update={"encoder": model(recipe.documents.encoder)}),
    }
    return placed.model_copy(update=models)


Place = Callable[[str], str]


def with_places(recipe: Recipe, *, rows: Place, code: Place) -> Recipe:
    """The recipe with each place it names but the model's changed: of files of rows and texts, and of what judges."""

    def placed(data: R) -> R:
        files = {"train": data.train, "validation": data.validation, "test": data.test}
        named = {name: rows(value) for name, value in files.items() if isinstance(value, str)}
        return data.model_copy(update=named)

    objective = recipe.objective
    if isinstance(objective, Multitask):
        tasks = {n: part.model_copy(update={"data": placed(part.data)}) for n, part in objective.tasks.items()}
        objective = objective.model_copy(update={"tasks": tasks})
    if isinstance(objective, Rl):
        given = objective.reward
        reward = code(given) if isinstance(given, str) else {code(name): weight for name, weight in given.items()}
        objective = objective.model_copy(update={"reward": reward})
    replay = recipe.replay.model_copy(update={"source": rows(recipe.replay.source)})
    documents = recipe.documents.model_copy(update={"source": rows(recipe.documents.source)})
    judges = {"judge": code(recipe.loop.judge), "final_judge": code(recipe.loop.final_judge)}
    changed = {"data": placed(recipe.data), "objective": objective, "loop": recipe.loop.model_copy(update=judges)}
    return recipe.model_copy(update={**changed, "replay": replay, "documents": documents})


def _beside(reward: str, folder: Path) -> str:
    """The same reward; a run or a module in the folder, called otherwise than a word of ours, is named by its path."""
    module, colon, function = reward.partition(":")
    if not reward or reward in WORDS or Path(module).is_absolute():
        return reward
    file = (
        folder / (module if module.endswith(".py") else f"{module.replace('.', '/')}.py") if colon else folder / module
    )
    return f"{file}{colon}{function}" if is_there(file) else reward


def _apply(values: dict[str, Any], change: str) -> None:
    """Set one dotted key: `technique.rank=8`."""
    key, sign, text = change.partition("=")
    if not sign or not key:
        raise RecipeError(f"--set {change}: not key=value; write for example --set technique.rank=8")
    *parents, last = key.split(".")
    place = values
    for name in parents:
        inner = place.get(name)
        if isinstance(inner, str) and name in SHORT:
            inner = {SHORT[name]: inner}
        if inner is None and name == "technique":
            inner = {"kind": Lora().kind}  # the recipe's own default, of which one option changes
        place[name] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        place = inner
    try:
        # Where nothing stands an empty text is meant, not YAML's null.
        value = _plain_values(text, as_json=text[0] in '"[{') if text else text
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RecipeError(f"--set {change}: the value is not YAML; quote it") from None
    sentence = isinstance(value, Mapping) and not text.lstrip().startswith("{")
    if sentence or (isinstance(value, str) and " #" in text and text.lstrip()[0] not in "\"'"):
        value = text  # "Summarise in one line:" and "Answer question #3" are sentences, no mapping and no comment
    place[last] = value


def _explain(error: ValidationError, place: str, asked: Mapping[str, str]) -> str:
    """One line for the first fault: place, or the change of those asked for that brought it, dotted path, finding."""
    fault = error.errors()[0]
    # pydantic names the member of a union inside the path; people wrote no such key.
    path = [part for part in key_of(fault["loc"]) if part != "[key]"]
    section = _section(path)
    dotted = ".".join(
        p for i, p in enumerate(path) if not (i and path[i - 1] in ("objective", "technique") and p in _KINDS)
    )
    unknown = fault["type"] == "extra_forbidden"
    for key, change in asked.items():
        # An unknown key comes of its own change, or of the one that made its section another kind's.
        odd = unknown and (key.startswith(f"{dotted}.") or dotted.startswith(f"{key.removesuffix('.kind')}."))
        if odd or key in (dotted, f"{dotted}.kind") or dotted.startswith(f"{key}."):
            place = change
    if unknown and (why := why_left_out(path[-1])) and path[-1] not in _OPTIONS:
        return f"{place}: {dotted}: not a key here: {why}; leave it out"
    if unknown:
        known = sorted(section)
        shared = "tasks" in path and path[-2] == "data" and path[-1] in Data.model_fields
        hint = f", data.{path[-1]} is for all tasks" if shared else nearest(path[-1], known)
        return f"{place}: unknown key {dotted!r}{hint}; keys here: {', '.join(known)}"
    if fault["type"] == "missing":
        return f"{place}: {dotted} is missing; add it"
    finding = FINDINGS.get(fault["type"], fault["msg"].removeprefix("Value error, "))
    if fault["type"] == "literal_error":  # pydantic writes Python, recipes are YAML
        finding = finding.replace("True or False", "true or false")
    if not path:  # a finding about the recipe as a whole, which names its own keys
        return f"{place}: {finding}"
    return (
        f"{place}: {dotted}: {finding} (found {fault['input']!r})"
        if "unknown kind" not in finding
        else f"{place}: {dotted}: {finding}"
    )


_OPTIONS = {key for part in (*OBJECTIVES, *TECHNIQUES) for key in part.model_fields}
_KINDS = {get_args(part.model_fields["kind"].annotation)[0] for part in (*OBJECTIVES, *TECHNIQUES)}


def _section(path: Sequence[str]) -> Mapping[str, Any]:
    """The fields of the section a path ends in."""
    fields = Recipe.model_fields.items()
    models = {
        n: f.annotation for n, f in fields if isinstance(f.annotation, type) and issubclass(f.annotation, BaseModel)
    }
    models["tasks"] = TaskSection
    if "tasks" in path:
        models["data"] = TaskRows
    for part in (*OBJECTIVES, *TECHNIQUES):
        models[get_args(part.model_fields["kind"].annotation)[0]] = part
    for name in reversed(path[:-1]):
        if name in models:
            return models[name].model_fields
    return Recipe.model_fields
