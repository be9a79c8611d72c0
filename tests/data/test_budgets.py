"""Files of others that compute: chat templates, YAML and pipes end in one line, in seconds and bounded memory."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest

from tests.bases import base
from tests.tiny import CHATML, GEMMA3, THINKING
from tunesmith.config import load_recipe
from tunesmith.data.bounded_yaml import parse_yaml
from tunesmith.data.documents.find_files import sorted_out
from tunesmith.data.tokenization import template_budget
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import RecipeError, TemplateError

LONG = "".join(f"{{% for {name} in range(99999) %}}" for name in "abc") + "{% endfor %}" * 3
DOUBLED = "{% set ns = namespace(s='aaaaaaaa') %}{% for a in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
CALLS = (
    "{% macro m(n) %}{% for a in range(99) %}{% if n %}{{ m(n - 1) }}{% endif %}{% endfor %}{% endmacro %}{{ m(9) }}"
)
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


DEEP = 60
MANY = "{% set many = range(60000)|list %}"
HOSTILE = [
    LONG,
    DOUBLED,
    DOUBLED.replace("~", "+"),
    CALLS,
    "{% set ns = namespace(s='aaaaaaaa') %}{% for a in range(99) %}"
    "{% set s %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = s %}{% endfor %}",
    "{% macro m(n, s) %}{% if n %}{{ m(n - 1, s ~ s) }}{% endif %}{% endmacro %}{{ m(90, 'aaaa') }}",
    *("{{ '%1000000000d' % 1 }}", "{{ '%-1000000000s' % 'a' }}", "{{ '%*d' % (1000000000, 1) }}"),
    *("{{ '{:>1000000000}'.format(1) }}", "{{ '{:{}}'.format(1, 1000000000) }}", "{{ '%1000000000d' | format(1) }}"),
    *("{{ 'a' * 1000000000 }}", "{{ 'a' * 99999 * 99999 }}", "{{ [1] * 99999 * 99999 }}", "{{ 'a' * 1_000_000_000 }}"),
    *(
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ (1).to_bytes(1000000000, 'big') }}",
        "{{ 9 ** 999999999 }}",
    ),
    "{% set ns = namespace(n=9) %}{% for a in range(99999) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{% set x = [1] %}" + "{% set x = [x, x] %}" * DEEP + "{{ x }}",
    "{% set x = [1] %}" + "{% set x = [x] * 2 %}" * DEEP + "{{ x | tojson }}",
    "{% set x = [1] %}{% set y = [1] %}" + "{% set x = [x, x] %}{% set y = [y, y] %}" * DEEP + "{{ x == y }}",
    "{% set x = namespace(a=1) %}" + "{% set x = namespace(a=x, b=x) %}" * DEEP + "{{ x }}",
    *("{{ ('a' * 99999).replace('a', 'b' * 99999) }}", "{{ ('a' * 99999) | replace('', 'b' * 99999) }}"),
    *("{{ range(99999) | join('a' * 99999) }}", "{{ ('a' * 99999).join(range(99999) | map('string')) }}"),
    "{{ range(99999) | map('string') | map('replace', '1', 'b' * 9999) | list }}",
    *("{{ ('a\n' * 99999) | indent(99999) }}", "{{ {'a': [1] * 9999} | tojson(indent=99999) }}"),
    *(
        "{{ 5 | round(-1000000000) }}",
        "{{ [1] | batch(1000000000, 1) | list }}",
        "{{ [1] | slice(1000000000) | list }}",
    ),
    *("{{ ('a' * 99999).encode('punycode') }}", "{{ 'a'.translate({97: 'b' * 99999}) }}"),
    "{% for x in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    "{% set s = 'a' * 9999 %}{{ " + " ~ ".join(["s"] * 5000) + " }}",
    "{% with s = 'aaaa' %}" + "{% with s = s ~ s %}" * DEEP + "{{ s }}" + "{% endwith %}" * (DEEP + 1),
    "{% set b = range(99999) | list %}{% for a in range(99999) %}{{ 'x' if 'y' in b }}{% endfor %}",
    "{% set ns = namespace(l=[]) %}{% for a in range(99999) %}{% set ns.l = ns.l + [a] %}{% endfor %}",
    "{% for x in range(99999) %}{% for y in 'a' * 99999 %}{% endfor %}{% endfor %}",
    # Methods of Markup are written in Python.
    *("{{ ('{:>500000000}'|safe).format('x') }}", "{{ ('{a:>500000000}'|e).format_map({'a': 'x'}) }}"),
    *(
        "{{ ('a'|safe).ljust(300000000) }}",
        "{{ ('a'|forceescape).center(300000000) }}",
        "{{ ('a'|escape).striptags() }}",
    ),
    "{% autoescape true %}{% set s %}a{% endset %}{{ s.ljust(300000000) }}{% endautoescape %}",
    # Work inside filters and tests.
    f"{MANY}{{{{ range(300)|map(attribute='nope', default=many)|sum(start=[])|length }}}}",
    f"{MANY}{{{{ range(30000)|map(attribute='nope', default=many)|sort|length }}}}",
    f"{MANY}{{{{ ([many[:20000]] * 9)|sum(start=[])|length }}}}{{{{ [many[:20000]] * 99 }}}}",
    f"{MANY}{{{{ range(99999)|select('in', many)|list|length }}}}",
    f"{MANY}{{% for a in range(99999) %}}{{{{ a is in many }}}}{{% endfor %}}",
    "{% set s = 'a' * 500000 %}{% for a in range(1000) %}{{ s }}{% endfor %}",
    # References to the chat are as large as the chat where they are written out.
    "{{ [messages] * 99999 }}",
    "{% for x in range(99999) %}{% set y = ([messages] * 999)|string %}{% endfor %}",
    "{{ strftime_now('%999999999d' ~ 'a' * 400000) }}",
]
# Jinja has no such thing here, or Python gives up by itself.
REJECTED = [
    "{{ lipsum(1000000) }}",
    "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
]


@pytest.mark.long
@pytest.mark.parametrize("hostile", [*HOSTILE, *REJECTED], ids=lambda text: text[:50])
def test_a_template_that_computes_without_end_is_refused_also_behind_a_condition(hostile: str):
    tokenizer = base("llama").tokenizer
    memory, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    hidden = "{% if messages[0].content == 'bomb' %}" + hostile + "{% endif %}"
    tokenizer.chat_template = hostile + CHATML
    with pytest.raises(TemplateError, match="takes more than" if hostile in HOSTILE else None) as caught:
        Template(tokenizer)
    assert "\n" not in str(caught.value)
    if "s ~ s ~ s" not in hostile and "(" * 500 not in hostile:  # refused unseen
        tokenizer.chat_template = hidden + CHATML
        template = Template(tokenizer)
        assert template.prompt([Message("user", "hello")])
        with pytest.raises(TemplateError):
            template.prompt([Message("user", "bomb")])
    assert time.process_time() - began < 15
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300 * 2**10


@pytest.mark.parametrize(
    ("source", "needs_tools"),
    [
        # About a second for each rendering, which one alone may take.
        ("{{ range(30000)|select('in', (range(30000)|list)[:9000])|list|length }}" + CHATML, False),
        # Only where thoughts, or tools, are looked for.
        ("{% if messages[-1].thinking %}{{ [messages] * 99999999 }}{% endif %}" + THINKING, False),
        ("{% if tools %}{{ [messages] * 99999999 }}{% endif %}" + CHATML, True),
    ],
    ids=["slow", "thoughts", "tools"],
)
def test_the_renderings_that_open_a_model_share_one_budget_and_none_is_passed_over(source: str, needs_tools: bool):
    tokenizer, began = base("llama").tokenizer, time.process_time()
    tokenizer.chat_template = source
    with pytest.raises(TemplateError, match="takes more than 3 s, or memory"):
        assert Template(tokenizer).call_format if needs_tools else Template(tokenizer)
    assert time.process_time() - began < 6


@pytest.mark.parametrize("source", [CHATML, THINKING, GEMMA3])
@pytest.mark.parametrize("count", [2, 40])
def test_a_chat_is_rendered_as_transformers_does(source: str, count: int):
    tokenizer = base("llama").tokenizer
    roles = ("user", "assistant")
    chat = [{"role": roles[i % 2], "content": f"<think>\nso\n</think>\n\nsaid {i} " * 50} for i in range(count)]
    for more in ({}, {"enable_thinking": False}, {"tools": [{"name": "now"}]}):
        expected = tokenizer.apply_chat_template(chat, tokenize=False, chat_template=source, **more)
        given = {"messages": chat, "tools": [], "add_generation_prompt": False, **tokenizer.special_tokens_map, **more}
        assert template_budget.render(source, given) == expected


@pytest.mark.long
@pytest.mark.parametrize(
    ("used", "count"),
    [
        ("messages|selectattr('role', 'equalto', 'user')|list", 1600),
        ("messages|map(attribute='content')|list", 1600),
        ("messages[loop.index:]", 4000),
        ("messages[:loop.index]|selectattr('tool_calls', 'defined')|list", 800),
    ],
)
def test_a_long_chat_is_not_refused_where_every_turn_looks_at_all_messages(used: str, count: int):
    chat = [{"role": ("user", "assistant")[i % 2], "content": f"said {i}, and some more words"} for i in range(count)]
    source = f"{{% for m in messages %}}{{{{ m.role ~ m.content ~ ({used})|length }}}}{{% endfor %}}"
    tokenizer = base("llama").tokenizer
    began = time.process_time()
    expected = tokenizer.apply_chat_template(chat, tokenize=False, chat_template=source)
    plain, began = time.process_time() - began, time.process_time()
    assert template_budget.render(source, {"messages": chat}) == expected
    assert time.process_time() - began < 4 * plain + 3


def test_filters_have_the_results_of_jinja():
    source = (
        "{{ [1, 2]|sum }}{{ messages|sum(attribute='n', start=3) }}{{ ('<'|e) ~ ('<'|safe) ~ '<' }}"
        "{{ 'yes' if messages|selectattr('n', 'equalto', 9) }}{{ messages|map(attribute='n') is sequence }}"
        "{{ (messages|rejectattr('n', 'odd')|first).n }}{{ strftime_now('%%') }}{{ {'b': 1, 'a': 2}|dictsort }}"
    )
    chat = [{"n": 1}, {"n": 2}]
    expected = base("llama").tokenizer.apply_chat_template(chat, tokenize=False, chat_template=source)
    assert template_budget.render(source, {"messages": chat}) == expected


def test_a_template_with_ordinary_arithmetic_is_not_refused():
    tokenizer = base("llama").tokenizer
    tokenizer.chat_template = (
        "{% for i in range(3) %}{% set a = 2 * i % 2 + 99999 %}{{ '%05.2f' % a }}{{ 'a,b'.split(',', 1)[0] }}"
        "{% for key, value in {'a': 1}.items() %}{{ key ~ value }}{% endfor %}{{ '-' * 80 }}"
        "{{ {'a': [1]} | tojson(indent=4) | indent(4) | truncate(255) | replace('<', '&lt;') }}{% endfor %}"
    ) + CHATML
    assert Template(tokenizer).hash != Template(base("llama").tokenizer).hash


@pytest.mark.parametrize("text", [BOMB, "a: &a [*a]\n", "a: &a {b: *a}\n"], ids=["bomb", "list", "mapping"])
def test_aliases_that_expand_without_end_are_refused(text: str, tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(RecipeError, match="aliases expand to more than 100000 values") as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)
    assert time.process_time() - began < 5


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
