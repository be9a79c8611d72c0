from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tunesmith.cli import main
from tunesmith.cli.commands import tune
from tunesmith.cli.main import parser
from tunesmith.cli.terminal import console
from tunesmith.errors import DataError, Refused


def replace_tune(monkeypatch: pytest.MonkeyPatch, run: Callable[[argparse.Namespace], int]) -> None:
    monkeypatch.setattr(tune, "run", run)


def test_help_names_every_command(command: Command):
    done = command("--help")
    assert done.code == 0
    for word in ("demo", "init", "tune", "evaluate", "ask", "chat", "runs", "models", "doctor"):
        assert f"    {word}" in done.out


def test_without_arguments_the_help_is_printed_and_the_exit_code_is_0(command: Command):
    assert command() == command("--help")
    assert command().code == 0


def test_every_command_takes_json_offline_and_out():
    (commands,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, command_parser in commands.choices.items():
        known = set(command_parser._option_string_actions)
        assert known >= {"--json", "--offline", "--out"}, name


def test_help_and_every_command_module_load_nothing_heavy():
    code = "from tunesmith.cli import main; main(['--help']); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "numpy", "pydantic", "yaml", "rich"}
    assert heavy & set(done.stdout.splitlines()[-1].split()) == set()


def test_version_is_that_of_the_package(command: Command):
    from importlib.metadata import version

    assert command("--version").out == f"tunesmith {version('tunesmith')}\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["tun"], "error: tunesmith: no command 'tun', did you mean 'tune'?; see `tunesmith --help`"),
        (
            ["tune"],
            "error: tunesmith tune: the following arguments are required: RECIPE|DATA; see `tunesmith tune --help`",
        ),
        (
            ["ask", "run", "text", "--temprature", "1"],
            "error: tunesmith ask: no option '--temprature', did you mean '--temperature'?; see `tunesmith ask --help`",
        ),
    ],
)
def test_wrong_words_are_one_line_with_the_nearest_name_and_exit_2(command: Command, words: list[str], line: str):
    assert command(*words) == (2, "", line + "\n")


def test_an_error_of_the_input_is_its_line_on_stderr_and_its_exit_code(
    command: Command, monkeypatch: pytest.MonkeyPatch
):
    def run(args: argparse.Namespace) -> int:
        raise Refused("gate: no; do better")

    replace_tune(monkeypatch, run)
    assert command("tune", "x.jsonl") == (1, "", "error: gate: no; do better\n")


def test_several_faults_of_a_file_are_a_line_each(command: Command, monkeypatch: pytest.MonkeyPatch):
    def run(args: argparse.Namespace) -> int:
        raise DataError("a:1: x\na:2: y")

    replace_tune(monkeypatch, run)
    assert command("tune", "x.jsonl") == (2, "", "error: a:1: x\nerror: a:2: y\n")


def test_under_json_an_error_is_the_one_document_on_stdout(command: Command, monkeypatch: pytest.MonkeyPatch):
    def run(args: argparse.Namespace) -> int:
        raise DataError("a:1: x; y")

    replace_tune(monkeypatch, run)
    done = command("tune", "x.jsonl", "--json")
    assert json.loads(done.out) == {"error": {"kind": "DataError", "message": "a:1: x; y", "exit_code": 2}}
    assert done.err == "error: a:1: x; y\n"


def test_an_error_of_our_own_shows_its_traceback_and_exits_70(command: Command, monkeypatch: pytest.MonkeyPatch):
    def run(args: argparse.Namespace) -> int:
        return 1 // 0

    replace_tune(monkeypatch, run)
    done = command("tune", "x.jsonl")
    assert done.code == 70
    assert "Traceback" in done.err
    assert "ZeroDivisionError" in done.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_with_one_line_that_says_how_to_go_on(
    command: Command, monkeypatch: pytest.MonkeyPatch, number: int, code: int
):
    def run(args: argparse.Namespace) -> int:
        os.kill(os.getpid(), number)
        return 0

    def again() -> bool:
        os.kill(os.getpid(), number)
        return True

    replace_tune(monkeypatch, run)
    line = "interrupted: stopped; run the same command again to resume\n"
    for report in (lambda: True, again):
        monkeypatch.setattr(sys.modules["tunesmith.cli.main"], "reports_error", report)
        assert command("tune", "x.jsonl") == (code, "", line)
    monkeypatch.setattr(sys, "argv", ["tunesmith", "tune", "x.jsonl"])
    assert main() == code
    os.kill(os.getpid(), number)  # as the interpreter ends


