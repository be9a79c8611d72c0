"""Losses and gradients of `embed` against sentence-transformers, and the rows that it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.bases import policy, template
from tunesmith.config.load import make_recipe
from tunesmith.data.examples.types import Query
from tunesmith.data.readers.row import Row
from tunesmith.data.schema.formats import detect
from tunesmith.data.splits.split import Split
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.evaluation.evaluators.base import EvalSet
from tunesmith.evaluation.evaluators.retrieval import RetrievalEvaluator
from tunesmith.evaluation.hard_negatives import mined_negatives
from tunesmith.metrics.ranking import METRICS
from tunesmith.models.batch import Batch, collate
from tunesmith.models.policy import Policy
from tunesmith.objectives import Embed
from tunesmith.techniques import Full
from tunesmith.training.fit import accumulate_gradients, prepare_batches
from tunesmith.training.read import read_data

FAMILIES = (("bert", "encoder"), ("llama", "decoder"))


def pairs(count: int = 6, *, scored: bool = False) -> list[Query]:
    return [
        Query(
            f"rows:{i}",
            f"what about number {i}",
            f"the passage {'very ' * i}{i} is here",
            negatives=() if scored else (f"no {i} good", f"bad {i * 7}"),
            score=(i * 5) % 4 / 4 if scored else None,
        )
        for i in range(count)
    ]


def prepared(kind: str, family: str, rows: list[Query], **settings: Any) -> tuple[Embed, Policy, list[Any]]:
    objective = Embed(**settings).for_base(None, family).bind(rows, family)
    form = template(kind)
    return objective, policy(kind, Full()), [objective.encode(row, form, limit=64) for row in rows]


def gradients(made: Policy, objective: Embed, batches: list[Batch]) -> tuple[float, list[torch.Tensor]]:
    for _, value in made.trainable():
        value.grad = None
    loss, _ = accumulate_gradients(made, objective, prepare_batches(made, objective, batches))
    return loss, [value.grad for _, value in made.trainable() if value.grad is not None]


@pytest.mark.parametrize(("kind", "family"), FAMILIES)
@pytest.mark.parametrize("scored", [False, True], ids=["ranking", "scored"])
def test_losses_and_cached_gradients_are_those_of_sentence_transformers(kind: str, family: str, scored: bool):
    from sentence_transformers.sentence_transformer import losses

    objective, made, encoded = prepared(kind, family, pairs(scored=scored), sizes=(16,))
    share = family == "decoder"
    whole = collate(encoded, share=share)
    vectors = objective.states(whole, made).detach()
    parts = list(vectors.view(6, whole.group_size, -1).unbind(dim=1))
    kinds = losses.CoSENTLoss if scored else losses.MultipleNegativesRankingLoss
    theirs = torch.tensor(0.0)
    for size in (vectors.shape[-1], 16):  # as MatryoshkaLoss adds them up
        cut = [losses.matryoshka.shrink(part, size) for part in parts]
        theirs = theirs + kinds(None).compute_loss_from_embeddings(cut, whole.labels[:, 0])
    assert objective.losses(vectors, [whole]).mean().item() == pytest.approx(theirs.item(), abs=1e-5)

    loss, wanted = gradients(made, objective, [whole])
    assert loss == pytest.approx(theirs.item(), abs=1e-5)
    cut_up = [collate(encoded[start:end], share=share) for start, end in ((0, 2), (2, 5), (5, 6))]
    cached, found = gradients(made, objective, cut_up)
    assert cached == pytest.approx(loss, abs=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True))


def test_what_answers_a_query_too_is_no_negative():
    rows = [Query("a", "one", "red"), Query("b", "two", "red"), Query("c", "one", "blue"), Query("d", "six", "green")]
    objective, made, encoded = prepared("bert", "encoder", rows)
    batch = collate(encoded, share=False)
    full = objective.states(batch, made).detach().view(4, 2, -1)
    scores = full[:, 0] @ full[:, 1].T * 20
    # `red` occurs twice and counts once; `blue` answers the query `one`, too.
    counted = [[0, 3], [1, 2, 3], [2, 3], [0, 2, 3]]
    for row, (loss, columns) in enumerate(zip(objective.losses(full.flatten(0, 1), [batch]), counted, strict=True)):
        wanted = scores[row, columns].logsumexp(dim=0) - scores[row, row]
        assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "columns"),
    [
        ({"query": "a b", "passage": "c d"}, {"query": "query", "passage": "passage"}),
        ({"anchor": "a", "positive": "c", "negative": "e"},
         {"query": "anchor", "passage": "positive", "negative": "negative"}),
    ],
)  # fmt: skip
def test_rows_of_queries_and_passages_are_detected(fields: dict[str, str], columns: dict[str, str]):
    rows = [Row(f"r:{i}", {name: f"{text} word{i}" for name, text in fields.items()}) for i in range(30)]
    found = detect(rows)
    assert (found.objective, dict(found.columns)) == ("embed", columns)
    examples = Embed().examples(rows, group="")
    assert isinstance(examples[3], Query)
    assert len(examples[3].negatives) == len(fields) - 2


def test_texts_of_a_label_are_alike_and_impossible_settings_are_refused():
    rows = [Row(f"r:{i}", {"text": f"t{i}", "label": "ab"[i % 2] if i < 6 else "only"}) for i in range(7)]
    found = Embed(query="text", label="label").examples(rows, group="")
    assert [(each.text, each.passage) for each in found if isinstance(each, Query)][:3] == [
        ("t0", "t2"), ("t1", "t3"), ("t2", "t4"),
    ]  # fmt: skip
    assert len(found) == 6
    with pytest.raises(DataError, match="no query was detected"):
        Embed().columns([Row("r:1", {"x": "1"})])
    with pytest.raises(RecipeError, match=r"objective.sizes: 999 exceeds"):
        Embed(sizes=(999,)).head(policy("bert", Full()))
    with pytest.raises(DataError, match="all 2 rows have the score"):
        Embed().bind([Query("r:1", "a", "b", score=1.0)] * 2, "encoder")


def test_pooling_and_prompts_are_those_of_the_base(tmp_path: Path):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (tmp_path / "config_sentence_transformers.json").write_text('{"prompts": {"query": "q: ", "document": "d: "}}')
    found = Embed(passage_prompt="").for_base(tmp_path, "encoder")
    assert (found.pooling, found.query_prompt, found.passage_prompt) == ("cls", "q: ", "")
    assert Embed().for_base(None, "decoder").pooling == "last"


def test_rankings_are_scored_by_rank():
    gold, rankings = [{0}, {1, 2}, {5}], [[0, 3], [2, 4, 1], [3, 4]]
    values = {name: metric(gold, rankings).round(4).tolist() for name, metric in METRICS.items()}
    assert values == {
        "ndcg": [1.0, 0.9197, 0.0],
        "recall_1": [1.0, 0.5, 0.0],
        "recall_5": [1.0, 1.0, 0.0],
        "recall_10": [1.0, 1.0, 0.0],
        "mrr": [1.0, 1.0, 0.0],
    }


LABELS = "".join(f'{{"text": "{name} {i}", "label": "{name}"}}\n' for i in range(20) for name in ("cat", "dog"))
STS = "".join(
    f'{{"a": "{a} {i}", "b": "{b} {i}", "s": {i / 4}}}\n' for i in range(30) for a, b in (("x", "y"), ("y", "x"))
)


def split_of(tmp_path: Path, rows: str, **objective: Any) -> Split:
    (tmp_path / "rows.jsonl").write_text(rows)
    raw = {"model": "x", "data": {"train": str(tmp_path / "rows.jsonl")}, "objective": {"kind": "embed", **objective}}
    return read_data(make_recipe(raw, place="test", changes=[])[0], offline=True).split


def test_no_text_of_another_part_is_a_passage_and_swapped_pairs_are_in_one_part(tmp_path: Path):
    split = split_of(tmp_path, LABELS, query="text", label="label")
    for part in (split.train, split.validation, split.test):
        rows = [row for row in part if isinstance(row, Query)]
        texts = {row.text for row in rows}
        assert {row.passage for row in rows} <= texts
        assert all(row.passage.split()[0] == row.label for row in rows)
    split = split_of(tmp_path, STS, query="a", passage="b", score="s")
    sides = [{frozenset((row.text, row.passage)) for row in part} for part in (split.train, split.test)]  # type: ignore[union-attr]
    assert not sides[0] & sides[1]


def test_a_model_that_knows_the_labels_is_right_and_the_query_is_no_answer_to_itself(tmp_path: Path):
    split = split_of(tmp_path, LABELS, query="text", label="label")
    objective = Embed(query="text", label="label").bind(split.examples(), "encoder")
    evaluator = RetrievalEvaluator(EvalSet(objective, split.test[:2], 64))  # a part of the test rows

    class Oracle:
        def embed(self, texts: list[str], *, passage: bool = False) -> torch.Tensor:
            return torch.tensor([[float(text[:3] == "cat"), float(text[:3] == "dog")] for text in texts])

    found = evaluator.predict(Oracle())  # type: ignore[arg-type]
    scores = {score.metric: score.score for score in evaluator.score(found, name="embed")}
    assert scores["ndcg"] == scores["mrr"] == 1.0


@pytest.mark.parametrize(
    ("rows", "settings", "problem"),
    [
        ([Query("r:1", "a", "", label="x")], {}, "none of 1 texts has another one of its label"),
        ([Query("r:1", "a", "", label="x"), Query("r:2", "b", "", label="x")], {"hard_negatives": 1}, "not labels"),
        ([Query("r:1", "a", "b", score=1.0), Query("r:2", "b", "c", score=2.0)], {"hard_negatives": 1}, "not scores"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_learned_are_refused(rows: list[Query], settings: dict[str, Any], problem: str):
    objective = Embed(**settings)
    with pytest.raises((DataError, RecipeError), match=problem):
        objective.bind(objective.within(rows), "encoder")


def test_mined_negatives_are_of_training_rows_and_documents_and_answer_no_such_query(tmp_path: Path):
    train = [Query("a", "One", "red 1", evidence="red"), Query("b", "two", "blue"), Query("c", "three", "big sea")]
    test = [Query("d", "one", "Blue", evidence="sea"), Query("e", "four", "secret")]
    objective = Embed(hard_negatives=3).bind([*train, *test], "encoder")
    assert "secret" in objective.passages
    passages = [*objective.for_rows(train).passages, "a red boat", "tree"]

    mined = mined_negatives(train, passages, [[*range(len(passages))]] * len(train), objective)
    assert {passages[i] for i in mined[0]} == {"tree"}
    assert not {"secret"} & {passages[i] for row in mined for i in row}


def test_the_shuffled_control_has_as_many_negatives_and_the_label_of_its_passage():
    one, other = Query("a", "t", "p", negatives=("n",), label="x"), Query("b", "u", "q", negatives=("m",), label="y")
    assert one.with_target_of(other) == Query("a", "t", "q", negatives=("m",), label="y")


@pytest.mark.parametrize(
    ("name", "page", "problem"),
    [
        ("config_sentence_transformers.json", {"prompts": ["q: "]}, "must be texts by name"),
        ("config_sentence_transformers.json", {"prompts": {"query": 5}}, "must be texts by name"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "does not pool by max_tokens"),
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "does not pool by weightedmean"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "the layer Dense is not trained"),
    ],
)  # fmt: skip
def test_a_base_that_embeds_otherwise_is_refused(tmp_path: Path, name: str, page: Any, problem: str):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / name).write_text(json.dumps(page))
    with pytest.raises(ModelError, match=problem):
        Embed().for_base(tmp_path, "encoder")
    if "prompts" not in page:
        assert Embed(pooling="cls").for_base(tmp_path, "encoder").pooling == "cls"


def test_sizes_are_positive_and_documents_have_a_text(tmp_path: Path):
    with pytest.raises(ValidationError, match="greater than 0"):
        Embed(sizes=(0,))
    (tmp_path / "docs.jsonl").write_text('{"body": "a"}\n')
    with pytest.raises(DataError, match="no row has a text"):
        Embed(documents=str(tmp_path / "docs.jsonl")).bind([Query("r:1", "a", "b")], "encoder")
