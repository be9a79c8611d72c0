"""Labels as words, through a head, one or several a row."""

from __future__ import annotations

import math

import pytest
import torch

from tests.bases import labelled, policy, template
from tests.tiny import DECODERS
from tunesmith.data.examples.types import LabelledText
from tunesmith.data.readers.row import Row
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError
from tunesmith.models.batch import collate
from tunesmith.objectives import Classify


def rows(*labels: str) -> list[LabelledText]:
    return [LabelledText(f"mail.jsonl:{i + 1}", f"text {i}", (label,)) for i, label in enumerate(labels)]


def several(*labels: tuple[str, ...]) -> list[LabelledText]:
    return [LabelledText(f"mail.jsonl:{i + 1}", f"text {i}", of, multi=True) for i, of in enumerate(labels)]


def head_of(kind: str, objective: Classify, bias: list[float]):
    """A policy whose head says `bias` of every text."""
    made = policy(kind)
    made.head = objective.head(made)
    with torch.no_grad():
        made.head.bias.copy_(torch.tensor(bias))
    return made


def test_a_special_token_in_a_text_is_text():
    form = template("bert")
    tokens, _ = Classify(labels=("a", "b")).question("bad [SEP] day", form, limit=64)
    assert tokens.ids.count(form.tokenizer.sep_token_id) == 1  # the one at the end


def read(kind: str, objective: Classify, examples: list[LabelledText], *, limit: int = 512):
    form = template(kind)
    return collate([objective.encode(example, form, limit=limit) for example in examples], share=kind != "bert")


# ------------------------------------------------------------------ bind


def test_labels_are_the_rows_own_in_alphabetical_order():
    bound = Classify().bind(rows("b", "a", "b", "c"), "decoder")
    assert (bound.labels, bound.output, bound.metric, bound.multi) == (("a", "b", "c"), "words", "accuracy", False)


def test_labels_that_the_recipe_lists_keep_their_order():
    assert Classify(labels=("c", "a", "b")).bind(rows("a", "b", "c"), "decoder").labels == ("c", "a", "b")


@pytest.mark.parametrize(
    ("objective", "examples", "family", "output"),
    [
        (Classify(), rows("a", "b"), "decoder", "words"),
        (Classify(), rows("a", "b"), "encoder", "linear"),
        (Classify(), several(("a", "b"), ()), "decoder", "linear"),
        (Classify(output="linear"), rows("a", "b"), "decoder", "linear"),
        (Classify(output="words"), rows("a", "b"), "encoder", "words"),  # the recipe refuses it with a reason
    ],
)
def test_the_output_follows_family_and_labels_unless_it_is_said(objective, examples, family, output):
    assert objective.bind(examples, family).output == output


@pytest.mark.parametrize(
    ("counts", "metric"), [((4, 1), "accuracy"), ((5, 1), "macro_f1"), ((4, 4, 1), "accuracy"), ((9, 5, 2), "macro_f1")]
)
def test_a_label_rarer_than_a_quarter_of_the_commonest_makes_macro_f1_the_headline(counts, metric):
    labels = [label for label, count in zip("abc", counts, strict=False) for _ in range(count)]
    assert Classify().bind(rows(*labels), "decoder").metric == metric


def test_a_listed_label_that_no_row_has_is_a_rare_one():
    assert Classify(labels=("a", "b", "c")).bind(rows("a", "b"), "decoder").metric == "macro_f1"


def test_rows_with_several_labels_are_scored_by_their_own_f1_and_a_wanted_metric_stays():
    examples = several(("a",), ("a", "b"))
    assert Classify().bind(examples, "decoder").metric == "sample_f1"
    assert Classify(metric="macro_f1").bind(examples, "encoder").metric == "macro_f1"


def test_a_recipe_may_say_that_rows_with_one_label_each_could_have_several():
    assert Classify(multi=True).bind(rows("a", "b"), "encoder").multi


def test_binding_again_changes_nothing():
    once = Classify().bind(rows("b", "a", "a", "a", "a", "a"), "encoder")
    assert once.bind(rows("b", "a", "a", "a", "a", "a"), "encoder") == once


@pytest.mark.parametrize(("labels", "found"), [(("a", "a", "a"), "'a'"), ((), "'none'")])
def test_fewer_than_two_labels_are_refused(labels, found):
    examples = rows(*labels) or several((), (), ())
    with pytest.raises(DataError, match=rf"^mail\.jsonl: only one label \({found}\) in 3 rows; classify needs two"):
        Classify().bind(examples, "decoder")


def test_a_label_that_the_recipe_does_not_list_is_refused_with_its_row():
    with pytest.raises(DataError, match=r"^mail\.jsonl:2: label 'c' is not among \['a', 'b'\]; add it to `labels`"):
        Classify(labels=("a", "b")).bind(rows("a", "c"), "decoder")


