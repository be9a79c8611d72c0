"""The loop with people, with tiny models: judged by a rule, by the votes of a store, gone on with, reported."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, cast

import pytest

from tests.bases import folder
from tests.pipelines.conftest import answers, recipe, tune
from tunesmith.annotation.import_export import import_votes, read_events, summarise_votes
from tunesmith.annotation.items import ANSWER
from tunesmith.annotation.pair_judging import PageChoice
from tunesmith.annotation.vote_store import Who
from tunesmith.config import Gates, Recipe, Replay
from tunesmith.errors import CheckpointError, RecipeError, Refused
from tunesmith.models.generation.sampling import Sampling
from tunesmith.pipelines.feedback import open_panel
from tunesmith.pipelines.requests import FeedbackRequest
from tunesmith.pipelines.rlhf import loop as walk
from tunesmith.pipelines.rlhf.judge import Replies, win_rate_over_base
from tunesmith.pipelines.rlhf.learn import enough, train_round, votes_so_far, write_rows
from tunesmith.pipelines.rlhf.loop import rlhf
from tunesmith.pipelines.rlhf.report import LoopReport, Round
from tunesmith.pipelines.rlhf.setup import LoopState, plan_loop, read_loop, start_loop
from tunesmith.training.callbacks import Callbacks, Interrupted
from tunesmith.training.read import read_data

pytestmark = [
    pytest.mark.usefixtures("small_world"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]

RULES = """
def short(attempt):
    return -len(attempt.text)

def few_words(attempt):
    return -len(attempt.text.split()) - sum(map(ord, attempt.text)) / 1e6

def blind(attempt):
    return 0.0

def unfinished(attempt):
    return 0.0 if attempt.finished else 1.0
