"""Reference pages that are read from the code: options, Python names, JSON documents, recipe keys."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import griffe
from pydantic import BaseModel, TypeAdapter

import tunesmith
from docs.site import recipe_keys
from docs.site.pages import toctree
from tunesmith.cli.main import parser
from tunesmith.config import Recipe

ROOT = Path(__file__).parents[2]
DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
SKIPPED = re.compile(r"  # doctest: \+\w+")
# Groups of the Python page: heading, module that defines the functions.
GROUPS = (
    ("Rows, labels and votes", "tunesmith.api_data"),
    ("Deciding and training", "tunesmith.api_training"),
    ("Models and runs", "tunesmith.api_models"),
)
# Page that a generated page belongs to -> its name, its title, what it has.
GENERATED = {
    "reference/commands": ("options", "Every option", "all options of all commands, read from the parsers"),
    "reference/python": ("api", "Every function and class", "parameters, results and errors, read from the code"),
    "reference/run-folder": ("json", "JSON documents", "every field of `report.json` and of `--json`"),
    "reference/recipe": ("recipe-schema", "Recipe schema", "every key as `--set` takes it, and the JSON schema"),
}


def write(source: Path, extra: Path) -> None:
    """Write the generated pages, and link each from the page that it belongs to.

    Args:
        source: folder of the pages.
        extra: folder of the files that are copied to the site; it gets the JSON schemas.
    """
    made = {"options": options_page(), "api": api_page(), "json": json_page(), "recipe-schema": recipe_page()}
    for parent, (name, title, what) in GENERATED.items():
        (source / "reference" / f"{name}.md").write_text(made[name], "utf-8")
        page = source / f"{parent}.md"
        text = page.read_text("utf-8").rstrip()
        page.write_text(
            f"{text}\n\n## Generated reference\n\n- [{title}]({name}.md): {what}\n{toctree([name], '')}", "utf-8"
        )
    folder = extra / "schemas"
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in {"recipe": Recipe, **{name: model for name, _, model in documents()}}.items():
        schema = json.dumps(TypeAdapter(model).json_schema(), indent=1)
        (folder / f"{name}.json").write_text(schema + "\n", "utf-8")


def cell(text: str) -> str:
    """Return text for a cell of a table: on one line, no HTML, no separators."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# ------------------------------------------------------------------ commands


