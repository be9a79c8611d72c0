"""What of a JSON document is compared: everything but times, sizes and facts of the machine; prose only by presence."""

from __future__ import annotations

import re
from typing import Any

# Values under these keys change from run to run or from machine to machine: each leaf becomes its type's name.
VARIES = re.compile(
    r"seconds|_seconds$|^seconds_|^p50$|^p95$|_per_second|^bytes$|_bytes$|^memory$|^speed$|^environment$|^created$|^url$"
    r"|^when$|^latency$|^cost$|^predicted_|^forecast$|^mfu_|^finding$|^in_cache$|^difference$|^digest$"
)
# Prose: sentences for people, which may be worded anew. Compared by presence alone, lists by their length too.
PROSE = frozenset(
    {
        "about",
        "belief",
        "bos",
        "broken_gates",
        "checked",
        "cure",
        "detail",
        "end",
        "failed",
        "faults",
        "finding",
        "how",
        "left_out",
        "message",
        "model_reasons",
        "note",
        "notes",
        "ours",
        "published",
        "reasons",
        "refused",
        "sentence",
        "shape",
        "table",
        "what",
    }
)
WITHOUT_VERDICT = re.compile(r"^[a-z ]+: ")


def steady(value: Any, folder: str) -> Any:
    """Return the document with types in place of what varies, and without the temporary folder's name."""
    if isinstance(value, dict):
        return {key: _types(inner) if VARIES.search(key) else steady(inner, folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [steady(inner, folder) for inner in value]
    if isinstance(value, str):
        value = re.sub(r"^(chat)?cmpl-[0-9a-f]+$", "<id>", value)
        value = re.sub(r"measured float32 .* GFLOP/s", "measured <speed>", value)
        return value.replace(folder, "<folder>")
    return value


def _types(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _types(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_types(inner) for inner in value]
    return f"<{'float' if isinstance(value, int) and not isinstance(value, bool) else type(value).__name__}>"


def comparable(value: Any, *, prose: bool = False) -> Any:
    """Return the document with sentences replaced by whether they are there, and without arms chosen by their cost."""
    if isinstance(value, dict):
        value = _without_cheapest(value)
        return {key: comparable(inner, prose=prose or _is_prose(key, value)) for key, inner in value.items()}
    if isinstance(value, list):
        return [comparable(inner, prose=prose) for inner in value]
    if isinstance(value, str) and (prose or WITHOUT_VERDICT.match(value)):
        return WITHOUT_VERDICT.match(value)[0] + "..." if not prose else "<prose>" if value else ""
    return value


def _without_cheapest(value: dict[str, Any]) -> dict[str, Any]:
    """Leave out the arm of a verdict among equal scores, which is the one that was fastest in this run."""
    if any("no higher than" in str(reason) for reason in value.get("reasons", ()) if "arm" in value):
        return value | {"arm": "<cheapest>"}
    return value | {"here": ["<cheapest>"]} if value.get("row") == "Best use case" else value


def _is_prose(key: str, around: dict[str, Any]) -> bool:
    """Whether text under this key is written for people; a verdict's text stands beside its arm."""
    return key in PROSE or (key == "machine" and "how" in around) or (key == "text" and "confidence" in around)


def shape(value: Any) -> Any:
    """Return the keys and types of the document, of a list those of its first entry."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value[:1]]
    return "number" if isinstance(value, float) else type(value).__name__


def plain_schema(schema: Any) -> Any:
    """Return a JSON schema with its references filled in, and without titles and descriptions: names of classes are
    nobody's business outside."""
    definitions = schema.get("$defs", {}) if isinstance(schema, dict) else {}

    def fill(part: Any, seen: tuple[str, ...] = (), *, names: bool = False) -> Any:
        if isinstance(part, list):
            return [fill(inner, seen) for inner in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part and not names:
            name = part["$ref"].rsplit("/", 1)[1]
            return "<itself>" if name in seen else fill(definitions[name], (*seen, name))
        left_out = set() if names else {"title", "description", "$defs"}
        return {
            key: fill(inner, seen, names=key in ("properties", "patternProperties") and not names)
            for key, inner in part.items()
            if key not in left_out
        }

    return fill(schema)
