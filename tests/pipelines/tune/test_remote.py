"""Rows and run folders in remote places, on an S3 server of this machine."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tests.bases import folder
from tunesmith.cli.main import main
from tunesmith.config import Recipe, load_recipe
from tunesmith.data.readers.read import read_rows
from tunesmith.data.remote import _fetched, fetched_folder, remote_url, without_network
from tunesmith.errors import DataError
from tunesmith.models.loading import checkpoint
from tunesmith.pipelines.tune import remote_run
from tunesmith.pipelines.tune.remote_run import copied, local_run
from tunesmith.pipelines.tune.tune import tune_recipe
from tunesmith.training.callbacks import Callbacks

ROOT = Path(__file__).parents[3]
fsspec = pytest.importorskip("fsspec")
pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """The file system of an S3 server with the bucket `rows`."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        place = fsspec.filesystem("s3")
        place.mkdir("rows")
        yield place
    server.stop()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    _fetched.cache_clear()


def lines(*texts: str) -> bytes:
    return "\n".join(json.dumps({"text": text}) for text in texts).encode()


def test_rows_are_read_from_a_bucket_and_again_after_a_change(s3):
    s3.pipe("rows/one.jsonl", lines("a", "b"))
    assert [(row.where, row.fields["text"]) for row in read_rows("s3://rows/one.jsonl")] == [
        ("one.jsonl:1", "a"),
        ("one.jsonl:2", "b"),
    ]
    s3.pipe("rows/one.jsonl", lines("c"))
    _fetched.cache_clear()  # a new process
    assert [row.fields["text"] for row in read_rows("s3://rows/one.jsonl")] == ["c"]


def test_offline_the_rows_are_those_of_the_last_download(s3, monkeypatch: pytest.MonkeyPatch):
    s3.pipe({"rows/kept.jsonl": lines("a"), "rows/new.jsonl": lines("b")})
    read_rows("s3://rows/kept.jsonl")
    _fetched.cache_clear()  # a new process
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # where nothing answers
    with without_network(True):
        assert [row.fields["text"] for row in read_rows("s3://rows/kept.jsonl")] == ["a"]
        with pytest.raises(DataError, match="s3://rows/new.jsonl: not in the cache, and offline; connect once"):
            read_rows("s3://rows/new.jsonl")
        with pytest.raises(DataError, match="s3://rows/run: cannot be reached offline; omit --offline"):
            local_run(Path("s3://rows/run"))
    assert main(["audit", "s3://rows/new.jsonl", "--offline"]) == 2
    with pytest.raises(DataError, match="not in the cache, and offline"):
        tunesmith.audit("s3://rows/new.jsonl", offline=True)


def test_a_pattern_reads_the_rows_of_all_its_files_in_the_order_of_their_names(s3):
    s3.pipe({"rows/part-2.jsonl": lines("c"), "rows/part-1.jsonl": lines("a", "b"), "rows/other.jsonl": lines("x")})
    assert [row.fields["text"] for row in read_rows("s3://rows/part-*.jsonl")] == ["a", "b", "c"]
    s3.pipe({"rows/t-1.csv": b"text\na\n", "rows/t-2.csv": b"text\nb\n"})
    assert [row.fields["text"] for row in read_rows("s3://rows/t-1.csv")] == ["a"]
    with pytest.raises(DataError, match=r"s3://rows/t-\*\.csv: 2 files; only JSON lines"):
        read_rows("s3://rows/t-*.csv")


def test_an_address_of_a_file_of_this_machine_names_its_absolute_path(tmp_path: Path):
    (tmp_path / "the rows.jsonl").write_bytes(lines("a", "b"))
    address = f"file://{tmp_path.as_posix()}/the rows.jsonl"
    for name in (address, Path(address)):  # a `Path` keeps one slash of three
        assert remote_url(name) == address
        assert [row.fields["text"] for row in read_rows(name)] == ["a", "b"]
    assert remote_url("file://rows.jsonl") == "file://rows.jsonl"  # beside the working folder, as fsspec reads it
    assert local_run(Path(f"file://{tmp_path.as_posix()}/run")).name == "run"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "new.jsonl").write_bytes(lines("c"))
    with without_network(True):  # what is on this machine needs none
        assert [row.fields["text"] for row in read_rows(f"file://{tmp_path.as_posix()}/new.jsonl")] == ["c"]
        run = fetched_folder(f"file://{tmp_path.as_posix()}/run", suffixes=(".json",), offline=True)
    assert [file.name for file in run.iterdir()] == ["config.json"]


