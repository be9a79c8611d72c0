"""The arms of `compare` whose retriever is tuned, with tiny random models."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.bases import folder
from tests.pipelines.compare.test_compare import facts, labels, recipe, run, small
from tunesmith.data.documents.synthetic_prompts import QUESTIONS
from tunesmith.data.documents.synthetic_rows import Answer
from tunesmith.data.examples.types import Chat
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import CheckpointError, RecipeError
from tunesmith.pipelines.compare import compare as compare_module
from tunesmith.pipelines.compare import context as context_module
from tunesmith.pipelines.compare import tuned_arms, tuned_retriever
from tunesmith.pipelines.compare.ask import ArmQuestion, ask_arm
from tunesmith.pipelines.compare.compare import reopened
from tunesmith.pipelines.compare.context import MOST_CHUNKS, Retrieval
from tunesmith.pipelines.compare.knowledge_update import _changed_index
from tunesmith.pipelines.compare.report import Comparison
from tunesmith.pipelines.compare.report import page as html
from tunesmith.pipelines.compare.selection import chosen_arms
from tunesmith.retrieval.chunks import Chunk
from tunesmith.retrieval.index import Index
from tunesmith.training.callbacks import Callbacks, Interrupted

__all__ = ["small"]  # the fixture of the module, used automatically
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
RERANKED = "tuned-retriever+rerank"
WITH_PASSAGES = ["rag", "tuned-retriever", RERANKED, "tuned+tuned-retriever", "raft+tuned-retriever"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    place = tmp_path_factory.mktemp("retriever")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned_retriever, "FEWEST_PAIRS", 8)
        return run(recipe(place, arms=[*WITH_PASSAGES, "tuned"]), place / "out"), place / "out"


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.long
def test_the_retriever_is_tuned_on_training_rows_alone(done: tuple[Comparison, Path]) -> None:
    _, out = done
    split = reopened(out, callbacks=Callbacks(lambda event: None), offline=True).split
    questions = {part: {row.messages[0].content for row in getattr(split, part)} for part in ("train", "test")}
    pairs = rows_of(out / "retriever.train.jsonl")
    assert {pair["query"] for pair in pairs} == questions["train"]
    assert not {pair["query"] for pair in pairs} & questions["test"]
    said = {row["q"]: row["said"] for row in facts()}
    assert all(said[pair["query"]] in pair["passage"] for pair in pairs)


def test_one_retriever_serves_all_its_arms_and_their_answers_are_of_the_models_that_they_name(
    done: tuple[Comparison, Path],
) -> None:
    page, out = done
    arms = {arm.name: arm for arm in page.arms}
    assert list(arms) == [*WITH_PASSAGES, "tuned"]
    retriever = str(out / "retriever")
    assert [arms[name].retriever for name in WITH_PASSAGES] == ["", *[retriever] * 4]
    assert [name for name, arm in arms.items() if arm.reranker == str(out / "reranker")] == [RERANKED]
    assert [name for name, arm in arms.items() if arm.reranker] == [RERANKED]
    assert arms[RERANKED].cost.build_seconds > arms["tuned-retriever"].cost.build_seconds
    assert arms["tuned-retriever"].run == ""
    assert arms["tuned-retriever"].labels >= 10
    assert "10 pairs of question and chunk" in arms["tuned-retriever"].detail
    assert arms["tuned+tuned-retriever"].run == str(out / "tuned")
    assert arms["raft+tuned-retriever"].run == str(out / "raft")
    assert arms["tuned-retriever"].cost.build_seconds > arms["rag"].cost.build_seconds
    assert (out / "index-tuned" / "vectors.safetensors").exists()


def test_the_searches_stand_beside_each_other_with_p_values(done: tuple[Comparison, Path]) -> None:
    page, _ = done
    assert [row.search for row in page.retrieval] == ["fused", "words", "vectors", "tuned-retriever", RERANKED]
    assert all(row.ndcg is not None and 0 <= row.ndcg <= 1 for row in page.retrieval)
    against = [*(("tuned-retriever", over) for over in ("fused", "words", "vectors")), (RERANKED, "tuned-retriever")]
    assert [(gain.metric, gain.search, gain.over) for gain in page.search_gains] == [
        (metric, *pair) for metric in ("recall_5", "ndcg") for pair in against
    ]
    ndcg = {row.search: row.ndcg or 0.0 for row in page.retrieval}
    for gain in page.search_gains:
        if gain.metric == "ndcg":
            assert gain.delta == pytest.approx(ndcg[gain.search] - ndcg[gain.over])
        assert 0 <= gain.p_adjusted <= 1
    shown = html(page)
    assert "nDCG@10" in shown
    assert "Gain of the tuned retriever" in shown


def test_changed_documents_are_found_by_the_tuned_retriever_too(done: tuple[Comparison, Path]) -> None:
    page, out = done
    updates = {arm.name: arm.update for arm in page.arms}
    for name in WITH_PASSAGES:
        update = updates[name]
        assert update is not None
        assert update.how == "the index follows the documents"
        assert update.found is not None
        assert 0 <= update.found <= 1
        assert "of changed chunks among the first 5" in str(update)
    assert any(
        reason.startswith("after 6 facts changed in the documents, the first 5 chunks that are found contain the new")
        for reason in page.verdict.reasons
    )
    assert updates["tuned"] is not None
    assert updates["tuned"].found is None
    assert not (out / "changed").exists()


@pytest.mark.parametrize("arm", WITH_PASSAGES[1:])
def test_an_arm_with_a_tuned_retriever_is_asked_about_documents_as_they_are_now(
    done: tuple[Comparison, Path], arm: str
) -> None:
    _, out = done
    pages = out.parent / "pages.jsonl"
    before = pages.read_text(encoding="utf-8")
    try:
        with pages.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"doc_id": "kark", "text": "Kark\n\nHeight:\n999 m"}) + "\n")
        reply = ask_arm(out, ArmQuestion("How high is Kark?", arm), callbacks=Callbacks(lambda event: None))
        assert reply.arm == arm
        assert reply.shown
    finally:
        pages.write_text(before, encoding="utf-8")


def test_a_comparison_that_was_moved_is_asked_and_a_retriever_in_the_place_of_its_own_is_refused(
    done: tuple[Comparison, Path], tmp_path: Path
) -> None:
    _, out = done
    moved, away = tmp_path / "moved", out.with_name("away")
    shutil.copytree(out, moved)
    out.rename(away)
    try:
        question = ArmQuestion("How high is Kark?", RERANKED)
        assert ask_arm(moved, question, callbacks=Callbacks(lambda event: None)).shown
        pooling = moved / "retriever/model/1_Pooling/config.json"
        digests = json.loads((moved / "retriever/model/manifest.json").read_text())
        pooling.write_text(pooling.read_text() + " ")
        digests["1_Pooling/config.json"] = sha256(pooling.read_bytes()).hexdigest()
        (moved / "retriever/model/manifest.json").write_text(json.dumps(digests))
        with pytest.raises(CheckpointError, match="moved/reranker: its candidates were found by another"):
            ask_arm(moved, question, callbacks=Callbacks(lambda event: None))
    finally:
        away.rename(out)


def test_a_finished_retriever_is_not_tuned_again(
    done: tuple[Comparison, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out = done
    monkeypatch.setattr(tuned_retriever, "FEWEST_PAIRS", 8)
    weights = out / "retriever" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    (out / "answers" / "tuned-retriever.json").unlink()
    again = run(recipe(out.parent, arms=[*WITH_PASSAGES, "tuned"]), out)
    assert [arm.name for arm in again.arms] == [*WITH_PASSAGES, "tuned"]
    assert weights.stat().st_mtime_ns == before


def test_a_retriever_that_was_stopped_goes_on_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned_retriever, "FEWEST_PAIRS", 8)
    made, out = recipe(tmp_path, arms=["rag", "tuned-retriever"]), tmp_path / "out"
    with pytest.raises(Interrupted):
        run(made, out, should_stop=lambda: (out / "retriever").exists())
    assert (out / "answers" / "rag.json").exists()
    pairs = (out / "retriever.train.jsonl").read_text(encoding="utf-8")
    assert [arm.name for arm in run(made, out).arms] == ["rag", "tuned-retriever"]
    assert (out / "retriever.train.jsonl").read_text(encoding="utf-8") == pairs


def test_questions_are_written_where_rows_give_too_few_and_are_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned_retriever, "FEWEST_PAIRS", 14)

    def write(writer: Any, *, offline: bool) -> Any:
        def ask(prompts: list[list[Message]]) -> Iterator[tuple[int, Answer]]:
            for number, prompt in enumerate(prompts):
                land = prompt[-1].content.rpartition("mostly ")[2].split("wort")[0]
                yield number, Answer(f"Q: Which plant is common in {land}?\nA: {land}wort")

        return ask

    monkeypatch.setattr(tuned_arms, "ask_writer", write)
    page = run(recipe(tmp_path, arms=["rag", "tuned-retriever"]), tmp_path / "out")
    pairs = rows_of(tmp_path / "out" / "retriever.train.jsonl")
    written = [pair for pair in pairs if pair.get("written")]
    assert len(pairs) - len(written) == 10
    assert len(written) >= 4
    assert all(pair["evidence"] in pair["passage"] for pair in written)
    arm = next(arm for arm in page.arms if arm.name == "tuned-retriever")
    assert f"10 pairs of question and chunk from rows, {len(written)} more written by" in arm.detail
    assert arm.written == len(written)
    assert any(f"tuned on {len(written)} questions that a model wrote" in reason for reason in page.verdict.reasons)


def test_pairs_and_retriever_are_made_once_for_all_arms(
    done: tuple[Comparison, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out = done
    context = reopened(out, callbacks=Callbacks(lambda event: None), offline=True)
    tuned = list[str]()

    def tune(*_: Any, name: str, **__: Any) -> tuned_arms.TunedArm:
        tuned.append(name)
        return tuned_arms.TunedArm(out / name, 1.0, 10, "")

    monkeypatch.setattr(tuned_retriever, "FEWEST_PAIRS", 8)
    monkeypatch.setattr(tuned_retriever, "_tune", tune)
    retriever = tuned_retriever.run_retriever(context)
    pairs = tuned_retriever.training_pairs(context)
    tuned_retriever.run_reranker(context)
    assert tuned == ["retriever", "reranker"]
    assert tuned_retriever.run_retriever(context) is retriever
    assert tuned_retriever.training_pairs(context) is pairs


def test_the_seconds_of_an_interrupted_writing_count(
    done: tuple[Comparison, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = reopened(done[1], callbacks=Callbacks(lambda event: None), offline=True)
    context.retrieval()
    context.folder = tmp_path
    left = [1, 99]

    def write(writer: Any, *, offline: bool) -> Any:
        def ask(prompts: list[list[Message]]) -> Iterator[tuple[int, Answer]]:
            most = left.pop(0)
            for number, _ in enumerate(prompts):
                if number == most:
                    raise Interrupted("stopped")
                time.sleep(0.02)
                yield number, Answer("Q: What?\nA: nothing")

        return ask

    def written() -> tuned_arms.Written:
        options = {"name": "retriever", "label": "questions about", "count": 1, "passages": 3}
        return tuned_arms.written_about(context, QUESTIONS, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(tuned_arms, "ask_writer", write)
    with pytest.raises(Interrupted):
        written()
    first = context.choices().writing_seconds["retriever"]
    assert first >= 0.02
    whole = written()
    assert (whole.rows, whole.seconds >= first + 0.04) == ([], True)
    assert written().seconds == whole.seconds


def test_too_few_questions_are_refused_with_their_number(tmp_path: Path) -> None:
    page = run(recipe(tmp_path, arms=["prompt", "rag", "tuned-retriever"]), tmp_path / "out")
    assert [arm.name for arm in page.arms] == ["prompt", "rag"]
    refused = next(note for note in page.notes if note.startswith("tuned-retriever failed"))
    assert "needs 32 questions with a chunk that contains the answer; the rows give 10, and" in refused


def test_labels_without_evidence_have_no_chunk(tmp_path: Path) -> None:
    documents = {"source": str(tmp_path)}
    parts = {**labels(tmp_path), "documents": documents, "arms": ["prompt", "tuned-retriever"]}
    with pytest.raises(RecipeError, match="a label is in none; set documents.evidence, or remove the arm"):
        chosen_arms(recipe(tmp_path, **parts))


def test_the_search_is_fused_where_no_validation_row_has_a_chunk(done: tuple[Comparison, Path]) -> None:
    _, out = done
    context = reopened(out, callbacks=Callbacks(lambda event: None), offline=True)
    choices = context.choices()
    kept = {name: one for name, one in choices.settings.items() if name != "search of the tuned retriever"}
    context.save_choices(settings=kept)
    try:
        context.split = replace(context.split, validation=[])
        assert context.tuned_retrieval(str(out / "retriever")).index.search == "fused"
        assert context.retrieval().index.find([], shown=3) == []
    finally:
        context.save_choices(settings=choices.settings)


def test_an_answer_in_many_chunks_names_none_of_them() -> None:
    chunks = [Chunk(str(i), f"page {i}", "", "", f"yes it is {i}") for i in range(MOST_CHUNKS + 1)]
    fields: dict[str, dict[str, object]] = {"a": {"said": ""}, "b": {"said": "it is 3"}, "c": {"doc": "page 2"}}
    rows = [Chat(where, (Message("user", "is it?"), Message("assistant", "yes"))) for where in fields]
    found = Retrieval([], Index(chunks, "words"), 0.0, "said", "doc", fields, "")
    assert found.correct(rows) == [set(), {"3"}, {"2"}]
    labelled = Retrieval([], Index(chunks[:2], "words"), 0.0, "said", "doc", fields, "", labels=True)
    assert labelled.correct(rows[:1]) == [set()]


def test_a_decoder_with_prompts_is_tuned_whole(tmp_path: Path) -> None:
    made = shutil.copytree(folder("llama"), tmp_path / "decoder")
    assert tuned_retriever._is_plain_decoder(str(made), offline=True)
    (made / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "Query: "}}))
    assert not tuned_retriever._is_plain_decoder(str(made), offline=True)


def test_a_reranker_is_tuned_on_another_machine_after_its_retriever(
    done: tuple[Comparison, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out = done
    context = reopened(out, callbacks=Callbacks(lambda event: None), offline=True)
    rounds = list[list[str]]()
    monkeypatch.setattr(context_module.ComparisonContext, "stored", lambda *_: None)
    monkeypatch.setattr(compare_module, "each", lambda work, names, **_: rounds.append(names) or [])
    compare_module._tune_arms(context, [RERANKED, "raft+tuned-retriever"], on="ray")
    assert rounds == [["tuned-retriever", "raft"], [RERANKED]]


def test_the_changed_index_is_made_again_from_the_documents(done: tuple[Comparison, Path]) -> None:
    _, out = done
    context = reopened(out, callbacks=Callbacks(lambda event: None), offline=True)
    shutil.rmtree(out / "index-tuned")
    chunks = context.retrieval().index.chunks
    index, _ = _changed_index(context, str(out / "retriever"), "", chunks=chunks)
    assert index.chunks == chunks


def test_an_arm_without_its_answers_does_not_search_by_the_untouched_encoder(done: tuple[Comparison, Path]) -> None:
    _, out = done
    stored = out / "answers" / "tuned-retriever.json"
    before = stored.read_text(encoding="utf-8")
    stored.unlink()
    try:
        with pytest.raises(CheckpointError, match="the answers of tuned-retriever are missing"):
            ask_arm(out, ArmQuestion("How high?", "tuned-retriever"), callbacks=Callbacks(lambda event: None))
    finally:
        stored.write_text(before, encoding="utf-8")


def test_chunks_are_ranked_again_by_the_run_of_rerank(done: tuple[Comparison, Path]) -> None:
    _, out = done
    context = reopened(out, callbacks=Callbacks(lambda event: None), offline=True)
    retriever, reranker = str(out / "retriever"), str(out / "reranker")
    question = "How high is Arda?"
    (plain,) = context.search_of(retriever).index.find([question], shown=10)
    (ranked,) = context.search_of(retriever, reranker).index.find([question], shown=10)
    scores = context.tuned(reranker).relevance([(question, hit.chunk.text) for hit in plain])
    assert {hit.chunk.id for hit in ranked} == {hit.chunk.id for hit in plain}
    assert [hit.score for hit in ranked] == pytest.approx(sorted(scores, reverse=True))


def test_a_decoder_of_vectors_ranks_nothing_again(tmp_path: Path) -> None:
    made = recipe(tmp_path, arms=["rag", RERANKED])
    documents = made.documents.model_copy(update={"encoder": made.model})
    with pytest.raises(RecipeError, match="needs an encoder, which reads question and chunk together"):
        chosen_arms(made.model_copy(update={"documents": documents}))
