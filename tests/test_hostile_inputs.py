"""Recipes, rows, templates, adapters and requests of any content: read, or refused; never a traceback."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.bases import base
from tests.tiny import CHATML
from tunesmith.config import load_recipe
from tunesmith.config.recipe import Recipe
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import Row
from tunesmith.data.schema.guess import guess
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import TunesmithError
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.loading.adapter_files import vet_adapter
from tunesmith.objectives import OBJECTIVES
from tunesmith.web.openai.app import _parsed
from tunesmith.web.openai.requests import ChatCompletionRequest, CompletionRequest, TextsRequest

WORDS = st.sampled_from(["lora", "classify", "instruct", "text", "label", "auto", "user", "none", "a.jsonl"])
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), WORDS)


def values(keys: list[str]) -> st.SearchStrategy[Any]:
    """JSON values in which some keys have a meaning."""
    names = st.one_of(st.sampled_from(keys), st.text(max_size=5))
    return st.recursive(
        PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=12
    )


def objects(keys: list[str], **some: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of the keys, over a valid one."""
    found = st.dictionaries(st.sampled_from(keys), values(keys), max_size=4)
    return found.map(lambda more: {**some, **more})


SECTIONS = [
    *Recipe.model_fields,
    *("kind", "train", "rank", "text", "label", "loss", "algorithm", "tasks", "epochs", "learning_rate", "quantize"),
    *("model", "rows", "divergence", "sizes", "documents", "labels", "spans"),
]
RECIPES = objects(SECTIONS, model="smollm2-135m", data="rows.jsonl", objective="classify").map(json.dumps)
COLUMNS = ["text", "label", "prompt", "chosen", "rejected", "messages", "role", "content", "rating", "answer"]
COLUMNS += ["spans", "start", "end", "words", "tags", "query", "passage", "negative", "score"]
ROW = st.one_of(
    objects(COLUMNS),
    objects(COLUMNS, text="a b", spans=[{"start": 0, "end": 1, "label": "x"}]),
    objects(COLUMNS, words=["a", "b"], tags=["B-x", "I-x"]),
    objects(COLUMNS, query="a", passage="b", negative=["c"]),
)
ROWS = st.one_of(
    st.binary(max_size=200), st.lists(ROW, max_size=5).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
)
EXPRESSION = st.recursive(
    st.sampled_from(["messages", "message", "ns", "ns.s", "'a'", "9", "99999", "x", "loop.index", "tools", "[]", "{}"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "~", "-", "%", "in", "==", "/", "|join", "|map"]), inner).map(
            lambda parts: f"({parts[0]} {parts[1]}({parts[2]}))" if "|" in parts[1] else f"({' '.join(parts)})"
        ),
        st.tuples(inner, st.sampled_from(["|tojson", "|list", ".split('a')", "[0]", "[::-1]", "|length"])).map("".join),
        st.tuples(inner, inner).map(lambda parts: f"[{parts[0]}, {parts[1]}]"),
    ),
    max_leaves=8,
)
FRAGMENT = st.one_of(
    EXPRESSION.map(lambda text: f"{{{{ {text} }}}}"),
    EXPRESSION.map(lambda text: f"{{% set x = {text} %}}"),
    EXPRESSION.map(lambda text: f"{{% set ns.s = {text} %}}"),
    EXPRESSION.map(lambda text: f"{{% for message in {text} %}}{{{{ message }}}}{{% set x = {text} %}}{{% endfor %}}"),
    st.text(alphabet="{}%-# ab'\"|", max_size=8),
)
TEMPLATES = st.lists(FRAGMENT, max_size=4).map(lambda parts: "{% set ns = namespace(s='a') %}" + "".join(parts))
# The objectives that read rows by themselves, and need no reward.
READING = [kind() for kind in OBJECTIVES if kind.model_fields["kind"].default not in ("multitask", "rl")]
PEFT = ["r", "lora_alpha", "peft_type", "target_modules", "init_lora_weights", "rank_pattern", "alpha_pattern"]
ADAPTERS = st.tuples(objects([*PEFT, "megatron_config"], peft_type="LORA", r=4), st.binary(max_size=60))
BODY = ["model", "messages", "role", "content", "temperature", "max_tokens", "stop", "n", "tools", "response_format"]
BODIES = st.one_of(
    st.binary(max_size=80),
    objects([*BODY, "prompt", "input", "stream"], model="m", messages=[{"role": "user", "content": "a"}]).map(
        lambda body: json.dumps(body).encode()
    ),
)


def recipe(text: str, at: Path) -> None:
    (at / "recipe.yaml").write_text(text)
    load_recipe(at / "recipe.yaml")


def rows(content: bytes, at: Path) -> None:
    for kind in ("jsonl", "json", "csv", "tsv", "txt"):
        path = at / f"rows.{kind}"
        path.write_bytes(content)
        found_rows: list[Row] = []
        with suppress(TunesmithError):
            found_rows = read_rows(path)
            guess(found_rows)
        for objective in READING if found_rows else ():
            with suppress(TunesmithError):
                found = objective.examples(found_rows, group="")
                objective.bind(objective.within(found), "encoder")


def template(source: str, at: Path) -> None:
    tokenizer = base("llama").tokenizer
    tokenizer.chat_template = source + CHATML
    Template(tokenizer).prompt([Message("user", "a")])


def adapter(parts: tuple[dict[str, Any], bytes], at: Path) -> None:
    config, junk = parts
    header = json.dumps({"a": {"dtype": "F32", "shape": [4, 1], "data_offsets": [0, 16]}}).encode()
    (at / "adapter_config.json").write_text(json.dumps(config))
    (at / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16) + junk[40:])
    vet_adapter(at, where="an adapter")


def body(text: bytes, at: Path) -> None:
    async def sent() -> bytes:
        return text

    # In a thread: after the tests with a browser, its driver keeps a loop of its own in this one.
    for shape in (ChatCompletionRequest, CompletionRequest, TextsRequest):
        with suppress(TunesmithError, ValidationError), ThreadPoolExecutor(1) as pool:
            parsed = pool.submit(asyncio.run, _parsed(shape, SimpleNamespace(body=sent))).result()
            if not isinstance(parsed, TextsRequest):
                parsed.ask("m", Sampling())


CASES: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any, Path], None]]] = {
    "recipes": (RECIPES, recipe),
    "rows": (ROWS, rows),
    "templates": (TEMPLATES, template),
    "adapters": (ADAPTERS, adapter),
    "bodies": (BODIES, body),
}


@pytest.mark.long
@pytest.mark.parametrize("count", [50, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
@pytest.mark.parametrize("name", CASES)
def test_whatever_it_holds_it_is_read_or_refused(name: str, count: int, tmp_path: Path):
    strategy, read = CASES[name]

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def check(value: Any) -> None:
        with suppress(TunesmithError):
            read(value, tmp_path)

    check()