def subcommands(command: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """Return the parsers of the subcommands of a command; former names are left out."""
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            listed = {choice.dest for choice in action._choices_actions}
            return {name: one for name, one in action.choices.items() if name in listed}
    return {}


def all_commands() -> Iterator[argparse.ArgumentParser]:
    """Yield the parser of every command, each followed by those of its subcommands."""
    for command in subcommands(parser()).values():
        yield command
        yield from subcommands(command).values()


def options_page() -> str:
    """Return the page with every option of every command."""
    parts = [
        "# Every option\n\nRead from the parsers of the commands when the site is built. [Commands](commands.md) has "
        "the purpose of each, and the exit codes."
    ]
    for command in all_commands():
        command.format_help()  # puts the kinds of objectives and techniques into the help of options
        usage = re.sub(r"\s+", " ", command.format_usage().removeprefix("usage: ").strip())
        usage = textwrap.fill(usage, 90, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
        parts.append(f"## {command.prog}\n\n{cell(command.description or '')}\n\n```text\n{usage}\n```")
        rows = [row for action in command._actions for row in option_rows(command, action)]
        parts.append("| argument | meaning |\n|---|---|\n" + "\n".join(rows))
        if command.epilog:
            parts.append(f"```text\n{textwrap.dedent(command.epilog).strip()}\n```")
    return "\n\n".join(parts) + "\n"


def option_rows(command: argparse.ArgumentParser, action: argparse.Action) -> Iterator[str]:
    """Yield the line of the table for an argument, unless it is hidden."""
    hidden = action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    if hidden:
        return
    formatter = argparse.HelpFormatter(command.prog, width=10_000)
    names = formatter._format_action_invocation(action)
    yield f"| `{cell(names)}` | {cell(formatter._expand_help(action) if action.help else '')} |"


# ------------------------------------------------------------------ Python


@cache
def package() -> griffe.Module:
    """Return the package as its source states it; nothing is imported."""
    loaded = griffe.load("tunesmith", search_paths=[ROOT], docstring_parser="google")
    assert isinstance(loaded, griffe.Module)
    return loaded


def public(name: str) -> griffe.Object:
    """Return the definition of a name, followed through re-exports.

    Args:
        name: path below the package, such as `tune` or `inference.local_model.LocalModel`.
    """
    found = package()[name]
    return found.final_target if found.is_alias else found


def api_page() -> str:
    """Return the page with every public name."""
    names = [name for name in tunesmith.__all__ if name != "__version__"]
    objects = {name: public(name) for name in names}
    parts = [
        "# Every function and class\n\nRead from the source when the site is built. [Python API](python.md) explains "
        "how the functions work together.\n\n`tunesmith.__version__` is the version as text."
    ]
    for heading, module in GROUPS:
        inside = [entry(f"tunesmith.{name}", item) for name, item in objects.items() if item.module.path == module]
        parts.append("\n\n".join([f"## {heading}", *inside]))
    errors = {name for name, item in objects.items() if item.module.path == "tunesmith.errors"}
    classes = [name for name, item in objects.items() if item.is_class and name not in errors]
    parts.append("\n\n".join(["## Classes", *(entry(f"tunesmith.{name}", objects[name]) for name in classes)]))
    model = public("inference.local_model.LocalModel")
    described = re.findall(r"`\.(\w+)\(", (ROOT / "docs" / "reference" / "python.md").read_text("utf-8"))
    methods = [member(model, name) for name in dict.fromkeys(described) if name in model.members]
    parts.append("\n\n".join(["## A loaded model", entry("LocalModel", model, methods)]))
    run = public("pipelines.tune.tune.Run")
    parts.append("\n\n".join(["## A finished run", entry("Run", run)]))
    events = [item for item in public("events").members.values() if not item.is_alias and item.is_class]
    listed = [entry(f"tunesmith.events.{item.name}", item) for item in events if not item.name.startswith("_")]
    parts.append("\n\n".join(["## Events", "A callback receives these.", *listed]))
    parts.append("\n\n".join(["## Errors", *(entry(f"tunesmith.{name}", objects[name]) for name in sorted(errors))]))
    return "\n\n".join(parts) + "\n"


def member(model: griffe.Object, name: str) -> str:
    """Return the entry of a method."""
    found = model.members[name]
    assert isinstance(found, griffe.Object)
    return entry(name, found)


def entry(name: str, item: griffe.Object, methods: Iterable[str] = ()) -> str:
    """Return a directive for one name, with its signature and its docstring."""
    kind = "py:method" if item.is_function and "." not in name else "py:function" if item.is_function else "py:class"
    colons = ":::::" if item.is_class else "::::"
    body = "\n\n".join([docstring(item), *methods])
    return f"{colons}{{{kind}}} {name}{signature(item)}\n\n{body}\n{colons}"


def signature(item: griffe.Object) -> str:
    """Return the parameters of a function, or of the constructor of a class; `` for an error."""
    if not isinstance(item, griffe.Function | griffe.Class):
        return ""
    if isinstance(item, griffe.Class) and item.path.startswith("tunesmith.errors."):
        return ""
    words: list[str] = []
    star = False
    for one in item.parameters:
        if one.name in ("self", "cls"):
            continue
        if one.kind is griffe.ParameterKind.var_positional:
            star = True
        if one.kind is griffe.ParameterKind.keyword_only and not star:
            words.append("*")
            star = True
        prefix = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(one.kind, "")
        shown = f"{prefix}{one.name}" + (f": {one.annotation}" if one.annotation is not None else "")
        words.append(shown if one.default is None or prefix else f"{shown} = {one.default}")
    returns = item.returns if isinstance(item, griffe.Function) else None
    return f"({', '.join(words)})" + (f" -> {returns}" if returns is not None else "")


def docstring(item: griffe.Object) -> str:
    """Return the docstring of a name as Markdown."""
    return "\n\n".join(section(part) for part in item.docstring.parse("google")) if item.docstring else ""


def section(part: griffe.DocstringSection) -> str:
    """Return one section of a docstring as Markdown."""
    kinds = griffe.DocstringSectionKind
    if part.kind is kinds.text:
        return DOCTEST.sub(lambda found: f"```python\n{SKIPPED.sub('', found[0])}\n```", part.value)
    if part.kind is kinds.examples:
        return "\n\n".join(f"```python\n{SKIPPED.sub('', text)}\n```" for _, text in part.value)
    heading = part.kind.value.replace("_", " ").capitalize()
    heading = {"Other parameters": "Parameters", "Parameters": "Arguments"}.get(heading, heading)
    lines = []
    for one in part.value:
        name = getattr(one, "name", "") or ("" if part.kind is kinds.returns else str(one.annotation or ""))
        label = f"`{name}`: " if name else ""
        lines.append(f"- {label}{' '.join(one.description.split())}")
    return f"**{heading}**\n\n" + "\n".join(lines)


# ------------------------------------------------------------------ JSON documents


def documents() -> Iterator[tuple[str, str, Any]]:
    """Yield name, command and type of each JSON document that a command prints the schema of."""
    for command in all_commands():
        for action in command._actions:
            if "--schema" in action.option_strings:
                module, name = str(action.const).split(":")
                words = command.prog.removeprefix("tunesmith ").replace(" ", "-")
                file = {"tune": "report"}.get(words, words)
                yield file, command.prog, getattr(import_module(module), name)


def json_page() -> str:
    """Return the page with every field of every JSON document."""
    found = list(documents())
    parts = [
        "# JSON documents\n\nRead from the code when the site is built. `report.json` of a run folder is the document "
        "of `tunesmith tune --json`; `--schema` of a command prints its JSON schema. A field without a default is "
        "always there."
    ]
    listed = [f"| `{command} --json` | [{name}.json](site:../schemas/{name}.json) |" for name, command, _ in found]
    parts.append("| command | JSON schema |\n|---|---|\n" + "\n".join(listed))
    seen: list[type[BaseModel]] = []
    for _, command, document in found:
        models = [model for model in models_of(document) if model not in seen]
        seen += models
        parts.append(f"## {command}")
        if not models:
            names = ", ".join(f"`{model.__name__}`" for model in models_of(document)[:1])
            parts.append(f"The fields of {names}, above.")
        parts += [fields_table(model) for model in models]
    return "\n\n".join(parts) + "\n"


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the models in a type, each followed by those of its fields."""
    found: dict[type[BaseModel], None] = {}

    def visit(inner: Any) -> None:
        if inspect.isclass(inner) and issubclass(inner, BaseModel) and inner not in found:
            found[inner] = None
            for one in inner.model_fields.values():
                visit(one.annotation)
        for part in get_args(inner):
            visit(part)

    visit(annotation)
    return list(found)


def fields_table(model: type[BaseModel]) -> str:
    """Return the table of a model's fields."""
    texts = comments(model)
    rows = []
    for name, one in model.model_fields.items():
        shown = type_text(one.annotation)
        text = one.description or texts.get(name, "")
        default = "" if one.is_required() else f" Default: {recipe_keys.default(one)}."
        rows.append(f"| `{one.alias or name}` | {cell(shown)} | {cell(text)}{default} |")
    summary = inspect.cleandoc(model.__doc__ or "").split("\n\n")[0]
    return f"### {model.__name__}\n\n{cell(summary)}\n\n| key | type | meaning |\n|---|---|---|\n" + "\n".join(rows)


def type_text(annotation: Any) -> str:
    """Return a type in words; models by their name."""
    inside = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return type_text(inside[0])
    if origin is Literal:
        return ", ".join(f"`{json.dumps(word)}`" for word in inside)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(type_text(part) for part in inside))
    if origin is dict or (origin and origin.__name__ == "Mapping"):
        return f"mapping of {type_text(inside[1])}"
    if origin in (list, tuple) or (origin and origin.__name__ == "Sequence"):
        return "list of " + " and ".join(dict.fromkeys(type_text(part) for part in inside if part is not ...))
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"`{annotation.__name__}`"
    return recipe_keys.WORDS.get(annotation, str(getattr(annotation, "__name__", annotation)))


def comments(model: type[BaseModel]) -> dict[str, str]:
    """Return the comment at the end of the line, or in the line above, of each field in the source of a model."""
    found: dict[str, str] = {}
    for part in reversed(model.__mro__):
        if not issubclass(part, BaseModel) or part is BaseModel:
            continue
        try:
            source = textwrap.dedent(inspect.getsource(part))
        except (OSError, TypeError):
            continue
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                after = re.search(r"  # (.*)$", lines[(node.end_lineno or 1) - 1])
                before = re.match(r"\s+# (.*)$", lines[node.lineno - 2])
                text = after or before
                found |= {node.target.id: text[1]} if text else {}
    return found


# ------------------------------------------------------------------ the recipe


def recipe_page() -> str:
    """Return the page with every key of a recipe as one path."""
    parts = [
        "# Recipe schema\n\nEvery key as `--set` takes it, read from the code when the site is built. [The "
        "recipe](recipe.md) explains how the keys work together.\n\n[recipe.json](site:../schemas/recipe.json) is the "
        "JSON schema of a recipe in its complete form; the short forms, such as `objective: classify`, are not in it."
    ]
    written = (ROOT / "docs" / "reference" / "recipe.md").read_text("utf-8")
    for heading, model in recipe_keys.SECTIONS.items():
        below = written.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
        meanings = dict(re.findall(r"^\| `(\w+)` \|(?:[^|]|\\\|)*\|(?:[^|]|\\\|)*\| (.*) \|$", below, re.MULTILINE))
        prefix = heading.split("`")[1] + "." if "`" in heading else ""
        rows = [
            f"| `{prefix}{one.alias or name}` | {recipe_keys.default(one)} | {recipe_keys.allowed(one)} | "
            f"{cell(one.description) if one.description else meanings[one.alias or name]} |"
            for name, one in model.model_fields.items()
        ]
        parts.append(f"## {heading}\n\n| key | default | values | meaning |\n|---|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"
