"""`tunesmith compare` as people and programs meet it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import PLAIN, Command, reviews, write_rows

ARMS = ("--set", "arms=[prompt, few-shot, tf-idf]", "--set", "data.audit=note")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "reviews.jsonl", reviews())


def test_programs_get_one_document_with_arms_and_verdict(
    command: Command, tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = command("compare", rows, "--model", tiny_llama, *PLAIN, *ARMS, "--json", "--out", out)
    assert done.code == 0, done.err
    page = json.loads(done.out)
    assert [arm["name"] for arm in page["arms"]] == ["prompt", "few-shot", "tf-idf"]
    promised = {"name", "task", "general", "style", "latency", "update", "labels", "cost"}
    assert all(promised <= set(arm) for arm in page["arms"])
    assert set(page["verdict"]) == {"arm", "text", "reasons", "confidence"}
    assert json.loads((out / "comparison.json").read_text()) == page
    assert "Prompt, retrieve or fine-tune?" in (out / "report.html").read_text()


def test_people_see_verdict_belief_and_where_it_lies(
    command: Command, tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    done = command(
        "compare", rows, "--model", tiny_llama, *PLAIN, *ARMS, "--out", tmp_path / "out", "--budget", 5,
        "--price-per-hour", 2,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.out.startswith("verdict: ")
    assert (
        "Task-specific performance (common belief: sometimes limited / good if retrieval is accurate / excellent)"
        in done.out
    )
    beliefs, _, missing = done.out.partition("not measured here: ")
    assert "Access to your domain data" in missing.splitlines()[0]
    assert "Access to your domain data" not in beliefs
    assert ": not measured" not in beliefs
    assert max(map(len, [line for line in done.out.splitlines() if "accuracy" in line and "95 %" in line])) <= 100
    assert "note: budget of 5 minutes: 12 of 12 test rows" in done.out
    assert f"full results: {tmp_path / 'out'}" in done.out
    assert f'next: tunesmith ask {tmp_path / "out"} "..."' in done.out
    asked = command("ask", tmp_path / "out", "this is fine", "--arm", "tf-idf", "--json")
    assert asked.code == 0, asked.err
    found = json.loads(asked.out)
    assert (found["arm"], found["answer"] in ("negative", "positive")) == ("tf-idf", True)
    warm = command("ask", tmp_path / "out", "this is fine", "--temperature", "0.5")
    assert (warm.code, "whose arms have fixed settings" in warm.err) == (2, True)
    wrong = command("ask", tmp_path / "out", "this is fine", "--arm", "raft")
    assert (wrong.code, "prompt, few-shot, tf-idf" in wrong.err) == (2, True)


@pytest.mark.parametrize("option", ["--budget", "--price-per-hour"])
def test_a_number_below_zero_is_the_users_mistake(command: Command, rows: Path, option: str) -> None:
    done = command("compare", rows, option, "-1")
    assert done.code == 2
    assert f"error: {option}: expected a number >= 0, got -1.0" in done.err


def test_the_shape_of_the_document_is_told(command: Command) -> None:
    done = command("compare", "--schema")
    assert set(json.loads(done.out)["required"]) >= {"arms", "verdict", "table"}


def test_a_page_of_another_version_is_told_in_a_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison.json").write_text("{}")
    ended = command("ask", tmp_path / "out", "this is fine")
    assert ended.code == 2
    assert "comparison.json: Field required; written by another version or edited by hand" in ended.err