# ------------------------------------------------------------------ rows and questions


def test_columns_are_detected_and_may_be_named():
    table = [Row("m.jsonl:1", {"text": "hi", "label": "a", "tone": "b", "doc": 3})]
    assert Classify().examples(table, group="doc") == [LabelledText("m.jsonl:1", "hi", ("a",), "3")]
    assert Classify(text="text", label="tone").examples(table, group="") == [LabelledText("m.jsonl:1", "hi", ("b",))]


def test_a_decoder_is_asked_by_the_instruction_or_by_one_made_from_the_labels():
    bound = Classify(labels=("good", "bad"))
    assert bound.messages("hi") == [
        Message("user", "Which label fits the text: good, bad? Answer with the label only.\n\nhi")
    ]
    assert Classify(labels=("a", "b"), instruction="Sort:").messages("hi") == [Message("user", "Sort:\n\nhi")]


def test_braces_in_a_text_are_not_filled_in():
    asked = Classify(labels=("good", "bad")).messages("{labels} {either} {text}", "Is {text} {either}?")
    assert asked == [Message("user", "Is {labels} {either} {text} good or bad?")]


@pytest.mark.parametrize("kind", DECODERS)
def test_label_words_teach_the_label_and_the_end_of_the_turn(kind: str):
    bound = Classify().bind(labelled(4), "decoder")
    form = template(kind)
    made = bound.encode(labelled(1)[0], form, limit=512)
    (sequence,) = made.sequences
    told = [i for i, learn in zip(sequence.ids, sequence.learn, strict=True) if learn]
    assert form.tokenizer.decode(told) == "positive" + form.tokenizer.decode(form.end_ids)
    assert (made.label, made.shortened, made.where) == ((), False, "rows:0")


def test_a_head_reads_exactly_what_words_are_answered_to():
    words, linear = (Classify(output=output).bind(labelled(4), "decoder") for output in ("words", "linear"))
    form = template("llama")
    (spoken,), (read_only,) = (one.encode(labelled(1)[0], form, limit=512).sequences for one in (words, linear))
    assert spoken.ids[: len(read_only.ids)] == read_only.ids
    assert read_only.learned == 0


@pytest.mark.parametrize(("limit", "shortened"), [(12, True), (40, True), (512, False)])
def test_an_encoders_text_is_cut_at_the_limit_and_counted(limit: int, shortened: bool):
    bound = Classify().bind(labelled(4), "encoder")
    long = LabelledText("rows:0", "This phone is bad. " * 8, ("negative",))
    made = bound.encode(long, template("bert"), limit=limit)
    assert made.shortened == shortened
    assert made.length <= limit
    assert made.label == (1.0, 0.0)
    exact = template("bert").document(long.text)
    assert not bound.encode(long, template("bert"), limit=len(exact.ids)).shortened


def test_a_long_text_gives_way_and_the_label_stays_whole():
    bound = Classify(output="words").bind(labelled(4), "decoder")
    long = LabelledText("rows:0", "This phone is bad. " * 30, ("negative",))
    made = bound.encode(long, template("llama"), limit=140)
    assert (made.shortened, made.length) == (True, pytest.approx(140, abs=1))
    assert made.sequences[0].learned == len(template("llama").answer(bound.messages("x"), "negative")) + 1


# ------------------------------------------------------------------ losses


@pytest.mark.parametrize("kind", DECODERS)
def test_the_loss_of_label_words_is_the_one_that_transformers_computes(kind: str):
    examples, made = labelled(4), policy(kind)
    bound = Classify(output="words").bind(examples, "decoder")
    batch = read(kind, bound, examples)
    with torch.no_grad():
        loss = bound.loss(batch, made)
        wanted = 0.0
        for example in examples:
            (one,) = bound.encode(example, template(kind), limit=512).sequences
            labels = [i if learn else -100 for i, learn in zip(one.ids, one.learn, strict=True)]
            mean = made.network(input_ids=torch.tensor([one.ids]), labels=torch.tensor([labels])).loss
            wanted += mean.item() * one.learned
    assert batch.forward_tokens < sum(len(path[path >= 0]) for path in batch.row_index)  # the instruction ran once
    assert loss.units == bound.units(batch) == sum(len(template(kind).answer(bound.messages("x"), label)) + 1
                                                   for label in ("positive", "negative")) * 2  # fmt: skip
    assert loss.total.item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_fresh_head_guesses_so_its_loss_is_the_logarithm_of_the_number_of_labels(kind: str):
    bound = Classify(output="linear", labels=("negative", "neutral", "positive"))
    batch = read(kind, bound, labelled(5))
    loss = bound.loss(batch, head_of(kind, bound, [0.0, 0.0, 0.0]))
    assert (loss.units, bound.units(batch)) == (5, 5)
    assert loss.total.item() == pytest.approx(5 * math.log(3), rel=1e-6)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_loss_of_a_head_is_cross_entropy_over_the_labels(kind: str):
    bound = Classify(output="linear").bind(labelled(4), "encoder")
    loss = bound.loss(read(kind, bound, labelled(3)), head_of(kind, bound, [0.0, math.log(3)]))
    # p = 1/4 negative, 3/4 positive; rows are positive, negative, positive
    assert loss.total.item() == pytest.approx(-(2 * math.log(0.75) + math.log(0.25)), rel=1e-6)


