"""Files larger than memory: rows that are read in parts and kept in files are the rows that memory would hold."""

from __future__ import annotations

import csv
import gc
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bases import template
from tunesmith.config import Recipe
from tunesmith.data.examples.stored import StoredExamples
from tunesmith.data.examples.types import Chat, Example, LabelledText, RatedText, Text
from tunesmith.data.splits.load import DatasetSplits
from tunesmith.data.splits.split import key_ranges
from tunesmith.data.stored import MAPPED_FROM, array_of, build_once, joined, slices, take
from tunesmith.data.tokenization.messages import Message
from tunesmith.data.tokenization.token_store import EncodedStore, encoded_pieces, packed, sizes_of
from tunesmith.data.tokenization.tokens import Encoded, Tokens
from tunesmith.errors import DataError, RowError
from tunesmith.objectives import Domain
from tunesmith.training import read
from tunesmith.training.read import audited, read_data

WORDS = (
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "omega",
    "tau",
)


def rows(kind: str, count: int = 300) -> list[dict[str, Any]]:
    rng = random.Random(kind)
    made = []
    for number in range(count):
        text = " ".join(rng.choices(WORDS, k=rng.randint(3, 12))) + f" {number % 250}"  # some prompts twice
        source = {
            "source": f"s{number % 40}",
            "kept": number % 3,
            "part": ("train", "train", "dev", "test")[number % 4],
        }
        answers = {"domain": {"text": text}, "classify": {"text": text, "label": rng.choice(["good", "bad", "so so"])}}
        made.append({**answers.get(kind, {"prompt": text, "answer": rng.choice(WORDS)}), **source})
    return made


