"""`tunesmith votes` and what `feedback` asks of a run; the page itself is tested in tests/web."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command, write_rows
from tunesmith.pipelines.feedback import open_panel, usual_sampling
from tunesmith.pipelines.requests import FeedbackRequest

PAIRS: list[dict[str, object]] = [
    {
        "prompt": f"p{n}",
        "chosen": f"good {n}",
        "rejected": f"bad {n}",
        "raters": ["Ana"],
        "chosen_by": "a",
        "rejected_by": "b",
    }
    for n in range(4)
]


@pytest.fixture
def store(command: Command, tmp_path: Path) -> Path:
    """Four votes of Ana."""
    path = tmp_path / "votes.db"
    done = command("votes", "import", path, write_rows(tmp_path / "in.jsonl", PAIRS), "--json")
    assert json.loads(done.out) == {"store": str(path), "votes": 4, "items": 4, "known": 0}
    return path


def test_votes_come_in_are_summed_up_and_go_out(command: Command, store: Path, tmp_path: Path) -> None:
    page = json.loads(command("votes", "summary", store, "--json").out)
    assert (page["items"], page["judged"], page["at_random"]) == (4, 4, [])
    assert [(duel["models"], duel["won"]) for duel in page["duels"]] == [(["a", "b"], 1.0)]
    text = command("votes", "summary", store).out
    assert "judged: 4 of 4 prompts (" in text
    assert "a against b" in text
    out = tmp_path / "out.jsonl"
    done = command("votes", "export", store, out, "--json")
    assert json.loads(done.out) == {"file": str(out), "rows": 4, "format": "pairs", "undecided": 0}
    assert [json.loads(line) for line in out.read_text().splitlines()] == PAIRS
    assert command("votes", "export", store, out).out.rstrip().endswith("--objective preference")
    (tmp_path / "model").mkdir()  # votes that lie in a run's folder are learned from there
    assert command("votes", "export", store, out).out.rstrip().endswith(f"--model {tmp_path}")


def test_the_shape_of_the_summary_is_printed_and_a_wrong_act_told(command: Command, store: Path) -> None:
    assert json.loads(command("votes", "--schema").out)["title"] == "Summary"
    done = command("votes", "exprt", store)
    assert done.code == 2
    assert "did you mean 'export'?" in done.err
    assert f"write `tunesmith votes export {store} rows.jsonl`" in command("votes", "export", store).err
    assert "ending in .jsonl" in command("votes", "export", store, "out.txt").err


def test_without_the_only_person_there_is_nothing_to_write(command: Command, store: Path, tmp_path: Path) -> None:
    assert command("votes", "export", store, tmp_path / "out.jsonl", "--without", "Ana").code == 1


def test_a_name_of_nobody_is_refused_with_the_nearest_and_one_with_a_comma_can_be_left_out(
    command: Command, store: Path, tmp_path: Path
) -> None:
    more = [{**row, "raters": ["Bo, PhD"]} for row in PAIRS]
    command("votes", "import", store, write_rows(tmp_path / "more.jsonl", more))
    done = command("votes", "summary", store, "--without", "Anna")
    assert done.code == 2
    assert "--without: no vote of 'Anna' in" in done.err
    assert "did you mean 'Ana'?; name one of: 'Ana', 'Bo, PhD'" in done.err
    left = json.loads(command("votes", "summary", store, "--without", "Bo, PhD", "--json").out)
    assert [one["rater"] for one in left["raters"]] == ["Ana"]
    none = json.loads(command("votes", "summary", store, "--without", "Bo, PhD", "--without", "Ana", "--json").out)
    assert none["judged"] == 0


def test_a_run_is_asked_its_own_test_rows_with_its_instruction_and_beside_its_base(
    decoder_run: Path, tmp_path: Path
) -> None:
    sampling = usual_sampling(str(decoder_run), offline=True)
    assert sampling.max_new_tokens == 8
    wish = FeedbackRequest(str(decoder_run), "base", store=tmp_path / "v.db", sampling=sampling, offline=True)
    work = open_panel(wish, log=print)
    assert 1 <= len(work.items) <= 8  # a fifth of forty rows is held out
    for item in work.items.values():
        assert item.messages[0].content.startswith("Which?\n\nnumber ")
        assert str(decoder_run) in item.by
        assert len(set(item.by)) == 2


def test_a_run_that_labels_is_refused(command: Command, encoder_run: Path, tmp_path: Path) -> None:
    done = command("feedback", encoder_run, "--store", tmp_path / "v.db")
    assert (done.code, done.out) == (2, "")
    assert "raters judge generated text" in done.err
    assert not (tmp_path / "v.db").exists()


def test_one_of_a_thing_is_told_as_one_and_a_name_stands_on_one_line(command: Command, tmp_path: Path) -> None:
    path, row = tmp_path / "votes.db", {"prompt": "p", "chosen": "a", "rejected": "b", "raters": ["Ana\nMaria", "Bo"]}
    done = command("votes", "import", path, write_rows(tmp_path / "in.jsonl", [row | {"raters": ["Ana\nMaria"]}]))
    assert done.out.strip() == f"{path}: 1 vote added with 1 new item; 0 already in the store"
    command("votes", "import", path, write_rows(tmp_path / "in.jsonl", [row]))
    text = command("votes", "summary", path).out
    assert "judged: 1 of 1 prompt (" in text
    assert "1 prompt with several raters: " in text
    assert "Ana Maria" in text


def test_an_empty_file_is_no_store_and_stays_empty(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "votes.db"
    path.touch()
    done = command("votes", "summary", path)
    assert (done.code, path.stat().st_size) == (2, 0)
    assert "votes.db: expected a file of votes, got an empty file" in done.err


def test_a_name_longer_than_rows_may_have_is_refused(command: Command, tmp_path: Path) -> None:
    done = command("votes", "import", tmp_path / "v.db", write_rows(tmp_path / "in.jsonl", PAIRS), "--rater", "x" * 201)
    assert done.code == 2
    assert "--rater: expected at most 200 characters, got 201" in done.err