def test_the_address_of_a_file_is_decoded_and_may_have_a_hash_in_its_folder(tmp_path: Path):
    folder = tmp_path / "été #1 100%"
    folder.mkdir()
    (folder / "rows.jsonl").write_bytes(lines("a", "b"))
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text("{}")
    uri, raw = (folder / "rows.jsonl").as_uri(), f"file://{folder.as_posix()}/rows.jsonl"
    assert "%20%231%20100%25" in uri
    for address in (uri, raw):
        assert [row.fields["text"] for row in read_rows(address)] == ["a", "b"]
    assert [file.name for file in fetched_folder((folder / "run").as_uri(), suffixes=(".json",)).iterdir()] == [
        "config.json"
    ]
    (folder / "data.json").write_text('{"x": [{"text": "c"}], "y": [{"text": "d"}]}')
    for address in ((folder / "data.json").as_uri(), f"file://{folder.as_posix()}/data.json"):
        assert [row.fields["text"] for row in read_rows(f"{address}#y")] == ["d"]


def test_a_recipe_keeps_a_url_as_it_is_written(tmp_path: Path, s3):
    s3.pipe("rows/one.jsonl", lines("a", "b"))
    (tmp_path / "recipe.yaml").write_text(
        "model: smollm2-135m\nobjective: domain\ndata: {train: s3://rows/one.jsonl}\n"
    )
    assert load_recipe(tmp_path / "recipe.yaml")[0].data.train == "s3://rows/one.jsonl"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://rows/none.jsonl", r"s3://rows/none\.jsonl: no such file; check the name"),
        ("s3://rows/none-*.jsonl", r"s3://rows/none-\*\.jsonl: no such file"),
        (
            "gcs://rows/a.jsonl",
            r"gcs://rows/a\.jsonl: requires a package \(.*gcsfs.*\); pip install gcsfs$",
        ),
        ("htps://rows/a.jsonl", r"htps://rows/a\.jsonl: unknown scheme htps; did you mean 'https'\?$"),
        ("xyz://rows/a.jsonl", r"xyz://rows/a\.jsonl: unknown scheme xyz; use one of fsspec's, such as s3, gs or"),
    ],
)
def test_a_place_that_cannot_be_read_is_one_line_with_a_fix(s3, url: str, message: str):
    with pytest.raises(DataError, match=message) as raised:
        read_rows(url)
    assert "\n" not in str(raised.value)


