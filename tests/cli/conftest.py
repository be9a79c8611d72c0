"""Rows, tiny runs and a way to call the command in this process."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.glance import only_a_glance
from tunesmith.cli import main

PLAIN = ("--offline", "--set", "machine.threads=1", "--set", "machine.dtype=float32")
# A tiny random model is slow to learn at the rates that fit a real one.
EAGER = ("--set", "schedule.learning_rate=0.01", "--set", "schedule.probe=false")


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Run the command in this process, which a signal leaves without handlers."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]

    def call(*words: object) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    yield call
    for handler in before:
        signal.signal(*handler)


def write_rows(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    """The rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def reviews(count: int = 60) -> list[dict[str, object]]:
    """Sentences of which every second one is bad news, three to a group."""
    words = {"positive": ("good", "great", "lovely"), "negative": ("bad", "awful", "broken")}
    rows: list[dict[str, object]] = []
    for i in range(count):
        label = ("positive", "negative")[i % 2]
        text = f"phone number {i} is {words[label][i // 2 % 3]}"
        rows.append({"text": text, "label": label, "group": f"source {i // 3}"})
    return rows


@pytest.fixture
def review_file(tmp_path: Path) -> Path:
    """Sixty labelled sentences."""
    return write_rows(tmp_path / "reviews.jsonl", reviews())


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests share, so that they leave nothing in the user's."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _in_that_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(cache))
    only_a_glance(monkeypatch)


def _tuned(folder: Path, cache: Path, rows: Sequence[dict[str, object]], *words: str) -> Path:
    data = write_rows(folder / "rows.jsonl", rows)
    out = folder / "run"
    with pytest.MonkeyPatch.context() as patch:  # a run is made once a session, before any test's own patches
        patch.setenv("TUNESMITH_CACHE", str(cache))
        only_a_glance(patch)
        code = main(["tune", str(data), *words, "--out", str(out), *PLAIN, *EAGER])
    assert code == 0
    return out


@pytest.fixture(scope="session")
def encoder_run(tmp_path_factory: pytest.TempPathFactory, cache: Path, tiny_bert: Path) -> Path:
    """The folder of a tiny encoder tuned to label reviews."""
    folder = tmp_path_factory.mktemp("encoder")
    return _tuned(folder, cache, reviews(), "--model", str(tiny_bert), "--technique", "full")


@pytest.fixture(scope="session")
def decoder_run(tmp_path_factory: pytest.TempPathFactory, cache: Path, tiny_llama: Path) -> Path:
    """The folder of a tiny decoder tuned to answer, with an instruction before every prompt."""
    folder = tmp_path_factory.mktemp("decoder")
    rows: list[dict[str, object]] = [{"prompt": f"number {i}", "answer": f"it is {i % 3}"} for i in range(40)]
    words = ("--set", "objective.instruction=Which?", "--set", "objective.max_new_tokens=8")
    return _tuned(folder, cache, rows, "--model", str(tiny_llama), *words)
