"""Uploads of runs to a stand-in of the Hub: what is sent, what opens from there, and what happens when it fails."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import tunesmith as ts
from tests.bases import folder
from tests.hub_stand_in import Hub, environment, stand_in, use
from tests.pipelines.conftest import answers, recipe, reviews, tune
from tunesmith.cli.main import main
from tunesmith.config import Recipe, make_recipe, save_recipe
from tunesmith.data.remote import fetched_folder
from tunesmith.errors import ModelError, StorageError, TunesmithError
from tunesmith.models.loading.locate import locate
from tunesmith.pipelines import push as push_module
from tunesmith.pipelines.tune.remote_run import copied, local_run
from tunesmith.report import upload
from tunesmith.report.run_data import Published, read_run_data
from tunesmith.training.callbacks import Callbacks

ROOT = Path(__file__).parents[2]
SECRET = "planted-secret"
QUICK = {"epochs": 1, "probe": False}
CARD = b"---\nlicense: %s\n---\n# A repository\n"
# Files that a run folder or its model folder may have, and that nobody gets.
PRIVATE = (
    "model/notes.json", "model/rows.txt", "model/inner/model.safetensors", "rows.jsonl", "replies.json", "votes.db",
    "thumbs.db", ".env", "checkpoints/last/state.json", "export/merged/config.json", "debug.log",
)  # fmt: skip

pytestmark = [pytest.mark.usefixtures("small_world")]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub with a base model and a data set, which this process may write to as `me`."""
    with stand_in() as made, pytest.MonkeyPatch.context() as patch:
        made.folder("me/base", folder("llama"))
        made.add("me/base", made.model("me/base").files() | {"README.md": CARD % b"apache-2.0"})
        lines = "".join(json.dumps(row) + "\n" for row in reviews()).encode()
        made.add("me/rows", {"rows.jsonl": lines, "README.md": CARD % b"apache-2.0"}, kind="dataset")
        use(patch, made, tmp_path_factory.mktemp("hub-cache"))
        yield made


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a user, in which everything lies that a run names."""
    place = tmp_path_factory.mktemp(f"{SECRET}-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(place))
        yield place


def secret_recipe(place: Path, objective: str, kind: str, **parts: Any) -> Recipe:
    """A recipe with rows of which each contains the secret, over a base of the Hub."""
    rows = answers() if objective == "instruct" else reviews()
    name = "prompt" if objective == "instruct" else "text"
    rows = [row | {name: f"{row[name]} {SECRET}"} for row in rows]
    parts = {"model": "me/base", "schedule": QUICK} | parts
    return recipe(place, rows, kind, objective=objective, **parts)


@pytest.fixture(scope="module")
def run(hub: Hub, home: Path) -> Path:
    """A finished run with private files in it."""
    done = tune(secret_recipe(home, "classify", "llama"), home / "run")
    for name in PRIVATE:
        file = done.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_text(f'{{"private": "{SECRET}"}}')
    return done.folder


def test_a_plan_names_every_file_and_sends_nothing(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]):
    before = len(hub.requests)
    assert main(["push", str(run), "me/planned"]) == 0
    out = capsys.readouterr().out
    assert all(request.startswith("GET ") for request in hub.requests[before:])
    assert ("model", "me/planned") not in hub.repos
    for line in ("adapter_model.safetensors", "tunesmith.json", "README.md", "private: only", "nothing was uploaded"):
        assert line in out
    assert "licence: other (the licence of the rows rows.jsonl is not known)" in out
    assert main(["push", str(run), "me/planned", "--public", "--license", "mit", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["private"], plan["licence"], plan["commit"]) == (False, "mit", "")
    assert plan["base"] == f"me/base@{hub.model('me/base').head}"


@pytest.mark.parametrize(
    ("objective", "technique"), [("classify", "lora"), ("instruct", "lora"), ("classify", "full"), ("domain", "lora")]
)
def test_no_row_no_answer_and_no_path_is_in_any_uploaded_byte(
    objective: str, technique: str, hub: Hub, home: Path, run: Path, tmp_path: Path
):
    made = run
    if (objective, technique) != ("classify", "lora"):
        made = tune(
            secret_recipe(home, objective, "llama", technique=technique), home / f"{objective}-{technique}"
        ).folder
    hub.uploaded.clear()
    done = ts.push(made, f"me/{objective}-{technique}", report=True, yes=True)
    assert done.commit
    assert {"report/report.json", "report/report.html", "README.md"} <= {file.name for file in done.files}
    sent = b"\n".join(hub.uploaded)
    assert len(sent) > 20_000
    assert SECRET.encode() not in sent
    assert SECRET in (made / "predictions.jsonl").read_text()  # it would have been found
    assert set(hub.model(f"me/{objective}-{technique}").files()) == {file.name for file in done.files} | {
        ".gitattributes"
    }


def test_a_path_in_an_instruction_is_not_uploaded(hub: Hub, home: Path):
    objective = {"kind": "classify", "instruction": f"As in {home}/notes"}
    made = tune(recipe(home, reviews(), "llama", model="me/base", objective=objective, schedule=QUICK), home / "path")
    with pytest.raises(TunesmithError, match=r"tunesmith.json: names .* a path of this machine, so it is not uploaded"):
        ts.push(made.folder, "me/path", yes=True)
    assert ("model", "me/path") not in hub.repos


SCRIPT = """
import json, sys
import tunesmith as ts
from tunesmith.cli.main import main
rows, out = sys.argv[1:]
model = ts.load("me/moved")
texts = json.loads(sys.stdin.read())
answers = model.classify(texts)
found = {"labels": [one.label for one in answers], "probabilities": [one.probabilities for one in answers]}
found["asked"] = main(["ask", "me/moved", texts[0], "--json", "--out", out + "/asked.json"])
found["score"] = ts.evaluate("me/moved", rows, against="base", progress=False).tuned
done = ts.tune(rows, model="me/moved", out=out + "/top", technique={"kind": "lora", "rank": 2}, progress=False,
               schedule={"epochs": 0.3, "probe": False}, machine={"device": "cpu", "threads": 1})
