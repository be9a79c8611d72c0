"""Code outside `objectives/` and `config/` asks an objective for a capability, never for its class or its kind."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunesmith.objectives import OBJECTIVES

PACKAGE = Path(__file__).parents[2] / "tunesmith"
CLASSES = {each.__name__ for each in OBJECTIVES}
KINDS = {each.model_fields["kind"].default for each in OBJECTIVES}

# They define objectives, check what a recipe says about each of them, and are made for one of them.
OWN = ("objectives/", "config/", "evaluation/evaluators/")

# Files that may ask for an objective, which one, and why. Building one, as `Domain(text="text")`, is no question.
ALLOWED: dict[str, tuple[set[str], str]] = {
    "data/schema/formats.py": ({"instruct"}, "the names of detected formats; data imports no objectives"),
    "pipelines/collect.py": ({"domain", "instruct"}, "the names of detected formats"),
    "models/loading/base_from_run.py": ({"domain"}, "a manifest as JSON; models import no objectives"),
    "web/studio/playground.py": ({"multitask"}, "a list of models as JSON, of a server"),
    "pipelines/plan/rough_costs.py": ({"preference"}, "knows the kind alone; `reference` depends on the settings"),
    "pipelines/compare/selection.py": ({"classify"}, "what the user wrote in `output`, before rows decide it"),
    "pipelines/tune/build_report.py": ({"Multitask"}, "a section of the report with the setting `sampling`"),
    "training/own_thoughts.py": ({"Instruct"}, "rewrites rows of instruct with `thinking: keep`"),
    "training/train.py": ({"Rl"}, "builds the learner of online RL from prompts and rewards"),
    "inference/engine_program.py": ({"Rl"}, "checks the settings `engine` and `temperature`"),
    "inference/engine_server.py": ({"Rl"}, "starts `engine`, the program that samples completions"),
}


def questions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of each question for a class or a kind of objective."""
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tunesmith.objectives")
        for alias in node.names
        if alias.name in CLASSES
    }
    built = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in imported and id(node) not in built:
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and node.attr in CLASSES and id(node) not in built:
            yield node.lineno, node.attr
        elif isinstance(node, ast.Compare) and any(map(is_kind, (node.left, *node.comparators))):
            yield from ((node.lineno, kind) for kind in kinds_in(node))
        elif isinstance(node, ast.Match) and is_kind(node.subject):
            yield from ((node.lineno, kind) for case in node.cases for kind in kinds_in(case.pattern))


def is_kind(node: ast.expr) -> bool:
    """Return whether an expression names a kind: `x.kind`, `objective`, `page["kind"]`, `page.get("objective")`."""
    words = ("kind", "objective")
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in words
        case ast.Subscript(slice=ast.Constant(value=name)):
            return name in words
        case ast.Call():
            return any(isinstance(each, ast.Constant) and each.value in words for each in node.args)
    return False


def kinds_in(node: ast.AST) -> set[str]:
    """Return the kinds that a comparison or a pattern names."""
    values = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return KINDS.intersection(values)


def test_no_file_outside_asks_for_the_class_or_the_kind_of_an_objective():
    found: dict[str, set[str]] = {}
    messages = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        for line, asked in () if name.startswith(OWN) else questions(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(name, set()).add(asked)
            if asked not in ALLOWED.get(name, (set(), ""))[0]:
                messages.append(f"{name}:{line}: asks for {asked}; declare a capability in objectives/base.py")
    assert not messages, "\n".join(messages)
    assert found == {name: asked for name, (asked, _) in ALLOWED.items()}, "ALLOWED lists what nothing asks any more"


@pytest.mark.parametrize(
    "code",
    [
        "from tunesmith.objectives import Tag\nisinstance(x, Tag)",
        "from tunesmith.objectives.tag import Tag as T\ndef f(x: T | None): ...",
        "from tunesmith import objectives\ntype(x) is objectives.Tag",
        "if recipe.objective.kind == 'tag': ...",
        "if objective in ('embed', 'rerank'): ...",
        "if manifest['objective'].get('kind') != 'embed': ...",
        "match page['kind']:\n    case 'rerank': ...",
    ],
)
def test_a_planted_question_is_found(code: str):
    assert list(questions(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "from tunesmith.objectives import Embed\nEmbed().for_base(folder, 'decoder')",
        "if recipe.objective.produces == 'spans': ...",
        "if technique.kind == 'full': ...",
        "if 'reward' in event.metrics: ...",
    ],
)
def test_use_and_capabilities_pass(code: str):
    assert list(questions(ast.parse(code))) == []
