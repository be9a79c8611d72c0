"""The form of a recipe, generated from the recipe's own schema, so that a new key appears by itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import yaml

from tunesmith.config import Recipe
from tunesmith.data.bounded_yaml import parse_yaml

Schema = Mapping[str, Any]
# Sections shown open; the others are folded.
OPEN = ("", "data", "objective", "technique", "schedule")
# Keys outside of sections that are shown first; the others are in a section at the end.
FIRST = ("model", "seed")
TITLES = {
    "": "Model",
    "more": "More",
    "replay": "Replay of general rows",
    "teacher": "Teacher (distillation)",
    "loop": "RLHF loop",
    "ledger": "Thinking ledger",
}


@dataclass(frozen=True, slots=True)
class Field:
    """One input of the form."""

    key: str  # dotted key of the recipe
    label: str  # name of the key in words
    about: str  # its description in the schema
    kind: Literal["text", "number", "choice"]  # `text` also holds lists and mappings, as YAML
    value: str  # text of what the recipe sets; empty if it leaves the default
    default: str
    choices: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """The fields of one section of a recipe."""

    name: str
    title: str
    about: str
    fields: Sequence[Field]
    open: bool

    @property
    def changed(self) -> int:
        """Return the number of fields whose value the recipe sets."""
        return sum(bool(field.value) for field in self.fields)


@cache
def schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe."""
    return Recipe.model_json_schema()


def sections(raw: Mapping[str, Any]) -> list[Section]:
    """Return the form of a recipe.

    Args:
        raw: values as parsed from YAML; invalid ones are shown as they are.
    """
    found = []
    general = []
    for name, entry in schema()["properties"].items():
        options = _options(entry)
        given = raw.get(name)
        if not options:
            general.append(_field(name, name, entry, given))
            continue
        values = given if isinstance(given, Mapping) else {_short(options): given} if given is not None else {}
        kind, chosen = _chosen(options, values, entry)
        fields = [_kind_field(name, options, kind, values)] if len(options) > 1 else []
        fields += [
            _field(f"{name}.{key}", key, part, values.get(key))
            for key, part in chosen["properties"].items()
            if key != "kind"
        ]
        title = TITLES.get(name, name.capitalize())
        found.append(Section(name, title, _first_sentence(chosen), fields, name in OPEN))
    first, more = ([field for field in general if (field.key in FIRST) is shown] for shown in (True, False))
    more_section = Section("more", TITLES["more"], "", more, open=False)
    return [Section("", TITLES[""], "", first, open=True), *found, more_section]


def kinds() -> Iterable[str]:
    """Return the kinds of objectives."""
    return _options(schema()["properties"]["objective"])


def roles(kind: str) -> dict[str, str]:
    """Return the keys of an objective that name a column, with their descriptions.

    Args:
        kind: of the objective; of an unknown one, nothing.
    """
    options = _options(schema()["properties"]["objective"])
    entries = options[kind]["properties"] if kind in options else {}
    return {key: entry["description"] for key, entry in entries.items() if _names_column(entry)}


def _names_column(entry: Schema) -> bool:
    return str(entry.get("description", "")).startswith("column ")


def parse(text: str) -> Any:
    """Return the value of an input: what YAML reads, else the text itself; None if it is empty."""
    if not text.strip():
        return None
    try:
        return parse_yaml(text)
    except yaml.YAMLError:
        return text


def _options(entry: Schema) -> dict[str, Schema]:
    """Return the sections that a key may hold by their `kind`; a plain section has one, a plain value none."""
    if "discriminator" in entry:
        return {kind: _resolve(ref) for kind, ref in entry["discriminator"]["mapping"].items()}
    return {"": _resolve(entry["$ref"])} if "$ref" in entry else {}


def _resolve(reference: str) -> Schema:
    section: Schema = schema()["$defs"][reference.rsplit("/", 1)[1]]
    return section


def _short(options: Mapping[str, Schema]) -> str:
    """Return the key that a section given as one value sets."""
    return "kind" if len(options) > 1 else next(iter(next(iter(options.values()))["properties"]))


def _chosen(options: Mapping[str, Schema], values: Mapping[str, Any], entry: Schema) -> tuple[str, Schema]:
    kind = values.get("kind") or entry.get("default", {}).get("kind") or next(iter(options))
    kind = kind if kind in options else next(iter(options))
    return str(kind), options[kind]


def _kind_field(name: str, options: Mapping[str, Schema], kind: str, values: Mapping[str, Any]) -> Field:
    shown = str(values["kind"]) if values.get("kind") in options else ""
    return Field(f"{name}.kind", "Kind", "", "choice", shown, kind, tuple(options))


def _field(key: str, name: str, entry: Schema, given: Any) -> Field:
    branches = list(_branches(entry))
    choices = [choice for branch in branches for choice in _choices_of(branch)]
    numbers = any(branch.get("type") in ("number", "integer") for branch in branches)
    plain = all(branch.get("type") in ("number", "integer") for branch in branches)
    if choices and not numbers and all(_choices_of(branch) or branch.get("type") == "null" for branch in branches):
        kind: Literal["text", "number", "choice"] = "choice"
    else:
        kind = "number" if plain else "text"
    about = str(entry.get("description", ""))
    label = name.replace("_", " ")
    value = "" if given is None else _text(given)
    return Field(key, label, about, kind, value, _text(entry.get("default")), tuple(dict.fromkeys(choices)))


def _branches(entry: Schema) -> Iterator[Schema]:
    if "anyOf" not in entry:
        yield entry
    for branch in entry.get("anyOf", ()):
        yield from _branches(branch)


def _choices_of(branch: Schema) -> list[str]:
    if branch.get("type") == "boolean":
        return ["true", "false"]
    values = branch.get("enum") or ([branch["const"]] if "const" in branch else [])
    return [_text(value) for value in values]


def _text(value: Any) -> str:
    """Return a value as an input shows it: YAML on one line, which is JSON for lists and mappings."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def _first_sentence(section: Schema) -> str:
    return str(section.get("description", "")).partition("\n")[0]
