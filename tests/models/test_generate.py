"""Answers: the same alone, in company, in pieces, and from transformers' own loop."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.bases import LORA, QUESTIONS, policy, scrambled, template
from tests.tiny import DECODERS
from tunesmith.data.tokenization.chat_template import Tokens
from tunesmith.data.tokenization.messages import Message
from tunesmith.models.attention.network_cache import shares_prompts
from tunesmith.models.batch import Batch
from tunesmith.models.generation import generate as room
from tunesmith.models.generation.generate import AnswerIds, before_stop, generate, option_scores, sample, stream_pieces
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.generation.thoughts import ThoughtSplitter
from tunesmith.models.policy import Policy
from tunesmith.techniques import Prefix
from tunesmith.techniques.base import Technique

NEW = 12
attend = room.SharedPrefixAttention.attend
START = "Answer the question as well as you can, please: "


def talker(kind: str) -> Policy:
    """A policy whose greedy answers wander instead of repeating one word."""
    made = policy(kind)
    scrambled(made.network)
    return made


def prompts(kind: str, start: str = START) -> list[list[int]]:
    """Prompts of different lengths that begin alike, beyond the sliding window of 16."""
    return [template(kind).prompt([Message("user", start + question)]) for question in QUESTIONS]


def forced(made: Policy, monkeypatch: pytest.MonkeyPatch, script: Sequence[Sequence[int]]) -> None:
    """Let the answers be this script, row by row, whatever the network says; rows are told by their chance."""
    left = {}

    def choose(logits: Tensor, chance: Sequence[torch.Generator], sampling: Sampling) -> Tensor:
        for one in chance:
            left.setdefault(id(one), list(script[len(left)]) if len(left) < len(script) else [])
        return torch.tensor([left[id(one)].pop(0) for one in chance])

    monkeypatch.setattr(room, "choose", choose)


# ------------------------------------------------------------------ groups


def test_short_prompts_run_in_full_batches_and_long_ones_in_as_many_as_memory_is_kept_for():
    made = policy("llama")
    short, long = [[1] * 40] * (room.ROWS + 3), [[1] * 1000] * 20
    assert [len(group) for group in room.groups(made, short, room.ROWS)] == [room.ROWS, 3]
    most = room.CACHED_TOKENS // 1000
    assert [len(group) for group in room.groups(made, long, room.ROWS)] == [most, 20 - most]
    assert [len(group) for group in room.groups(made, [*short[:5], *long[:2]], room.ROWS)] == [7]
    assert list(room.groups(made, [[1] * (room.CACHED_TOKENS + 1)], room.ROWS)) == [[0]]


@pytest.mark.parametrize(("technique", "mixed"), [(LORA, None), (Prefix(tokens=3), None), (LORA, torch.bfloat16)])
def test_prompts_that_run_in_parts_have_the_states_they_have_at_once(
    technique: Technique, mixed: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
):
    made, asked = policy("llama", technique), prompts("llama")
    made.autocast_dtype = mixed
    with torch.no_grad(), made.autocast():
        whole = room._prefill(made, asked)
        monkeypatch.setattr(room, "PART_TOKENS", 0)
        parts = room._prefill(made, asked)
        ids = torch.arange(70, 70 + len(asked))[:, None]
        found = [state.feed(made, ids, torch.ones_like(ids, dtype=torch.bool)) for state in (whole, parts)]
    assert torch.equal(whole.mask.sum(dim=1), parts.mask.sum(dim=1))
    assert len({len(prompt) for prompt in asked}) > 1
    for one, other in ((whole.last, parts.last), found):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 if mixed is None else 0.05)


def test_a_prefix_of_all_prompts_runs_once_though_they_run_in_parts(monkeypatch: pytest.MonkeyPatch):
    made, shared = policy("llama"), list(range(10, 30))
    asked = [[*shared, *range(40 + size, 40 + 2 * size)] for size in (2, 9, 3, 8)]
    counts: list[int] = []
    made.network.get_input_embeddings().register_forward_hook(lambda _, given, out: counts.append(given[0].numel()))
    with torch.no_grad():
        whole = room._prefill(made, asked)
        assert sum(counts) == 20 + 4 * 9
        monkeypatch.setattr(room, "PART_TOKENS", 0)
        counts.clear()
        parts = room._prefill(made, asked)
    assert sum(counts) == 20 + sum((2, 9, 3, 8))
    torch.testing.assert_close(whole.last, parts.last, rtol=0, atol=1e-4)


def test_a_group_is_divided_where_its_padding_costs_more_than_a_pass():
    assert room._similar([100, 100, 100], 10) == [[0, 1, 2]]
    assert sorted(room._similar([20, 100, 19, 100], 10)) == [[0, 2], [1, 3]]
    assert len(room._similar([20, 100, 19, 100], 1000)) == 1
    assert len(room._similar([30, 20, 10], 0)) == 3
    assert len(room._similar([30, 20, 10], 10)) < 3


# ------------------------------------------------------------------ greedy


@pytest.mark.parametrize("part", [0, room.PART_TOKENS], ids=["in parts", "at once"])
@pytest.mark.parametrize("kind", DECODERS)
def test_greedy_answers_are_those_of_transformers_and_do_not_depend_on_company(
    kind: str, part: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(room, "PART_TOKENS", part)
    made, asked, form = talker(kind), prompts(kind), template(kind)
    together = generate(made, asked, sampling=Sampling(max_new_tokens=NEW), template=form)
    for prompt, drawn in zip(asked, together, strict=True):
        (alone,) = generate(made, [prompt], sampling=Sampling(max_new_tokens=NEW), template=form)
        out = made.network.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=sorted(form.stop_ids),
            pad_token_id=0,
        )
        theirs = [i for i in out[0, len(prompt) :].tolist() if i not in form.stop_ids]
        assert alone.ids == theirs
        assert drawn == alone
    assert len({token for drawn in together for token in drawn.ids}) >= 5


@pytest.mark.parametrize("kind", ["llama", "gemma", "gemma3", "gpt2"])
def test_prompts_that_share_nothing_are_answered_as_alone(kind: str):
    made, form = talker(kind), template(kind)
    asked = [[6 + place, *prompt] for place, prompt in enumerate(prompts(kind))]
    together = generate(made, asked, sampling=Sampling(max_new_tokens=4), template=form)
    alone = [generate(made, [one], sampling=Sampling(max_new_tokens=4), template=form)[0] for one in asked]
    assert together == alone


def test_answers_come_back_in_the_order_asked_also_beyond_one_group(monkeypatch: pytest.MonkeyPatch):
    made, form = talker("llama"), template("llama")
    asked = prompts("llama")
    whole = generate(made, asked, sampling=Sampling(max_new_tokens=3), template=form)
    monkeypatch.setattr(room, "ROWS", 3)
    assert generate(made, asked, sampling=Sampling(max_new_tokens=3), template=form) == whole
    assert generate(made, [], sampling=Sampling(), template=form) == []


# ------------------------------------------------------------------ ends


def test_an_answer_ends_at_its_stop_token_which_is_left_out(monkeypatch: pytest.MonkeyPatch):
    made, form = policy("gemma"), template("gemma")
    forced(made, monkeypatch, [[70, 71, 5, 72], [80, 1], [90, 91, 92, 93]])
    asked = sorted(prompts("gemma")[:3], key=len, reverse=True)
    drawn = generate(made, asked, sampling=Sampling(max_new_tokens=3), template=form)
    assert [(one.ids, one.finished) for one in drawn] == [([70, 71], True), ([80], True), ([90, 91, 92], False)]


def test_a_finished_row_leaves_the_batch(monkeypatch: pytest.MonkeyPatch):
    made, form = policy("llama"), template("llama")
    forced(made, monkeypatch, [[70, 2], [71, 72, 73, 2], [74, 75, 76, 77]])
    sizes, base_model = [], made.network.base_model
    hook = base_model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    generate(made, prompts("llama")[:3], sampling=Sampling(max_new_tokens=4), template=form)
    hook.remove()
    assert sizes[-3:] == [(3, 1), (2, 1), (2, 1)]


def test_an_answer_ends_with_the_word_that_completes_a_stop_string(monkeypatch: pytest.MonkeyPatch):
    made, form = policy("llama"), template("llama")
    words = form.tokenizer("ab END cd", add_special_tokens=False)["input_ids"]
    forced(made, monkeypatch, [words])
    (drawn,) = generate(made, [[1, 5]], sampling=Sampling(max_new_tokens=20, stop=("END",)), template=form)
    assert drawn.finished
    assert form.decode(drawn.ids) == "ab END"


@pytest.mark.parametrize(
    ("text", "stops", "left"),
    [("a END b", ("END",), "a "), ("a b", ("END",), "a b"), ("a b c", ("c", "b"), "a "), ("a", (), "a")],
)
def test_a_text_is_cut_at_the_first_stop_string(text: str, stops: tuple[str, ...], left: str):
    assert before_stop(text, stops) == left


# ------------------------------------------------------------------ in pieces


@pytest.mark.parametrize(
    ("text", "stops", "pieces"),
    [
        ("a b", (), ["a", " b"]),
        ("  Größe 😀!", (), None),
        ("ab ENOUGH", ("END",), None),
        ("ab END cd", ("END",), ["a", "b"]),
        ("one \n\n", (), None),
        ("x\n\nQ: y", ("\n\nQ:", "Q"), None),
        ("ends in E", ("END",), None),
    ],
)
def test_the_pieces_of_an_answer_join_to_the_whole(
    monkeypatch: pytest.MonkeyPatch, text: str, stops: tuple[str, ...], pieces: list[str] | None
):
    made, form = policy("llama"), template("llama")
    ids = form.tokenizer(text, add_special_tokens=False)["input_ids"]
    forced(made, monkeypatch, [[*ids, 2]])
    wish = Sampling(max_new_tokens=40, stop=stops)
    found = [piece.text for piece in stream_pieces(made, [1, 5], sampling=wish, splitter=ThoughtSplitter(form))]
    assert "".join(found) == before_stop(text, stops).strip()
    assert pieces is None or found == pieces
    assert "\ufffd" not in "".join(found)
    assert all(found)


def test_an_answer_that_is_cut_inside_a_character_ends_with_its_mark_in_pieces_too(monkeypatch: pytest.MonkeyPatch):
    made, form = policy("llama"), template("llama")
    ids = form.tokenizer("a😀", add_special_tokens=False)["input_ids"]
    forced(made, monkeypatch, [ids])
    wish = Sampling(max_new_tokens=len(ids) - 1)
    found = [piece.text for piece in stream_pieces(made, [1, 5], sampling=wish, splitter=ThoughtSplitter(form))]
    assert "".join(found) == form.decode(ids[:-1]).strip() == "a\ufffd"


# ------------------------------------------------------------------ chance


def test_a_drawn_answer_depends_on_seed_and_prompt_and_not_on_company():
    made, form, asked = policy("gpt2"), template("gpt2"), prompts("gpt2")
    hot = Sampling(max_new_tokens=NEW, temperature=1.0)
    together = generate(made, asked, sampling=hot, template=form)
    assert [generate(made, [one], sampling=hot, template=form)[0] for one in asked] == together
    assert generate(made, list(reversed(asked)), sampling=hot, template=form) == list(reversed(together))
    other = Sampling(max_new_tokens=NEW, temperature=1.0, seed=1)
    assert generate(made, asked, sampling=other, template=form) != together


def test_words_are_drawn_as_often_as_their_probability_at_the_temperature_says():
    logits = torch.tensor([[0.0, 1.0, 2.0, -30.0]]).repeat(4000, 1)
    chance = [torch.Generator().manual_seed(i) for i in range(4000)]
    drawn = room.choose(logits, chance, Sampling(temperature=2.0))
    shares = torch.bincount(drawn, minlength=4) / 4000
    # e^0, e^(1/2), e^1 over their sum 5.367
    assert torch.allclose(shares, torch.tensor([0.1863, 0.3072, 0.5065, 0.0]), atol=0.03)


def test_top_p_keeps_the_smallest_set_of_words_that_holds_it():
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log().repeat(500, 1)
    chance = [torch.Generator().manual_seed(i) for i in range(500)]
    for top_p, kept in ((0.4, {1}), (0.7, {1, 3}), (0.76, {1, 2, 3})):
        assert set(room.choose(logits, chance, Sampling(temperature=1.0, top_p=top_p)).tolist()) == kept


def test_at_temperature_zero_the_likeliest_word_is_taken():
    assert room.choose(torch.tensor([[0.0, 2.0, 1.0]]), [], Sampling()).tolist() == [1]


# ------------------------------------------------------------------ given answers


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize(
    "options", [[[70], [80], [90]], [[70, 71, 72], [70], [80, 81]]], ids=["one token", "several tokens"]
)
def test_a_given_answers_score_is_the_sum_of_its_log_probabilities(kind: str, options: list[list[int]]):
    made, asked = talker(kind), prompts(kind)
    found = option_scores(made, asked, [options] * len(asked))
    assert found.shape == (4, 3)
    for row, prompt in enumerate(asked):
        for column, option in enumerate(options):
            with torch.no_grad():
                logs = made.network(torch.tensor([[*prompt, *option]])).logits[0].log_softmax(dim=1)
            wanted = sum(float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(option))
            assert float(found[row, column]) == pytest.approx(wanted, abs=2e-3)


def test_each_prompt_may_have_options_of_its_own():
    made, asked = talker("llama"), prompts("llama")[:2]
    first, second = [[70, 71], [80]], [[90], [91, 92, 93]]
    found = option_scores(made, asked, [first, second])
    assert torch.allclose(found[0], option_scores(made, asked[:1], [first])[0], atol=1e-4)
    assert torch.allclose(found[1], option_scores(made, asked[1:], [second])[0], atol=1e-4)


def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows, a prompt with an option each, of every pass from now on."""
    sizes, packed = list[int](), room.pack

    def seen(rows: list[Tokens]) -> Batch:
        sizes.append(len(rows))
        return packed(rows)

    monkeypatch.setattr(room, "pack", seen)
    return sizes


