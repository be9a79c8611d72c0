"""Many questions at once: the answers each would get alone, whichever adapter it asks and whoever comes or goes."""

from __future__ import annotations

import gc
import json
import queue
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import bases
from tests.served import HEAD, LABELS, engine_over, save_run
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import ModelError
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.open_model import open_model
from tunesmith.inference.saved_model import load
from tunesmith.inference.serving.continuous_batching import _fitting
from tunesmith.inference.serving.engine import Engine
from tunesmith.inference.serving.live_answer import CompletionChunk
from tunesmith.inference.serving.protocol import Busy, Limits
from tunesmith.inference.serving.registry import ModelRegistry
from tunesmith.inference.serving.request import AskError, GenerationRequest, UnknownModel
from tunesmith.models.generation.sampling import Sampling
from tunesmith.objectives import Reward
from tunesmith.techniques import Full, Ia3, Lora, Prefix, Prompt, PTuning

QUESTIONS = ("hi", "What is the capital of France?", "Tell me of the fox and the dog and the phone. " * 3)
TECHNIQUES = {
    "lora": Lora(rank=4),
    "dora": Lora(rank=4, dora=True),
    "ia3": Ia3(),
    "prompt": Prompt(tokens=5),
    "prefix": Prefix(tokens=5),
    "p-tuning": PTuning(tokens=5),
}
GREEDY = Sampling(max_new_tokens=10)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that several tests ask."""
    return save_run(tmp_path_factory.mktemp("runs") / "one", Lora(rank=4))


@pytest.fixture
def over() -> Iterator[object]:
    """Engines that are ended with the test, in which nothing went wrong unseen."""
    made: list[tuple[Engine, list[str]]] = []

    def start(sources: Mapping[str, Sequence[Path]], **limits: object) -> Engine:
        made.append(engine_over(sources, limits=Limits(**limits)))  # type: ignore[arg-type]
        return made[-1][0]

    yield start
    for engine, bugs in made:
        engine.close(10)
        assert bugs == []


class Answer:
    """What is told of one question."""

    def __init__(self, engine: Engine, ask: GenerationRequest) -> None:
        self._pieces: queue.SimpleQueue[CompletionChunk] = queue.SimpleQueue()
        self.ticket = engine.ask(ask, self._pieces.put)

    def pieces(self) -> list[CompletionChunk]:
        found = [self._pieces.get(timeout=60)]
        while not found[-1].end:
            found.append(self._pieces.get(timeout=60))
        return found

    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces())


def asked(name: str, question: str, **more: object) -> GenerationRequest:
    return GenerationRequest(name, (Message("user", question),), **{"sampling": GREEDY, **more})  # type: ignore[arg-type]


# ------------------------------------------------------------------ the same answers


@pytest.mark.long
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_a_batch_of_six_techniques_and_the_base_answers_each_as_if_it_were_alone(kind: str, tmp_path: Path, over):
    for number, (name, technique) in enumerate(TECHNIQUES.items()):
        save_run(tmp_path / name, technique, kind=kind, seed=number)
    engine = over({name: [tmp_path / name] for name in TECHNIQUES})
    names = [*TECHNIQUES, kind]
    answers = {
        (name, question): Answer(engine, asked(name, question, in_pieces=len(name) % 2 == 0))
        for question in QUESTIONS
        for name in names
    }
    said = {key: answer.pieces() for key, answer in answers.items()}
    alone = {name: load(tmp_path / name) for name in TECHNIQUES} | {kind: engine.registry.get(kind).model}
    for (name, question), pieces in said.items():
        wanted = alone[name].reply([Message("user", question)], sampling=GREEDY)
        last = pieces[-1]
        assert "".join(piece.text for piece in pieces) == wanted.text, name
        assert (last.prompt_tokens, last.new_tokens) == (wanted.prompt_tokens, wanted.new_tokens)
        assert last.end == ("stop" if wanted.finished else "length")
    assert len({pieces[-1].text for pieces in said.values()}) > 4  # they do not all say the same


@pytest.mark.parametrize("name", TECHNIQUES)
def test_in_bfloat16_the_base_takes_half_the_memory_and_labels_are_nearly_the_same(name: str, tmp_path: Path):
    save_run(tmp_path / name, TECHNIQUES[name], LABELS)
    engine, bugs = engine_over({name: [tmp_path / name]}, dtype="bfloat16")
    try:
        shared = engine.registry.get(name).shared_base.base.network
        assert {value.dtype for value in shared.parameters()} == {torch.bfloat16}
        found = engine.whole(name, "labels", list(QUESTIONS)).result(60)
        answer = Answer(engine, asked(name, QUESTIONS[1])).pieces()[-1]
    finally:
        engine.close(10)
    assert (bugs, answer.why) == ([], "")
    for one, exact in zip(found, load(tmp_path / name).classify(QUESTIONS), strict=True):
        assert one.probabilities == pytest.approx(exact.probabilities, abs=0.05)
        assert one.probabilities != exact.probabilities


def test_a_base_and_a_run_of_its_own_weights_take_the_dtype_too(tmp_path: Path):
    save_run(tmp_path / "whole", Full())
    engine, _ = engine_over({"llama": [bases.folder("llama")], "whole": [tmp_path / "whole"]}, dtype="bfloat16")
    engine.close(10)
    for name in ("llama", "whole"):
        network = engine.registry.get(name).model.policy.network
        assert {value.dtype for value in network.parameters()} == {torch.bfloat16}


def test_a_row_draws_the_same_by_chance_alone_and_among_others(one: Path, over):
    engine = over({"one": [one]})
    warm = Sampling(max_new_tokens=10, temperature=1.5, top_p=0.9, seed=7)
    answers = [Answer(engine, asked("one", question, sampling=warm)) for question in QUESTIONS]
    model = load(one)
    wanted = [model.reply([Message("user", question)], sampling=warm).text for question in QUESTIONS]
    assert [answer.text() for answer in answers] == wanted


def test_a_run_of_its_own_weights_and_runs_over_the_base_are_served_side_by_side(tmp_path: Path, over):
    save_run(tmp_path / "full", Full(), lively=0.05)
    save_run(tmp_path / "lora", Lora(rank=4))
    engine = over({"full": [tmp_path / "full"], "lora": [tmp_path / "lora"]})
    for name in ("full", "lora"):
        wanted = load(tmp_path / name).reply([Message("user", "hi")], sampling=GREEDY).text
        assert Answer(engine, asked(name, "hi")).text() == wanted


def test_a_base_model_is_served_alone_and_shares_its_weights_with_runs_over_it(tmp_path: Path, over):
    save_run(tmp_path / "lora", Lora(rank=4))
    base = bases.folder("llama")
    wanted = open_model(base).reply([Message("user", "hi")], sampling=GREEDY).text
    assert Answer(over({"llama": [base]}), asked("llama", "hi")).text() == wanted
    engine = over({"llama": [base], "lora": [tmp_path / "lora"]})
    assert Answer(engine, asked("llama", "hi")).text() == wanted
    assert [run.name for run in engine.registry.runs()] == ["llama", "lora"]
    assert len(engine.registry.shared_bases()) == 1


def test_an_encoder_base_is_not_served(over):
    with pytest.raises(ModelError, match="an encoder without a tuned head cannot answer; serve a decoder or a run"):
        over({"bert": [bases.folder("bert")]})


def test_what_questions_share_is_read_once_and_known_again_later(one: Path, over):
    engine = over({"one": [one]})
    opening = "Summarise the following text in one sentence, and answer with one word. "
    first = [Answer(engine, asked("one", opening + word)).text() for word in ("fox", "dog")]
    begun = engine.counts.reused
    assert begun > 20
    again = Answer(engine, asked("one", opening + "fox")).text()
    assert again == first[0]
    shared = len(engine.registry.get("one").model.prompt((Message("user", opening + "fox"),)))
    assert engine.counts.reused - begun == shared - 1  # all but the last id, whose state the answer begins with


def test_stop_strings_logprobs_and_raw_texts_are_as_python_has_them(one: Path, over):
    engine, model = over({"one": [one]}), load(one)
    whole = model.reply([Message("user", "hi")], sampling=GREEDY).text
    stop = whole[3:5]
    assert (
        Answer(engine, asked("one", "hi", sampling=replace(GREEDY, stop=(stop,)))).text()
        == whole[: whole.index(stop)].strip()
    )
    (told,) = Answer(engine, GenerationRequest("one", text="The quick", sampling=GREEDY)).pieces()
    assert told.text == model.complete(["The quick"], sampling=GREEDY)[0].text
    (scored,) = Answer(engine, asked("one", "hi", best=2)).pieces()
    ids = model.prompt([Message("user", "hi")])
    for one in scored.scored:
        with torch.no_grad():
            logs = model.policy.network(torch.tensor([ids])).logits[0, -1].log_softmax(dim=0)
        assert one.logprob == pytest.approx(float(logs[one.id]), abs=1e-3)
        assert [best for best, _ in one.best] == logs.topk(2).indices.tolist()
        ids.append(one.id)
    assert len(scored.scored) == scored.new_tokens


# ------------------------------------------------------------------ schemas

SCHEMA = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["good", "bad"]},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "words": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
    },
    "required": ["mood", "stars", "words"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_answers_of_a_random_model_hold_to_their_schema(kind: str, tmp_path: Path, over):
    save_run(tmp_path / "one", Lora(rank=4), kind=kind)
    engine = over({"one": [tmp_path / "one"]})
    hot = Sampling(max_new_tokens=120, temperature=1.0)
    answers = [
        Answer(engine, asked("one", f"number {i}", sampling=replace(hot, seed=i), schema=SCHEMA)) for i in range(8)
    ]
    free = Answer(engine, asked("one", "hi"))  # a row without a schema beside them stays free
    for answer in answers:
        (told,) = answer.pieces()
        assert told.end == "stop"
        found = json.loads(told.text)
        assert set(found) == {"mood", "stars", "words"}
        assert found["mood"] in ("good", "bad")
        assert 1 <= found["stars"] <= 5
        assert len(found["words"]) <= 2
    assert free.text() == load(tmp_path / "one").reply([Message("user", "hi")], sampling=GREEDY).text


def test_a_schema_that_is_none_is_told_and_harms_nobody(one: Path, over):
    engine = over({"one": [one]})
    (told,) = Answer(engine, asked("one", "hi", schema={"type": "nonsense"})).pieces()
    assert told.end == "wrong"
    assert told.why.startswith("schema: ")
    assert Answer(engine, asked("one", "hi")).pieces()[-1].end in ("stop", "length")


# ------------------------------------------------------------------ what is served


def weights(*networks: torch.nn.Module) -> int:
    """Bytes of all different tensors of some networks."""
    held = {value.data_ptr(): value.numel() * value.element_size()
            for network in networks for value in (*network.parameters(), *network.buffers())}  # fmt: skip
    return sum(held.values())


def test_eight_adapters_over_one_base_take_the_memory_of_one_base_and_eight_adapters(tmp_path: Path, over):
    names = [f"run{number}" for number in range(8)]
    for number, name in enumerate(names):
        save_run(tmp_path / name, Lora(rank=2), seed=number)
    engine = over({name: [tmp_path / name] for name in names})
    answers = [Answer(engine, asked(name, "hi")).text() for name in names]
    assert len(set(answers)) > 4
    base = weights(engine.registry.shared_bases()[0].base.network)
    adapters = sum(
        value.numel() * 4
        for run in engine.registry.runs()
        for name, value in run.model.policy.network.named_parameters()
        if "lora_" in name
    )
    everything = weights(*(run.model.policy.network for run in engine.registry.runs()))
    assert base < everything < (base + adapters) * 1.1
    assert adapters / 8 == pytest.approx((everything - base) / 8, rel=0.01)
    assert (
        len({id(engine.registry.get(name).template) for name in names}) == 1
    )  # a tokenizer takes as much as an adapter


def test_versions_are_loaded_unloaded_and_rolled_back_while_others_are_answered(tmp_path: Path, over):
    for number in (1, 2):
        save_run(tmp_path / f"v{number}", Lora(rank=4), seed=number)
    save_run(tmp_path / "other", Ia3())
    engine = over({"one": [tmp_path / "v1", tmp_path / "v2"], "other": [tmp_path / "other"]})
    wanted = {v: load(tmp_path / f"v{v}").reply([Message("user", "hi")], sampling=GREEDY).text for v in (1, 2)}
    assert wanted[1] != wanted[2]
    long = Answer(engine, asked("one", "hi", sampling=Sampling(max_new_tokens=60)))
    stop, others = threading.Event(), list[str]()

    def keep_asking() -> None:
        while not stop.is_set():
            others.append(Answer(engine, asked("other", "hi")).text())

    asking = threading.Thread(target=keep_asking)
    asking.start()
    assert Answer(engine, asked("one", "hi")).text() == wanted[2]
    assert engine.registry.roll_back("one").version == 1
    assert Answer(engine, asked("one", "hi")).text() == wanted[1]
    with pytest.raises(UnknownModel, match="at its first version"):
        engine.registry.roll_back("one")
    engine.registry.unload("one")
    with pytest.raises(UnknownModel, match="'one' is not served here; there are other, llama"):
        Answer(engine, asked("one", "hi"))
    assert engine.registry.load("one").version == 2
    assert Answer(engine, asked("one", "hi")).text() == wanted[2]
    stop.set()
    asking.join(30)
    assert len(set(others)) == 1
    assert (
        long.text() == load(tmp_path / "v2").reply([Message("user", "hi")], sampling=Sampling(max_new_tokens=60)).text
    )  # it was begun before the version went


def test_one_base_in_two_forms_has_two_names(tmp_path: Path, over):
    pytest.importorskip("bitsandbytes")
    save_run(tmp_path / "plain", Lora(rank=4))
    save_run(tmp_path / "small", Lora(rank=4, quantize="nf4"))
    shelf = over({"small": [tmp_path / "small"], "plain": [tmp_path / "plain"]}).registry
    assert {run.name for run in shelf.runs()} == {"small", "plain", "llama", "llama-nf4"}
    shelf.unload("small")
    assert {run.name for run in shelf.runs()} == {"plain", "llama"}


def test_a_run_that_was_unloaded_and_its_base_leave_the_memory_though_nobody_asks_again(tmp_path: Path, over):
    save_run(tmp_path / "one", Lora(rank=4))
    engine = over({"one": [tmp_path / "one"]})
    Answer(engine, asked("one", "hi")).text()
    gone = (
        weakref.ref(engine.registry.shared_bases()[0].base.network),
        weakref.ref(engine.registry.get("one").model.policy.network),
    )
    last = Answer(engine, asked("one", "hi", sampling=Sampling(max_new_tokens=60)))
    engine.registry.unload("one")  # while it answers
    last.text()
    del last
    for _ in range(100):
        gc.collect()
        if not any(ref() is not None for ref in gone):
            return
        time.sleep(0.05)
    pytest.fail(f"still there: {[ref() is not None for ref in gone]}")


def test_a_run_that_was_mixed_with_another_leaves_the_memory_when_it_is_unloaded(tmp_path: Path, over):
    for name, seed in (("one", 1), ("two", 2)):
        save_run(tmp_path / name, Lora(rank=4), seed=seed)
    engine = over({name: [tmp_path / name] for name in ("one", "two")})
    long = Sampling(max_new_tokens=60)
    answers = [Answer(engine, asked(name, "hi", sampling=long)) for name in ("one", "two")]
    gone = weakref.ref(engine.registry.get("two").model.policy.network)
    engine.registry.unload("two")  # while both are answered in one batch
    wanted = load(tmp_path / "one").reply([Message("user", "hi")], sampling=long).text
    assert answers[0].text() == wanted
    answers.pop().text()
    for _ in range(100):
        gc.collect()
        if gone() is None:
            break
        time.sleep(0.05)
    assert gone() is None
    assert Answer(engine, asked("one", "hi", sampling=long)).text() == wanted
    kept = engine.registry.get("one").model.policy.network
    factors = [value for name, value in kept.named_parameters() if "lora_" in name]
    assert factors
    assert all(value.untyped_storage().nbytes() == value.numel() * value.element_size() for value in factors)


def test_runs_that_change_the_output_layer_are_answered_together(tmp_path: Path, over):
    targets = Lora(rank=4, targets=("q_proj", "lm_head"))
    for name, seed in (("one", 1), ("two", 2)):
        save_run(tmp_path / name, targets, seed=seed)
    engine = over({name: [tmp_path / name] for name in ("one", "two")})
    answers = {name: Answer(engine, asked(name, "hi")) for name in ("one", "two")}
    for name, answer in answers.items():
        assert answer.text() == load(tmp_path / name).reply([Message("user", "hi")], sampling=GREEDY).text


def test_a_long_question_is_not_read_with_so_many_short_ones_that_padding_counts():
    assert _fitting([700, *[10] * 31], 1024, packs=True) == 2
    assert _fitting([100] * 12, 1024, packs=True) == 10
    assert _fitting([160, *[60] * 20], 1024, packs=True) == 12
    assert _fitting([5000, 10], 1024, packs=True) == 1
    assert _fitting([160, *[60] * 20], 1024, packs=False) == 6


def test_only_registered_names_are_read(one: Path):
    shelf = ModelRegistry({"one": [one]})
    for name in (str(one), "../one", "one/../one", ""):
        with pytest.raises(UnknownModel, match="was not registered"):
            shelf.load(name)
        with pytest.raises(UnknownModel):
            shelf.get(name)


def test_labels_and_states_of_several_askers_are_those_of_each_alone(tmp_path: Path, over):
    save_run(tmp_path / "mood", Lora(rank=4), LABELS)
    save_run(tmp_path / "head", Lora(rank=4), HEAD, kind="bert")
    engine = over({"mood": [tmp_path / "mood"], "head": [tmp_path / "head"]})
    for name in ("mood", "head"):
        model = load(tmp_path / name)
        jobs = [engine.whole(name, "labels", [text, "so"]) for text in QUESTIONS]
        for text, job in zip(QUESTIONS, jobs, strict=True):
            for found, wanted in zip(job.result(60), model.classify([text, "so"]), strict=True):
                assert found.probabilities == pytest.approx(wanted.probabilities, abs=1e-3)
        read = engine.whole(name, "states", [*QUESTIONS, "word " * 900]).result(60)
        assert torch.allclose(torch.tensor([states for states, _ in read][:-1]), model.embed(QUESTIONS), atol=1e-3)
        assert read[-1][1] == model.limit  # tokens that were read, not those that there are
    with pytest.raises(AskError, match="is an encoder and cannot generate"):
        engine.ask(asked("head", "hi"), lambda piece: None)


def test_a_reward_model_is_asked_for_no_answer(tmp_path: Path, over):
    save_run(tmp_path / "judge", Lora(rank=4), Reward())
    engine = over({"judge": [tmp_path / "judge"]})
    with pytest.raises(AskError, match="judge returns scores and cannot generate"):
        engine.ask(asked("judge", "hi"), lambda piece: None)


# ------------------------------------------------------------------ limits


def test_a_full_queue_says_so_and_an_overdue_answer_ends(one: Path, over):
    engine = over({"one": [one]}, rows=1, waiting=2, seconds=0.3)
    endless = Sampling(max_new_tokens=400)
    answers = []

    def ask_many() -> None:
        for _ in range(50):
            answers.append(Answer(engine, asked("one", "hi", sampling=endless)))

    with pytest.raises(Busy, match="requests are queued; retry later"):
        ask_many()
    ends = [answer.pieces()[-1] for answer in answers]
    assert {piece.end for piece in ends} <= {"late", "length", "stop"}
    assert "late" in {piece.end for piece in ends}


def test_texts_that_waited_too_long_are_let_go_and_harm_no_answer(one: Path, over):
    engine = over({"one": [one]}, rows=1, seconds=60.0)
    with engine._changed:  # nothing is read before both lie there
        late, gone = engine.whole("one", "states", ["a"]), engine.whole("one", "states", ["b"])
        engine._wholes[0].until = 0.0
        gone.cancel()
        answer = Answer(engine, asked("one", "hi"))
    assert answer.pieces()[-1].end in ("stop", "length")
    assert late.cancelled()
    assert engine.queued == 0


def test_a_thousand_texts_are_read_in_slices_and_the_answers_beside_them_grow_in_between(
    one: Path, over, monkeypatch: pytest.MonkeyPatch
):
    engine, slices = over({"one": [one]}, read=64), list[tuple[int, int]]()
    embed = LocalModel.embed

    def watched(model: LocalModel, texts: Sequence[str], *, passage: bool = False) -> torch.Tensor:
        slices.append((len(texts), engine.counts.tokens))
        return embed(model, texts, passage=passage)

    monkeypatch.setattr(LocalModel, "embed", watched)
    texts = [f"phone {number}" for number in range(300)]
    with engine._changed:
        answer = Answer(engine, asked("one", "hi", sampling=Sampling(max_new_tokens=30)))
        many, few = engine.whole("one", "states", texts), engine.whole("one", "states", ["hi"])
    wanted = embed(load(one), [*texts, "hi"])
    found = torch.tensor([states for states, _ in (*many.result(60), *few.result(60))])
    assert torch.allclose(found, wanted, atol=1e-3)
    answer.pieces()
    beside = [tokens for count, tokens in slices if count < 64]
    assert len(beside) > 5
    assert beside == sorted(set(beside))  # a token came between any two slices
    assert sum(count for count, _ in slices) == 301


def test_a_bug_over_one_question_ends_nobody_elses_answer(one: Path, monkeypatch: pytest.MonkeyPatch):
    engine, bugs = engine_over({"one": [one]})
    going = Answer(engine, asked("one", "hi", sampling=Sampling(max_new_tokens=60), in_pieces=True))
    assert not going._pieces.get(timeout=60).end  # it is being written
    monkeypatch.setattr("tunesmith.inference.serving.engine.places_left", lambda model, used: {}[used])
    broken = Answer(engine, asked("one", "hello"))
    assert broken.pieces()[-1].end == "broken"
    assert going.pieces()[-1].end in ("stop", "length")
    engine.close(10)
    assert len(bugs) == 1


@pytest.mark.parametrize("error", [ModelError, ZeroDivisionError])
def test_an_error_over_the_texts_of_one_asker_harms_no_other(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_run(tmp_path / "mood", Lora(rank=4), LABELS)
    engine, bugs = engine_over({"mood": [tmp_path / "mood"]})
    classify = LocalModel.classify

    def failing(model: LocalModel, texts: Sequence[str]) -> object:
        if "bad" in texts:
            raise error("bad")
        return classify(model, texts)

    monkeypatch.setattr(LocalModel, "classify", failing)
    with engine._changed:  # they are read together
        before, bad, after = (engine.whole("mood", "labels", [text]) for text in ("hi", "bad", "so"))
    assert [len(job.result(60)) for job in (before, after)] == [1, 1]
    with pytest.raises(error):
        bad.result(60)
    engine.close(10)
    assert len(bugs) == (error is ZeroDivisionError)


def test_a_question_that_nothing_can_be_taken_from_is_answered_or_refused(one: Path, over):
    engine = over({"one": [one]})
    turns = (Message("assistant", "word " * 900),)
    assert (
        Answer(engine, GenerationRequest("one", turns, sampling=Sampling(max_new_tokens=2))).pieces()[-1].end
        != "broken"
    )


def test_a_few_texts_of_one_run_are_not_behind_a_thousand_of_another(one: Path, tmp_path: Path, over):
    engine, done = over({"one": [one], "two": [save_run(tmp_path / "two", Ia3())]}), list[str]()
    with engine._changed:
        for name, count in (("one", 200), ("two", 2)):
            job = engine.whole(name, "states", [f"phone {number}" for number in range(count)])
            job.add_done_callback(lambda _, name=name: done.append(name))
    job.result(60)
    assert done == ["two"]


def test_a_short_question_is_answered_before_the_last_of_the_long_ones_that_came_before(one: Path, over):
    engine, ended = over({"one": [one]}, read=64), queue.SimpleQueue[str]()

    def ask(name: str, question: str) -> None:
        short = Sampling(max_new_tokens=2)
        engine.ask(asked("one", question, sampling=short), lambda piece: piece.end and ended.put(name))

    with engine._changed:
        for number in range(8):
            ask(f"long {number}", f"{number} times the fox and the dog and the phone. " * 12)
        ask("short", "hi")
    order = [ended.get(timeout=60) for _ in range(9)]
    assert order.index("short") < 4
    assert [name for name in order if name != "short"] == [f"long {number}" for number in range(8)]


def test_a_long_question_is_answered_though_short_ones_keep_coming(one: Path, over):
    engine, ended = over({"one": [one]}, read=64, waiting=40), queue.SimpleQueue[str]()

    def ask(name: str, question: str) -> None:
        brief = Sampling(max_new_tokens=2)
        engine.ask(asked("one", question, sampling=brief), lambda piece: piece.end and ended.put(name))

    with engine._changed:
        ask("short", "hi")
        ask("long", "The fox and the dog and the phone. " * 12)
        for number in range(30):
            ask("short", f"what is {number}?")
    order = [ended.get(timeout=60) for _ in range(32)]
    assert order.index("long") < 16


def test_an_answer_that_nobody_waits_for_makes_room(one: Path, over):
    engine = over({"one": [one]}, rows=1)
    answers = [Answer(engine, asked("one", "hi", sampling=Sampling(max_new_tokens=380))) for _ in range(3)]
    for answer in answers:
        answer.ticket.cancel()
    assert {answer.pieces()[-1].end for answer in answers} <= {"gone", "stop"}
    began = time.monotonic()
    assert Answer(engine, asked("one", "hi")).pieces()[-1].end in ("stop", "length")
    assert time.monotonic() - began < 20
    assert engine.queued == 0


@pytest.mark.parametrize("longest", [4097, 10**9])
def test_more_tokens_than_the_server_gives_are_refused(longest: int, one: Path, over):
    engine = over({"one": [one]})
    with pytest.raises(AskError, match=f"max_tokens: expected at most 4096, got {longest}"):
        Answer(engine, asked("one", "hi", sampling=Sampling(max_new_tokens=longest)))


def test_an_answer_ends_where_the_model_has_no_more_positions(tmp_path: Path, over):
    save_run(tmp_path / "one", Lora(rank=4), kind="gpt2")
    engine = over({"one": [tmp_path / "one"]})
    engine.registry.get("one").model.policy.network.config.max_position_embeddings = 40
    (told,) = Answer(engine, asked("one", "hi", sampling=Sampling(max_new_tokens=4000))).pieces()
    assert told.end == "stop" or told.prompt_tokens + told.new_tokens == 40


def test_an_engine_that_ends_takes_nothing_more_and_ends_what_it_began(one: Path, over):
    engine = over({"one": [one]})
    begun = Answer(engine, asked("one", "hi"))
    engine.close(30)
    assert begun.pieces()[-1].end in ("stop", "length")
    with pytest.raises(Busy, match="shutting down"):
        Answer(engine, asked("one", "hi"))


def test_a_bug_is_told_to_the_log_and_to_who_waits_and_the_engine_goes_on(one: Path, monkeypatch):
    engine, bugs = engine_over({"one": [one]})
    with monkeypatch.context() as patch:
        patch.setattr("tunesmith.inference.serving.continuous_batching.ContinuousBatch._read", lambda *_: 1 / 0)
        assert Answer(engine, asked("one", "hi")).pieces()[-1].end == "broken"
    assert "ZeroDivisionError" in bugs[0]
    assert Answer(engine, asked("one", "hi")).pieces()[-1].end in ("stop", "length")
    engine.close(5)
