"""What is told of the tokens of an answer while it is written, and of one that a stop string ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tunesmith.inference.serving.live_answer import ActiveRequest, CompletionChunk, ScoredToken
from tunesmith.models.generation.generate import choose
from tunesmith.models.generation.json_grammar import Follower
from tunesmith.models.generation.sampling import Sampling
from tunesmith.web.openai.responses import ChatCompletionBuilder

LETTERS = ["a", "E", "N", "D", "x"]


class Template:
    """Letters as tokens; "x" ends a turn."""

    stop_ids = frozenset([LETTERS.index("x")])

    def decode(self, ids: list[int]) -> str:
        return "".join(LETTERS[i] for i in ids)


def written(text: str, *, in_pieces: bool) -> list[CompletionChunk]:
    """The pieces that are told of an answer with these letters, which END would stop."""
    told: list[CompletionChunk] = []
    run: Any = SimpleNamespace(model=SimpleNamespace(template=Template()), virtual=0)
    sampling = Sampling(max_new_tokens=99, stop=("END",))
    answer = ActiveRequest(run, [1], sampling, told.append, best=0, in_pieces=in_pieces)
    for letter in text:
        logits = torch.zeros(len(LETTERS))
        logits[LETTERS.index(letter)] = 9
        if answer.take(answer.draw(logits)):
            break
    return told


@pytest.mark.parametrize("in_pieces", [True, False])
@pytest.mark.parametrize(("text", "said"), [("aEND", "a"), ("aENax", "aENa"), ("ENDa", ""), ("aEx", "aE")])
def test_a_stop_string_is_told_neither_as_text_nor_by_scores(text: str, said: str, in_pieces: bool):
    told = written(text, in_pieces=in_pieces)
    assert "".join(piece.text for piece in told) == said
    assert "".join(LETTERS[one.id] for piece in told for one in piece.scored) == said
    assert told[-1].end == "stop"


@pytest.fixture
def spaced() -> Any:
    """A tokenizer whose tokens begin words by a sign that stands for a space."""
    vocabulary = {"<unk>": 0, "▁": 1, "h": 2, "i": 3, "▁h": 4, "▁hi": 5}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "h"), ("▁h", "i")], unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return SimpleNamespace(tokenizer=PreTrainedTokenizerFast(tokenizer_object=made), thinks=False)


def test_tokens_that_begin_words_have_their_space_and_their_place_through_a_stream(spaced: Any):
    scored = [ScoredToken(5, -1.0, ((5, -1.0),))] * 3
    whole = ChatCompletionBuilder("m", spaced, chat=False).whole("hi hi hi", scored, CompletionChunk(end="stop"))[
        "choices"
    ][0]["logprobs"]
    assert (whole["tokens"], whole["text_offset"]) == (["hi", " hi", " hi"], [0, 2, 5])
    stream = ChatCompletionBuilder("m", spaced, chat=False)
    parts = [
        stream.part(CompletionChunk("", tuple(part)))["choices"][0]["logprobs"] for part in (scored[:2], scored[2:])
    ]
    assert [offset for part in parts for offset in part["text_offset"]] == [0, 2, 5]
    assert parts[1]["top_logprobs"] == [{" hi": -1.0}]
    chat = ChatCompletionBuilder("m", spaced, chat=True).whole("hi hi hi", scored, CompletionChunk(end="stop"))[
        "choices"
    ][0]["logprobs"]
    assert bytes(sum((one["bytes"] for one in chat["content"]), [])).decode() == "hi hi hi"


@pytest.mark.parametrize("temperature", [1e-40, 1e-38, 1e-6])
def test_a_temperature_next_to_nothing_takes_the_likeliest(temperature: float):
    logits = torch.arange(9.0).flip(0)[None]
    assert choose(logits, [torch.Generator()], Sampling(temperature=temperature)).tolist() == [0]


def test_an_answer_whose_words_cannot_follow_its_schema_is_told_as_wrong_and_not_as_whole():
    class Matcher:
        """In error, which it also calls stopped."""

        def consume_token(self, token: int) -> None: ...
        def is_error(self) -> bool:
            return True

        def is_stopped(self) -> bool:
            return True

    told: list[CompletionChunk] = []
    run: Any = SimpleNamespace(model=SimpleNamespace(template=Template()), virtual=0)
    answer = ActiveRequest(run, [1], Sampling(), told.append, follower=Follower(Matcher(), len(LETTERS)))
    assert answer.take(0)
    assert (told[-1].end, told[-1].why[:27]) == ("wrong", "response_format: this model")
