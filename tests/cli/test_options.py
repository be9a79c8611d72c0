from __future__ import annotations

import argparse
from typing import Any

import pytest

from tunesmith.cli.main import parser as command_line
from tunesmith.cli.options import Parser, UsageError, add_changes, add_common, changes_of, sampling_of
from tunesmith.errors import OptionError
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
    with pytest.raises(OptionError, match=place):
        sampling_of(sampling(**given), Sampling())


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (("export", "RUN", "--numbers", "f16"), "dtype", "f16"),
        (("serve", "RUN", "--longest", "9"), "max_tokens", 9),
        (("serve", "RUN", "--waiting", "7"), "max_queue", 7),
    ],
)
def test_a_former_option_sets_the_new_one_warns_and_is_not_listed(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], name: str, value: object
):
    new = f"--{name.replace('_', '-')}"
    assert vars(command_line().parse_args(words))[name] == value
    assert capsys.readouterr().err == f"warning: {words[2]} is deprecated; use {new}\n"
    with pytest.raises(SystemExit):
        command_line().parse_args([words[0], "--help"])
    listed = capsys.readouterr().out
    assert new in listed
    assert words[2] not in listed


def test_need_is_the_former_name_of_learning_curve(capsys: pytest.CaptureFixture[str]):
    new, old = (command_line().parse_args([name, "rows.csv"]) for name in ("learning-curve", "need"))
    assert new.run is old.run
    with pytest.raises(SystemExit):
        command_line().parse_args(["--help"])
    assert capsys.readouterr().out.count("learning-curve") == 1
    with pytest.raises(UsageError, match=r"no command 'nee'(?!.*'need')"):
        command_line().parse_args(["nee"])