"""
QUIET = Callbacks()


def open_loop(recipe: Recipe, out: Path, callbacks: Callbacks) -> LoopState:
    """A loop whose folder is begun."""
    loop = read_loop(recipe, out, callbacks, offline=True)
    loop.folder.mkdir(parents=True, exist_ok=True)
    start_loop(loop)
    return loop


@dataclass(frozen=True)
class Asked:
    """A run that was asked for."""

    folder: Path
    recipe: Recipe


def made(place: Path, objective: Any = "preference", **loop: Any) -> Recipe:
    (place / "rules.py").write_text(RULES, encoding="utf-8")
    settings = {
        "rounds": 2, "prompts": 20, "held_out": 6,
        "judge": f"{place}/rules.py:short", "final_judge": f"{place}/rules.py:few_words",
    } | loop  # fmt: skip
    schedule = {"epochs": 1, "batch_rows": 4, "probe": False}
    return recipe(place, answers(70), "llama", objective=objective, schedule=schedule, loop=settings)


def test_a_rule_judges_and_the_policy_learns_from_all_votes_so_far(tmp_path: Path):
    found = rlhf(made(tmp_path), callbacks=QUIET, offline=True, out=tmp_path / "loop")
    assert found.simulated
    assert [one.number for one in found.rounds] == [1, 2]
    first, second = found.rounds
    assert second.answered_by == str(tmp_path / "loop" / "round-1" / "policy")
    assert second.rows > first.rows > 0
    assert [rater.rater for rater in first.votes.raters] == [f"simulated: {tmp_path}/rules.py:short"]
    for line in (tmp_path / "loop" / "round-2" / "votes.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert len(row["chosen"]) < len(row["rejected"])
    assert first.over_start.n == 6
    page = (tmp_path / "loop" / "rlhf.html").read_text(encoding="utf-8")
    assert "<strong>simulated</strong>" in page
    kept = LoopReport.model_validate_json((tmp_path / "loop" / "rlhf.json").read_text(encoding="utf-8"))
    assert kept == found
    assert rlhf(made(tmp_path), callbacks=QUIET, offline=True, out=tmp_path / "loop") == found


def test_a_reward_is_learned_from_the_votes_and_pursued_beside_a_validation_file_of_ones_own(tmp_path: Path):
    held = tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps({"prompt": f"held {i}", "answer": "x"}) + "\n" for i in range(6)), "utf-8")
    objective = {"kind": "rl", "reward": {"votes": 1.0}, "group": 2, "max_new_tokens": 5}
    wanted = made(tmp_path, objective, rounds=1)
    wanted = wanted.model_copy(update={"data": wanted.data.model_copy(update={"validation": str(held)})})
    (only,) = rlhf(wanted, callbacks=QUIET, offline=True, out=tmp_path / "loop").rounds
    assert [run.objective for run in only.learned] == ["reward", "rl"]
    assert [run.task.metric for run in only.learned] == ["preference_accuracy", "reward"]
    written = (tmp_path / "loop" / "round-1" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["messages"][0]["content"] for line in written] == [f"held {i}" for i in range(6)]


def test_gates_hold_for_the_policy_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tunesmith.pipelines.rlhf.learn.tune_recipe", lambda made, out, **_: Asked(out, made))
    wanted = made(tmp_path, {"kind": "rl", "reward": "votes"})
    wanted = wanted.model_copy(update={"gates": Gates(min_delta=0.1)})
    loop = open_loop(wanted, tmp_path / "loop", QUIET)
    loop.round(1).mkdir()
    reward, policy = [cast(Asked, run).recipe for run in train_round(loop, loop.round(1))]
    assert (reward.gates, policy.gates) == (Gates(), wanted.gates)


def test_prompts_of_one_group_stay_one_group_where_rl_learns_from_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tunesmith.pipelines.rlhf.learn.tune_recipe", lambda made, out, **_: Asked(out, made))
    wanted = made(tmp_path, {"kind": "rl", "reward": "votes"})
    rows = [{**row, **({"source": i % 30} if i % 7 else {})} for i, row in enumerate(answers(70))]
    write_rows(Path(wanted.data.train), rows)
    wanted = wanted.model_copy(update={"data": wanted.data.model_copy(update={"group": "source"})})
    loop = open_loop(wanted, tmp_path / "loop", QUIET)
    loop.round(1).mkdir()
    policy = cast(Asked, train_round(loop, loop.round(1))[-1]).recipe
    parts = read_data(policy, offline=True).split
    groups = {name: sorted(one.group for one in part) for name, part in loop.prompts.items()}
    assert {name: sorted(one.group for one in getattr(parts, name)) for name in groups} == groups
    assert len(set(groups["train"])) > 2


def test_prompts_that_a_column_splits_stay_in_their_parts_where_rl_learns_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tunesmith.pipelines.rlhf.learn.tune_recipe", lambda made, out, **_: Asked(out, made))
    wanted = made(tmp_path, {"kind": "rl", "reward": "votes"})
    named = ("train", "validation", "test", "train", "train")
    write_rows(Path(wanted.data.train), [{**row, "part": named[i % 5]} for i, row in enumerate(answers(70))])
    wanted = wanted.model_copy(update={"data": wanted.data.model_copy(update={"split": "part"})})
    loop = open_loop(wanted, tmp_path / "loop", QUIET)
    loop.round(1).mkdir()
    policy = cast(Asked, train_round(loop, loop.round(1))[-1]).recipe
    parts = read_data(policy, offline=True).split
    assert {name: len(getattr(parts, name)) for name in loop.prompts} == {n: len(p) for n, p in loop.prompts.items()}


def test_a_rule_in_the_place_of_people_is_told_which_answers_were_cut_off(tmp_path: Path):
    wanted = made(
        tmp_path, {"kind": "preference", "max_new_tokens": 3}, rounds=1, judge=f"{tmp_path}/rules.py:unfinished"
    )
    with pytest.raises(
        Refused,
        match=r"rounds make 0 rows, too few to learn from: .*:unfinished decided none of \d+ pairs; name a judge that",
    ):
        rlhf(wanted, callbacks=QUIET, offline=True, out=tmp_path / "loop")
    store = tmp_path / "loop" / "round-1" / "votes.db"
    events = read_events(store)
    assert {event.body["finished"] for event in events if event.kind == ANSWER} == {False}
    assert summarise_votes(store).votes.keys() == {"tie"}


def test_a_round_in_which_nobody_prefers_anything_teaches_nothing_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told, blind = list[str](), [True]
    (tmp_path / "moods.py").write_text("def mood(attempt):\n    return 0.0\n", encoding="utf-8")
    monkeypatch.setattr("tunesmith.pipelines.rlhf.loop.scorer", lambda *_, **__: judge)

    def judge(attempts: Any) -> list[float]:
        return [0.0 if blind else -float(len(one.text)) for one in attempts]

    def on_event(event: dict[str, Any]) -> None:
        told.append(getattr(event, "text", ""))
        if "too few to learn from" in told[-1]:
            blind.clear()

    wanted = made(tmp_path, prompts=8, judge=f"{tmp_path}/moods.py:mood")
    first, second = rlhf(wanted, callbacks=Callbacks(on_event), offline=True, out=tmp_path / "loop").rounds
    assert "round 1: the votes so far make 0 rows, too few to learn from" in told
    assert (first.rows, first.learned, first.over_start.rate) == (0, [], 0.5)
    assert second.answered_by == wanted.model
    assert second.rows > 0
    assert [run.objective for run in second.learned] == ["preference"]


@pytest.mark.long
def test_a_loop_over_a_run_with_an_instruction_asks_its_own_once(tmp_path: Path):
    start = tune(
        recipe(tmp_path, answers(40), "llama", objective={"kind": "instruct", "instruction": "Say it:"}),
        tmp_path / "start",
    )
    objective = {"kind": "preference", "instruction": "Say it:", "prompt": "prompt", "chosen": "better"}
    wanted = made(tmp_path, objective, rounds=1).model_copy(update={"model": str(start.folder)})
    wanted = wanted.model_copy(update={"data": wanted.data.model_copy(update={"max_tokens": 64})})
    assert rlhf(wanted, callbacks=QUIET, offline=True, out=tmp_path / "loop").rounds[0].learned
    lines = (tmp_path / "loop" / "round-1" / "votes.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert {str(row["prompt"]).count("Say it:") for row in rows} == {1}


def test_answers_with_separators_of_lines_in_them_are_read_again(tmp_path: Path):
    loop = open_loop(made(tmp_path), tmp_path / "loop", QUIET)
    loop.round(1).mkdir()
    row = {"prompt": "p\u2028q", "chosen": "x\u2029", "rejected": "y\x85y", "when": date(2026, 1, 1)}
    write_rows(tmp_path / "more.jsonl", [row])
    import_votes(loop.round(1) / "votes.db", str(tmp_path / "more.jsonl"))
    once = votes_so_far(loop, 1)
    (loop.round(1) / "policy").mkdir()
    assert votes_so_far(loop, 1) == once
    path = loop.round(1) / "votes.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + "{", encoding="utf-8")
    for listed in (True, False):  # earlier versions listed no digests
        if not listed:
            (loop.folder / "digests.txt").unlink()
        with pytest.raises(CheckpointError, match=r"votes\.jsonl: changed since it was written"):
            votes_so_far(loop, 1)


def test_votes_that_come_after_a_round_has_begun_to_learn_do_not_change_its_rows(tmp_path: Path):
    told = list[str]()
    loop = open_loop(
        made(tmp_path), tmp_path / "loop", Callbacks(lambda event: told.append(getattr(event, "text", "")))
    )
    place = loop.round(1)
    place.mkdir()

    def bring(**row: Any) -> None:
        (tmp_path / "more.jsonl").write_text(json.dumps({"prompt": "p", **row}) + "\n", encoding="utf-8")
        import_votes(place / "votes.db", str(tmp_path / "more.jsonl"))

    bring(chosen="x", rejected="y", raters=["Ana"])
    assert len(votes_so_far(loop, 1)) == 1
    assert not enough(votes_so_far(loop, 1))
    (place / "policy").mkdir()
    kept = (place / "votes.jsonl").read_text(encoding="utf-8")
    bring(chosen="x", rejected="y", raters=["Bo"])
    assert (len(votes_so_far(loop, 1)), told) == (1, [])  # one more who says the same changes nothing
    bring(chosen="y", rejected="x", raters=["Cy", "Di", "Eve"])
    assert (len(votes_so_far(loop, 1)), (place / "votes.jsonl").read_text(encoding="utf-8")) == (1, kept)
    assert told == ["round 1: training had started; 2 rows changed by later votes are ignored"]
    loop.round(2).mkdir()
    import_votes(loop.round(2) / "votes.db", str(tmp_path / "more.jsonl"))
    assert len(votes_so_far(loop, 2)) == 2
    assert json.loads((loop.round(2) / "votes.jsonl").read_text(encoding="utf-8").splitlines()[0])["chosen"] == "y"


def test_answers_of_other_weights_are_not_taken_for_those_of_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loop, kept = open_loop(made(tmp_path), tmp_path / "loop", QUIET), tmp_path / "kept.json"
    answers_now = [Replies(["one"], [True]), Replies(["two"], [False])]
    monkeypatch.setattr(walk, "replies_of", lambda *_, **__: answers_now.pop(0))
    for _ in range(2):
        assert walk._held_out_replies(loop, loop.recipe.model, kept).texts == ["one"]
    kept.write_text(json.dumps(json.loads(kept.read_text(encoding="utf-8")) | {"weights": "others"}), encoding="utf-8")
    assert walk._held_out_replies(loop, loop.recipe.model, kept) == Replies(["two"], [False])


def test_what_is_ahead_is_told_of_a_loop_that_was_begun_and_nothing_is_written(tmp_path: Path):
    wanted = made(tmp_path, {"kind": "rl", "reward": "votes"}, judge="page")
    found = plan_loop(wanted, out=tmp_path / "loop", offline=True)
    assert (found.train, found.held_out, found.done, (tmp_path / "loop").exists()) == (49, 6, False, False)
    assert [one.state for one in found.rounds] == ["ahead", "ahead"]
    with pytest.raises(Refused, match="pairs are judged"):
        rlhf(wanted, callbacks=QUIET, offline=True, out=tmp_path / "loop")
    assert [one.state for one in plan_loop(wanted, out=tmp_path / "loop", offline=True).rounds] == ["begun", "ahead"]


def test_the_prompts_of_rl_lie_in_the_column_of_chats_that_its_recipe_names(tmp_path: Path):
    rows = [{"talk": [{"role": "user", "content": f"number {i}"}], "prompt": "another thing"} for i in range(40)]
    objective = {"kind": "rl", "reward": {"votes": 1.0}, "messages": "talk"}
    loop = made(tmp_path).loop.model_copy(update={"rounds": 1})
    wanted = recipe(tmp_path, rows, "llama", objective=objective).model_copy(update={"loop": loop})
    asked = open_loop(wanted, tmp_path / "loop", QUIET).prompts["train"][0].prompt
    assert asked[0].content.startswith("number")


def test_a_loop_that_was_stopped_goes_on_to_the_same_end(tmp_path: Path):
    whole = rlhf(made(tmp_path, rounds=1), callbacks=QUIET, offline=True, out=tmp_path / "whole")
    left = [False, True]
    stopping = Callbacks(lambda event: None, lambda: left.pop(0) if left else True)
    with pytest.raises(Interrupted):
        rlhf(made(tmp_path, rounds=1), callbacks=stopping, offline=True, out=tmp_path / "cut")
    cut = rlhf(made(tmp_path, rounds=1), callbacks=QUIET, offline=True, out=tmp_path / "cut")
    assert cut.rounds[0].over_start == whole.rounds[0].over_start
    assert cut.rounds[0].rows == whole.rounds[0].rows


def test_a_last_judge_that_tells_nothing_apart_gives_no_verdict(tmp_path: Path):
    with pytest.raises(Refused, match=r"loop.final_judge: gives all 12 completions the score 0; name a judge"):
        rlhf(
            made(tmp_path, rounds=1, final_judge=f"{tmp_path}/rules.py:blind"),
            callbacks=QUIET,
            offline=True,
            out=tmp_path / "loop",
        )


def test_another_last_judge_looks_at_what_is_there_and_nothing_is_judged_or_learned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = rlhf(made(tmp_path, rounds=1), callbacks=QUIET, offline=True, out=tmp_path / "loop")
    (tmp_path / "others.py").write_text("def brief(attempt):\n    return -sum(map(ord, attempt.text))\n")
    other = made(tmp_path, rounds=1, final_judge=f"{tmp_path}/others.py:brief")
    monkeypatch.setattr("tunesmith.pipelines.rlhf.judge.open_model", None)
    again = rlhf(other, callbacks=QUIET, offline=True, out=tmp_path / "loop")
    assert again.final_judge.endswith("others.py:brief")
    assert again.rounds[0].learned == first.rounds[0].learned
    assert again.rounds[0].over_start.words == first.rounds[0].over_start.words


def test_more_rounds_go_on_from_those_that_are_there(tmp_path: Path):
    before = rlhf(made(tmp_path, rounds=1), callbacks=QUIET, offline=True, out=tmp_path / "loop")
    more = rlhf(made(tmp_path), callbacks=QUIET, offline=True, out=tmp_path / "loop")
    assert more.rounds[0] == before.rounds[0]
    assert [one.number for one in more.rounds] == [1, 2]


def test_a_loop_of_another_recipe_is_told_to_keep_its_votes(tmp_path: Path):
    open_loop(made(tmp_path), tmp_path / "loop", QUIET)
    with pytest.raises(
        CheckpointError, match="give another --out; `tunesmith votes export` and `votes import`"
    ) as told:
        open_loop(made(tmp_path, temperature=0.5), tmp_path / "loop", QUIET)
    assert "delete" not in str(told.value)


def test_a_judge_whose_file_has_changed_since_the_loop_began_is_named(tmp_path: Path):
    told = list[str]()
    callbacks = Callbacks(lambda event: told.append(getattr(event, "text", "")))
    wanted = made(tmp_path)
    open_loop(wanted, tmp_path / "loop", callbacks)
    assert told == []
    (tmp_path / "rules.py").write_text(RULES + "# mended\n", encoding="utf-8")
    open_loop(wanted, tmp_path / "loop", callbacks)
    assert told[0] == (
        f"{tmp_path}/rules.py:short: the file of the judge has changed since this loop started; earlier votes are kept"
    )


def test_people_who_never_agree_are_told_how_many_pairs_are_undecided(tmp_path: Path):
    loop = open_loop(made(tmp_path, judge="page", rounds=1), tmp_path / "loop", QUIET)
    loop.round(1).mkdir()
    rows = [{"prompt": f"p{n}", "chosen": a, "rejected": b, "rater": name}
            for n in range(8) for name, a, b in (("Ana", "x", "y"), ("Bo", "y", "x"))]  # fmt: skip
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    import_votes(loop.votes(1), str(tmp_path / "votes.jsonl"))
    votes = summarise_votes(loop.votes(1))
    start = Replies(["a", "b"], [True, True])
    even = win_rate_over_base(start, start, loop.test[:2], loop.final)
    only = Round(number=1, answered_by="m", votes=votes, rows=0, learned=[], over_start=even)
    assert "too few to learn from: 8 of 8 judged pairs are undecided; raise" in walk.too_few_votes(loop, [only])


@pytest.mark.parametrize("name", ["Ana", "Rule (simulated)"])
def test_pairs_wait_for_people_and_the_page_that_is_named_is_on_the_very_same(name: str, tmp_path: Path):
    wanted = made(tmp_path, {"kind": "preference", "instruction": "Answer:"}, judge="page", rounds=1)
    with pytest.raises(Refused, match="0 of [0-9]+ pairs are judged") as waiting:
        rlhf(wanted, callbacks=QUIET, offline=True, out=tmp_path / "loop")
    words = shlex.split(str(waiting.value).split("`")[1])
    assert words.pop() == "--as-written"
    named = dict(zip(words[3::2], words[4::2], strict=True))
    drawn = Sampling(
        int(named["--max-new-tokens"]),
        float(named["--temperature"]),
        float(named["--top-p"]),
        seed=int(named["--seed"]),
    )
    wish = FeedbackRequest(
        words[2],
        prompts=named["--prompts"],
        column=named["--column"],  # a row may have others that look like what is asked
        rows=0,
        as_written=True,
        limit=int(named["--max-tokens"]),
        store=Path(named["--store"]),
        sampling=drawn,
        offline=True,
    )
    panel = open_panel(wish, log=lambda text: pytest.fail(f"nothing is answered again: {text}"))
    who = Who(name, "tab-aaaa")
    while (key := panel.assignment.next(who)) is not None:
        panel.vote(who, key, PageChoice("left"))
    panel.store.close()
    found = rlhf(wanted, callbacks=QUIET, offline=True, out=tmp_path / "loop")
    assert found.simulated is ("simulated" in name)
    assert [rater.rater for rater in found.rounds[0].votes.raters] == [name]


@pytest.mark.parametrize(
    ("objective", "loop", "said"),
    [
        ("instruct", {}, "objective instruct: does not learn from votes"),
        ({"kind": "rl", "reward": "rules:short"}, {}, "write reward: votes"),
        ("preference", {"final_judge": ""}, "loop.final_judge is missing"),
        ("preference", {"judge": "json:loads", "final_judge": "json:loads"}, "trains the policy; name another"),
        (
            {"kind": "rl", "reward": {"votes": 1.0, "json:loads": 0.5}},
            {"final_judge": "json.py:loads"},
            "part of objective",
        ),
        ("preference", {"final_judge": "LOOP/round-1/reward"}, "is learned in this loop, and so trains the policy"),
        ("preference", {"judge": "Page"}, "loop.judge: unknown judge 'Page'; write page for human raters"),
        ("preference", {"judge": "json:nothing"}, "loop.judge: json has no function 'nothing'"),
        ("preference", {"prompts": 40}, "expected 80 training prompts"),
    ],
)
def test_a_loop_that_cannot_work_is_refused_at_the_door(
    objective: Any, loop: dict[str, Any], said: str, tmp_path: Path
):
    named = {key: str(value).replace("LOOP", str(tmp_path / "loop")) for key, value in loop.items()}
    with pytest.raises(RecipeError, match=said):
        rlhf(made(tmp_path, objective, **named), callbacks=QUIET, offline=True, out=tmp_path / "loop")
    assert not (tmp_path / "loop").exists()


@pytest.mark.parametrize(
    ("objective", "parts", "said"),
    [
        ({"kind": "rl", "reward": {"votes": 0.0}}, {}, "write reward: votes, or give votes"),
        ({"kind": "rl", "reward": {"votes": 1.0, "nowhere:score": 0.5}}, {}, "objective.reward: nowhere cannot be"),
        ({"kind": "rl", "reward": "votes"}, {"controls": True}, "nearest that works: controls: false"),
        ("preference", {"style": {"short": {"max_words": 5}}}, "style: not supported for pairs of answers"),
        ("preference", {"replay": Replay(share=0.2)}, "replay: not supported for preference"),
        ("preference", {"track": ["tensorbord"]}, "track: no tracker 'tensorbord'; did you mean 'tensorboard'"),
        ("preference", {"model": str(folder("bert"))}, "objective preference: needs a decoder"),
    ],
)
def test_runs_that_could_not_begin_are_refused_before_anybody_judges(
    objective: Any, parts: dict[str, Any], said: str, tmp_path: Path
):
    with pytest.raises(RecipeError, match=said):
        open_loop(made(tmp_path, objective).model_copy(update=parts), tmp_path / "loop", QUIET)
    assert not (tmp_path / "loop").exists()


def test_a_single_prompt_to_judge_at_the_end_is_refused_before_anything_is_judged_or_learned(tmp_path: Path):
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps({"prompt": "number one", "answer": "1"}) + "\n", encoding="utf-8")
    wanted = made(tmp_path)
    wanted = wanted.model_copy(update={"data": wanted.data.model_copy(update={"test": str(held)})})
    with pytest.raises(RecipeError, match=r"held\.jsonl: expected at least 2 held-out prompts, got 1; give more"):
        rlhf(wanted, callbacks=QUIET, offline=True, out=tmp_path / "loop")
    assert not (tmp_path / "loop").exists()
