"""The loss of `rerank` against sentence-transformers, the head of its base, and the pairs that it reads."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import nn

from tests.bases import base, folder, policy, template
from tests.objectives.test_embed import pairs
from tunesmith.data.examples.types import Query
from tunesmith.data.readers.row import Row
from tunesmith.data.tokenization.chat_template import Template, Tokens
from tunesmith.data.tokenization.token_store import EncodedStore, packed
from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluation.hard_negatives import mined_negatives
from tunesmith.inference.local_model import LocalModel
from tunesmith.models.batch import collate, pack
from tunesmith.models.loading.load import load_base
from tunesmith.models.policy import Policy
from tunesmith.models.relevance_head import classifier_of, cross_encoder, last_layer
from tunesmith.objectives import Embed, Rerank
from tunesmith.objectives.passages import PassageObjective
from tunesmith.techniques import Full, Lora
from tunesmith.techniques.base import Technique

ENCODERS = ("bert", "modernbert", "distilbert")
LIMIT = 24  # shorter than some pairs


def prepared(kind: str, technique: Technique, rows: list[Query]) -> tuple[Rerank, Policy, Template]:
    objective = Rerank(hard_negatives=0).for_base(None, "encoder").bind(rows, "encoder")
    made = policy(kind, technique)
    made.head = objective.head(made)
    made.train(False)
    return objective, made, typed() if kind == "bert" else template(kind)


def typed() -> Template:
    """A tokenizer that gives the tokens of a second text the type 1, as BERT's does."""
    tokenizer = copy.deepcopy(template("bert").tokenizer)
    opening, end = tokenizer.cls_token, tokenizer.sep_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{opening} $A {end}",
        pair=f"{opening} $A {end} $B:1 {end}:1",
        special_tokens=[(opening, tokenizer.cls_token_id), (end, tokenizer.sep_token_id)],
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # as saved
    return Template(tokenizer, chat=False)


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_loss_and_its_gradient_are_those_of_sentence_transformers(kind: str, tmp_path: Path):
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    rows = pairs()
    objective, made, form = prepared(kind, Full(), rows)
    batch = collate([objective.encode(row, form, limit=LIMIT) for row in rows], share=False)
    assert (batch.rows, batch.group_size) == (18, 3)
    # At first all are alike, and one of three is right: -(log(1/3) + 2 log(2/3)) of each query.
    assert objective.loss(batch, made).total.item() == pytest.approx(6 * 1.909543, abs=1e-4)

    torch.manual_seed(3)
    nn.init.normal_(last_layer(made.head.whole).weight, std=0.5)  # type: ignore[union-attr]
    cross_encoder(made.network, made.head).save_pretrained(tmp_path)  # type: ignore[arg-type]
    form.tokenizer.save_pretrained(tmp_path)
    theirs = CrossEncoder(str(tmp_path), device="cpu", max_length=LIMIT).eval()
    texts = [(row.text, text) for row in rows for text in (row.passage, *row.negatives)]
    labels = torch.tensor([1.0, 0.0, 0.0] * 6)
    wanted = BinaryCrossEntropyLoss(theirs)(list(map(list, zip(*texts, strict=True))), labels)
    wanted.backward()

    loss = objective.loss(batch, made)
    (loss.total / loss.units).backward()
    assert (loss.total / loss.units).item() == pytest.approx(wanted.item(), abs=1e-5)
    own = {f"{theirs.model.base_model_prefix}.{name}": value for name, value in made.network.named_parameters()}
    own |= dict(made.head.whole.named_parameters())  # type: ignore[union-attr]
    compared = 0
    for name, value in theirs.model.named_parameters():
        assert value.grad is not None
        assert torch.allclose(own[name].grad, value.grad, atol=1e-5), name  # type: ignore[arg-type]
        compared += bool(value.grad.any())
    assert compared > 10


@pytest.mark.parametrize("kind", ENCODERS)
def test_scores_do_not_depend_on_the_batch_and_distinguish_both_texts(kind: str):
    rows = pairs()
    objective, made, form = prepared(kind, Lora(rank=4), rows)
    nn.init.normal_(last_layer(made.head.whole).weight, std=0.5)  # type: ignore[union-attr]
    encoded = [objective.encode(row, form, limit=LIMIT) for row in rows]
    assert any(row.shortened for row in encoded)
    assert max(row.length for row in encoded) == LIMIT
    together = objective.scores(collate(encoded, share=False), made)
    alone = torch.cat([objective.scores(collate([row], share=False), made) for row in encoded])
    assert torch.allclose(together, alone, atol=1e-5)
    tokens = encoded[0].sequences[0]
    assert (tokens.second > 0) is (kind == "bert")
    made.packs = False
    assert torch.allclose(objective.scores(collate(encoded, share=False), made), together, atol=1e-5)


