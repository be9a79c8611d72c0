from __future__ import annotations

import io
import json
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tests.cli.conftest import Command
from tests.served import save_run
from tests.thinking import ANSWER, KIND, THOUGHTS, WHOLE, dictate, ids_of
from tunesmith.annotation.import_export import read_events
from tunesmith.annotation.thumbs import FILE, Thumbs
from tunesmith.cli.commands.chat import HELP, Conversation
from tunesmith.cli.signals import Interruption
from tunesmith.data.tokenization.messages import Message
from tunesmith.inference.identify import read_manifest
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.open_model import open_model
from tunesmith.inference.saved_model import load
from tunesmith.models.generation.generate import Piece
from tunesmith.models.generation.sampling import Sampling
from tunesmith.objectives import Instruct
from tunesmith.techniques import Lora


def _nothing(_: str = "") -> Any:
    raise AssertionError("neither the base nor a file of ratings is needed")


ALONE: dict[str, Any] = {"name": "run", "base": _nothing, "thumbs": Thumbs(_nothing)}


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_a_labelling_run_answers_with_a_label_and_every_probability(command: Command, encoder_run: Path):
    done = command("ask", encoder_run, "phone number 3 is good", "--json")
    document = json.loads(done.out)
    assert document["label"] in ("positive", "negative")
    assert sum(document["probabilities"].values()) == pytest.approx(1)
    assert document["label"] == max(document["probabilities"], key=document["probabilities"].get)
    spoken = command("ask", encoder_run, "phone number 3 is good").out.splitlines()
    assert spoken[0] == document["label"]
    assert spoken[3].split()[0] == document["label"]


def test_any_other_run_answers_with_text_as_its_rows_were_asked(command: Command, decoder_run: Path):
    done = command("ask", decoder_run, "number 3", "--json")
    document = json.loads(done.out)
    assert document["text"] == "number 3"
    assert document["new_tokens"] <= 8
    model = load(decoder_run, offline=True)
    assert document["answer"] == model.generate(["number 3"])[0]
    assert model.objective.user_message("number 3") == Message("user", "Which?\n\nnumber 3")


def test_a_text_that_does_not_fit_is_said_to_be_cut(command: Command, encoder_run: Path, decoder_run: Path):
    for run in (encoder_run, decoder_run):
        assert "the end of the text was dropped" not in command("ask", run, "number 3").err
        assert "the end of the text was dropped" in command("ask", run, "number 3 " * 400).err


def test_a_dash_reads_the_text_from_stdin(command: Command, encoder_run: Path, monkeypatch: pytest.MonkeyPatch):
    type_in(monkeypatch, " phone number 3 is good\n")
    piped = json.loads(command("ask", encoder_run, "-", "--json").out)
    assert piped == json.loads(command("ask", encoder_run, "phone number 3 is good", "--json").out)


def test_a_label_below_the_threshold_is_marked(command: Command, encoder_run: Path, tmp_path: Path):
    run = shutil.copytree(encoder_run, tmp_path / "run")
    manifest = run / "model" / "tunesmith.json"
    for threshold, reliable in ((1.01, False), (0.0, True), (None, None)):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"threshold": threshold}))
        done = command("ask", run, "good")
        assert ("warning: below 1.010, the confidence" in done.err) is (reliable is False)
        assert json.loads(command("ask", run, "good", "--json").out)["reliable"] is reliable
        answer = tunesmith.load(run).classify("good")
        assert answer.reliable is reliable
        assert ("below the threshold" in repr(answer)) is (reliable is False)


def test_out_keeps_the_document_beside_what_is_shown(command: Command, encoder_run: Path, tmp_path: Path):
    done = command("ask", encoder_run, "good", "--out", tmp_path / "answer.json")
    assert done.code == 0
    assert json.loads((tmp_path / "answer.json").read_text())["label"] == done.out.splitlines()[0]