found["top"] = json.loads((done.folder / "model/tunesmith.json").read_text())["base"]
found["export"] = ts.export("me/moved", out=out + "/merged", progress=False).same_answers
with ts.serve("me/moved", port=0) as served:
    import httpx2 as httpx
    answer = httpx.post(served.url + "classify", json={"model": "moved", "input": texts[0]}, timeout=60)
    found["served"] = answer.json()["data"][0]
print("FOUND" + json.dumps(found))
"""


@pytest.mark.long
def test_another_process_with_an_empty_cache_gives_equal_answers_though_the_base_has_moved(
    hub: Hub, run: Path, tmp_path: Path
):
    done = ts.push(run, "me/moved", yes=True)
    old = hub.model("me/base").files()
    hub.add("me/base", old | {"model.safetensors": b"of other weights"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reviews()))
    texts = [row["text"] for row in reviews()[:6]]
    env = os.environ | environment(hub, tmp_path / "empty", "hf_reader")
    env |= {"PYTHONPATH": str(ROOT), "TUNESMITH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "rows.jsonl"), str(tmp_path)]
    reply = subprocess.run(
        command, input=json.dumps(texts), capture_output=True, text=True, env=env, cwd=tmp_path, timeout=280
    )
    hub.add("me/base", old)
    assert "FOUND" in reply.stdout, reply.stderr[-3000:]
    found = json.loads(reply.stdout.partition("FOUND")[2])
    own = ts.load(run)
    answers = own.classify(texts)
    assert found["labels"] == [one.label for one in answers]
    # Another process may choose another library of float32 products.
    for theirs, ours in zip(found["probabilities"], answers, strict=True):
        assert theirs == pytest.approx(ours.probabilities, abs=1e-6)
    assert found["top"] == f"me/moved@{done.commit}"
    assert (found["asked"], found["export"]) == (0, 1.0)
    assert found["served"]["label"] == own.classify(texts)[0].label
    assert 0 <= found["score"] <= 1
    assert not list((tmp_path / "empty").rglob("README.md"))


def test_the_card_states_base_data_licence_and_results_as_the_hub_reads_them(hub: Hub, home: Path):
    data = {"train": "hf://datasets/me/rows/rows.jsonl"}
    made = tune(recipe(home, reviews(), "llama", model="me/base", data=data, schedule=QUICK), home / "card")
    ts.push(made.folder, "me/card", yes=True)
    text = hub.model("me/card").files()["README.md"].decode()
    card = ModelCard(text).data
    assert (card.base_model, card.license, card.datasets) == ("me/base", "apache-2.0", ["me/rows"])
    assert (card.library_name, card.pipeline_tag) == ("peft", "text-classification")
    assert [result.metric_type for result in card.eval_results] == ["accuracy", "f1"]
    assert {result.dataset_type for result in card.eval_results} == {"me/rows"}
    assert 'tunesmith ask me/card "your text"' in text
    assert 'tunesmith.load("me/card")' in text
    config = json.loads(hub.model("me/card").files()["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == ("me/base", hub.model("me/base").head)
    hub.add("me/rows", hub.repos["dataset", "me/rows"].files() | {"README.md": CARD % b"cc-by-4.0"}, kind="dataset")
    reason = ts.push(made.folder, "me/card").licence_reason
    assert reason == "the base me/base has apache-2.0; the rows rows.jsonl has cc-by-4.0"


def test_rows_of_one_name_replayed_texts_and_those_of_an_earlier_run_count_for_the_licence(hub: Hub, tmp_path: Path):
    sources = {"train": "/x/private/rows.jsonl", "test": "hf://datasets/me/rows/rows.jsonl"}
    (tmp_path / "first" / "model").mkdir(parents=True)
    for name, changes in (
        ("first", {"data": {"train": "hf://datasets/me/first/rows.jsonl"}, "model": "me/base"}),
        (
            "second",
            {"data": sources, "model": str(tmp_path / "first"), "replay": {"source": "hf://datasets/me/texts/t.txt"}},
        ),
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        recipe_of = make_recipe({"objective": "domain", **changes}, place="test")[0]
        save_recipe(recipe_of, tmp_path / name / "recipe.yaml")
    (tmp_path / "first" / "model" / "tunesmith.json").write_text("{}")
    found = push_module._rows(tmp_path / "second")
    assert found == {
        "hf://datasets/me/first/rows.jsonl": "me/first", "/x/private/rows.jsonl": "",
        "hf://datasets/me/rows/rows.jsonl": "me/rows", "hf://datasets/me/texts/t.txt": "me/texts",
    }  # fmt: skip
    assert push_module._licence("me/base", {name: found[name] for name in sources.values()}, offline=False) == (
        "other", "the licence of the rows rows.jsonl is not known"
    )  # fmt: skip


def test_the_end_of_the_input_is_a_no(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert main(["push", str(run), "me/ctrl-d"]) == 0
    assert "nothing was uploaded" in capsys.readouterr().out
    assert ("model", "me/ctrl-d") not in hub.repos


@pytest.mark.parametrize("text", ["file://{}/x", "{}, ", "{}:", "{}</td>", "{quoted}%2Fx", "{}"])
def test_the_home_in_a_file_stops_the_upload_whatever_is_around_it(text: str, home: Path):
    written = text.format(home, quoted=str(home).replace("/", "%2F"))
    with pytest.raises(TunesmithError, match=r"card: names .* a path of this machine"):
        upload._check_paths({"card": written.encode()}, home / "run")
    upload._check_paths({"card": f"{home}like /elsewhere".encode()}, home / "run")


def test_of_the_sources_of_rows_and_of_other_paths_only_the_last_part_remains(run: Path):
    sources = {"train": "C:\\Users\\Bob Smith\\rows.csv", "validation": "/a/My Documents/secret plan/valid.csv",
               "test": "s3://bucket/private/path/test.csv"}  # fmt: skip
    data = read_run_data(run)
    other = ("\\\\server\\share\\x.csv", "https://me:pw@host/private/y.csv")
    notes = tuple(f"3 rows of {name} are alike" for name in (*sources.values(), *other))
    data = replace(
        data,
        recipe=make_recipe({"objective": "domain", "data": sources}, place="test")[0],
        report=data.report.model_copy(update={"warnings": notes}),
    )
    shown = upload._without_rows(data, Published("me/x", "me/base", "mit")).report.warnings
    assert shown == tuple(
        f"3 rows of {name} are alike" for name in ("rows.csv", "valid.csv", "test.csv", "x.csv", "y.csv")
    )


def test_a_second_push_deletes_what_the_first_has_made_and_says_so(hub: Hub, run: Path, home: Path):
    made = home / "smaller"
    shutil.copytree(run, made)
    ts.push(run, "me/again", report=True, yes=True)
    own = {"requirements.txt": b"mine", "data/eval.json": b"{}", "logo.png": b"mine"}
    files = hub.model("me/again").files()
    listed = json.loads(files["manifest.json"]) | {"head.safetensors": "0"}
    hub.add("me/again", files | own | {"head.safetensors": b"old", "manifest.json": json.dumps(listed).encode()})
    gone = ["head.safetensors", "report/report.html", "report/report.json"]
    plan = ts.push(run, "me/again", yes=True)
    assert plan.deletes == gone
    assert f"deletes {', '.join(gone)}" in plan.lines()
    assert any("README.md included" in line for line in plan.lines())
    left = hub.model("me/again").files()
    assert not set(gone) & set(left)
    assert own.items() <= left.items()
    with pytest.raises(ModelError, match="me/again: this repository is private; leave --?public.* out|leave public="):
        ts.push(run, "me/again", public=True, yes=True)
    ts.push(run, "me/open", public=True, yes=True)
    assert not hub.model("me/open").private
    with pytest.raises(ModelError, match="this repository is public; add"):
        ts.push(run, "me/open", yes=True)


@pytest.mark.parametrize(
    ("token", "repo", "breaks", "message"),
    [
        ("", "me/new", "", "me/new: no token of the Hub; log in with hf auth login, or set HF_TOKEN"),
        ("hf_wrong", "me/new", "", "me/new: the Hub does not accept your token; log in"),
        ("hf_reader", "me/new", "", "me/new: your token may not do that there; log in with hf auth login"),
        ("hf_mine", "other/new", "", "other/new: your token may not do that there"),
        ("hf_mine", "me/base", "", "me/base: the name is taken by a repository without a pushed run; choose"),
        ("hf_mine", "me/new", "/lfs/", "me/new: the Hub cannot be reached ("),
        ("hf_mine", "me/new", "/commit/", "me/new: the Hub cannot be reached ("),
        ("hf_mine", "no name", "", "no name: not a repository of the Hub; write owner/name"),
    ],
)  # fmt: skip
def test_a_failed_push_is_one_line_and_leaves_the_hub_as_it_was(
    token: str, repo: str, breaks: str, message: str, hub: Hub, run: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    use(monkeypatch, hub, tmp_path / "cache", token)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(hub, "breaks", breaks)
    before = {name: list(made.commits) for name, made in hub.repos.items()}
    assert main(["push", str(run), repo, "--yes"]) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error")]
    assert line.removeprefix("error: ").startswith(message)
    assert not token or token not in captured.out + captured.err
    assert {name: list(made.commits) for name, made in hub.repos.items()} == before


def test_a_base_in_a_folder_is_refused_unless_the_hub_has_its_weights(hub: Hub, home: Path):
    made = tune(recipe(home, reviews(), "llama", schedule=QUICK), home / "local")
    with pytest.raises(ModelError, match="is a folder of this machine, which others do not have; name the Hub id"):
        ts.push(made.folder, "me/local")
    assert ts.push(made.folder, "me/local", base="me/base").base == f"me/base@{hub.model('me/base').head}"
    hub.folder("me/gpt2", folder("gpt2"))
    with pytest.raises(ModelError, match="was not tuned over the weights of me/gpt2"):
        ts.push(made.folder, "me/local", base="me/gpt2")


def test_a_run_that_cannot_be_downloaded_is_one_line_and_leaves_nothing_half_done(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ts.push(run, "me/closed", yes=True)
    for token, name, message in (
        ("", "me/closed", "me/closed: the Hub has no such model that you may read; check the name, if it is private"),
        ("hf_mine", "me/nothing", "me/nothing: the Hub has no such model"),
        ("hf_mine", "me/closed@" + "0" * 40, "the Hub has no such revision; check what is behind the @"),
    ):  # fmt: skip
        use(monkeypatch, hub, tmp_path / "cache", token)
        with pytest.raises(ModelError, match=message):
            ts.load(name)
    full = OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", lambda *_, **__: (_ for _ in ()).throw(full))
        with pytest.raises(StorageError, match="No space left on device.*free some space"):
            ts.load("me/closed")
    assert ts.load("me/closed").classify("good").label in ("positive", "negative")
    # What was downloaded is enough from now on.
    assert locate(f"me/closed@{hub.model('me/closed').head}", offline=True) == locate("me/closed", offline=True)


def test_a_misspelt_path_is_not_looked_up_on_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    before = len(hub.requests)
    for name in ("runs/reviwes", "outputs/reviews", "reviews", "a/b/c", "a/b@x/../../y"):
        with pytest.raises(TunesmithError, match="no such folder"):
            ts.load(name)
    assert len(hub.requests) == before


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client, about its own upload
def test_a_run_folder_on_the_hub_is_written_by_tune_and_opened_by_its_url(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    hub.add("me/store", {"README.md": b""})
    copy = local_run(Path("hf://me/store/runs/one"))
    assert copy is not None
    for name in ("run.json", "report.json", "model"):
        (shutil.copytree if name == "model" else shutil.copy)(run / name, copy / name)
    with copied(copy, Callbacks()):
        pass
    assert {"runs/one/report.json", "runs/one/model/adapter_model.safetensors"} <= set(hub.model("me/store").files())
    model, own = ts.load("hf://me/store/runs/one"), ts.load(run)
    assert model.classify("good").probabilities == own.classify("good").probabilities
    before = len(hub.requests)
    fetched_folder.cache_clear()  # a new process
    assert main(["ask", "hf://me/store/runs/one", "good", "--offline"]) == 0
    assert main(["ask", "hf://me/store/runs/two", "good", "--offline"]) == 2
    assert "hf://me/store/runs/two: not in the cache, and offline; connect once" in capsys.readouterr().err
    assert len(hub.requests) == before
    with pytest.raises(TunesmithError, match="hf://me/nowhere/run: no such file; check the name"):
        ts.load("hf://me/nowhere/run")