def test_long_prompts_are_scored_in_passes_of_so_many_tokens(monkeypatch: pytest.MonkeyPatch):
    made, options, shared = talker("llama"), [[70, 71], [80]], list(range(20, 28))
    # Behind the 8 shared ids 2, 5, 3 and 4 of their own; with the 3 of the options 5, 8, 6 and 7.
    asked = [[*shared, *range(start, start + own)] for start, own in ((40, 2), (50, 5), (60, 3), (30, 4))]
    whole, sizes = option_scores(made, asked, [options] * 4), passes(monkeypatch)
    # 2 x 8 are 16 tokens, 3 x 8 are more; 2 x 6 are fewer. With the shared ids each prompt would stand alone.
    monkeypatch.setattr(room, "TOKENS_PER_PASS", 16)
    assert torch.allclose(option_scores(made, asked, [options] * 4), whole, atol=1e-4)
    assert sizes == [4, 4]


def test_short_prompts_behind_a_long_beginning_are_scored_32_in_a_pass(monkeypatch: pytest.MonkeyPatch):
    made, sizes = talker("llama"), passes(monkeypatch)
    option_scores(made, [[*range(20, 60), 6 + place] for place in range(33)], [[[70], [80]]] * 33)
    assert sizes == [64, 2]


# ------------------------------------------------------------------ several answers to a prompt