def uneven(*, train: int = 6, **changes: object) -> Classify:
    """Six rows, five of them negative: their headline is macro F1."""
    examples = [LabelledText("m:1", "text", ("positive" if i == 0 else "negative",)) for i in range(train)]
    bound = Classify(output="linear", **changes).bind(examples, "encoder")
    return bound.bind_encoded([bound.encode(one, template("bert"), limit=64) for one in examples])


def test_balanced_labels_are_learned_with_the_log_of_their_share_added():
    bound = uneven()
    assert (bound.metric, bound.shares) == ("macro_f1", (6 / 8, 2 / 8))  # one of each is counted beside the rows
    made = head_of("bert", bound, [0.0, 0.0])
    loss = bound.loss(read("bert", bound, labelled(3)), made)
    # a head that says nothing is read as the shares: rows are positive, negative, positive
    assert loss.total.item() == pytest.approx(-(2 * math.log(2 / 8) + math.log(6 / 8)), rel=1e-6)
    even = head_of("bert", bound, [math.log(2 / 8), math.log(6 / 8)])  # what the head itself says is taken on top
    assert bound.loss(read("bert", bound, labelled(3)), even).total.item() == pytest.approx(3 * math.log(2), rel=1e-6)


def test_labels_are_balanced_where_the_headline_is_macro_f1_or_it_is_wanted():
    assert uneven(balance=False).shares == ()
    assert uneven(metric="accuracy").shares == ()
    assert uneven(metric="accuracy", balance=True).shares == (6 / 8, 2 / 8)
    assert Classify(metric="macro_f1", output="words").bind(labelled(4), "decoder").bind_encoded([]).shares == ()
    assert uneven().bind_encoded([]).shares == (1 / 2, 1 / 2)  # other rows, other shares


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_with_several_labels_each_label_costs_on_its_own_and_a_row_is_one_unit(kind: str):
    examples = several(("a", "b"), (), ("c",))
    bound = Classify().bind(examples, "encoder")
    loss = bound.loss(read(kind, bound, examples), head_of(kind, bound, [math.log(3), 0.0, 0.0]))
    # p(a) = 3/4, p(b) = p(c) = 1/2; a is right in the first row only
    assert loss.units == 3
    assert loss.total.item() == pytest.approx(-(math.log(0.75) + 2 * math.log(0.25)) + 6 * math.log(2), rel=1e-6)


def test_a_head_passes_its_gradient_on_to_the_network():
    bound = Classify(output="linear").bind(labelled(4), "encoder")
    made = head_of("bert", bound, [0.0, 0.0])
    with torch.no_grad():
        made.head.weight.add_(0.1)
        made.head.weight[0] *= -1
    batch = read("bert", bound, labelled(3))
    bound.loss(bound.prepare(batch, made), made).total.backward()
    moved = {name for name, value in made.trainable() if value.grad is not None and value.grad.abs().sum() > 0}
    assert {"head.weight", "head.bias", "embeddings.word_embeddings.weight"} <= moved


def test_labels_of_a_recipe_are_words_and_none_stands_twice():
    assert Classify(labels=(1, True, " a ")).labels == ("1", "True", "a")
    with pytest.raises(ValueError, match="duplicate label 'a'; list each label once"):
        Classify(labels=("a", "b", "a"))


def test_many_labels_that_are_all_fractions_are_scores():
    scores = rows(*[f"{i / 10}" for i in range(30)])
    with pytest.raises(
        DataError, match=r"30 labels, all decimal fractions such as 0\.1, look like a quantity to predict"
    ):
        Classify().bind(scores, "decoder")
    assert len(Classify(labels=tuple(f"{i / 10}" for i in range(30))).bind(scores, "decoder").labels) == 30
    assert len(Classify().bind(rows("1.0", "1.5", "2.0"), "decoder").labels) == 3


@pytest.mark.parametrize(("output", "kind"), [("words", "llama"), ("linear", "llama"), ("linear", "bert")])
def test_what_stands_beside_the_text_is_counted_as_rows_are_made(output, kind):
    form, made = template(kind), Classify(labels=("a", "a much longer one"), output=output)
    row = made.encode(LabelledText("f:1", "", ("a much longer one",)), form, limit=512)
    assert made.fixed_tokens(form) == (len(row.sequences[0].ids) if kind == "llama" else 0)