def test_an_empty_text_a_missing_run_and_a_base_model_are_one_line_each(
    command: Command, encoder_run: Path, tmp_path: Path
):
    assert command("ask", encoder_run, " ") == (
        2,
        "",
        "error: ask: TEXT is empty; give a text, or - and a text on stdin\n",
    )
    done = command("ask", tmp_path / "none", "x")
    assert done.code == 2
    assert done.err.endswith("none: no such folder; `tunesmith runs` lists what is here\n")
    done = command("ask", "smollm2-135m", "x")
    assert done.code == 2
    assert "a base model, not a run; tune it first with `tunesmith tune ROWS --model smollm2-135m`" in done.err


def test_a_run_of_another_base_is_refused(command: Command, decoder_run: Path, tmp_path: Path, tiny_bert: Path):
    copy = tmp_path / "run"
    shutil.copytree(decoder_run, copy)
    page = copy / "model" / "tunesmith.json"
    about = json.loads(page.read_text())
    page.write_text(json.dumps(about | {"base": str(tiny_bert)}))
    done = command("ask", copy, "x")
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert "tuned over another base" in done.err


def test_a_piped_chat_answers_each_line_and_ends_at_quit(
    command: Command, decoder_run: Path, monkeypatch: pytest.MonkeyPatch
):
    type_in(monkeypatch, "number 1\n\nnumber 2\n/quit\nnumber 3\n")
    messages = json.loads(command("chat", decoder_run, "--temperature", "0", "--json").out)["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant"]
    assert [m["content"] for m in messages[::2]] == ["Which?\n\nnumber 1", "number 2"]
    alone = json.loads(command("ask", decoder_run, "number 1", "--json").out)["answer"]
    assert messages[1]["content"] == alone


def test_reset_forgets_and_system_sets_the_turn_before_all_others(
    command: Command, decoder_run: Path, monkeypatch: pytest.MonkeyPatch
):
    type_in(monkeypatch, "a\n/system be brief\nb\n/reset\n/what\nc\n")
    done = command("chat", decoder_run, "--json")
    messages = json.loads(done.out)["messages"]
    assert messages[:2] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "Which?\n\nc"},
    ]
    assert len(messages) == 3
    assert done.err.splitlines() == [
        "system message: be brief",
        "conversation cleared",
        HELP,
    ]


