"""Files of others that compute: chat templates, YAML and pipes end in one line, in seconds and bounded memory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from tests.bases import base
from tests.tiny import CHATML
from tunesmith.config import load_recipe
from tunesmith.data.bounded_yaml import parse_yaml
from tunesmith.data.documents.find_files import sorted_out
from tunesmith.data.tokenization import template_budget
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.errors import RecipeError, TemplateError

LONG = "".join(f"{{% for {name} in range(99999) %}}" for name in "abc") + "{% endfor %}" * 3
DOUBLED = "{% set ns = namespace(s='aaaaaaaa') %}{% for a in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
CALLS = (
    "{% macro m(n) %}{% for a in range(99) %}{% if n %}{{ m(n - 1) }}{% endif %}{% endfor %}{% endmacro %}{{ m(9) }}"
)
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("hostile", "finding"),
    [
        (LONG, "takes more than"),
        (DOUBLED, "takes more than"),
        (CALLS, "takes more than"),
        ("{{ '%1000000000d' % 1 }}", "can take all memory"),
        ("{{ '%-1000000000s' % 'a' }}", "can take all memory"),
        ("{{ '{:>1000000000}'.format(1) }}", "can take all memory"),
        ("{{ 'a' * 1000000000 }}", "can take all memory"),
        ("{{ 'a' * 1_000_000_000 }}", "can take all memory"),
        ("{{ 'a'.ljust(1000000000) }}", "can take all memory"),
        ("{{ 'a' | center(1000000000) }}", "can take all memory"),
        ("{{ 9 ** 9 ** 9 }}", "can take all memory"),
    ],
)
def test_a_template_that_computes_without_end_is_refused(hostile: str, finding: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(template_budget, "PROBE_SECONDS", 1.0)
    tokenizer = base("llama").tokenizer
    tokenizer.chat_template = hostile + CHATML
    memory, began = psutil.Process().memory_info().rss, time.thread_time()
    with pytest.raises(TemplateError, match=finding) as caught:
        Template(tokenizer)
    assert "\n" not in str(caught.value)
    assert time.thread_time() - began < 5
    assert psutil.Process().memory_info().rss - memory < 600 * 2**20


def test_a_template_with_ordinary_arithmetic_is_not_refused():
    tokenizer = base("llama").tokenizer
    tokenizer.chat_template = "{% for i in range(3) %}{% set a = 2 * i % 2 + 99999 %}{% endfor %}" + CHATML
    assert Template(tokenizer).hash != Template(base("llama").tokenizer).hash


@pytest.mark.parametrize("text", [BOMB, "a: &a [*a]\n", "a: &a {b: *a}\n"], ids=["bomb", "list", "mapping"])
def test_aliases_that_expand_without_end_are_refused(text: str, tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    began = time.monotonic()
    with pytest.raises(RecipeError, match="aliases expand to more than 100000 values") as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 5


def test_aliases_as_people_use_them_are_read():
    text = "a: &a {b: 1, c: [1, 2]}\nd: {<<: *a, c: 3}\ne: [*a, *a]\n"
    whole = {"b": 1, "c": [1, 2]}
    assert parse_yaml(text) == {"a": whole, "d": {"b": 1, "c": 3}, "e": [whole, whole]}
    assert parse_yaml("") is None


def test_a_named_pipe_in_a_folder_of_documents_is_passed_over(tmp_path: Path):
    (tmp_path / "page.md").write_text("# A page\n\nText.")
    os.mkfifo(tmp_path / "pipe.md")
    paths, _ = sorted_out([tmp_path])
    assert [path.name for path in paths.values()] == ["page.md"]