def test_missing_credentials_are_one_line_with_a_fix(s3, tmp_path: Path):
    own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    own |= {
        "AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"],
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": str(tmp_path),
    }
    code = "from tunesmith.data.readers.read import read_rows; read_rows('s3://rows/one.jsonl')"
    done = subprocess.run([sys.executable, "-c", code], env=own, cwd=ROOT, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "s3://rows/one.jsonl: cannot be reached (NoCredentialsError" in last
    assert last.endswith("credentials in the environment or, for S3, in ~/.aws/credentials")


@pytest.mark.parametrize(("name", "url"), [("s3:/b/a", "s3://b/a"), ("c:/a", ""), ("a/b:train", ""), ("a.csv#b", "")])
def test_a_url_is_told_from_a_path_a_drive_and_a_dataset(name: str, url: str):
    assert remote_url(Path(name)) == url


# ------------------------------------------------------------------ run folders

KILLED = """
import os, signal, sys
from pathlib import Path
from tunesmith.config import Recipe
from tunesmith.pipelines.tune.tune import tune_recipe
from tunesmith.training.callbacks import Callbacks
from tunesmith.pipelines.tune import remote_run
from tunesmith.pipelines.tune.remote_run import copied, local_run

steps = []

def stop():
    steps.append(1)
    if len(steps) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return False

recipe = Recipe.model_validate_json(sys.argv[1])
tune_recipe(recipe, out=local_run(Path("s3://rows/runs/one")), callbacks=Callbacks(should_stop=stop), offline=True)
"""


def weights(run: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((run / "model").glob("*.safetensors")))


@pytest.mark.long
def test_a_run_folder_on_s3_survives_a_kill_and_is_resumed_on_another_machine(
    s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rng = random.Random(0)
    texts = [" ".join(rng.choices(("good", "bad", "fox", "dog", "lazy", "quick"), k=9)) for _ in range(48)]
    s3.pipe("rows/train.jsonl", lines(*texts))
    recipe = Recipe.model_validate(
        {
            "model": str(folder("llama")),
            "objective": {"kind": "domain"},
            "technique": {"kind": "lora", "rank": 2},
            "data": {"train": "s3://rows/train.jsonl", "max_tokens": 64, "audit": "note"},
            "schedule": {"epochs": 2, "batch_rows": 8, "probe": False, "save_steps": 2},
            "retention": {"questions": 0, "texts": 0},
            "machine": {"dtype": "float32", "threads": 1},  # the killed process would measure its own
        }
    )
    tune_recipe(recipe, out=tmp_path / "plain", callbacks=Callbacks(), offline=True)
    killed = subprocess.run([sys.executable, "-c", KILLED, recipe.model_dump_json()], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = {name.rpartition("/")[2] for name in s3.find("rows/runs/one")}
    manifest = json.loads(s3.cat_file("rows/runs/one/.unfinished/manifest.json"))
    assert left == {"manifest.json", *manifest.values()}
    assert any(name.endswith("checkpoints/last/state.json") for name in manifest)

    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "another"))
    out = local_run(Path("s3://rows/runs/one"))
    assert out is not None
    steps: list[int] = []
    on_event = lambda event: steps.append(event.step) if type(event).__name__ == "StepFinished" else None  # noqa: E731
    tune_recipe(recipe, out=out, callbacks=Callbacks(on_event=on_event), offline=True)
    assert steps[0] == 5  # the checkpoint of step 4 was copied
    assert weights(out) == weights(tmp_path / "plain")
    names = {name.removeprefix("rows/runs/one/") for name in s3.find("rows/runs/one")}
    assert names == {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert "report.json" in names

    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "third"))
    again = tune_recipe(recipe, out=local_run(Path("s3://rows/runs/one")), callbacks=Callbacks(), offline=True)
    assert again.reused
    assert weights(again.folder) == weights(out)


def test_work_that_was_not_copied_is_kept_and_copied_by_the_next_start(
    s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url = Path("s3://rows/kept")
    place = local_run(url)
    assert place is not None
    write_unplugged(place, monkeypatch)
    assert local_run(url) == place
    with copied(place, Callbacks()):
        assert (place / "journal.jsonl").read_text() == "{}"
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "other"))
    other = local_run(url)
    assert other is not None
    assert (other / "journal.jsonl").read_text() == "{}"


def test_a_copy_that_was_overtaken_is_neither_used_nor_deleted(s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    url = Path("s3://rows/overtaken")
    place = local_run(url)
    assert place is not None
    write_unplugged(place, monkeypatch)
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "other"))
    other = local_run(url)
    with copied(other, Callbacks()):
        (other / "journal.jsonl").write_text("[]")  # type: ignore[operator]
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="has changed since .* whose last steps were not copied"):
        local_run(url)
    assert (place / "journal.jsonl").read_text() == "{}"


def test_a_scheme_alone_is_no_folder():
    with pytest.raises(DataError, match="names no folder"):
        local_run(Path("s3://"))


def write_unplugged(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a journal that cannot be copied."""

    def unplugged(folder: Path, url: str) -> None:
        raise DataError("unplugged")

    def write() -> None:
        with copied(place, Callbacks()):
            (place / "journal.jsonl").write_text("{}")

    with monkeypatch.context() as cut:
        cut.setattr(remote_run, "_copy", unplugged)
        with pytest.raises(DataError, match="unplugged"):
            write()


def test_what_has_not_changed_is_hashed_once_for_all_copies(s3, monkeypatch: pytest.MonkeyPatch):
    place = local_run(Path("s3://rows/hashed"))
    assert place is not None
    read: list[str] = []
    real = checkpoint.sha256_of_file
    monkeypatch.setattr(checkpoint, "sha256_of_file", lambda path: (read.append(path.name), real(path))[1])
    monkeypatch.setattr(checkpoint, "CLOCK_TICK", 0)
    (place / "large").write_text("weights")
    for step in range(3):
        (place / "journal.jsonl").write_text("{}" * step)
        remote_run._copy(place, "s3://rows/hashed")
    assert (read.count("large"), read.count("journal.jsonl")) == (1, 3)
