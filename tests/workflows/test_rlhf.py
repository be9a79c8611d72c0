"""The loop with people, with tiny models: judged by a rule, by the votes of a store, gone on with, reported."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.workflows.conftest import answers, recipe
from tunesmith.errors import RecipeError, Refused
from tunesmith.feedback.store import Who
from tunesmith.model.sampling import Sampling
from tunesmith.recipe import Recipe
from tunesmith.report.rlhf import LoopReport
from tunesmith.training.fit import Interrupted
from tunesmith.workflows.feedback import Wish, open_panel
from tunesmith.workflows.panel import Said
from tunesmith.workflows.rlhf import Way, _opened, rlhf

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
"""
QUIET = Way(lambda event: None, offline=True)


def made(place: Path, objective: Any = "preference", **loop: Any) -> Recipe:
    (place / "rules.py").write_text(RULES, encoding="utf-8")
    settings = {
        "rounds": 2, "prompts": 20, "held_out": 6,
        "judge": f"{place}/rules.py:short", "final_judge": f"{place}/rules.py:few_words",
    } | loop  # fmt: skip
    schedule = {"epochs": 1, "batch_rows": 4, "probe": False}
    return recipe(place, answers(70), "llama", objective=objective, schedule=schedule, loop=settings)


def test_a_rule_judges_and_the_policy_learns_from_all_votes_so_far(tmp_path: Path):
    found = rlhf(made(tmp_path), way=QUIET, out=tmp_path / "loop")
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
    assert rlhf(made(tmp_path), way=QUIET, out=tmp_path / "loop") == found


def test_a_reward_is_learned_from_the_votes_and_pursued(tmp_path: Path):
    objective = {"kind": "rl", "reward": {"votes": 1.0}, "group": 2, "max_new_tokens": 5}
    found = rlhf(made(tmp_path, objective, rounds=1), way=QUIET, out=tmp_path / "loop")
    (only,) = found.rounds
    assert [run.objective for run in only.learned] == ["reward", "rl"]
    assert [run.task.metric for run in only.learned] == ["preference_accuracy", "reward"]


def test_the_prompts_of_rl_lie_in_the_column_of_chats_that_its_recipe_names(tmp_path: Path):
    rows = [{"talk": [{"role": "user", "content": f"number {i}"}], "prompt": "another thing"} for i in range(40)]
    objective = {"kind": "rl", "reward": {"votes": 1.0}, "messages": "talk"}
    loop = made(tmp_path).loop.model_copy(update={"rounds": 1})
    wanted = recipe(tmp_path, rows, "llama", objective=objective).model_copy(update={"loop": loop})
    asked = _opened(wanted, tmp_path / "loop", QUIET).train[0].prompt
    assert asked[0].content.startswith("number")


def test_a_loop_that_was_stopped_goes_on_to_the_same_end(tmp_path: Path):
    whole = rlhf(made(tmp_path, rounds=1), way=QUIET, out=tmp_path / "whole")
    left = [False, True]
    stopping = Way(lambda event: None, lambda: left.pop(0) if left else True, offline=True)
    with pytest.raises(Interrupted):
        rlhf(made(tmp_path, rounds=1), way=stopping, out=tmp_path / "cut")
    cut = rlhf(made(tmp_path, rounds=1), way=QUIET, out=tmp_path / "cut")
    assert cut.rounds[0].over_start == whole.rounds[0].over_start
    assert cut.rounds[0].rows == whole.rounds[0].rows


def test_a_last_judge_that_tells_nothing_apart_gives_no_verdict(tmp_path: Path):
    with pytest.raises(Refused, match=r"loop.final_judge: gives all 12 answers 0, so it tells nothing apart; name one"):
        rlhf(made(tmp_path, rounds=1, final_judge=f"{tmp_path}/rules.py:blind"), way=QUIET, out=tmp_path / "loop")


def test_another_last_judge_looks_at_what_is_there_and_nothing_is_judged_or_learned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = rlhf(made(tmp_path, rounds=1), way=QUIET, out=tmp_path / "loop")
    (tmp_path / "others.py").write_text("def brief(attempt):\n    return -sum(map(ord, attempt.text))\n")
    other = made(tmp_path, rounds=1, final_judge=f"{tmp_path}/others.py:brief")
    monkeypatch.setattr("tunesmith.workflows.judging.open_model", None)
    again = rlhf(other, way=QUIET, out=tmp_path / "loop")
    assert again.final_judge.endswith("others.py:brief")
    assert again.rounds[0].learned == first.rounds[0].learned
    assert again.rounds[0].over_start.words == first.rounds[0].over_start.words


@pytest.mark.parametrize("name", ["Ana", "Rule (simulated)"])
def test_pairs_wait_for_people_and_the_page_that_is_named_is_on_the_very_same(name: str, tmp_path: Path):
    wanted = made(tmp_path, {"kind": "preference", "instruction": "Answer:"}, judge="page", rounds=1)
    with pytest.raises(Refused, match="0 of [0-9]+ pairs are judged") as waiting:
        rlhf(wanted, way=QUIET, out=tmp_path / "loop")
    words = shlex.split(str(waiting.value).split("`")[1])
    named = dict(zip(words[3::2], words[4::2], strict=True))
    drawn = Sampling(
        int(named["--max-new-tokens"]),
        float(named["--temperature"]),
        float(named["--top-p"]),
        seed=int(named["--seed"]),
    )
    wish = Wish(
        words[2],
        prompts=named["--prompts"],
        column=named["--column"],  # a row may have others that look like what is asked
        rows=0,
        store=Path(named["--store"]),
        sampling=drawn,
        offline=True,
    )
    panel = open_panel(wish, told=lambda text: pytest.fail(f"nothing is answered again: {text}"))
    who = Who(name, "tab-aaaa")
    while (key := panel.turns.next(who)) is not None:
        panel.vote(who, key, Said("left"))
    panel.store.close()
    found = rlhf(wanted, way=QUIET, out=tmp_path / "loop")
    assert found.simulated is ("simulated" in name)
    assert [rater.rater for rater in found.rounds[0].votes.raters] == [name]


@pytest.mark.parametrize(
    ("objective", "loop", "said"),
    [
        ("instruct", {}, "objective instruct: learns nothing from judgements"),
        ({"kind": "rl", "reward": "rules:short"}, {}, "write reward: votes"),
        ("preference", {"final_judge": ""}, "loop.final_judge is missing"),
        ("preference", {"judge": "json:loads", "final_judge": "json:loads"}, "trains the policy; name another"),
        ("preference", {"judge": "json:nothing"}, "loop.judge: json has no function 'nothing'"),
        ("preference", {"prompts": 40}, "for 80; give more rows"),
    ],
)
def test_a_loop_that_cannot_work_is_refused_at_the_door(
    objective: Any, loop: dict[str, Any], said: str, tmp_path: Path
):
    with pytest.raises(RecipeError, match=said):
        rlhf(made(tmp_path, objective, **loop), way=QUIET, out=tmp_path / "loop")
    assert not (tmp_path / "loop").exists()