def test_waiting_threads_sleep_unless_the_user_wants_otherwise(command: Command, monkeypatch: pytest.MonkeyPatch):
    replace_tune(monkeypatch, lambda args: 0)
    for given, kept in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        monkeypatch.setenv("OMP_WAIT_POLICY", given) if given else monkeypatch.delenv("OMP_WAIT_POLICY", False)
        monkeypatch.delenv("GOMP_SPINCOUNT", False)
        command("tune", "x.jsonl")
        assert os.environ["OMP_WAIT_POLICY"] == kept
        assert given is None or "GOMP_SPINCOUNT" not in os.environ


def test_matplotlib_keeps_its_fonts_in_the_cache_unless_the_user_wants_otherwise(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    replace_tune(monkeypatch, lambda args: 0)
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    for given, kept in ((None, str(tmp_path / "matplotlib")), ("/elsewhere", "/elsewhere")):
        monkeypatch.setenv("MPLCONFIGDIR", given) if given else monkeypatch.delenv("MPLCONFIGDIR", False)
        command("tune", "x.jsonl")
        assert os.environ["MPLCONFIGDIR"] == kept


@pytest.mark.parametrize(
    ("load", "spins"), [("0.9 1.2 1.3 1/67 4711", "3000"), ("0.1 0.2 0.2 2/67 4711", None), ("", None)]
)
def test_waiting_threads_look_out_for_work_a_moment_only_where_nobody_else_works(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, load: str, spins: str | None
):
    replace_tune(monkeypatch, lambda args: 0)
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, False)
    monkeypatch.setattr(sys.modules["tunesmith.cli.main"], "LOAD", tmp_path / "loadavg")
    if load:
        (tmp_path / "loadavg").write_text(load, encoding="ascii")
    command("tune", "x.jsonl")
    assert os.environ.pop("GOMP_SPINCOUNT", None) == spins


def test_the_handlers_of_the_caller_are_put_back(command: Command):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    command("--version")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_reader_that_has_gone_is_no_traceback(tmp_path: Path):
    for i in range(800):
        (tmp_path / f"run{i}").mkdir()
        (tmp_path / f"run{i}" / "run.json").write_text("{}")
    words = [sys.executable, "-m", "tunesmith", "runs", str(tmp_path), "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 128 + signal.SIGPIPE


@pytest.mark.parametrize("words", [["runs", "nowhere", "--json"], ["ask", "nowhere", "x", "--json"]])
def test_a_reader_that_has_gone_is_no_traceback_where_there_is_an_error_to_tell(words: list[str]):
    with subprocess.Popen(
        [sys.executable, "-m", "tunesmith", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
        assert process.wait() in (2, 128 + signal.SIGPIPE)


def test_a_closed_stdout_is_no_internal_error(tmp_path: Path):
    (tmp_path / "runs").mkdir()
    command = f"{shlex.quote(sys.executable)} -m tunesmith runs {shlex.quote(str(tmp_path / 'runs'))} >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_table_whose_reader_has_gone_is_no_failed_check():
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        console(Gone()).print("x")


def test_what_a_terminal_has_no_letters_for_is_written_as_what_it_is(tmp_path: Path):
    (tmp_path / "\u65e5").mkdir()
    (tmp_path / "\u65e5" / "run.json").write_text("{}")
    for more in ([], ["--json"]):
        words = [sys.executable, "-m", "tunesmith", "runs", str(tmp_path), *more]
        done = subprocess.run(words, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "latin-1"}, check=False)
        assert (done.returncode, b"\\u65e5" in done.stdout) == (0, True), done.stderr


def test_the_command_module_and_the_package_run_the_same_main():
    done = subprocess.run([sys.executable, "-m", "tunesmith", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("tunesmith ")


def test_main_reads_the_command_line_of_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["tunesmith", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("tunesmith")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "words",
    [
        "tune pipe.yaml",
        "tune pipe.json",
        "audit pipe.jsonl",
        "init pipe.csv.gz",
        "init --from pipe.yaml",
        "plan pipe.parquet",
        "collect pipe.md",
        "votes import votes.db pipe.jsonl",
    ],
)
def test_a_named_pipe_is_refused_and_not_waited_for(
    words: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    pipe = next(word for word in words.split() if word.startswith("pipe"))
    os.mkfifo(pipe)
    done = command(*words.split(), "--offline")
    assert (done.code, done.err) == (
        2,
        f"error: {pipe}: is a pipe or a device; write its content to a file and give that\n",
    )