def write(path: Path, made: Sequence[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, made[0])
            table.writeheader()
            table.writerows(made)
    elif path.suffix == ".parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(list(made)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Every file is a large one, read in parts of 70 rows; arrays are in files, computed 30 values at a time."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tunesmith.data.readers.read.LARGE_BYTES", 1)
    monkeypatch.setattr("tunesmith.data.splits.load.FIRST_ROWS", 70)
    monkeypatch.setattr("tunesmith.data.splits.split.SORTED", 50)
    monkeypatch.setattr("tunesmith.data.stored.MAPPED_FROM", 1)
    monkeypatch.setattr("tunesmith.data.stored.AT_ONCE", 30)
    return monkeypatch


def recipe(train: Path, kind: str, **data: Any) -> Recipe:
    given = {"train": str(train), "split": "", **data}
    return Recipe.model_validate({"model": "smollm2-135m", "objective": {"kind": kind}, "data": given})


def both(made: Recipe, patch: pytest.MonkeyPatch) -> tuple[DatasetSplits, DatasetSplits]:
    """The rows of a recipe from files, then from memory."""
    stored = audited(made, read_data(made, offline=True))
    patch.setattr("tunesmith.data.readers.read.LARGE_BYTES", 2**60)
    return stored, audited(made, read_data(made, offline=True))


def same(stored: DatasetSplits, memory: DatasetSplits) -> None:
    for name in ("train", "validation", "test"):
        part = getattr(stored.split, name)
        assert isinstance(part, StoredExamples)
        assert list(part) == list(getattr(memory.split, name)), name
    assert (stored.rows, stored.split.removed, stored.split.notes) == (
        memory.rows,
        memory.split.removed,
        memory.split.notes,
    )


@pytest.mark.parametrize("kind", ["domain", "classify", "instruct"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_rows_in_files_are_split_checked_and_noted_as_rows_in_memory_are(
    tmp_path: Path, large: pytest.MonkeyPatch, kind: str, suffix: str
):
    made = recipe(write(tmp_path / f"rows{suffix}", rows(kind)), kind)
    stored, memory = both(made, large)
    assert len(memory.split.train) > 100 < len(memory.split.test) + 100
    same(stored, memory)


@pytest.mark.parametrize(
    "data",
    [
        {"group": "source"},
        {"where": {"kept": [1, 2]}},
        {"split": "part"},
        {"rows": 50},
        {"validation": 20, "test": 10},
        {"group": "source", "where": {"kept": ["0"]}, "rows": 30},
    ],
    ids=["groups", "filter", "split column", "fewer rows", "numbers of rows", "all"],
)
def test_settings_of_the_data_choose_the_same_rows_in_files_and_in_memory(
    tmp_path: Path, large: pytest.MonkeyPatch, data: dict[str, Any]
):
    stored, memory = both(recipe(write(tmp_path / "rows.jsonl", rows("classify")), "classify", **data), large)
    same(stored, memory)


def test_files_with_held_out_rows_are_kept_in_files_too(tmp_path: Path, large: pytest.MonkeyPatch):
    made = rows("instruct", 400)
    train = write(tmp_path / "rows.jsonl", made[:300])
    test = write(tmp_path / "test.csv", made[260:340])
    stored, memory = both(recipe(train, "instruct", test=str(test), validation=0.1), large)
    same(stored, memory)
    assert stored.split.removed > 0


def test_rows_with_a_blank_answer_are_skipped_and_counted_over_the_whole_file(
    tmp_path: Path, large: pytest.MonkeyPatch
):
    made = rows("instruct")
    for number in (80, 81, 290):  # in the second and the last part
        made[number]["answer"] = " "
    stored, memory = both(recipe(write(tmp_path / "rows.jsonl", made), "instruct"), large)
    same(stored, memory)
    assert "3 of 300 rows skipped, 'answer' is blank" in stored.split.notes[0]


def test_a_broken_line_is_reported_with_its_place_and_leaves_no_folder(tmp_path: Path, large: pytest.MonkeyPatch):
    file = write(tmp_path / "rows.jsonl", rows("domain"))
    file.write_text(file.read_text() + '{"text": \n')
    with pytest.raises(DataError, match=r"rows\.jsonl:301: invalid JSON \(Expecting value at column 10\)"):
        read_data(recipe(file, "domain"), offline=True)
    assert [path for path in (tmp_path / "cache" / "rows").iterdir() if path.is_dir()] == []


def test_an_invalid_row_in_a_later_part_is_reported_with_its_place(tmp_path: Path, large: pytest.MonkeyPatch):
    made = rows("domain")
    made[200]["text"] = 5
    with pytest.raises(RowError, match=r"rows\.jsonl:201: column 'text' must be text"):
        read_data(recipe(write(tmp_path / "rows.jsonl", made), "domain"), offline=True)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "made"), [("domain", Text), ("classify", LabelledText), ("instruct", Chat)])
def test_no_step_holds_all_examples_in_memory(tmp_path: Path, large: pytest.MonkeyPatch, kind: str, made: type):
    large.setattr("tunesmith.data.audit.gate.AT_ONCE", 500)
    file = write(tmp_path / "rows.jsonl", rows(kind, 4000))
    alive: list[int] = []
    reads = iter(range(10**9))
    real = StoredExamples._read

    def counted(stored: StoredExamples, index: int) -> Example:
        if next(reads) % 2500 == 0:
            alive.append(sum(type(one) is made for one in gc.get_objects()))
        return real(stored, index)

    large.setattr(StoredExamples, "_read", counted)
    split = recipe(file, kind, validation=60, test=60)
    audited(split, read_data(split, offline=True))
    assert len(alive) > 8
    assert max(alive) < 1500  # 1000 are written at once


def test_a_file_is_read_once_and_again_only_after_a_change(tmp_path: Path, large: pytest.MonkeyPatch):
    file = write(tmp_path / "rows.jsonl", rows("domain"))
    made = recipe(file, "domain")
    reads: list[object] = []
    real = read.load
    large.setattr(read, "load", lambda *args, **named: (reads.append(args), real(*args, **named))[1])
    first, second = read_data(made, offline=True), read_data(made, offline=True)
    assert list(first.split.train) == list(second.split.train)
    assert len(reads) == 1
    write(file, rows("domain", 301))
    assert read_data(made, offline=True).rows == 301
    assert len(reads) == 2
    read_data(made.model_copy(update={"seed": 5}), offline=True)
    assert len(reads) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_array_with_a_value_for_every_row_of_a_large_file_takes_no_anonymous_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def anonymous() -> int:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) // 1024

    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    before = anonymous()
    count = 16 * MAPPED_FROM  # 128 MB
    keys = array_of(count, "<u8")
    for part in slices(count):
        keys[part] = np.random.default_rng(part.start).integers(0, 2**63, len(keys[part]))
    rows = sum(len(part) for part in key_ranges(keys))
    keys.sort()
    assert rows == count
    assert keys[0] < keys[-1]
    assert anonymous() - before < 60
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ examples and tokens in files

EXAMPLES: list[list[Example]] = [
    [Text("a.jsonl:1", "one\nline", "g"), Text("a.jsonl:2", "ünï \u2028 \U0001f600")],
    [LabelledText("a:1", "x", ("b", "c"), multi=True), LabelledText("a:2", "y", ())],
    [RatedText("a:1", "x", 0.1), RatedText("a:2", "y", -1e300)],
    [
        Chat("a:1", (Message("user", "q"), Message("assistant", "", thoughts="t", weight=0.5)), accepted=("a", "b")),
        Chat("a:2", (Message("user", "q"),), "g", 1, (), "drop"),
    ],
]


@pytest.mark.parametrize("examples", EXAMPLES, ids=lambda examples: type(examples[0]).__name__)
def test_stored_examples_are_equal_to_what_was_written(tmp_path: Path, examples: list[Example]):
    stored = StoredExamples.write(tmp_path / "part", examples)
    assert list(stored) == examples
    assert [stored[-1]] == list(stored[-1:]) == examples[-1:]
    assert list(stored.take(np.array([1, 0]))) == examples[::-1] == list(take(examples, np.array([1, 0])))
    assert list(stored.take(np.array([False, True]))) == examples[1:] == take(examples, np.array([False, True]))
    assert list(joined(stored, examples)) == examples * 2
    assert joined(stored, examples)[3] == examples[1]


