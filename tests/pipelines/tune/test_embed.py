"""Retrieval from rows to a run that is measured, asked and opened by sentence-transformers, with tiny models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipelines.conftest import recipe, tune
from tunesmith.cli import main
from tunesmith.events import ignore
from tunesmith.inference.saved_model import load
from tunesmith.models.sentence_embeddings import open_encoder
from tunesmith.pipelines.evaluate import EvaluateRequest, evaluate
from tunesmith.pipelines.search import nearest
from tunesmith.pipelines.tune.preview import preview
from tunesmith.report.html import write_reports
from tunesmith.report.predictions import read_predictions

pytestmark = [
    pytest.mark.usefixtures("small_world"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]
THINGS = ("phone", "screen", "battery", "door", "cup", "river", "train", "lamp", "stone", "garden", "boat", "field")
COLOURS = ("red", "green", "blue", "grey")


def questions() -> list[dict[str, Any]]:
    """Queries whose passage shares only the thing with them."""
    pairs = [(thing, colour) for thing in THINGS for colour in COLOURS]
    return [{"query": f"which {t} was {c}", "passage": f"{c}: {t} {i}"} for i, (t, c) in enumerate(pairs)]


def made(place: Path, kind: str, technique: str, **objective: Any) -> Any:
    return recipe(
        place,
        questions(),
        kind,
        objective={"kind": "embed", **objective},
        technique=technique,
        schedule={"epochs": 12, "learning_rate": 0.01, "patience": 99, "batch_rows": 16},
        controls=True,
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "technique"), [("bert", "full"), ("bert", "lora"), ("llama", "full"), ("llama", "lora")]
)
def test_a_search_is_learned_measured_asked_and_opened_by_sentence_transformers(
    kind: str,
    technique: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    run = tune(made(tmp_path, kind, technique, hard_negatives=2, sizes=[8]), tmp_path / "run")
    report = run.report
    assert [task.metric for task in report.tasks] == ["ndcg", "recall_1", "recall_5", "recall_10", "mrr"]
    assert [arm.name for arm in report.baselines] == ["base", "BM25", "BM25 + base"]
    assert all(re.search(r"recall@5 [01]\.\d{3}$", arm.detail) for arm in report.baselines)
    assert [arm.name for arm in report.controls] == ["shuffled labels"]
    assert report.task.tuned > report.controls[0].score
    rows = read_predictions(run.folder)
    assert np.mean([row.score_tuned for row in rows]) == pytest.approx(report.task.tuned)
    write_reports(run.folder)

    model = load(run.folder)
    texts = [row.question for row in rows]
    own = model.embed(texts).numpy()
    assert (run.folder / "model" / "modules.json").exists() is (kind == "bert" or technique == "full")
    if (run.folder / "model" / "modules.json").exists():
        from sentence_transformers import SentenceTransformer

        opened = SentenceTransformer(str(run.folder / "model"), device="cpu")
        assert np.abs(own - opened.encode_query(texts)).max() < 1e-5
        passages = model.embed(texts, passage=True).numpy()
        assert np.abs(passages - opened.encode_document(texts)).max() < 1e-5

    first = questions()[0]
    found = nearest(run.folder, first["query"], on_event=ignore)["passages"]
    assert len(found) == 5
    assert found[0]["score"] >= found[-1]["score"]
    with (run.folder / "passages.jsonl").open("a") as file:  # a new document
        file.write(json.dumps({"text": first["query"]}) + "\n")
    assert main(["ask", str(run.folder), first["query"], "--json"]) == 0
    answer, log = capsys.readouterr()
    assert json.loads(answer)["passages"][0]["text"] == first["query"]
    assert "passages.jsonl: edited since it was written" in log + caplog.text

    fresh = tmp_path / "fresh.jsonl"
    fresh.write_text("".join(json.dumps(row) + "\n" for row in questions()[:20]))
    compared = evaluate(EvaluateRequest(str(run.folder), str(fresh), against="base"), on_event=ignore).page
    assert compared.metric == "ndcg"
    assert compared.n == 20
    count = len({*((run.folder / "passages.jsonl").read_text().splitlines())})
    assert f"{count} passages are searched" in " ".join(compared.notes)  # not only those of the 20 rows


def test_queries_are_audited_and_previewed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "rows.jsonl"
    rows = [*questions(), {"query": "which", "passage": " "}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["audit", str(file), "--json"]) in (0, 1)
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert "empty" in {finding["kind"] for finding in findings}
    shown = preview(made(tmp_path, "bert", "full"), offline=True)
    assert [piece.side for piece in shown.rows[0].pieces] == ["query", "passage"]


def test_a_run_over_labels_reads_a_text_as_far_as_in_training(tmp_path: Path):
    rows = [{"words": f"{kind} {i} " + "very " * 9, "kind": kind} for i in range(24) for kind in ("cat", "dog")]
    objective = {"kind": "embed", "query": "words", "label": "kind"}
    made = recipe(tmp_path, rows, "bert", objective=objective, technique="full", data={"max_tokens": 16})
    run = tune(made, tmp_path / "run")
    assert 0.5 < run.report.task.tuned <= 1
    encoder = open_encoder(str(run.folder), offline=True)
    assert encoder.limit == 16
    texts = [row["words"] for row in rows[:3]]
    assert np.abs(encoder.vectors(texts, 256) - load(run.folder).embed(texts).numpy()).max() < 1e-5