def drawn_of(made: Policy, asked: list[list[int]], *, seed: int = 3, count: int = 3) -> list[list[AnswerIds]]:
    sampling = Sampling(max_new_tokens=6, temperature=1.0, seed=seed)
    return sample(made, asked, count=count, sampling=sampling, template=template("llama"))


def test_several_answers_differ_and_are_the_same_alone_in_company_and_again(monkeypatch: pytest.MonkeyPatch):
    made, asked = talker("llama"), prompts("llama")
    together = drawn_of(made, asked)
    assert [len({tuple(one.ids) for one in group}) for group in together] == [3] * len(asked)
    assert [drawn_of(made, [prompt])[0] for prompt in asked] == together
    assert drawn_of(made, asked, seed=4) != together
    monkeypatch.setattr(room, "SAMPLED_ROWS", 6)
    assert drawn_of(made, asked) == together


def test_a_prompts_keys_are_made_once_for_all_its_answers():
    made, asked = talker("llama"), prompts("llama")[:1]
    assert shares_prompts(made.network)  # measured once, by passes that are not counted here
    seen: list[tuple[int, ...]] = []
    hook = made.network.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    drawn_of(made, asked, count=4)
    hook.remove()
    assert seen[0] == (1, len(asked[0]))
    assert seen[1] == (4, 1)


