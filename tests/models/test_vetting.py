"""Adapters and configurations that would compute without end, or hold what no saved model holds: one line, at once."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.inference.test_open_model import foreign
from tests.served import save_run
from tests.tiny import tiny_decoder, tiny_encoder
from tunesmith.errors import TunesmithError
from tunesmith.inference.open_model import open_model
from tunesmith.models.loading.checkpoint import MANIFEST
from tunesmith.models.loading.load import load_base
from tunesmith.techniques import Lora
from tunesmith.techniques.prefix_tuning import Prefix

NESTED = "((a*)*)*b"
STARS = ".*" * 14 + "x"


# Changes to the configuration of a LoRA, and what the line names. None of them is of an adapter that PEFT saved.
ADAPTERS: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "SOMETHING"}, "SOMETHING adapter"),
    ({"peft_type": None}, "None adapter"),
    ({"peft_type": ["LORA"]}, "adapter does not modify"),
    ({"r": 0}, "r is 0"),
    ({"r": -4}, "r is -4"),
    ({"r": 10**9}, "r is 1000000000"),
    ({"r": 5000}, "r is 5000"),
    ({"r": "4"}, "r is 4"),
    ({"r": None}, "r is None"),
    ({"r": True}, "r is True"),
    ({"r": 3}, "does not fit"),
    ({"rank_pattern": {"q_proj": 10**8}}, "q_proj is 100000000"),
    ({"rank_pattern": [1]}, "rank_pattern is not an object"),
    ({"rank_pattern": {NESTED: 4}}, "takes long to match"),
    ({"alpha_pattern": {STARS: 4}}, "takes long to match"),
    ({"lora_alpha": "8"}, ""),
    ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
    ({"modules_to_save": 7}, "does not fit"),
    ({"target_modules": 7}, "does not fit"),
    ({"target_modules": NESTED}, "takes long to match"),
    ({"target_modules": "(a|a)*b"}, "takes long to match"),
    ({"target_modules": "(?:[a-z.]+)+[0-9]"}, "takes long to match"),
    ({"target_modules": STARS}, "takes long to match"),
    ({"exclude_modules": NESTED}, "takes long to match"),
    ({"target_modules": ".?" * 28 + "!"}, "takes long to match"),
    ({"layers_pattern": [NESTED]}, "takes long to match"),
    ({"target_modules": "("}, "is not a pattern"),
    ({"target_modules": "(" * 5000}, "is not a pattern"),
    ({"init_lora_weights": "pissa_niter_100000"}, "iterates more than 100 times"),
    ({"init_lora_weights": "pissa_niter_" + "9" * 5000}, "iterates more than 100 times"),
    ({"init_lora_weights": "loftq"}, "does not fit"),
    ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 10**5}}, "loftq_iter is more"),
    ({"init_lora_weights": "something"}, "does not fit"),
    ({"layers_to_transform": [10**9]}, "layers_to_transform is 1000000000"),
    ({"megatron_config": {"a": 1}, "megatron_core": "evil"}, "code from elsewhere"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_decoder(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    from peft import LoraConfig

    foreign(tmp_path / "adapter", base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    return tmp_path / "adapter"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(way: Callable[[], object], finding: str = "", *, seconds: float = 10) -> None:
    """The way ends in one line, in time."""
    began = time.monotonic()
    with pytest.raises(TunesmithError) as caught:
        way()
    assert time.monotonic() - began < seconds
    assert len(str(caught.value).splitlines()) == 1
    assert finding in str(caught.value)
    assert ";" in str(caught.value)


@pytest.mark.parametrize(("changes", "finding"), ADAPTERS, ids=lambda value: str(value)[:40])
def test_an_adapter_of_others_is_refused_in_one_line(changes: dict[str, Any], finding: str, adapter: Path):
    edit(adapter / "adapter_config.json", **changes)
    refused(lambda: open_model(adapter, offline=True), finding)


@pytest.mark.long
@pytest.mark.parametrize(("changes", "finding"), ADAPTERS, ids=lambda value: str(value)[:40])
def test_the_adapter_of_a_run_without_a_manifest_gets_the_same_checks(
    changes: dict[str, Any], finding: str, tmp_path: Path
):
    run = save_run(tmp_path / "run", Lora(rank=4))
    (run / "model" / MANIFEST).unlink()
    edit(run / "model" / "adapter_config.json", **changes)
    finding = finding.replace("does not fit", "")  # each way names the problem; the network is another
    refused(lambda: open_model(run, offline=True), finding)
    refused(lambda: load_base(str(run), offline=True), finding)


@pytest.mark.parametrize(
    "changes",
    [{"num_virtual_tokens": 10**9}, {"num_virtual_tokens": "a"}, {"peft_type": "LORA"}, {"num_layers": 10**8}],
)
def test_virtual_tokens_of_a_run_get_them_too(changes: dict[str, Any], tmp_path: Path):
    run = save_run(tmp_path / "run", Prefix(tokens=4))
    (run / "model" / MANIFEST).unlink()
    edit(run / "model" / "adapter_config.json", **changes)
    refused(lambda: open_model(run, offline=True))


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q_proj|v_proj)",
        r"^(?!.*vision).*(?:q_proj|v_proj).*?",
        r"(?:.*?(?:language|model).*?(?:self_attn|mlp).*?(?:q_proj|k_proj|v_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.q_proj)",
        r"model\.layers\.(0|1)\.self_attn\.[qv]_proj",
    ],
)
def test_patterns_as_people_write_them_still_work(pattern: str, base: Path, tmp_path: Path):
    from peft import LoraConfig

    foreign(tmp_path / "adapter", base, LoraConfig(r=4, target_modules=pattern, task_type="CAUSAL_LM"))
    assert open_model(tmp_path / "adapter", offline=True).generate(["hi"])


@pytest.mark.long
@pytest.mark.parametrize("init", ["pissa_niter_4", "olora", "gaussian", False, True])
def test_ways_to_begin_that_peft_knows_still_work(init: Any, adapter: Path):
    edit(adapter / "adapter_config.json", init_lora_weights=init)
    assert open_model(adapter, offline=True).generate(["hi"])


# ------------------------------------------------------------------ configurations of bases


CONFIGS: list[dict[str, Any]] = [
    {"num_hidden_layers": 1_000_000},
    {"num_hidden_layers": 10**400},
    {"num_hidden_layers": float("inf")},
    {"num_hidden_layers": "2"},
    {"num_hidden_layers": None},
    {"vocab_size": 10**9},
    {"vocab_size": -1},
    {"hidden_size": 10**7},
    {"hidden_size": 0},
    {"intermediate_size": 10**9},
    {"num_attention_heads": 10**7},
    {"num_attention_heads": 0},
    {"model_type": 7},
    {"model_type": "something"},
    {"rope_parameters": {"rope_type": "nothing"}},
    {"hidden_act": "nothing"},
    {"torch_dtype": "nothing", "dtype": "nothing"},
]


@pytest.mark.parametrize("changes", CONFIGS, ids=lambda value: str(value)[:40])
def test_a_configuration_that_its_weights_do_not_have_is_refused(changes: dict[str, Any], tmp_path: Path):
    for make in (tiny_decoder, tiny_encoder):
        base = make(tmp_path / make.__name__)
        edit(base / "config.json", **changes)
        if "rope_parameters" in changes and make is tiny_encoder:
            continue  # BERT has none and ignores them
        refused(lambda base=base: load_base(str(base), offline=True), seconds=20)


def test_a_named_pipe_as_a_configuration_is_refused(tmp_path: Path):
    base = tiny_decoder(tmp_path / "base")
    (base / "config.json").unlink()
    os.mkfifo(base / "config.json")
    refused(lambda: load_base(str(base), offline=True), "not a file")


def test_a_flipped_bit_in_a_configuration_of_others_is_never_a_traceback(adapter: Path, base: Path, tmp_path: Path):
    mine = tiny_decoder(tmp_path / "mine")
    chance = random.Random(37)
    ways: list[tuple[Path, Callable[[], object]]] = [
        (adapter / "adapter_config.json", lambda: open_model(adapter, offline=True)),
        (mine / "config.json", lambda: load_base(str(mine), offline=True)),
        (mine / "tokenizer_config.json", lambda: load_base(str(mine), offline=True)),
    ]
    for path, way in ways:
        whole = path.read_bytes()
        for _ in range(25):
            content = bytearray(whole)
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            path.write_bytes(content)
            with suppress(TunesmithError):
                way()
        path.write_bytes(whole)