IDS = st.lists(st.integers(0, 2**32 - 1), max_size=6)


@st.composite
def encoded_row(draw: st.DrawFn) -> Encoded:
    sequences = []
    for ids in draw(st.lists(IDS, min_size=1, max_size=3)):
        learn = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        weights = draw(st.just([]) | st.lists(st.floats(0, 9), min_size=len(ids), max_size=len(ids)))
        sequences.append(Tokens(ids, learn, weights))
    floats = st.lists(st.floats(allow_nan=False), max_size=3).map(tuple)
    words = st.lists(st.integers(-1, 9), max_size=4).map(tuple)
    where = draw(st.text(max_size=9))
    return Encoded(
        tuple(sequences), where, draw(floats), draw(st.booleans()), draw(words), (), draw(floats), draw(st.booleans())
    )


@settings(max_examples=60, deadline=None)
@given(made=st.lists(encoded_row(), max_size=8), cut=st.integers(0, 8))
def test_stored_tokens_are_equal_to_what_was_encoded(tmp_path_factory: pytest.TempPathFactory, made, cut):
    store = EncodedStore.write(tmp_path_factory.mktemp("store") / "part", [packed(made[:cut]), packed(made[cut:])])
    assert list(store) == made
    assert list(sizes_of(store)) == [row.size for row in made]
    assert list(store.take(np.arange(len(made))[::-2])) == made[::-2]
    assert list(store[1:3]) == made[1:3]
    assert not [path for path in store.folder.iterdir() if path.suffix not in (".values", ".starts")]


def test_several_processes_encode_to_the_same_files_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tunesmith.data.tokenization.token_store.AT_ONCE", 20)
    texts = [Text(f"a:{n}", row["text"]) for n, row in enumerate(rows("domain", 250))]
    files = []
    for workers in (1, 2):
        monkeypatch.setattr("tunesmith.data.tokenization.token_store.cores", lambda count=workers: count)
        pieces = encoded_pieces(partial(Domain().encode_all, template=template("llama"), limit=8), texts)
        store = EncodedStore.write(tmp_path / str(workers), pieces)
        files.append({path.name: path.read_bytes() for path in sorted(store.folder.iterdir())})
    assert files[0] == files[1]
    memory = [row for text in texts for row in Domain().encode_all(text, template("llama"), limit=8)]
    assert list(store) == memory


def _write_forever(folder: Path, started: Any) -> None:
    def fill(partial: Path) -> None:
        (partial / "half").write_text("half")
        started.set()
        threading.Event().wait()

    build_once(folder, fill)


@pytest.mark.long
def test_a_killed_writer_leaves_nothing_that_is_read(tmp_path: Path):
    folder = tmp_path / "store"
    spawn = multiprocessing.get_context("spawn")
    started = spawn.Event()
    writer = spawn.Process(target=_write_forever, args=(folder, started))
    writer.start()
    assert started.wait(60)
    assert writer.pid
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(60)
    assert not folder.exists()
    build_once(folder, lambda partial: np.save(partial / "whole.npy", np.zeros(3)))
    assert [path.name for path in folder.iterdir()] == ["whole.npy"]
    build_once(folder, lambda partial: pytest.fail("written twice"))


@pytest.mark.parametrize("tokens", [5_000_000])
def test_a_second_start_maps_the_tokens_in_seconds_and_no_memory(tmp_path: Path, tokens: int):
    rng = np.random.default_rng(0)

    def pieces():
        for start in range(0, tokens, 50_000):
            ids = rng.integers(0, 50_000, (100, 500)).tolist()
            yield packed([Encoded((Tokens.of(row[:50], row[50:]),), f"a:{start + n}") for n, row in enumerate(ids)])

    folder = tmp_path / "store"
    build_once(folder, lambda partial: EncodedStore.write(partial / "train", pieces()))
    code = (
        "import psutil, time; from pathlib import Path\n"
        "from tunesmith.data.tokenization.token_store import EncodedStore, sizes_of\n"
        "memory = lambda: psutil.Process().memory_info().rss\n"
        "before, start = memory(), time.perf_counter()\n"
        f"store = EncodedStore(Path({str(folder)!r}) / 'train')\n"
        "total = sum(sizes_of(store)); store[len(store) // 2]\n"
        "print(total, time.perf_counter() - start, memory() - before)\n"
        "learned = sum(row.sequences[0].learned for row in store)\n"
        "print(learned, memory() - before)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(out[0]) == tokens
    assert int(out[3]) == tokens * 9 // 10
    assert float(out[1]) < 5
    assert int(out[2]) < 100 * 2**20
    assert int(out[4]) < 100 * 2**20
