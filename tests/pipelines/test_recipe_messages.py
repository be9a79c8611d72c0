"""Errors of a recipe: the line of the key, and a plain sentence for every error that pydantic can report."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import core_schema

from tunesmith.config import Recipe, load_recipe
from tunesmith.config.aliases import METHODS
from tunesmith.config.messages import EXPECTED, line_of
from tunesmith.errors import RecipeError

# Errors with a sentence of their own in `explain`.
OTHERS = {"missing", "extra_forbidden", "value_error", "literal_error", "union_tag_invalid", "union_tag_not_found"}
# The errors of each type of schema; of those with constraints, the key of the constraint names the error.
ERRORS: dict[str, set[str]] = {
    "bool": {"bool_type", "bool_parsing"},
    "int": {"int_type", "int_parsing", "int_from_float", "int_parsing_size"},
    "float": {"float_type", "float_parsing", "finite_number"},
    "str": {"string_type", "string_unicode"},
    "dict": {"dict_type"},
    "list": {"list_type"},
    "tuple": {"tuple_type"},
    "model": {"model_type"},
    "model-fields": {"missing", "extra_forbidden", "model_attributes_type"},
    "literal": {"literal_error"},
    "tagged-union": {"union_tag_invalid", "union_tag_not_found"},
}
BOUNDS = {
    "gt": "greater_than",
    "ge": "greater_than_equal",
    "lt": "less_than",
    "le": "less_than_equal",
    "pattern": "string_pattern_mismatch",
}
# Schemas that only contain others, or that accept everything.
WITHOUT = {"any", "default", "definitions", "definition-ref", "nullable", "union", "model-field", "none"}
FUNCTIONS = {"function-before", "function-after", "function-wrap", "function-plain"}  # their errors are value_error


def schemas(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every schema inside a schema."""
    if isinstance(node, dict):
        if isinstance(node.get("type"), str) and "schema_type" not in node:
            yield node
        for key, value in node.items():
            if key not in ("metadata", "serialization", "default", "config", "function"):
                yield from schemas(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from schemas(value)


def possible_errors() -> set[str]:
    """Return the types of all errors that validating a recipe can raise."""
    errors = {"value_error"}
    known = ERRORS.keys() | WITHOUT | FUNCTIONS
    for schema in schemas(Recipe.__pydantic_core_schema__):
        assert schema["type"] in known, f"no errors are listed for a schema of type {schema['type']}"
        errors |= ERRORS.get(schema["type"], set())
        errors |= {error for bound, error in BOUNDS.items() if bound in schema}
    return errors


def test_every_error_that_pydantic_can_raise_for_a_recipe_has_a_sentence() -> None:
    assert possible_errors() - EXPECTED.keys() - OTHERS == set()


def test_the_sentences_are_of_errors_that_exist() -> None:
    assert EXPECTED.keys() <= set(core_schema.ErrorType.__args__)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("schedule: {epochs: many}", "5: schedule.epochs: expected a number, got 'many'; use 1, the default"),
        ("schedule:\n  epochs: 1\n  lern_rate: 1", "7: unknown key 'schedule.lern_rate'"),
        ("schedule: {learning_rate: automatic}", "5: schedule.learning_rate: expected a number or auto, got 'autom"),
        (
            "schedule: {batch_rows: 1.5}",
            "5: schedule.batch_rows: expected a whole number, got 1.5; use 16, the default",
        ),
        ("schedule: {batch_rows: 0}", "5: schedule.batch_rows: expected a number >= 1, got 0"),
        ("controls: perhaps", "5: controls: expected true or false, got 'perhaps'; use false, the default"),
        ("track: wandb", "5: track: expected a list, such as"),
        ("replay: 0.1", "5: replay: expected a mapping of keys, got 0.1"),
        ("model: 3", "5: model: expected text; put a number in quotes, got 3"),
        (
            "machine: {dtype: bfloat}",
            "5: machine.dtype: expected auto, float32 or bfloat16, got 'bfloat'; did you mean 'bf",
        ),
        ("technique: {kind: lora, products: int9}", "5: technique.products: expected \"\" or int8, got 'int9'"),
        ("lr: fast", "5: schedule.learning_rate: expected a number or auto"),
        ("seed: [1, }", "5: invalid YAML"),
    ],
)
def test_an_error_names_the_line_and_what_is_expected(tmp_path: Path, line: str, message: str) -> None:
    place = tmp_path / "recipe.yaml"
    place.write_text(f"# a comment\ndata: {{train: a.jsonl}}\nobjective: classify\n\n{line}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=re.escape(f"{place}:{message}")):
        load_recipe(place)


@pytest.mark.parametrize("method", METHODS)
def test_a_training_method_as_objective_is_answered_with_the_objective_that_has_it(tmp_path: Path, method: str) -> None:
    place = tmp_path / "recipe.yaml"
    for written in (method, f"{{kind: {method.upper()}}}"):
        place.write_text(f"data: {{train: a.jsonl}}\nobjective: {written}\n", encoding="utf-8")
        with pytest.raises(RecipeError, match="unknown kind") as caught:
            load_recipe(place)
        fix = str(caught.value).partition("; use ")[2]
        assert fix == f"objective: {METHODS[method]}"
        reward = ["objective.reward=votes"] if "kind: rl" in fix else []
        place.write_text(f"data: {{train: a.jsonl}}\n{fix}\n", encoding="utf-8")
        assert load_recipe(place, changes=reward)[1] == []


@pytest.mark.parametrize("text", ["", "# only a comment\n"])
def test_an_empty_recipe_is_called_empty(tmp_path: Path, text: str) -> None:
    place = tmp_path / "recipe.yaml"
    place.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(place)
    fix = "`tunesmith init DATA` writes a recipe"
    assert str(caught.value) == f"{place}: expected a mapping of keys, got an empty file; {fix}"


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("{kind: dpo}", "unknown kind 'dpo'; use objective: {kind: preference, loss: dpo}"),
        ("{kind: clasify}", "unknown kind 'clasify', did you mean 'classify'?; known: classify, domain"),
        ("{text: body}", "kind"),
        ("{kind: classify, lable: x}", "unknown key 'objective.tasks.a.objective.lable', did you mean 'label'?"),
    ],
)
def test_a_wrong_kind_of_a_task_is_reported_in_words(tmp_path: Path, objective: str, message: str) -> None:
    place = tmp_path / "recipe.yaml"
    task = "{data: {train: a.jsonl}, objective: %s}"
    text = f"objective:\n  kind: multitask\n  tasks:\n    a: {task % objective}\n    b: {task % 'classify'}\n"
    place.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        load_recipe(place)
    assert str(caught.value).startswith(f"{place}:4: ")
    assert "Input" not in str(caught.value)


def test_a_missing_objective_lists_the_kinds(tmp_path: Path) -> None:
    place = tmp_path / "recipe.yaml"
    place.write_text("data: {train: a.jsonl}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="objective is missing; add it as `objective: KIND`, one of classify, domain"):
        load_recipe(place)


def test_the_line_of_a_key_is_found_in_yaml_of_either_style() -> None:
    text = "a:\n  b:\n    c: 1\nd: {e: [1,\n 2]}\n"
    assert [line_of(text, path.split(".")) for path in ("a", "a.b.c", "d.e", "d.e.1", "a.x", "x")] == [1, 3, 4, 5, 1, 0]
