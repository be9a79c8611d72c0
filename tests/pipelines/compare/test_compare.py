"""A comparison of tiny random models: every arm answers the same rows, keeps its answers, and the page says all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.bases import folder, policy, template
from tests.engine_stub import engine_stub
from tests.glance import only_a_glance
from tunesmith.cli.progress import Lines
from tunesmith.config import Recipe, make_recipe
from tunesmith.data.documents.synthetic_rows import Answer
from tunesmith.data.files import write_whole
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import CheckpointError, DataError, ModelError, RecipeError, Refused
from tunesmith.inference.local_model import LocalModel
from tunesmith.models.loading.device import ChosenMachine
from tunesmith.objectives import Instruct
from tunesmith.pipelines.compare import run_arm as answering
from tunesmith.pipelines.compare.arms import remote
from tunesmith.pipelines.compare.ask import ArmQuestion, ask_arm
from tunesmith.pipelines.compare.beliefs import BELIEFS
from tunesmith.pipelines.compare.compare import _document_digests, compare, reopened
from tunesmith.pipelines.compare.context import CHOICES, ComparisonContext, file_name
from tunesmith.pipelines.compare.prompting import within
from tunesmith.pipelines.compare.report import Comparison
from tunesmith.pipelines.compare.report import page as html
from tunesmith.pipelines.compare.run_arm import TUNED_ARMS
from tunesmith.pipelines.compare.selection import chosen_arms
from tunesmith.pipelines.compare.tuned_arms import _with_rows
from tunesmith.pipelines.requests import CompareOptions
from tunesmith.pipelines.tune.tune import tune_recipe
from tunesmith.retrieval.chunks import Chunk
from tunesmith.retrieval.index import Hit
from tunesmith.retrieval.prompts import FORMS, with_passages
from tunesmith.training.callbacks import Callbacks, Interrupted
from tunesmith.training.run_folder import exclusive_lock, pin_machine

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
KNOWN = ChosenMachine("cpu", "float32", 1, {"float32": 100.0}, "known")
LANDS = ("Arda", "Brin", "Coll", "Dorn", "Elba", "Fell", "Gard", "Holm", "Isen", "Jarl")
LABELS = (("good", "positive"), ("bad", "negative"))
ARMS = ["prompt", "few-shot", "rag", "oracle-context", "no-context", "tuned", "tuned+rag", "raft"]


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("training.prepare", "models.loading.device", "pipelines.compare.context"):
            patch.setattr(f"tunesmith.{module}.choose_machine", lambda **_: KNOWN)
        patch.setattr("tunesmith.pipelines.tune.tune.write_reports", lambda place: None)
        patch.setenv("TUNESMITH_CACHE", str(tmp_path_factory.mktemp("cache")))
        only_a_glance(patch)
        yield


def facts() -> list[dict[str, Any]]:
    return [
        {
            "q": f"How high is {land}?",
            "a": f"{100 + 7 * i}",
            "land": land,
            "said": f"{100 + 7 * i} m",
            "doc": land.lower(),
        }
        for i, land in enumerate(LANDS)
    ] + [
        {"q": f"What grows in {land}?", "a": f"{land}wort", "land": land, "said": f"{land}wort", "doc": land.lower()}
        for land in LANDS
    ]


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def recipe(place: Path, **parts: Any) -> Recipe:
    pages = [
        {
            "doc_id": land.lower(),
            "text": f"{land}\n\nHeight:\n{100 + 7 * i} m\n\nPlants:\nmostly {land}wort grows there",
        }
        for i, land in enumerate(LANDS)
    ]
    raw: dict[str, Any] = {
        "model": str(folder("llama")),
        "data": {"train": write(place / "rows.jsonl", facts()), "validation": 0.2, "test": 0.3, "group": "land"},
        "objective": {"kind": "instruct", "prompt": "q", "answer": "a", "metric": "contains", "max_new_tokens": 4},
        "technique": {"kind": "lora", "rank": 2},
        "schedule": {"epochs": 1, "probe": False},
        "documents": {
            "source": write(place / "pages.jsonl", pages),
            "size": 80,
            "encoder": str(folder("bert")),
            "origin": "doc",
            "evidence": "said",
        },
        "machine": {"device": "cpu", "dtype": "float32", "threads": 1},
        "arms": ARMS,
    }
    return make_recipe(raw | parts, place="test")[0]


def labels(place: Path) -> dict[str, Any]:
    """The parts of a recipe about forty texts of two labels."""
    rows = [{"text": f"it is {word} {i}", "label": label} for i in range(20) for word, label in LABELS]
    return {
        "data": {"train": write(place / "labels.jsonl", rows), "validation": 0.2, "test": 0.2},
        "objective": {"kind": "classify", "text": "text", "label": "label"},
        "documents": {},
    }


def run(made: Recipe, out: Path, wishes: CompareOptions | None = None, **watch: Any) -> Comparison:
    return compare(made, wishes or CompareOptions(), callbacks=Callbacks(Lines(), **watch), out=out, offline=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    place = tmp_path_factory.mktemp("compare")
    return run(recipe(place), place / "out", CompareOptions(price_per_hour=3600.0)), place


@pytest.mark.long
def test_every_arm_answers_the_same_rows(done: tuple[Comparison, Path]) -> None:
    page, place = done
    assert [arm.name for arm in page.arms] == ARMS
    assert {arm.task.n for arm in page.arms} == {page.rows} == {6}
    kept = [json.loads(file.read_text()) for file in (place / "out" / "answers").iterdir()]
    assert {len(one["given"]) for one in kept} == {6}


def test_answers_with_passages_cite_a_chunk_of_the_documents_or_none(done: tuple[Comparison, Path]) -> None:
    _, place = done
    chunks = {json.loads(line)["id"] for line in (place / "out/index/chunks.jsonl").read_text().splitlines()}
    for name in ("rag", "tuned+rag", "raft"):
        cites = json.loads((place / f"out/answers/{name}.json").read_text())["cites"]
        assert len(cites) == 6
        assert set(cites) <= {*chunks, ""}
    assert json.loads((place / "out/answers/prompt.json").read_text())["cites"] == []


def test_every_two_arms_that_may_be_chosen_stand_beside_each_other(done: tuple[Comparison, Path]) -> None:
    page, _ = done
    scores = {arm.name: arm.task.score for arm in page.arms if arm.candidate}
    assert len(page.gains) == len(scores) * (len(scores) - 1) // 2
    for one in page.gains:
        assert one.delta == pytest.approx(scores[one.arm] - scores[one.over])
        assert one.delta >= 0
        assert one.ci95[0] <= one.delta <= one.ci95[1]
    assert "All pairs of arms" in html(page)


def test_each_line_of_the_table_has_belief_and_finding(done: tuple[Comparison, Path]) -> None:
    page, _ = done
    assert [row.row for row in page.table] == list(BELIEFS)
    assert all(set(row.here) == set(ARMS) for row in page.table[:-1])
    assert page.table[-1].here == {page.verdict.arm: page.verdict.text}


def test_retrieval_is_measured_apart_for_each_way_to_search(done: tuple[Comparison, Path]) -> None:
    page, _ = done
    assert [one.search for one in page.retrieval] == ["fused", "words", "vectors"]
    assert page.retrieval[1].recall[1] == 1.0  # each land is named in one document only


@pytest.mark.parametrize("arm", ["", "prompt", "few-shot", "rag", "no-context", "tuned", "tuned+rag", "raft"])
def test_every_arm_of_a_comparison_that_is_done_can_be_asked_more(done: tuple[Comparison, Path], arm: str) -> None:
    page, place = done
    found = ask_arm(place / "out", ArmQuestion("How high is Arda?", arm), callbacks=Callbacks(lambda event: None))
    assert found.arm == (arm or page.verdict.arm)
    assert found.prompt_tokens > 0
    looks = found.arm in ("rag", "tuned+rag", "raft")
    assert bool(found.shown) == looks
    if looks:
        assert found.shown[0] == "arda#1"


def test_an_arm_looks_into_the_documents_as_they_are_now(done: tuple[Comparison, Path], tmp_path: Path) -> None:
    _, place = done
    shutil.copytree(place, tmp_path / "copy")
    pages = place / "pages.jsonl"
    before = pages.read_text(encoding="utf-8")
    try:
        with pages.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"doc_id": "kark", "text": "Kark\n\nHeight:\n999 m"}) + "\n")
        asked = ArmQuestion("How high is Kark?", "rag")
        assert ask_arm(tmp_path / "copy/out", asked, callbacks=Callbacks(lambda event: None)).shown[0] == "kark#1"
    finally:
        pages.write_text(before, encoding="utf-8")


def test_an_arm_that_was_not_compared_is_refused_with_those_that_were(done: tuple[Comparison, Path]) -> None:
    _, place = done
    with pytest.raises(
        RecipeError, match=r"--arm closed-book: not in .*; name one of prompt, few-shot, rag, no-context, tuned"
    ):
        ask_arm(place / "out", ArmQuestion("How high is Arda?", "taught"), callbacks=Callbacks(lambda event: None))


def test_changed_facts_reach_the_arms_that_look_and_no_other(done: tuple[Comparison, Path]) -> None:
    page, _ = done
    known = {arm.name: arm.update for arm in page.arms}
    assert {name for name, one in known.items() if one is None} == {"oracle-context", "no-context"}
    assert {one.facts for one in known.values() if one} == {6}
    how = {name: one.how for name, one in known.items() if one}
    assert how["rag"] == how["raft"] == "the index follows the documents"
    assert how["tuned"] == "tune again"
    assert known["prompt"] is not None
    assert known["prompt"].seconds is None


def test_a_price_per_hour_is_that_of_the_seconds(done: tuple[Comparison, Path]) -> None:
    page, _ = done
    for arm in page.arms:
        assert arm.cost.price_per_1000 == pytest.approx(arm.cost.seconds_per_1000)  # 3,600 an hour is 1 a second
        assert arm.update is None or arm.update.price == arm.update.seconds


def test_the_same_command_again_asks_nothing(done: tuple[Comparison, Path]) -> None:
    page, place = done
    said: list[str] = []
    again = compare(
        recipe(place),
        CompareOptions(),
        callbacks=Callbacks(lambda e: said.append(getattr(e, "text", ""))),
        out=place / "out",
    )
    assert [arm.task.score for arm in again.arms] == [arm.task.score for arm in page.arms]
    assert not [text for text in said if "questions" in text or "settings" in text or "training" in text]


@pytest.mark.parametrize("name", ["comparison.json", "identity.json", "answers/rag.json", "choices.json"])
def test_a_changed_file_of_a_comparison_is_noticed(done: tuple[Comparison, Path], tmp_path: Path, name: str) -> None:
    _, place = done
    out = tmp_path / "out"
    shutil.copytree(place / "out", out)
    text = (out / name).read_text("utf-8")
    (out / name).write_text(re.sub(r"[1-9]", lambda digit: str(int(digit[0]) % 9 + 1), text, count=1), "utf-8")
    heard: list[str] = []
    callbacks = Callbacks(lambda event: heard.append(getattr(event, "text", "")))
    try:
        if name == "comparison.json":
            ask_arm(out, ArmQuestion("How high is Arda?", "prompt"), callbacks=callbacks)
        compare(recipe(place), CompareOptions(), callbacks=callbacks, out=out, offline=True)
    except CheckpointError as error:
        heard.append(str(error))
    assert any(f"{name}: changed since it was written; restore it or run again" in line for line in heard)


def test_a_comparison_that_is_stopped_keeps_the_arms_that_are_done(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="stopped after arm prompt, 1 of 8"):
        run(recipe(tmp_path), tmp_path / "out", should_stop=lambda: True)
    assert [file.name for file in (tmp_path / "out/answers").iterdir()] == ["prompt.json"]


def test_a_folder_of_other_rows_is_refused(done: tuple[Comparison, Path], tmp_path: Path) -> None:
    _, place = done
    with pytest.raises(CheckpointError, match=r"other settings \(data.train, documents.source, seed\)"):
        run(recipe(tmp_path, seed=1), place / "out")


def test_without_documents_no_file_of_the_working_folder_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.md").write_text("a", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert len(_document_digests(".")) == 1
    monkeypatch.setattr(Path, "rglob", lambda *_: pytest.fail("the folder was walked"))
    assert _document_digests("") == []


@pytest.mark.long
@pytest.mark.parametrize("kind", ["text", "labels"])
def test_an_engine_answers_for_prompts_and_tuned_arms_as_torch_does(kind: str, tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    parts = {"documents": {}, "arms": ["prompt", "few-shot", "tuned"]}
    made = recipe(tmp_path, **(parts if kind == "text" else parts | labels(tmp_path)))
    here = run(made, tmp_path / "here")
    with engine_stub(folder("llama")) as stub:
        there = run(made, tmp_path / "there", CompareOptions(engine=stub.url))
    assert {arm.name: arm.task for arm in there.arms} == {arm.name: arm.task for arm in here.arms}
    assert len({asked["model"] for asked in stub.asked}) >= 2  # the base and the adapter of the run
    with pytest.raises(CheckpointError, match="contains a comparison of other"):
        run(made, tmp_path / "there")


def test_labels_are_compared_too(tmp_path: Path) -> None:
    parts = {
        **labels(tmp_path),
        "arms": [],
        "compare": {"rows": 6},
    }
    page = run(recipe(tmp_path, **parts), tmp_path / "out")
    assert [arm.name for arm in page.arms] == ["prompt", "few-shot", "tf-idf", "tuned"]
    assert {arm.task.n for arm in page.arms} == {6}
    assert next(arm for arm in page.arms if arm.name == "tf-idf").task.score == 1.0
    assert page.verdict.arm in ("tf-idf", "tuned")  # both are right on every row: the seconds decide
    asked = ArmQuestion("it is good 77", "tf-idf")
    assert ask_arm(tmp_path / "out", asked, callbacks=Callbacks(lambda event: None)).answer == "positive"
    assert page.retrieval == []


def test_a_model_is_taught_the_documents_and_no_question(tmp_path: Path) -> None:
    page = run(recipe(tmp_path, arms=["prompt", "closed-book", "tuned-30%"]), tmp_path / "out")
    taught = page.arms[1]
    assert taught.detail.startswith("9 of 10 chunks, those with answers first")
    assert (taught.labels, page.arms[2].labels) == (0, 12)
    assert not page.arms[2].candidate
    learned = (tmp_path / "out/taught.train.jsonl").read_text()
    assert "How high" not in learned
    assert "wort grows there" in learned


def test_answers_are_kept_for_rows_in_their_order_and_to_the_letter(tmp_path: Path) -> None:
    rows = [{"text": f"it is {word} {i}", "label": label} for i in range(10) for word, label in LABELS]
    train = write(tmp_path / "train.jsonl", rows)
    tests = [{"text": f"so {word} {i}", "label": label} for i in range(6) for word, label in LABELS]
    data = {"train": train, "validation": 0.2, "test": write(tmp_path / "test.jsonl", tests)}
    made = recipe(tmp_path, **{**labels(tmp_path), "data": data}, arms=["tf-idf", "prompt"])
    run(made, tmp_path / "out")
    write(tmp_path / "test.jsonl", sorted(tests, key=lambda row: str(row["label"])))
    with pytest.raises(CheckpointError, match="other rows or settings"):
        run(made, tmp_path / "out")


def test_a_model_that_was_changed_since_it_was_asked_is_refused(tmp_path: Path) -> None:
    model = shutil.copytree(folder("llama"), tmp_path / "model")
    parts = {**labels(tmp_path), "model": str(model)}
    run(recipe(tmp_path, **parts, arms=["tf-idf", "prompt"]), tmp_path / "out")
    weights = load_file(model / "model.safetensors")
    save_file({name: value * 1.5 for name, value in weights.items()}, model / "model.safetensors", {"format": "pt"})
    page = run(recipe(tmp_path, **parts, arms=["tf-idf", "prompt", "few-shot"]), tmp_path / "out")
    assert [arm.name for arm in page.arms] == ["tf-idf", "prompt"]
    assert any("has changed since this comparison started" in note for note in page.notes)


def test_a_run_with_a_head_is_shown_no_passages(tmp_path: Path) -> None:
    parts = {**labels(tmp_path), "documents": {"source": str(tmp_path)}, "arms": ["tf-idf", "tuned+rag"]}
    for more in ({"model": str(folder("bert"))}, {"objective": {"kind": "classify", "output": "linear"}}):
        with pytest.raises(RecipeError, match=r"tuned\+rag .* this run has a head; nearest that works: tuned"):
            chosen_arms(recipe(tmp_path, **{**parts, **more}))


def test_an_encoder_is_not_prompted(tmp_path: Path) -> None:
    parts: dict[str, Any] = {
        "model": str(folder("bert")),
        **labels(tmp_path),
    }
    with pytest.raises(RecipeError, match="an encoder, which answers no prompt"):
        run(recipe(tmp_path, **parts, arms=["tf-idf", "prompt"]), tmp_path / "one")
    assert not (tmp_path / "one").exists()
    assert chosen_arms(recipe(tmp_path, **parts, arms=[])) == ["tf-idf", "tuned"]
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        chosen_arms(recipe(tmp_path, **{**parts, "model": str(broken)}, arms=[]))
    asks = {"compare": {"model": str(folder("llama"))}}
    page = run(recipe(tmp_path, **parts, **asks, arms=["prompt", "tuned"]), tmp_path / "two")
    assert [arm.name for arm in page.arms] == ["prompt", "tuned"]
    assert page.arms[1].latency.prompt_tokens is None  # its head reads the text alone


def test_a_server_is_asked_the_text_and_told_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {
        **labels(tmp_path),
    }
    heard: list[str] = []

    def reply(endpoint: Any, batch: Any, *, offline: bool) -> Iterator[tuple[int, Answer]]:
        for place, messages in enumerate(batch):
            heard.append(messages[-1].content)
            yield place, Answer("Positive." if "good" in heard[-1] else "I would say negative", True)

    monkeypatch.setattr("tunesmith.inference.openai_client.ask_endpoint", reply)
    monkeypatch.setattr("tunesmith.inference.openai_client.reach", lambda endpoint, *, offline: None)
    server = "http://127.0.0.1:1/v1#C:\\models\\q.gguf"
    page = run(
        recipe(tmp_path, **parts, arms=["tf-idf", server]), tmp_path / "out", CompareOptions(price_per_hour=3600.0)
    )
    assert page.arms[1].task.score == 1.0
    assert (page.arms[1].labels, page.arms[1].detail) == (8, "prompt: the instruction of the recipe")
    assert page.arms[1].cost.price_per_1000 is None
    assert any("is unknown: its cost here" in reason for reason in page.verdict.reasons)
    assert all("it is" in text and "negative" in text and "positive" in text for text in heard)
    assert len(heard) == 4 * 8 + 8 + 8  # four wordings on the validation rows, the test, and each of its rows alone
    assert "q.gguf" in html(page)


def test_a_server_that_is_not_there_is_said_before_any_arm_is_asked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="http://127.0.0.1:9/v1: cannot be reached"):
        run(recipe(tmp_path, arms=["prompt", "http://127.0.0.1:9/v1#m"]), tmp_path / "out")
    assert not (tmp_path / "out" / "answers").exists()


def test_a_server_is_not_asked_where_tools_may_be_called(tmp_path: Path) -> None:
    tools = json.dumps([{"type": "function", "function": {"name": "look", "parameters": {}}}])
    turns = [[{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": "a"}] for n in range(40)]
    rows = write(tmp_path / "calls.jsonl", [{"messages": one, "tools": tools} for one in turns])
    data = {"train": rows, "validation": 0.2, "test": 0.3}
    arms = ["prompt", "http://127.0.0.1:9/v1#m"]
    made = recipe(tmp_path, data=data, objective={"kind": "instruct"}, documents={}, arms=arms)
    with pytest.raises(DataError, match=r"calls\.jsonl:\d+: tools cannot be passed to http"):
        run(made, tmp_path / "out")


def test_another_model_behind_an_address_does_not_go_on_with_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.inference.openai_client.reach", lambda endpoint, *, offline: None)
    monkeypatch.setattr("tunesmith.inference.openai_client.only_model", lambda endpoint, *, offline: names.pop(0))
    names = ["old", "new"]
    place: Any = SimpleNamespace(folder=tmp_path, key="", offline=True)
    place.check_unchanged = partial(ComparisonContext.check_unchanged, place)
    remote(place, "http://127.0.0.1:9/v1")
    with pytest.raises(
        CheckpointError, match="the model http://127.0.0.1:9/v1 has changed since this comparison started"
    ):
        remote(place, "http://127.0.0.1:9/v1")


def test_documents_that_no_row_names_are_said_with_the_names_there_are(tmp_path: Path) -> None:
    made = recipe(tmp_path, arms=["prompt", "rag"])
    named = made.documents.model_copy(update={"origin": "land"})
    with pytest.raises(
        DataError, match=r"no row names a document of the source, such as 'Brin'; .*'arda', 'brin', 'coll'"
    ):
        run(made.model_copy(update={"documents": named}), tmp_path / "out")


def test_an_arm_that_fails_is_left_out_and_tried_again_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(tmp_path, arms=["prompt", "few-shot", "tuned"])
    with monkeypatch.context() as patch:
        patch.setitem(TUNED_ARMS, "tuned", lambda contest: (_ for _ in ()).throw(Refused("rate: too low; raise it")))
        page = run(made, tmp_path / "out")
    assert [arm.name for arm in page.arms] == ["prompt", "few-shot"]
    assert "tuned failed and is left out: rate: too low; raise it" in page.notes
    assert [arm.name for arm in run(made, tmp_path / "out").arms] == ["prompt", "few-shot", "tuned"]


def test_an_arm_that_breaks_off_keeps_its_answers_and_goes_on_with_the_next_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(tmp_path, arms=["prompt", "no-context"])
    whole, asked = run(made, tmp_path / "whole"), list[int]()
    plain = answering.ask_model

    def say(
        model: LocalModel, batch: list[list[Message]], objective: Instruct, room: int = 99
    ) -> answering.BatchAnswers:
        if len(asked) == room:
            raise DataError("http://127.0.0.1:1: nobody answers; start the server")
        asked.append(len(batch))
        return plain(model, batch, objective)

    monkeypatch.setattr(answering, "PORTION", 2)
    monkeypatch.setattr(answering, "ask_model", partial(say, room=2))
    with pytest.raises(DataError, match="start the server"):
        run(made, tmp_path / "out")
    assert (asked, len(list((tmp_path / "out" / "answers" / "prompt.portions").iterdir()))) == ([2, 2], 2)
    monkeypatch.setattr(answering, "ask_model", say)
    page = run(made, tmp_path / "out")
    assert asked[2] == 2  # the third portion, not the first
    assert [arm.task.score for arm in page.arms] == [arm.task.score for arm in whole.arms]
    assert not (tmp_path / "out" / "answers" / "prompt.portions").exists()


def test_a_comparison_that_is_left_with_one_arm_fails_with_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TUNED_ARMS, "tuned", lambda contest: (_ for _ in ()).throw(Refused("rate: too low; raise it")))
    with pytest.raises(Refused, match="rate: too low; raise it"):
        run(recipe(tmp_path, arms=["prompt", "no-context", "tuned"]), tmp_path / "out")


def test_a_rule_of_style_that_cannot_be_checked_is_refused_before_any_arm_is_asked(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="style"):
        run(recipe(tmp_path, style={"odd": {"not_match": "("}}), tmp_path / "out")
    assert not (tmp_path / "out" / "answers").exists()


def test_a_budget_that_is_too_small_says_how_much_is_enough_and_nothing_is_asked(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"--budget 1e-05: the minimum of 6 test rows and 10 training rows takes about 1 minutes"
    ):
        run(recipe(tmp_path, arms=["prompt", "tuned"]), tmp_path / "out", CompareOptions(minutes=0.00001))
    assert not (tmp_path / "out" / "answers").exists()


def test_two_processes_do_not_compare_in_one_folder(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / "out"), pytest.raises(CheckpointError, match="out: locked by another process"):
        run(recipe(tmp_path, arms=["prompt", "few-shot"]), tmp_path / "out")


def test_an_arm_that_another_process_is_making_has_not_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = answering.run_arm

    def answered(contest: Any, name: str) -> Any:
        with exclusive_lock(contest.folder / "tuned"):
            return known(contest, name)

    monkeypatch.setattr("tunesmith.pipelines.compare.compare.run_arm", answered)
    with pytest.raises(CheckpointError, match="tuned: locked by another process"):
        run(recipe(tmp_path, arms=["prompt", "few-shot", "tuned"]), tmp_path / "out")


def test_arms_of_a_budget_are_asked_later_with_no_more_rows_than_they_had(tmp_path: Path) -> None:
    run(recipe(tmp_path, arms=["prompt", "few-shot"]), tmp_path / "out", CompareOptions(minutes=60))
    chosen = tmp_path / "out" / CHOICES
    known = json.loads(chosen.read_text())
    slower = {"test": 6, "train": 10, "note": "slower machine", "seconds": 1.0}
    write_whole(chosen, json.dumps(known | {"budget": slower}))
    assert len(reopened(tmp_path / "out", callbacks=Callbacks(Lines()), offline=True).split.train) == 10


def test_a_budget_is_dealt_out_for_an_encoder_too(tmp_path: Path) -> None:
    parts: dict[str, Any] = {
        "model": str(folder("bert")),
        **labels(tmp_path),
        "arms": ["tf-idf", "tuned"],
    }
    page = run(recipe(tmp_path, **parts), tmp_path / "out", CompareOptions(minutes=60))
    assert any(note.startswith("budget of 60 minutes: 8 of 8 test rows") for note in page.notes)


def test_dates_in_the_rows_do_not_stand_in_the_way_of_a_part_of_them(tmp_path: Path) -> None:
    import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    when = datetime.datetime(2026, 1, 2)
    rows = [{"text": f"it is {word} {i}", "label": label, "when": when} for i in range(20) for word, label in LABELS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "labels.parquet")
    parts: dict[str, Any] = {
        "data": {"train": str(tmp_path / "labels.parquet"), "validation": 0.2, "test": 0.2},
        "objective": {"kind": "classify", "text": "text", "label": "label"},
        "documents": {},
        "arms": ["tf-idf", "tuned"],
        "compare": {"rows": 3},
    }
    assert len(run(recipe(tmp_path, **parts), tmp_path / "out").arms) == 2
    assert '"when": "2026-01-02 00:00:00"' in (tmp_path / "out" / "tuned.train.jsonl").read_text()


def test_rows_that_a_column_splits_are_tuned_on(tmp_path: Path) -> None:
    named = ("train", "train", "validation", "test", "train")
    rows = [
        {"text": f"it is {word} {i}", "label": label, "part": named[i % 5]} for i in range(20) for word, label in LABELS
    ]
    parts: dict[str, Any] = {
        **labels(tmp_path),
        "data": {"train": write(tmp_path / "parts.jsonl", rows), "split": "part"},
        "arms": ["tf-idf", "tuned"],
        "compare": {"rows": 3},
    }
    made = recipe(tmp_path, **parts)
    assert [arm.name for arm in run(made, tmp_path / "out").arms] == ["tf-idf", "tuned"]
    assert _with_rows(made, made.objective, {}).data.split == ""  # of raft and closed-book


def test_documents_that_give_nothing_to_find_are_noted(tmp_path: Path) -> None:
    place = tmp_path / "manual"
    place.mkdir()
    for name, text in (("a.txt", "Phone: 555-1234"), ("b.txt", "Opening: 9-17"), ("c.txt", "..."), ("d.doc", "x")):
        (place / name).write_text(text, encoding="utf-8")
    made = recipe(tmp_path, arms=["prompt", "rag"])
    documents = made.documents.model_copy(update={"source": str(place), "origin": "", "evidence": ""})
    page = run(made.model_copy(update={"documents": documents}), tmp_path / "out")
    assert f"{place}: skipped files of unsupported types: .doc (1)" in page.notes
    found = [json.loads(line)["text"] for line in (tmp_path / "out/index/chunks.jsonl").read_text().splitlines()]
    assert any("555-1234" in text for text in found)
    assert any("9-17" in text for text in found)


def test_a_folder_in_which_nothing_was_asked_yet_is_taken_and_settings_that_differ_are_named(tmp_path: Path) -> None:
    made = recipe(tmp_path, arms=["prompt", "no-context"])
    with pytest.raises(ModelError):
        run(made.model_copy(update={"model": str(tmp_path / "none")}), tmp_path / "out")
    assert run(made, tmp_path / "out").rows == 6
    other = made.model_copy(update={"seed": 3, "objective": made.objective.model_copy(update={"max_new_tokens": 5})})
    with pytest.raises(CheckpointError, match=r"other settings \(objective.max_new_tokens, seed\)"):
        run(other, tmp_path / "out")


def test_rows_that_cannot_be_told_apart_or_chosen_on_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    train, test = (
        write(tmp_path / "rows.jsonl", facts()),
        write(
            tmp_path / "more" / "rows.jsonl",
            [{**row, "q": f"{row['q']} And why is that?", "land": "Kell"} for row in facts()],
        ),
    )
    for data, finding in (
        ({"train": train, "test": test}, "rows.jsonl: two files have this name"),
        ({"train": train, "validation": 0.0}, "data.validation: no rows, which are needed to choose settings"),
        ({"train": train, "test": 0.0}, "data.test: no rows, which are needed to compare the arms"),
    ):
        with pytest.raises(DataError, match=finding):
            run(recipe(tmp_path, data={**data, "group": "land"}), tmp_path / "out")
    named = recipe(tmp_path).documents.model_copy(update={"evidence": "sayd"})
    with pytest.raises(RecipeError, match="documents.evidence: no column 'sayd'; name one of q, a, land"):
        run(recipe(tmp_path).model_copy(update={"documents": named}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_that_do_not_say_where_their_answer_stands_get_no_figures_of_retrieval(tmp_path: Path) -> None:
    made = recipe(tmp_path, arms=["prompt", "rag"])
    blind = made.documents.model_copy(update={"evidence": "", "origin": ""})
    made = made.model_copy(update={"documents": blind})
    page = run(made, tmp_path / "out")
    assert page.retrieval == []
    assert [arm.domain for arm in page.arms] == [None, None]
    assert "oracle-context" not in chosen_arms(made.model_copy(update={"arms": []}))
    with pytest.raises(RecipeError, match="needs rows that name the source of their answer"):
        chosen_arms(made.model_copy(update={"arms": ["prompt", "oracle-context"]}))


def test_a_comparison_stays_on_the_machine_that_it_began_on(done: tuple[Comparison, Path]) -> None:
    _, place = done
    kept = json.loads((place / "out" / "machine.json").read_text())
    moved = recipe(place, machine={"device": "cpu", "dtype": "float32", "threads": 7})
    assert kept["threads"] == 1
    assert pin_machine(moved, place / "out" / "machine.json").machine.threads == 1


def test_passages_give_way_to_the_question_where_a_model_reads_little() -> None:
    asked, hits = (
        [Message("user", "How high is Arda?")],
        [Hit(Chunk(f"d#{i}", "d", "", "", "word " * 20), 1.0) for i in (1, 2)],
    )
    model = LocalModel(policy("llama"), template("llama"), Instruct(), 0)
    whole = [len(model.template.prompt(with_passages(asked, hits[:count]))) for count in (0, 1, 2)]
    for limit, shown in ((whole[2], 2), (whole[2] - 1, 1), (whole[1] - 1, 0), (1, 0)):
        model.limit = limit
        prompt = within(model, asked, hits, FORMS[0])
        assert prompt.messages == with_passages(asked, hits[:shown])
        assert (list(prompt.hits), prompt.dropped) == (hits[:shown], 2 - shown)


def test_an_arm_that_cannot_work_is_refused_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="arms: expected two or more, got tuned; add another"):
        chosen_arms(recipe(tmp_path, arms="tuned"))
    with pytest.raises(RecipeError, match="no-context are diagnostic and never recommended; add one"):
        chosen_arms(recipe(tmp_path, arms=["no-context"]))
    labels = {"objective": {"kind": "classify", "text": "q", "label": "a"}}
    with pytest.raises(RecipeError, match="raft learns answers from passages"):
        chosen_arms(recipe(tmp_path, **labels, arms=["raft"]))
    with pytest.raises(RecipeError, match="rag needs documents; add"):
        chosen_arms(recipe(tmp_path, arms=["prompt", "rag"], documents={}))
    with pytest.raises(RecipeError, match="tf-idf answers with labels only"):
        chosen_arms(recipe(tmp_path, arms=["prompt", "tf-idf"]))
    with pytest.raises(RecipeError, match="unknown arm 'rga', did you mean 'rag'"):
        recipe(tmp_path, arms=["rga"])
    with pytest.raises(RecipeError, match="domain rows have no answer that every arm can give"):
        chosen_arms(recipe(tmp_path, objective={"kind": "domain", "text": "q"}))


def test_the_page_shows_every_arm_and_escapes_what_models_and_rows_say(done: tuple[Comparison, Path]) -> None:
    page, _ = done
    arms = [page.arms[0].model_copy(update={"detail": "<script>alert(1)</script>"}), *page.arms[1:]]
    text = html(page.model_copy(update={"arms": arms}))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert all(f"<bdi>{name}</bdi>" in text for name in ARMS)
    assert text.count("<svg") == 2


def test_two_addresses_that_differ_by_a_colon_are_kept_in_two_files():
    arms = ("http://a.b/v1", "http://a:b/v1", "http://a_b/v1", "tuned+rag", "tuned-30%")
    names = [file_name(arm) for arm in arms]
    assert len(set(names)) == len(names)
    assert all(set(name) & set("/:%") == set() for name in names)
    assert file_name("tuned+rag") == "tuned+rag"


@pytest.mark.long
def test_arms_tuned_on_ray_are_the_runs_that_a_comparison_tunes_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # In place of a cluster: one after another here, from the folder of the comparison alone, as a worker does it.
    monkeypatch.setattr("tunesmith.pipelines.requests.check_place", lambda on: None)
    monkeypatch.setattr(
        "tunesmith.pipelines.compare.compare.each", lambda work, cells, **_: ((cell, work(cell)) for cell in cells)
    )
    events: list[str] = []
    watching = Callbacks(lambda event: events.append(str(getattr(event, "text", ""))))
    asked = recipe(tmp_path, arms=["prompt", "tuned", "tuned+rag", "raft"], compare={"rows": 4, "changed_facts": 0})
    there = compare(asked, CompareOptions(on="ray"), callbacks=watching, out=tmp_path / "there")
    assert {"2 runs on ray", "tuned: tuned", "raft: tuned"} <= set(events)
    assert not [note for note in there.notes if "failed" in note]
    here = compare(asked, CompareOptions(), callbacks=Callbacks(lambda event: None), out=tmp_path / "here")
    for name in ("tuned", "raft"):
        one, other = (
            load_file(tmp_path / side / name / "model" / "adapter_model.safetensors") for side in ("there", "here")
        )
        assert all((one[key] == other[key]).all() for key in one)
    assert {arm.name: arm.task.score for arm in there.arms} == {arm.name: arm.task.score for arm in here.arms}


def test_the_base_does_not_answer_again_what_it_answered_for_a_run(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = [{"text": f"{LABELS[i % 2][0]} {i}", "label": LABELS[i % 2][1]} for i in range(40)]
    made = recipe(
        tmp_path,
        data={"train": write(tmp_path / "reviews.jsonl", rows), "validation": 0.2, "test": 0.3},
        objective={"kind": "classify", "output": "words"},
        documents={},
        arms=["prompt", "tf-idf"],
    )
    tune_recipe(made, out=tmp_path / "run", callbacks=Callbacks(lambda event: None), offline=True)
    monkeypatch.setattr("tunesmith.pipelines.compare.run_arm._latencies", lambda *_: [1.0])
    monkeypatch.setattr("tunesmith.inference.local_model.option_scores", None)
    heard: list[Any] = []
    compare(made, CompareOptions(), out=tmp_path / "arms", callbacks=Callbacks(heard.append), offline=True)
    assert any("reused results" in str(event) and "prompt" in str(event) for event in heard)