def test_a_chat_shows_the_base_saves_rows_and_keeps_thumbs(
    command: Command, decoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows, kept, folder = tmp_path / "rows.jsonl", tmp_path / "kept.jsonl", tmp_path / "folder.jsonl"
    (decoder_run / FILE).unlink(missing_ok=True)
    folder.mkdir()
    rows.write_text('{"messages": 0}')  # a last line without an end
    places = "\n".join(f"/save {place}" for place in (rows, folder, tmp_path / "rows.csv", rows))
    type_in(monkeypatch, f"/good\nnumber 1\n/base\n/good\nnumber 2\n/bad\n{places}\n")
    done = command("chat", decoder_run, "--temperature", "0")
    assert done.code == 0, done.err
    said = done.err.splitlines()
    assert said[0] == "/good: no answer yet; send a message first"
    assert "the conversation continues with the answer of run" in done.err
    assert f"{folder}: not written (Is a directory); name another file" in said
    assert f"{tmp_path / 'rows.csv'}: expected a file name ending in .jsonl; rename it" in said
    answers = [line.strip() for line in done.out.splitlines() if line.strip()]
    table = next(i for i, line in enumerate(answers) if line.split() == ["run", "base"])
    base = open_model(read_manifest(decoder_run / "model").base, limit=512, offline=True)
    wanted = base.reply([Message("user", "Which?\n\nnumber 1")], sampling=Sampling(max_new_tokens=8)).text
    shown = " ".join(answers[table:])
    assert all(word in shown for word in wanted.split())
    saved = [json.loads(line)["messages"] for line in rows.read_text().splitlines()[1:]]
    assert saved[0] == saved[1]
    assert [turn["role"] for turn in saved[0]] == ["user", "assistant"] * 2
    done = command("votes", "export", decoder_run / FILE, kept, "--json")
    assert done.code == 0, done.err
    found = [json.loads(line) for line in kept.read_text().splitlines()]
    assert sorted((row["label"], row["completion"], row["by"]) for row in found) == [
        (False, saved[0][3]["content"], decoder_run.name),
        (True, saved[0][1]["content"], decoder_run.name),
    ]


def test_a_chat_with_a_model_folder_or_a_url_keeps_thumbs_where_they_are_found(
    command: Command, decoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = shutil.copytree(decoder_run, tmp_path / "mine")
    (run / FILE).unlink(missing_ok=True)
    monkeypatch.chdir(tmp_path)
    for place, kept in ((run / "model", run / FILE), (run.as_uri(), Path("mine-thumbs.db"))):
        type_in(monkeypatch, "number 1\n/good\n")
        done = command("chat", place)
        assert f"rating saved in {kept}; " in done.err
        assert [path.name for path in kept.parent.glob("*thumbs.db*")] == [kept.name]  # closed: without a log beside it
        by = [event.body["by"] for event in read_events(kept) if event.kind == "item"]
        assert by == [["mine"]]
    assert not list((run / "model").glob("*.db*"))


def test_the_same_seed_gives_the_same_conversation(
    command: Command, decoder_run: Path, monkeypatch: pytest.MonkeyPatch
):
    spoken = []
    for seed in (1, 1, 2):
        type_in(monkeypatch, "number 1\n")
        spoken.append(command("chat", decoder_run, "--temperature", "2", "--seed", seed).out)
    assert spoken[0] == spoken[1] != spoken[2]


def test_an_encoder_does_not_chat(command: Command, encoder_run: Path):
    done = command("chat", encoder_run)
    assert done.code == 2
    assert "an encoder does not generate text; use `tunesmith ask" in done.err


def interrupted_stream(self: LocalModel, messages: Sequence[Message], *, sampling: Sampling) -> Iterator[Piece]:
    yield Piece("started")
    raise KeyboardInterrupt


def test_ctrl_c_ends_an_answer_and_not_the_conversation(
    decoder_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(LocalModel, "stream_pieces", interrupted_stream)
    talk = Conversation(load(decoder_run, offline=True), Sampling(), **ALONE)
    talk.turn("hello")
    assert capsys.readouterr().out == "started ...\n"
    assert talk.messages[-1] == Message("assistant", "started")


def test_another_signal_ends_the_conversation(decoder_run: Path, monkeypatch: pytest.MonkeyPatch):
    def ended(*_: object, **__: object) -> Iterator[Piece]:
        yield Piece("started")
        raise Interruption(signal.SIGTERM)

    monkeypatch.setattr(LocalModel, "stream_pieces", ended)
    with pytest.raises(Interruption):
        Conversation(load(decoder_run, offline=True), Sampling(), **ALONE).turn("hello")


def test_a_pipe_that_is_no_text_or_closed_is_no_bug_of_ours(
    command: Command, decoder_run: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8", errors="strict"))
    messages = json.loads(command("chat", decoder_run, "--temperature", "0", "--json").out)["messages"]
    assert messages[0]["content"] == "Which?\n\ncaf\N{REPLACEMENT CHARACTER}"
    monkeypatch.setattr("sys.stdin", None)
    done = command("ask", decoder_run, "-")
    assert (done.code, done.err.splitlines()[-1]) == (
        2,
        "error: stdin is closed; give a text, or pipe one in",
    )


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # the second one in the locale C
def test_a_text_that_is_not_utf_8_is_named_as_that(
    errors: str, command: Command, encoder_run: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8", errors=errors))
    fix = "convert it, for example with iconv -f latin1 -t utf8"
    done = command("ask", encoder_run, "-")
    assert (done.code, done.err.splitlines()[-1]) == (2, f"error: ask: stdin is not UTF-8; {fix}")
    done = command("ask", encoder_run, b"caf\xe9".decode(errors="surrogateescape"))
    assert (done.code, done.err.splitlines()[-1]) == (2, f"error: ask: TEXT is not UTF-8; {fix}")


def test_a_conversation_that_outgrows_the_model_forgets_its_oldest_turns(
    decoder_run: Path, capsys: pytest.CaptureFixture[str]
):
    model = load(decoder_run, offline=True)
    model.limit = 200
    talk = Conversation(model, Sampling(max_new_tokens=2), system="stay", silent=True, **ALONE)
    talk.messages += [Message("user", "x" * 90), Message("assistant", "y"), Message("user", "z" * 60)]
    talk.messages.append(Message("assistant", "y"))
    talk.turn("last")
    assert [m.content[-1] for m in talk.messages[:3]] == ["y", "z", "y"]
    # The instruction was in the message that is gone; it is now in the oldest that remains.
    assert talk.messages[1].content == model.objective.user_message("z" * 60).content != "z" * 60
    assert capsys.readouterr().err == (
        "2 oldest messages dropped: the conversation exceeds the prompt limit of 200 tokens\n"
    )


@pytest.fixture(scope="module")
def thinking_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that answers at once unless it is asked to think."""
    objective = Instruct(max_new_tokens=30, max_thinking_tokens=60, think_by_default=False)
    return save_run(tmp_path_factory.mktemp("thinks") / "run", Lora(rank=4), objective, kind=KIND)


@pytest.fixture
def dictated(monkeypatch: pytest.MonkeyPatch) -> None:
    dictate(monkeypatch, ids_of(WHOLE), off=ids_of(ANSWER))


@pytest.mark.parametrize(("options", "thoughts"), [(["--thinking"], THOUGHTS), (["--no-thinking"], ""), ([], "")])
def test_ask_prints_the_answer_and_logs_the_thoughts(
    command: Command, thinking_run: Path, dictated: None, options: list[str], thoughts: str
):
    document = json.loads(command("ask", thinking_run, "2 + 2?", *options, "--json").out)
    assert (document["answer"], document["thoughts"]) == (ANSWER, thoughts)
    assert bool(document["thought_tokens"]) == bool(thoughts)
    done = command("ask", thinking_run, "2 + 2?", *options)
    assert done.out == f"{ANSWER}\n"
    assert (THOUGHTS in done.err) == bool(thoughts)


def test_chat_shows_the_thoughts_and_keeps_them_in_the_row(
    thinking_run: Path, dictated: None, capsys: pytest.CaptureFixture[str]
):
    model = load(thinking_run, offline=True)
    model.thinks = True
    talk = Conversation(model, model.sampling, **ALONE)
    talk.turn("2 + 2?")
    assert capsys.readouterr().out == f"{THOUGHTS}\n\n{ANSWER}\n"
    assert talk.row["messages"][-1] == {"role": "assistant", "reasoning_content": THOUGHTS, "content": ANSWER}
    talk.turn("and 3 + 3?")  # the template drops the earlier thoughts
    assert THOUGHTS not in model.template.tokenizer.decode(model.template.prompt(talk.messages[:-1]))


@pytest.mark.parametrize("name", ["ask", "chat"])
def test_thinking_of_a_model_that_cannot_is_refused_in_one_line(command: Command, decoder_run: Path, name: str):
    done = command(name, decoder_run, *(["hi"] if name == "ask" else []), "--thinking")
    assert done.code == 2
    assert "--thinking: the chat template of this model has no thinking mode; leave the switch out" in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_labels_have_no_thoughts(command: Command, encoder_run: Path):
    done = command("ask", encoder_run, "good", "--thinking")
    assert done.code == 2
    assert "--thinking: " in done.err