def test_stored_rows_keep_where_the_second_text_begins(tmp_path: Path):
    objective, _, form = prepared("bert", Full(), pairs())
    rows = [objective.encode(row, form, limit=LIMIT) for row in pairs()]
    assert [*EncodedStore.write(tmp_path / "rows", [packed(rows)])] == rows


def test_a_row_with_fewer_negatives_repeats_its_own():
    rows = [Query("a", "one", "red", negatives=("blue",)), Query("b", "two", "big", negatives=("sea", "cup", "lamp"))]
    objective, _, form = prepared("bert", Full(), rows)
    first, second = (objective.encode(row, form, limit=LIMIT) for row in rows)
    assert first.label == second.label == (1.0, 0.0, 0.0, 0.0)
    assert first.sequences[1] == first.sequences[2] == first.sequences[3]
    with pytest.raises(RecipeError, match="1 of 1 rows have no negatives"):
        Rerank(hard_negatives=0).bind([Query("a", "one", "red")], "encoder")


def test_a_cross_encoder_as_base_keeps_its_head(tmp_path: Path):
    from sentence_transformers import CrossEncoder

    whole, _ = classifier_of(base("bert").network)
    nn.init.normal_(whole.classifier.weight, std=0.5)
    whole.config.architectures = ["BertForSequenceClassification"]
    whole.save_pretrained(tmp_path)
    base("bert").tokenizer.save_pretrained(tmp_path)
    found = Rerank(hard_negatives=1).for_base(tmp_path, "encoder").bind(pairs(), "encoder")
    opened = load_base(str(tmp_path))
    made = Policy.over(opened.network, family="encoder")
    assert Rerank().for_base(folder("bert"), "encoder").untuned_head(made) is None
    made.head = found.untuned_head(made)
    assert made.head is not None
    made.train(False)
    texts = [(row.text, row.passage) for row in pairs()]
    theirs = CrossEncoder(str(tmp_path), device="cpu", max_length=64).predict(texts, convert_to_tensor=True)
    own = LocalModel(made, template("bert"), found, 64).relevance(texts)
    assert torch.allclose(torch.tensor(own), theirs, atol=1e-5)


def test_token_types_follow_the_rows_of_a_batch():
    rows = [
        Tokens([1, 2, 3], [False] * 3, second=2),
        Tokens([4, 5], [False] * 2),
        Tokens([6, 7], [False] * 2, second=1),
    ]
    batch = pack(rows, share=False)
    assert batch.types is not None
    assert [batch.types[path[path >= 0]].tolist() for path in batch.row_index] == [[0, 0, 1], [0, 0], [0, 1]]
    assert pack(rows[1:2], share=False).types is None


def test_rows_without_negatives_are_not_learned_as_right_alone():
    rows = [Query("a", "eins", "red one"), Query("b", "zwei", "blue"), Query("c", "drei", "green two")]
    passages = [row.passage for row in rows]
    objective = Rerank(hard_negatives=2).bind(rows, "encoder")
    mined = mined_negatives(rows, passages, [[], [], []], objective)  # no word in common with any passage
    assert [{passages[i] for i in found} for found in mined] == [{*passages} - {row.passage} for row in rows]
    mixed = [*rows[:2], Query("d", "vier", "big", negatives=("sea",))]
    with pytest.raises(RecipeError, match="2 of 3 rows have no negatives, so some must be mined; set it to 5"):
        Rerank(hard_negatives=0).bind(mixed, "encoder")


@pytest.mark.parametrize(("column", "values"), [("label", (1, 2)), ("score", (0.2, 0.9)), ("label", ("0", "3"))])
def test_graded_passages_are_not_all_learned_as_right(column: str, values: tuple[object, object]):
    rows = [Row(f"r:{i}", {"query": "q", "passage": f"p {i}", column: value}) for i, value in enumerate(values)]
    with pytest.raises(DataError, match=f"{column} grades the passages, from .* make it 1 for a passage that answers"):
        Rerank(query="query", passage="passage").columns(rows)
    assert Rerank(query="query", passage="passage").columns(rows[1:])


@pytest.mark.parametrize("objective", [Rerank(), Embed(), Rerank(query="query", passage="passage")])
def test_a_relevance_of_0_and_1_is_read(objective: PassageObjective):
    rows = [Row(f"r:{i}", {"query": "q", "passage": f"p {i}", "relevance": i % 2}) for i in range(4)]
    columns = objective.columns(rows)
    assert columns["relevance"] == "relevance"
    found = objective.examples(rows, group="", columns=columns)
    assert [(row.passage, row.negatives) for row in found] == [("p 1", ("p 0", "p 2")), ("p 3", ("p 0", "p 2"))]  # type: ignore[union-attr]


def test_a_base_without_a_head_ranks_nothing():
    model = LocalModel(policy("bert", Full()), template("bert"), Rerank(), 64)
    with pytest.raises(RecipeError, match="the untouched model has no head"):
        model.rank("q", ["a"])
    with pytest.raises(RecipeError, match="expected a list of passages"):
        model.rank("q", "a text")