@pytest.mark.parametrize("kind", DECODERS)
def test_answers_beside_a_prompt_that_lies_once_are_those_beside_copies_of_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
):
    made, asked, form = talker(kind), prompts(kind), template(kind)
    sampling = Sampling(max_new_tokens=NEW, temperature=1.0, seed=1)
    forks = []
    monkeypatch.setattr(
        room.SharedPrefixAttention, "attend", lambda *given, **kind: forks.append(given[1]) or attend(*given, **kind)
    )
    once = sample(made, asked, count=4, sampling=sampling, template=form)
    assert bool(forks) != room.slides(
        made.network.config
    )  # a window counts places in the cache, so prompts are copied there
    monkeypatch.setattr(made, "packs", False)
    assert once == sample(made, asked, count=4, sampling=sampling, template=form)


@pytest.mark.parametrize("mixed", [None, torch.bfloat16])
def test_states_of_forked_answers_are_those_of_copies_whichever_have_ended(mixed: torch.dtype | None):
    made, ids = talker("llama"), torch.tensor([[70], [80], [90], [71], [81], [91]])
    made.autocast_dtype = mixed
    found = []
    with torch.no_grad(), made.autocast():
        for packs in (True, False):
            made.packs = packs
            state = room._prefill(made, prompts("llama")[:2])
            state.spread(3, made)
            state.keep([0, 1, 2, 4, 5])
            state.feed(made, ids[1:], torch.ones(5, 1, dtype=torch.bool))
            state.keep([0, 4])
            found.append(state.feed(made, ids[:2], torch.ones(2, 1, dtype=torch.bool)))
            assert (state.shared is not None) == packs
    torch.testing.assert_close(*found, rtol=0, atol=1e-5 if mixed is None else 0.05)


def test_the_stop_token_of_an_answer_is_told_beside_it(monkeypatch: pytest.MonkeyPatch):
    made, form = policy("gemma"), template("gemma")
    forced(made, monkeypatch, [[70, 5], [80, 1], [90, 91]])
    sampling = Sampling(max_new_tokens=2, temperature=1.0)
    (drawn,) = sample(made, prompts("gemma")[:1], count=3, sampling=sampling, template=form)
    assert [(one.ids, one.end, one.finished) for one in drawn] == [
        ([70], (5,), True),
        ([80], (1,), True),
        ([90, 91], (), False),
    ]
