"""A model on this machine: labels, scores, answers, and states in the order asked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.bases import LORA, labelled, policy, scrambled, template
from tests.tiny import DECODERS
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError, RecipeError, TunesmithError
from tunesmith.inference import scoring
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.scoring import Classified, settled
from tunesmith.models.generation.generate import option_scores
from tunesmith.models.generation.sampling import Sampling
from tunesmith.objectives import Classify, Domain, Instruct, Multitask, Rerank, Reward
from tunesmith.objectives.multitask import TaskRows, TaskSection

TEXTS = ("This phone is good", "hi", "This battery is bad and I do not like it. " * 3, "so")


def model(kind: str, objective: Classify | Instruct, *, limit: int = 256) -> LocalModel:
    made = policy(kind, LORA, lively=0.05)
    scrambled(made.network)
    made.head = objective.head(made)
    if made.head is not None:
        torch.nn.init.normal_(made.head.weight, generator=torch.Generator().manual_seed(2))
    return LocalModel(made, template(kind), objective, limit)


def words(*labels: str) -> Classify:
    return Classify(output="words", labels=labels or ("negative", "positive"))


LINEAR = Classify(output="linear", labels=("a", "b", "c"))


# ------------------------------------------------------------------ labels


@pytest.mark.parametrize("kind", DECODERS)
def test_label_probabilities_are_the_softmax_of_what_the_words_cost(kind: str):
    made = model(kind, words())
    (found,) = made.classify(TEXTS[:1])
    prompt = template(kind).prompt(made.objective.messages(TEXTS[0]))
    options = [template(kind).answer(made.objective.messages(TEXTS[0]), label) for label in ("negative", "positive")]
    scores = []
    for option in options:
        with torch.no_grad():
            logs = made.policy.network(torch.tensor([[*prompt, *option]])).logits[0].log_softmax(dim=1)
        scores.append(sum(float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(option)))
    p = 1 / (1 + math.exp(scores[0] - scores[1]))
    assert found.probabilities["positive"] == pytest.approx(p, abs=2e-3)
    assert found.label == ("positive" if p > 0.5 else "negative")
    assert found.confidence == pytest.approx(max(p, 1 - p), abs=2e-3)


def test_a_label_that_begins_another_is_told_from_it_by_the_end_of_its_turn():
    made = model("gemma", words("good", "goodbye"))
    form = template("gemma")
    asked = [Message("user", "x")]
    ids = [[*form.answer(asked, label), 5] for label in ("good", "goodbye")]  # 5 is <end_of_turn>, 1 <eos>
    wanted = option_scores(made.policy, [form.prompt(asked)], [ids])[0].tolist()
    assert made.scores(asked, ("good", "goodbye")) == pytest.approx(wanted, abs=1e-4)


def test_scores_are_log_probabilities_of_given_answers():
    made, form, asked = model("llama", Instruct()), template("llama"), [Message("user", "x")]
    ids = [form.answer(asked, option) for option in ("Paris.", "negative")]
    assert made.scores(asked, ("Paris.", "negative")) == pytest.approx(
        option_scores(made.policy, [form.prompt(asked)], [ids])[0].tolist(), abs=1e-4
    )


def test_a_temperature_flattens_probabilities_and_changes_no_label():
    made = model("llama", words())
    sharp = made.classify(TEXTS)
    made.temperature = 4.0
    flat = made.classify(TEXTS)
    assert [one.label for one in sharp] == [one.label for one in flat]
    for a, b in zip(sharp, flat, strict=True):
        odds = [math.log(one.probabilities["positive"] / one.probabilities["negative"]) for one in (a, b)]
        assert odds[1] == pytest.approx(odds[0] / 4, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("kind", ["llama", "gemma", "bert"])
@pytest.mark.parametrize("objective", [LINEAR, LINEAR.model_copy(update={"multi": True})], ids=["one", "several"])
def test_a_heads_labels_do_not_depend_on_company_or_order(
    kind: str, objective: Classify, monkeypatch: pytest.MonkeyPatch
):
    made = model(kind, objective)
    alone = torch.cat([made.label_logits([text]) for text in TEXTS])
    together = made.label_logits(TEXTS)
    assert together.shape == (4, 3)
    assert torch.allclose(together, alone, atol=1e-3)
    monkeypatch.setattr(scoring, "scored_tokens", lambda device: 100)
    assert torch.allclose(made.label_logits(TEXTS), alone, atol=1e-3)
    assert made.classify([]) == []


def test_probabilities_of_one_label_per_text_sum_to_one():
    made = model("bert", LINEAR)
    for found in made.classify(TEXTS):
        assert sum(found.probabilities.values()) == pytest.approx(1)
        assert found.labels == (max(found.probabilities, key=lambda label: found.probabilities[label]),)


def test_with_several_labels_a_text_has_those_of_at_least_one_half():
    made = model("bert", Classify(output="linear", labels=("a", "b", "c"), multi=True))
    torch.nn.init.zeros_(made.policy.head.weight)
    made.policy.head.bias.data.copy_(torch.tensor([math.log(3), 0.0, -math.log(4)]))
    (found,) = made.classify(["hi"])
    assert found.probabilities == pytest.approx({"a": 0.75, "b": 0.5, "c": 0.2})
    assert (found.labels, found.label) == (("a", "b"), "a, b")
    made.policy.head.bias.data.fill_(-1.0)
    assert made.classify(["hi"])[0] == Classified((), made.classify(["hi"])[0].probabilities)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("llama", words()),
        ("llama", LINEAR),
        ("bert", LINEAR),
        ("llama", LINEAR.model_copy(update={"multi": True})),
        ("bert", LINEAR.model_copy(update={"multi": True})),
    ],
)
def test_a_run_that_scores_in_half_precision_finds_the_labels_of_full_precision(kind: str, objective: Classify):
    made = model(kind, objective)
    texts = [f"{text} {i}" for i, text in enumerate(TEXTS * 20)]
    exact, labels = made.label_logits(texts), [one.labels for one in made.classify(texts)]
    made.policy.scoring_dtype = torch.bfloat16
    found = made.label_logits(texts)
    assert [one.labels for one in made.classify(texts)] == labels
    difference = float((found - exact).abs().mean())
    assert difference < 0.1 * float(exact.abs().mean())
    assert difference > 0 or objective.multi  # of several labels, one is close in each of these rows
    assert made.label_logits([]).shape == (0, exact.shape[1])
    made.policy.scoring_dtype = None
    assert torch.equal(made.label_logits(texts), exact)


@pytest.mark.parametrize("multi", [False, True])
def test_more_rows_are_scored_in_full_precision_the_larger_its_difference(multi: bool):
    chance = torch.Generator().manual_seed(0)
    exact = torch.randn(400, 3, generator=chance) * 4
    counts = []
    for noise in (0.0, 0.1, 0.5):
        asked: list[int] = []
        rounded = exact + noise * (2 * torch.rand(exact.shape, generator=chance) - 1)
        rounded[:2, 1] = torch.nan  # an overflow in half precision
        found = settled(rounded, lambda rows, asked=asked: asked.extend(rows) or exact[rows], multi=multi)
        same = (found > 0) == (exact > 0) if multi else found.argmax(dim=1) == exact.argmax(dim=1)
        assert same.all()
        assert torch.equal(found[asked], exact[asked])
        assert len(asked) == len(set(asked)) < 400
        counts.append(len(asked))
    assert 32 <= counts[0] <= counts[1] < counts[2]


def test_asking_for_labels_leaves_no_gradient_behind():
    assert not model("bert", LINEAR).label_logits(TEXTS).requires_grad


def test_a_layer_of_ones_own_learns_on_states():
    states = model("bert", LINEAR).embed(TEXTS)
    layer = torch.nn.Linear(states.shape[1], 1)
    layer(states).sum().backward()
    assert layer.weight.grad is not None


def test_texts_are_any_list_of_texts_and_a_text_alone_has_one_result():
    made = model("bert", LINEAR)
    wanted = made.classify(list(TEXTS))
    assert made.classify("bad phone") == made.classify(["bad phone"])[0]
    assert torch.equal(made.embed("bad phone"), made.embed(["bad phone"])[0])
    writer, short = model("llama", Instruct()), Sampling(max_new_tokens=3)
    assert writer.generate("hi", sampling=short) == writer.generate(["hi"], sampling=short)[0]
    assert writer.answer("hi", sampling=short).text == writer.generate("hi", sampling=short)
    assert made.classify(np.array(TEXTS)) == wanted == made.classify(text for text in TEXTS)
    assert (made.classify(iter(())), len(made.embed(np.array([], dtype=str)))) == ([], 0)
    with pytest.raises(RecipeError, match="embed: text 2: expected a string, got nan; remove it"):
        made.embed(["hi", math.nan])


class DataFrame:
    """A table as pandas has it: a list of the names of its columns."""

    columns = ("body", "stars")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (DataFrame(), "expected a text or a list of texts, got DataFrame; "),
        ({"text": "good phone"}, "expected a text or a list of texts, got dict; give one column of a table"),
        (None, "expected a text or a list of texts, got NoneType; "),
        (["hi", "good \ud83d"], r"text 2: half a surrogate pair \(.ud83d\) at character 6; "),
    ],
)
def test_a_table_half_an_emoji_and_nothing_are_not_texts(texts: object, problem: str):
    made = model("bert", LINEAR)
    for method in (made.classify, made.embed):
        with pytest.raises(TunesmithError, match=f"{method.__name__}: {problem}"):
            method(texts)


def test_what_asks_nothing_is_refused():
    writer = model("llama", Instruct())
    for nothing in ([], "hi", [{"role": "user", "content": "hi"}]):
        with pytest.raises(RecipeError, match="reply: expected a list of messages, got .*; give "):
            writer.reply(nothing)
    with pytest.raises(DataError, match=r"reply: message 1: half a surrogate pair \(.ud83d\) at character 1; "):
        writer.reply([Message("user", "\ud83d")])
    for call in (writer.generate, writer.stream, writer.complete):
        with pytest.raises(RecipeError, match="sampling: expected a tunesmith.Sampling, got dict; write Sampling"):
            list(call([Message("user", "hi")] if call == writer.stream else "hi", sampling={"seed": 1}))
    with pytest.raises(RecipeError, match="scores: no answers or no prompt"):
        writer.scores([Message("user", "hi")], [])
    with pytest.raises(RecipeError, match="complete: text 2 is empty; remove it"):
        model("llama", Domain()).complete(["hi", ""])


def test_an_encoder_of_several_tasks_is_told_which_reads_a_text():
    mood = model("bert", LINEAR)
    tasks = {"mood": TaskSection(data=TaskRows(train="x.jsonl"), objective=LINEAR)}
    both = LocalModel(mood.policy, mood.template, Multitask(tasks=tasks), mood.limit)
    with pytest.raises(RecipeError, match="several tasks in one model; name one of: mood"):
        both.embed(TEXTS)


@pytest.mark.parametrize(
    ("setting", "finding"),
    [
        ({"temperature": -1}, "temperature: expected a number >= 0, got -1"),
        ({"temperature": math.nan}, "temperature: expected a number >= 0, got nan"),
        ({"stop": ("a", "")}, "stop: a string is empty, which would end every completion"),
        ({"top_p": 0}, r"top_p: expected a number in \(0, 1\], got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected an integer >= 1, got 0"),
        ({"stop": "END"}, r"stop: expected a list of strings, got the string 'END'; write \(text,\)"),
    ],
)
def test_settings_that_nothing_can_be_drawn_with_are_refused(setting: dict[str, Any], finding: str):
    with pytest.raises(RecipeError, match=finding):
        Sampling(**setting)


def test_a_writer_has_no_labels_and_an_encoder_writes_no_text():
    with pytest.raises(RecipeError, match="classify: this model was tuned with instruct and has no labels"):
        model("llama", Instruct()).classify(["hi"])
    with pytest.raises(RecipeError, match="generate: an encoder cannot generate"):
        model("bert", LINEAR).generate(["hi"])


# ------------------------------------------------------------------ answers


@pytest.mark.parametrize("kind", DECODERS)
def test_an_answer_is_the_same_asked_alone_among_others_and_in_pieces(kind: str):
    made = model(kind, Instruct(max_new_tokens=10))
    asked = [[Message("user", text)] for text in TEXTS]
    replies = made.replies(asked)
    assert [made.reply(messages) for messages in asked] == replies
    assert ["".join(made.stream(messages)) for messages in asked] == [reply.text for reply in replies]
    for messages, reply in zip(asked, replies, strict=True):
        assert reply.prompt_tokens == len(template(kind).prompt(messages))
        assert reply.new_tokens <= 10
        assert reply.finished == (reply.new_tokens < 10)


def test_a_reply_ends_before_its_stop_string():
    made = model("llama", Instruct(max_new_tokens=10))
    (whole,) = made.replies([[Message("user", "x")]])
    stop = whole.text[3:5]
    cut = made.reply([Message("user", "x")], sampling=Sampling(max_new_tokens=10, stop=(stop,)))
    assert cut.text == whole.text[: whole.text.index(stop)].strip()
    assert cut.finished
    pieces = made.stream([Message("user", "x")], sampling=Sampling(max_new_tokens=10, stop=(stop,)))
    assert "".join(pieces) == cut.text


def test_prompts_are_asked_with_the_recipes_instruction():
    made = model("llama", Instruct(instruction="Be brief.", max_new_tokens=6))
    assert made.generate(["hi"]) == [made.reply([Message("user", "Be brief.\n\nhi")]).text]


@pytest.mark.parametrize(("objective", "longest"), [(Instruct(max_new_tokens=7), 7), (Instruct(), 256), (words(), 256)])
def test_answers_are_greedy_and_as_long_as_the_training_answers(objective: Classify | Instruct, longest: int):
    sampling = model("llama", objective).sampling
    assert (sampling.max_new_tokens, sampling.temperature) == (longest, 0.0)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_prompt_longer_than_the_limit_is_shortened_to_it(kind: str):
    made = model(kind, Instruct(max_new_tokens=2), limit=90)
    assert 89 <= made.reply([Message("user", "fox " * 200)]).prompt_tokens <= 90


# ------------------------------------------------------------------ states


@pytest.mark.parametrize(("kind", "objective"), [("llama", LINEAR), ("bert", LINEAR), ("llama", Instruct())])
def test_states_come_in_the_order_of_the_texts(kind: str, objective: Classify | Instruct):
    made = model(kind, objective)
    together = made.embed(TEXTS)
    assert together.shape == (4, 32)
    assert torch.allclose(together, torch.cat([made.embed([text]) for text in TEXTS]), atol=1e-3)


def test_label_rows_are_asked_as_they_were_taught():
    made = model("llama", words())
    taught = made.objective.encode(labelled(1)[0], template("llama"), limit=256).sequences[0].ids
    prompt = made.prompt(made.objective.messages(labelled(1)[0].text))
    assert taught[: len(prompt)] == prompt


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_of_no_texts_there_are_no_states(kind: str):
    made = model(kind, LINEAR)
    assert made.embed([]).shape == (0, made.embed(["hi"]).shape[1])


def test_an_empty_text_has_no_states_where_its_tokenizer_puts_nothing_around_it():
    with pytest.raises(RecipeError, match="embed: text 2 is empty; remove it"):
        model("gpt2", Domain()).embed(["hi", ""])


def test_a_prompt_leaves_positions_for_its_answer():
    made = model("gpt2", Instruct(), limit=512)
    long = "the phone " * 600
    (reply,) = made.replies([[Message("user", long)]], sampling=Sampling(max_new_tokens=40))
    (going,) = made.complete([long], sampling=Sampling(max_new_tokens=40))
    assert (reply.prompt_tokens, going.prompt_tokens) == (472, 472)
    assert made.options([[Message("user", long)]], ["good", "bad"]).shape == (1, 2)


@pytest.mark.long
@pytest.mark.parametrize("asked", [200, 400, 9000])
def test_an_answer_of_any_length_leaves_its_prompt_half_of_the_positions(asked: int):
    made, long = model("gpt2", Instruct(), limit=512), "the phone " * 600
    for found in (
        made.replies([[Message("user", long)]], sampling=Sampling(max_new_tokens=asked)),
        made.complete([long], sampling=Sampling(max_new_tokens=asked)),
    ):
        assert (found[0].prompt_tokens, found[0].new_tokens <= 256) == (max(256, 512 - asked), True)
    # a short question leaves the rest
    assert made.longest([1] * 12, Sampling(max_new_tokens=asked)) == min(asked, 500)


def test_a_chat_that_no_answer_fits_behind_takes_nothing_from_those_beside_it():
    made, wish = model("gpt2", Instruct(), limit=512), Sampling(max_new_tokens=6)
    short, told = [Message("user", "hi")], "x y z " * 300
    long = [Message("user", "q"), Message("assistant", told), Message("user", "and?")]
    (alone,) = made.replies([short], sampling=wish)
    beside, cut = made.replies([short, long], sampling=wish)
    assert beside == alone
    assert (cut.text, cut.new_tokens, cut.finished) == ("", 0, False)
    assert list(made.stream(long, sampling=wish)) == []


@pytest.mark.parametrize("objective", [Rerank(), Reward()], ids=["rerank", "reward"])
def test_vectors_of_an_encoder_are_those_of_the_text_and_not_of_a_chat(objective: Any):
    model = LocalModel(policy("bert"), template("bert"), objective, 64)
    assert model.tokens("the battery is good").ids == template("bert").document("the battery is good").ids
