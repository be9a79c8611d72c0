"""Reranking from rows to a run that is measured, asked, exported and opened by sentence-transformers, tiny models."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipelines.conftest import recipe, tune
from tests.pipelines.tune.test_embed import questions
from tunesmith.cli import main
from tunesmith.config import load_recipe
from tunesmith.errors import CheckpointError, DataError, ModelError
from tunesmith.events import ignore
from tunesmith.inference.export.usage import read_usage
from tunesmith.inference.saved_model import load
from tunesmith.pipelines.evaluate import EvaluateRequest, evaluate
from tunesmith.pipelines.search import nearest
from tunesmith.pipelines.tune.preview import preview
from tunesmith.report.html import write_reports
from tunesmith.report.predictions import read_predictions
from tunesmith.report.run_data import Published
from tunesmith.report.upload import upload_of

pytestmark = pytest.mark.usefixtures("small_world")


def made(place: Path, kind: str, technique: str, **objective: Any) -> Any:
    return recipe(
        place,
        questions(),
        kind,
        objective={"kind": "rerank", "hard_negatives": 3, **objective},
        technique=technique,
        schedule={"epochs": 12, "learning_rate": 0.01, "patience": 99, "batch_rows": 16},
        controls=True,
    )


@pytest.mark.long
@pytest.mark.parametrize(("kind", "technique"), [("bert", "full"), ("bert", "lora"), ("modernbert", "full")])
def test_a_ranking_is_learned_measured_asked_and_opened_by_sentence_transformers(
    kind: str, technique: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from sentence_transformers import CrossEncoder

    run = tune(made(tmp_path, kind, technique), tmp_path / "run")
    report = run.report
    assert [task.metric for task in report.tasks] == ["ndcg", "recall_1", "recall_5", "recall_10", "mrr"]
    assert [arm.name for arm in report.baselines] == ["base", "BM25"]
    assert all(re.search(r"recall@5 [01]\.\d{3}$", arm.detail) for arm in report.baselines)
    assert [arm.name for arm in report.controls] == ["shuffled labels"]
    rows = read_predictions(run.folder)
    assert np.mean([row.score_tuned for row in rows]) == pytest.approx(report.task.tuned)
    write_reports(run.folder)

    model = load(run.folder)
    passages = [row["passage"] for row in questions()]
    pairs = [(row.question, passage) for row in rows[:3] for passage in passages] + [("long " * 300, "short")]
    own = model.relevance(pairs)
    assert model.rank(rows[0].question, passages)[0][1] == pytest.approx(max(own[: len(passages)]))
    opened = run.folder / "model"
    if technique == "lora":
        opened = tmp_path / "export"
        assert main(["export", str(run.folder), "--format", "merged", "--out", str(opened)]) == 0
        assert read_usage(opened).function(opened)(pairs[:5]) == pytest.approx(own[:5], abs=1e-5)  # type: ignore[union-attr]
    theirs = CrossEncoder(str(opened), device="cpu").predict(pairs)
    assert np.abs(np.array(own) - theirs).max() < 1e-5

    first = questions()[0]
    found = nearest(run.folder, first["query"], on_event=ignore)["passages"]
    assert len(found) == 5
    assert found[0]["score"] >= found[-1]["score"]
    capsys.readouterr()
    assert main(["ask", str(run.folder), first["query"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passages"] == found

    fresh = tmp_path / "fresh.jsonl"
    fresh.write_text("".join(json.dumps(row) + "\n" for row in questions()[:20]))
    compared = evaluate(EvaluateRequest(str(run.folder), str(fresh), against="base"), on_event=ignore).page
    assert (compared.metric, compared.n) == ("ndcg", 20)


def test_the_adapter_of_a_reranker_is_exported(tmp_path: Path):
    short = {"epochs": 1, "probe": False}
    asked = recipe(tmp_path, questions(), "bert", objective={"kind": "rerank", "hard_negatives": 1}, schedule=short)
    run = tune(asked, tmp_path / "run")
    assert main(["export", str(run.folder), "--format", "adapter", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_queries_with_passages_are_previewed(tmp_path: Path):
    shown = preview(made(tmp_path, "bert", "full"), offline=True)
    assert [piece.side for piece in shown.rows[0].pieces] == ["query and passage"]  # negatives are mined later
    known = [{**row, "negative": f"{row['passage']} not"} for row in questions()]
    given = recipe(tmp_path, known, "bert", objective={"kind": "rerank", "hard_negatives": 2}, technique="full")
    pieces = preview(given, offline=True).rows[0].pieces
    assert [piece.side for piece in pieces] == ["query and passage", "query and negative"]


def test_rows_of_one_passage_have_no_wrong_one(tmp_path: Path):
    rows = [{"query": f"what is {i}", "passage": "the same"} for i in range(30)]
    one = recipe(tmp_path, rows, "bert", objective={"kind": "rerank"}, technique="full")
    with pytest.raises(DataError, match="no passage is known that does not answer a query; add rows"):
        tune(one, tmp_path / "run")


def test_the_retriever_of_a_run_is_found_after_a_move_and_no_other_is_taken_for_it(tmp_path: Path):
    place = tmp_path / "here" / "comparison"
    short: dict[str, Any] = {"schedule": {"epochs": 1, "batch_rows": 16}, "technique": "full"}
    for name in ("retriever", "other"):
        found = {"kind": "embed", "pooling": "cls" if name == "other" else "mean"}
        tune(recipe(tmp_path, questions(), "bert", objective=found, **short), place / name)
    ranked = {"kind": "rerank", "hard_negatives": 1, "search": "vectors", "encoder": str(place / "retriever")}
    run = tune(recipe(tmp_path, questions(), "bert", objective=ranked, **short), place / "reranker").folder
    assert load_recipe(run / "recipe.yaml")[0].objective.encoder == str(run / "../retriever")
    first = questions()[0]["query"]
    before = nearest(run, first, on_event=ignore)
    manifest = json.loads((run / "model/tunesmith.json").read_text())
    assert manifest["objective"]["encoder"] == "../../retriever"
    assert list(manifest["encoders"]) == [""]
    uploaded = upload_of(run, Published("me/rank", "me/base", "mit"), report=False)["tunesmith.json"]
    assert json.loads(uploaded)["objective"]["encoder"] == "retriever"  # type: ignore[arg-type]

    moved = (tmp_path / "there").resolve()
    shutil.move(tmp_path / "here", moved)
    run = moved / "comparison/reranker"
    assert load(run).objective.encoder == str(moved / "comparison/retriever")  # type: ignore[union-attr]
    assert nearest(run, first, on_event=ignore) == before
    fresh = tmp_path / "fresh.jsonl"
    fresh.write_text("".join(json.dumps(row) + "\n" for row in questions()[:4]))
    request = EvaluateRequest(str(run), str(fresh), against="base")
    assert evaluate(request, on_event=ignore).page.n == 4

    shutil.rmtree(moved / "comparison/retriever")
    with pytest.raises(CheckpointError, match="finds candidates by .*retriever, which is not there; restore it"):
        nearest(run, first, on_event=ignore)
    shutil.move(moved / "comparison/other", moved / "comparison/retriever")
    for ask in (lambda: nearest(run, first, on_event=ignore), lambda: evaluate(request, on_event=ignore)):
        with pytest.raises(CheckpointError, match="found by another .*retriever, which has changed since; tune again"):
            ask()


def test_the_model_of_the_candidates_is_found_before_training_and_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = list[bool]()

    def refuse(name: str, *, offline: bool, **_: Any) -> None:
        asked.append(offline)
        raise ModelError(f"{name}: not here")

    monkeypatch.setattr("tunesmith.models.loading.locate.from_hub", refuse)
    wrong = made(tmp_path, "bert", "full", search="vectors", encoder="someone/encoder")
    with pytest.raises(ModelError, match="someone/encoder: not here"):
        preview(wrong, offline=True)
    assert asked == [True]
