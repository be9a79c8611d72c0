"""`tunesmith collect` as people and programs meet it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.data.test_collect_written import Server

FAQ = "# Pumps\n\n## How long is the guarantee?\n\nThe guarantee is 24 months.\n\n## Who repairs it?\n\nThe dealer.\n"


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def manual(tmp_path: Path) -> Path:
    """A folder of two good documents, one broken, one empty, and a picture."""
    folder = tmp_path / "manual"
    folder.mkdir()
    (folder / "faq.md").write_text(FAQ)
    (folder / "text.txt").write_text("Pumps move water from here to there, day and night.")
    (folder / "bad.pdf").write_bytes(b"%PDF-1.7 and nothing more")
    (folder / "void.html").touch()
    (folder / "x.png").write_bytes(b"x")
    return folder


def test_one_bad_file_stops_no_other_and_is_named(command: Command, manual: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    done = command("collect", manual, "--out", out)
    assert done.code == 0, done.err
    assert "warning: skipped manual/bad.pdf: broken or incomplete PDF;" in done.err
    assert "warning: skipped manual/void.html: empty;" in done.err
    assert "2 rows (2 document) from 4 files" in done.out
    assert [(row["doc_id"], row["origin"]) for row in lines(out)] == [
        ("manual/faq.md", "document"), ("manual/text.txt", "document")
    ]  # fmt: skip
    assert str(tmp_path) not in out.read_text()


def test_a_second_time_only_what_changed_is_converted(command: Command, manual: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    assert command("collect", manual / "faq.md", manual / "text.txt", "--out", out).code == 0
    before = out.read_bytes()
    again = command("collect", manual / "faq.md", manual / "text.txt", "--out", out, "--json")
    page = json.loads(again.out)
    assert (page["converted"], page["unchanged"], out.read_bytes()) == (0, 2, before)
    (manual / "text.txt").write_text("Pumps move air from here to there, day and night.")
    page = json.loads(command("collect", manual / "faq.md", manual / "text.txt", "--out", out, "--json").out)
    assert (page["converted"], page["unchanged"]) == (1, 1)
    assert "move air" in out.read_text()
    assert len(list((tmp_path / "collected" / "documents").iterdir())) == 2
    other = command("collect", manual / "faq.md", "--as", "instruct", "--out", tmp_path / "qa.jsonl", "--json")
    assert json.loads(other.out)["converted"] == 0


def test_rows_that_somebody_changed_are_not_written_over(command: Command, manual: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text('{"text": "mine"}\n')
    done = command("collect", manual / "faq.md", "--out", out)
    assert (done.code, out.read_text()) == (2, '{"text": "mine"}\n')
    assert "changed since collect wrote it" in done.err


@pytest.mark.parametrize("way", ["collected", "nowhere", "folder"])
def test_a_place_that_cannot_be_written_is_one_line(command: Command, manual: Path, tmp_path: Path, way: str) -> None:
    out = tmp_path / "rows.jsonl"
    if way == "collected":
        (tmp_path / "collected").write_text("somebody's file")
    elif way == "folder":
        out.mkdir()
    else:
        out = Path("/proc/x/rows.jsonl")
    done = command("collect", manual / "faq.md", "--out", out)
    place = out.parent / "collected" if way == "collected" else out
    assert (done.code, done.out) == (2, "")
    last = done.err.splitlines()[-1]
    assert last.startswith(f"error: {place}")
    assert last.partition("; ")[2].startswith(("move what is in the way", "give "))


def test_a_faq_page_becomes_rows_that_tune_reads(
    command: Command, manual: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "qa.jsonl"
    questions = "\n".join(f"## What is part {n} for?\n\nPart {n} is for use {n}.\n" for n in range(30))
    (manual / "parts.md").write_text(questions)
    assert command("collect", manual, "--as", "instruct", "--out", out).code == 0
    assert lines(out)[0]["question"] == "How long is the guarantee?"
    assert lines(out)[0]["answer"] == "The guarantee is 24 months."
    done = command("tune", out, "--model", tiny_llama, "--dry-run", "--offline", "--set", "machine.threads=1")
    assert done.code == 0, done.err
    assert "[[The guarantee is 24 months." in done.out or "[[Part " in done.out


def test_a_folder_without_a_good_file_is_an_error_that_names_each(
    command: Command, manual: Path, tmp_path: Path
) -> None:
    done = command("collect", manual / "bad.pdf", manual / "void.html", "--out", tmp_path / "rows.jsonl")
    assert (done.code, done.out) == (2, "")
    assert "error: bad.pdf: broken" in done.err
    assert "error: void.html: empty" in done.err
    assert not (tmp_path / "rows.jsonl").exists()


def test_documents_without_questions_say_what_else_there_is(command: Command, manual: Path, tmp_path: Path) -> None:
    done = command("collect", manual / "text.txt", "--as", "instruct", "--out", tmp_path / "qa.jsonl")
    assert done.code == 2
    assert "no question with its answer in the documents; add --write questions" in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--write", "questions"), "error: --write: needs --writer"),
        (("--writer", "m"), "error: --writer: needs --write"),
        (("--passages", "-3"), "--passages: expected an integer >= 0, got -3"),
        (("--temperature", "nan"), "--temperature: expected a number >= 0, got nan"),
        (
            ("--write", "paraphrases", "--writer", "http://127.0.0.1:9/v1", "--temperature", "nan"),
            "--temperature: expected",
        ),
        (("--write", "questions", "--writer", "m"), "makes rows for instruct, not for domain; add --as instruct"),
        (("--write", "question", "--writer", "m"), "template 'question': unknown template"),
        (("--size", "50"), "--size: expected at least 200 characters, got 50"),
        (("--per-passage", "9"), "--per-passage: expected 1 to 5, got 9"),
        (("--max-new-tokens", "0"), "--max-new-tokens: expected an integer >= 1, got 0"),
        (
            ("--write", "paraphrases", "--writer", "https://far.test/v1", "--offline"),
            "--offline forbids network access",
        ),
        (("--out", "rows.csv"), "give a name that ends in .jsonl"),
    ],
)
def test_wishes_that_do_not_fit_are_refused_before_any_work(
    command: Command, manual: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("collect", manual, *words)
    assert done.code == 2
    assert said in done.err
    assert "converting" not in done.err


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def test_a_server_writes_rows_that_are_checked_marked_and_paid_for_once(
    command: Command, manual: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_API_KEY", "sk-mine")
    reply = "Q: What do pumps move from here to there?\nA: Water.\nQ: How heavy are pumps?\nA: They weigh 90 kilograms."
    answer = json.dumps({"choices": [{"message": {"content": reply}, "finish_reason": "stop"}]})
    server.plan = [(200, answer)] * 3
    out = tmp_path / "qa.jsonl"
    words = ("collect", manual / "faq.md", manual / "text.txt", "--as", "instruct", "--out", out, "--json",
             "--write", "questions", "--writer", server.url, "--writer-name", "m")  # fmt: skip
    done = command(*words)
    assert done.code == 0, done.err
    page = json.loads(done.out)
    assert page["origins"] == {"faq": 2, "synthetic": 1}
    assert page["left_out"]["number not in the passage"] >= 1
    (row,) = (row for row in lines(out) if row["origin"] == "synthetic")
    assert (row["question"], row["answer"]) == ("What do pumps move from here to there?", "Water.")
    assert (row["doc_id"], row["template"]) == ("text.txt", "questions")
    assert set(server.keys) == {"Bearer sk-mine"}
    assert "sk-mine" not in done.err + done.out + "".join(p.read_text() for p in tmp_path.rglob("*.json*"))
    before = len(server.seen)
    assert json.loads(command(*words).out) == {**page, "converted": 0, "unchanged": 2}
    assert len(server.seen) == before == 3


def test_a_model_on_this_machine_is_asked_and_a_poor_one_adds_nothing(
    command: Command, manual: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    done = command("collect", manual / "text.txt", "--write", "paraphrases", "--writer", tiny_llama, "--out", out,
                   "--per-passage", "1", "--max-new-tokens", "8", "--json", "--offline")  # fmt: skip
    assert done.code == 0, done.err
    page = json.loads(done.out)
    assert page["origins"] == {"document": 1}
    assert sum(page["left_out"].values()) == 1
    (reply,) = lines(tmp_path / "collected" / "rows.replies.jsonl")
    assert reply["text"]


def test_the_schema_is_that_of_the_account(command: Command) -> None:
    assert {"failed", "origins", "unchanged"} <= set(json.loads(command("collect", "--schema").out)["properties"])
