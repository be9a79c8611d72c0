from __future__ import annotations

import argparse
from typing import Any

import pytest

from tunesmith.cli.options import Parser, UsageError, add_changes, add_common, changes_of, sampling_of
from tunesmith.models.generation.sampling import Sampling


def test_flags_come_before_set_which_has_the_last_word():
    parser = Parser(prog="x")
    add_changes(parser)
    args = parser.parse_args(["--set", "model=b", "--model", "a", "--technique", "full"])
    assert changes_of(args) == ['model="a"', 'technique="full"', "model=b"]


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("on", True), ("0", False), ("", False)])
def test_the_hubs_own_switch_means_offline_here_too(monkeypatch: pytest.MonkeyPatch, value: str, offline: bool):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    parser = Parser(prog="x")
    add_common(parser)
    assert parser.parse_args([]).offline is offline


def sampling(**given: Any) -> argparse.Namespace:
    plain: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": None, "seed": 0}
    return argparse.Namespace(**plain | given)


def test_the_models_own_token_limit_stands_unless_one_is_given():
    default = Sampling(max_new_tokens=33)
    assert sampling_of(sampling(), default).max_new_tokens == 33
    asked = sampling_of(sampling(max_new_tokens=5, temperature=0.7, seed=3), default)
    assert asked == Sampling(max_new_tokens=5, temperature=0.7, seed=3)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"temperature": -1.0}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature: expected a number >= 0, got nan"),
        ({"temperature": float("inf")}, "--temperature"),
        ({"top_p": float("nan")}, "--top-p"),
        ({"top_p": 0.0}, "--top-p"),
        ({"max_new_tokens": 0}, "--max-new-tokens"),
    ],
)
def test_a_setting_out_of_range_is_named(given: dict[str, Any], place: str):
    with pytest.raises(UsageError, match=place):
        sampling_of(sampling(**given), Sampling())
