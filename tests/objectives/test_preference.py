"""What a pair becomes for a preference or a reward, and what they ask of the start."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest
import torch

from tests.bases import LORA, farthest, gradients, pairs, policy, template, with_mismatched
from tunesmith.data.examples.types import Pair, UnpairedPreference
from tunesmith.data.readers.row import Row
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError
from tunesmith.models.batch import collate, mismatched
from tunesmith.objectives import Preference, Reward
from tunesmith.techniques import Lora
from tunesmith.training.fit import accumulate_gradients, prepare_batches

ROWS = [Row("p.jsonl:1", {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2})]
THUMBS = [Row("t.jsonl:1", {"prompt": "q", "completion": "a", "label": True})]
TURNS = (Message("user", "hi"), Message("assistant", "hello"), Message("user", "Capital?"))


def test_what_the_rows_are_decides_loss_scale_and_headline():
    pair, thumb = (
        Preference().bind(pairs(2), "decoder"),
        Preference().bind([UnpairedPreference("r", TURNS, "a", True)], "decoder"),
    )
    assert (pair.loss, pair.beta, pair.nll, pair.metric) == ("dpo", 0.1, 0.1, "preference_accuracy")
    assert (thumb.loss, thumb.beta, thumb.nll, thumb.metric) == ("kto", 0.1, 0.0, "thumbs_auc")
    assert Preference(loss="orpo").bind(pairs(2), "decoder").nll == 1.0
    assert Preference(loss="simpo", beta=3.0).bind(pairs(2), "decoder").beta == 3.0


def test_the_recipes_word_is_loss():
    assert Preference(loss="ipo").model_dump()["loss"] == "ipo"
    assert Preference.model_validate({"loss": "ipo"}).loss == "ipo"


def test_only_the_last_answer_is_learned_with_its_end():
    objective = Preference().bind(pairs(2), "decoder")
    made = objective.encode(Pair("r", TURNS, "Paris.", "Rome."), template("llama"), limit=512)
    words = template("llama").tokenizer
    told = [words.decode([i for i, x in zip(one.ids, one.learn, strict=True) if x]) for one in made.sequences]
    assert told == ["Paris.<|im_end|>", "Rome.<|im_end|>"]
    assert made.label == (1.0, 0.0)


def test_of_an_answer_that_was_cut_off_no_end_is_learned():
    objective, words = Preference().bind(pairs(2), "decoder"), template("llama").tokenizer
    cut = Pair("r", TURNS, "Paris.", "Rome is", cut=(False, True))
    for example, wanted in (
        (cut, ["Paris.<|im_end|>", "Rome is"]),
        (UnpairedPreference("r", TURNS, "It is", True, cut=True), ["It is"]),
    ):
        made = objective.encode(example, template("llama"), limit=512)
        told = [words.decode([i for i, x in zip(one.ids, one.learn, strict=True) if x]) for one in made.sequences]
        assert told == wanted
    whole = objective.encode(replace(cut, cut=(False, False)), template("llama"), limit=512)
    made = objective.encode(cut, template("llama"), limit=512)
    assert [one.ids for one in whole.sequences] == [one.ids for one in made.sequences]
    short = replace(cut, rejected="Rome is " * 60)
    made = objective.encode(short, template("llama"), limit=90)  # too long, so its end is not there any more
    assert made.sequences[1].learn[-1]


def test_a_prompt_gives_way_alike_for_both_answers():
    pair = Pair("r", (Message("user", "fox " * 80),), "A rather long answer.", "No")
    made = Preference().bind([pair], "decoder").encode(pair, template("llama"), limit=90)
    prompts = [one.ids[: one.learn.index(True)] for one in made.sequences]
    assert made.shortened
    assert made.length <= 90
    assert prompts[0] == prompts[1]


def test_a_reward_reads_all_of_both_answers_and_learns_no_word():
    made = Reward().encode(Pair("r", TURNS, "Paris.", "Rome.", margin=2.0), template("llama"), limit=512)
    assert made.label == (2.0,)
    assert not any(any(one.learn) for one in made.sequences)
    assert template("llama").tokenizer.decode(made.sequences[0].ids).endswith("Paris.<|im_end|>\n")


@pytest.mark.parametrize(("limit", "shortened"), [(512, False), (26, True), (12, True)])
def test_an_encoder_reads_prompt_and_answer_as_one_text_and_the_answer_stays(limit: int, shortened: bool):
    pair = Pair("r", (Message("user", "a quick brown fox jumps"),), "it is good", "no")
    made = Reward().encode(pair, template("bert"), limit=limit)
    words = template("bert").tokenizer
    read = [words.decode(one.ids) for one in made.sequences]
    assert made.shortened == shortened
    assert made.length <= limit
    assert all(text.startswith("[CLS]") and text.count("[CLS]") == 1 for text in read)
    assert "it is good" in read[0] or limit == 12


def test_a_margin_is_read_where_a_column_says_it():
    assert Reward().examples(ROWS, group="")[0].margin == 2.0
    assert Preference().examples(ROWS, group="")[0].margin == 0.0


def test_a_margin_beside_named_columns_is_read_too():
    rows = [Row("x:1", {"q": "Who?", "chosen": "a", "rejected": "b", "margin": 2})]
    named = {"prompt": "q", "chosen": "chosen", "rejected": "rejected"}
    assert [one.margin for one in Reward(**named).examples(rows, group="")] == [2.0]
    assert [one.margin for one in Preference(**named).examples(rows, group="")] == [0.0]


def test_rows_that_nobody_judged_are_refused():
    rows = [Row("c.jsonl:1", {"text": "t", "label": "x"})]
    for objective in (Preference(), Reward()):
        with pytest.raises(DataError, match=r"expected preferences, got rows of text_label; .* objective: classify"):
            objective.examples(rows, group="")
    with pytest.raises(DataError, match=r"a reward model learns from two completions, .* objective: preference"):
        Reward().examples(THUMBS, group="")


def test_the_first_loss_of_dpo_is_the_logarithm_of_two_for_each_pair():
    objective = Preference(loss="dpo", nll=0.0).bind(pairs(3), "decoder")
    made = policy("llama", lively=0.0)
    batch = collate([objective.encode(pair, template("llama"), limit=512) for pair in pairs(3)])
    with torch.no_grad():
        said = objective.make_learner().loss_of(made.logprobs(batch), replace(batch, reference=made.logprobs(batch)))
    assert said.item() == pytest.approx(3 * 0.693147, rel=1e-4)
    assert objective.make_learner().units(batch) == 3


def test_kto_takes_a_pair_for_two_thumbs_and_asks_the_start_about_other_answers():
    objective = Preference(loss="kto").bind(pairs(3), "decoder")
    made = policy("llama", LORA, lively=0.2)
    batch = with_mismatched([objective.encode(pair, template("llama"), limit=512) for pair in pairs(3)])
    start = made.reference_logprobs(batch)
    (shifted,) = prepare_batches(made, objective.make_learner(), [batch])
    assert shifted.reference is not None
    kl = (shifted.reference - start).unique()
    assert (objective.make_learner().units(batch), objective.reference) == (6, "per_step")
    assert kl.numel() <= 6  # one number, but for the last digits
    assert float(kl.max() - kl.min()) < 1e-3
    assert float(kl.min()) >= 0.0


@pytest.mark.parametrize("cut", [(4,), (2, 2), (1, 1, 1, 1)])
def test_a_step_of_kto_is_the_same_however_it_is_cut(cut: tuple[int, ...]):
    thumbs = [
        UnpairedPreference(f"r:{i}", (Message("user", f"q{i}"),), f"it is the fox {i}", i % 2 == 0) for i in range(4)
    ]
    objective = Preference().bind(thumbs, "decoder")
    learner = objective.make_learner()
    made = policy("llama", LORA, lively=0.2)
    rows = [objective.encode(thumb, template("llama"), limit=512) for thumb in thumbs]
    for _ in range(8):  # until all answers are likelier than at the start, so that there is a KL above 0
        made.logprobs(collate(rows)).sum().backward()
        with torch.no_grad():
            for _, value in made.trainable():
                value.add_(value.grad / value.grad.norm(), alpha=0.2)
        gradients(made)
    found = []
    for sizes in ((4,), cut):
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        others = mismatched(rows)
        batches = [
            replace(collate(rows[end - size : end]), mismatched=tuple(chain(*others[end - size : end])))
            for end, size in zip(ends, sizes, strict=True)
        ]
        prepared = prepare_batches(made, learner, batches)
        kl = [one.reference - made.reference_logprobs(one) for one in prepared if one.reference is not None]
        loss, _ = accumulate_gradients(made, learner, prepared)
        found.append((loss, float(torch.cat(kl).mean()), gradients(made)))
    assert found[0][1] > 0
    assert found[1][:2] == pytest.approx(found[0][:2], rel=1e-3)
    assert farthest(found[1][2], found[0][2]) < 1e-3


def test_what_is_compared_with_the_start_is_learned_without_dropout():
    made = policy("llama", Lora(rank=4, dropout=0.5), lively=0.2)
    rows = pairs(3)
    losses = {}
    for form in ("dpo", "orpo"):
        objective = Preference(loss=form).bind(rows, "decoder")
        learner = objective.make_learner()
        batch = collate([objective.encode(pair, template("llama"), limit=512) for pair in rows])
        losses[form] = [
            accumulate_gradients(made, learner, prepare_batches(made, learner, [batch]))[0] for _ in range(2)
        ]
    assert losses["dpo"][0] == losses["dpo"][1]
    assert losses["orpo"][0] != losses["orpo"][1]


def test_the_answer_of_more_tokens_decides_how_far_a_prompt_gives_way():
    many, few = "\u1e9e\u0142\u0119" * 5, "the quick brown fox jumps over the lazy dog"
    pair = Pair("r", (Message("user", "fox " * 80),), few, many)
    assert len(few) > len(many)
    made = Preference().bind([pair], "decoder").encode(pair, template("llama"), limit=90)
    learned = [[i for i, learn in zip(one.ids, one.learn, strict=True) if learn] for one in made.sequences]
    assert [ids[-1:] for ids in learned] == [template("llama").end_ids] * 2
