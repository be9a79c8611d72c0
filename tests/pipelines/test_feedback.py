"""From a model and prompts to pairs, and from votes to rows and back."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.bases import folder
from tests.web.judged import give_answers, write_prompts
from tunesmith.annotation.assignment import Overlap
from tunesmith.annotation.import_export import export_votes, import_votes, read_events, summarise_votes
from tunesmith.annotation.items import FIRST, read_items
from tunesmith.annotation.pair_judging import GOLD_EVERY, WHAT, PageChoice, PairSession
from tunesmith.annotation.vote_store import Entry, VoteStore, Who
from tunesmith.errors import DataError, Refused, TunesmithError
from tunesmith.models.generation.sampling import Sampling
from tunesmith.pipelines import feedback
from tunesmith.pipelines import feedback as ahead
from tunesmith.pipelines.feedback import open_panel
from tunesmith.pipelines.requests import FeedbackRequest
from tunesmith.pipelines.rlhf.judge import require_votes

ANA, BO = Who("Ana", "tab-aaaa"), Who("Bo", "tab-bbbb")
DRAWN = Sampling(max_new_tokens=6, temperature=1.0)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture
def wish(tmp_path: Path) -> FeedbackRequest:
    """Twenty prompts with answers that are there already."""
    prompts = write_prompts(tmp_path / "prompts.jsonl", 20)
    wish = FeedbackRequest(
        str(folder("llama")), prompts=str(prompts), store=tmp_path / "votes.db", sampling=DRAWN, offline=True
    )
    give_answers(wish, [[f"short {n}" for n in range(20)], [f"a longer answer {n}" for n in range(20)]])
    return wish


def opened(wish: FeedbackRequest, **changes: Any) -> PairSession:
    values = {name: getattr(wish, name) for name in wish.__slots__} | changes
    return open_panel(FeedbackRequest(**values), log=lambda line: None)


def judge_all(work: PairSession, who: Who, choice: str = "left", most: int = 1000) -> list[str]:
    """Keys in the order in which a person got them, all with one choice."""
    got = list[str]()
    while len(got) < most and (key := work.assignment.next(who)) is not None:
        got.append(key)
        work.vote(who, key, PageChoice(choice))
    return got


def test_answers_are_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prompts = write_prompts(tmp_path / "prompts.jsonl", 5)
    wish = FeedbackRequest(
        str(folder("llama")), prompts=str(prompts), store=tmp_path / "v.db", sampling=DRAWN, offline=True
    )
    monkeypatch.setattr(ahead, "BATCH_SIZE", 2)
    batches = list[int]()
    real = ahead.open_model

    def counting(*args: Any, **more: Any) -> Any:
        model = real(*args, **more)
        replies = model.replies

        class Counted:
            def replies(self, batch: Any, **more: Any) -> Any:
                batches.append(len(batch))
                if len(batches) == 2:
                    raise KeyboardInterrupt
                return replies(batch, **more)

        return Counted()

    monkeypatch.setattr(ahead, "open_model", counting)
    with pytest.raises(KeyboardInterrupt):
        opened(wish)
    first = opened(wish)
    # Two of five were on disk when it stopped; the other side is drawn by another chance.
    assert batches == [2, 2, 2, 1, 2, 2, 1]
    again = opened(wish)
    assert len(batches) == 7
    assert first.items == again.items
    assert all(one.answers[0] != one.answers[1] for one in first.items.values())


def test_the_sides_are_drawn_by_person_and_kept(wish: FeedbackRequest):
    work = opened(wish)
    shown = {who: [work.shown(key, who) for key in work.items] for who in ("Ana", "Bo")}
    assert shown["Ana"] == [opened(wish).shown(key, "Ana") for key in work.items]
    assert shown["Ana"] != shown["Bo"]
    assert 4 <= shown["Ana"].count((0, 1)) <= 16


def test_left_and_right_are_the_answers_that_stood_there(wish: FeedbackRequest):
    work = opened(wish)
    judge_all(work, ANA, "left")
    for vote in work.assignment.votes.standing():
        left = work.shown(vote.item, "Ana")[0]
        assert (vote.body["label"] == FIRST) is (left == 0)
        assert vote.body["left"] == left


def test_overlap_gives_each_pair_to_two_people_in_any_tabs_and_without_it_to_one(wish: FeedbackRequest):
    alone = opened(wish)
    assert alone.assignment.next(ANA) != alone.assignment.next(BO)
    both = opened(wish, overlap=Overlap(1.0, 2))
    first = sorted(judge_all(both, ANA))
    assert (both.progress().judged, both.progress().votes, both.progress().wanted) == (20, 20, 40)
    assert first == sorted(judge_all(both, BO))
    assert both.progress().votes == 40
    assert both.progress().agreement.items == 20


def test_a_tab_that_slept_does_not_add_a_second_vote_to_a_pair_of_one(wish: FeedbackRequest):
    work = opened(wish)
    key = work.assignment.next(ANA)
    assert key is not None
    work.assignment.release(ANA)  # as if its ten minutes were over
    assert work.assignment.next(BO) == key
    work.vote(BO, key, PageChoice("left"))
    with pytest.raises(DataError, match="this item already has enough votes of other raters"):
        work.vote(ANA, key, PageChoice("right"))
    assert list(work.assignment.votes.on(key)) == ["Bo"]
    work.vote(BO, key, PageChoice("tie"))  # whoever judged it may think again
    work.vote(ANA, key, PageChoice("own", "what nobody should have to write twice"))
    assert list(work.assignment.votes.on(key)) == ["Bo", "Ana"]


def test_a_vote_that_is_sent_again_because_its_answer_was_lost_is_one_vote(wish: FeedbackRequest):
    work = opened(wish)
    key = work.assignment.next(ANA)
    assert key is not None
    for seconds in (1.0, 3.0):
        work.vote(ANA, key, PageChoice("left", took={"seconds": seconds}))
    assert work.assignment.undo(ANA) == key
    assert work.assignment.votes.on(key) == {}


def test_a_pair_that_another_process_judged_just_now_is_not_given_out(
    wish: FeedbackRequest, monkeypatch: pytest.MonkeyPatch
):
    here, there = opened(wish), opened(wish)
    lease, taken = VoteStore.lease, list[str | None]()

    def late(store: VoteStore, key: str, who: Who, **more: Any) -> bool:
        if who == ANA and not taken:
            taken.append(there.assignment.next(BO))
            there.vote(BO, key, PageChoice("left"))
        return lease(store, key, who, **more)

    monkeypatch.setattr(VoteStore, "lease", late)
    got = here.assignment.next(ANA)
    assert None not in (got, *taken)
    assert got not in taken


def test_a_pair_that_an_undo_brought_back_may_be_judged_again_whoever_did_so_meanwhile(wish: FeedbackRequest):
    work = opened(wish)
    key = work.assignment.next(ANA)
    assert key is not None
    work.vote(BO, key, PageChoice("left"))
    work.vote(ANA, key, PageChoice("own", "written for long"))
    work.assignment.undo(BO)
    work.vote(BO, key, PageChoice("right"))
    assert set(work.assignment.votes.on(key)) == {"Ana", "Bo"}


def test_a_planted_pair_is_shown_to_several_people_at_once_and_a_mended_one_is_the_one_that_counts(
    wish: FeedbackRequest, tmp_path: Path
):
    row = {"prompt": "G", "chosen": "yes", "rejected": "no"}
    gold = write(tmp_path / "gold.jsonl", [row])
    work = opened(wish, gold=gold, overlap=Overlap(1.0, 2))
    for who in (ANA, BO):
        judge_all(work, who, most=GOLD_EVERY - 1)
    (one, two) = (work.assignment.next(who) for who in (ANA, BO))
    assert one == two
    assert work.items[str(one)].gold
    before = work.items[str(one)].gold
    write(tmp_path / "gold.jsonl", [{**row, "chosen": "no", "rejected": "yes"}])
    opened(wish, gold=gold)
    assert read_items(work.store.since())[str(one)].gold not in ("", before)


def test_a_file_read_again_does_not_overrule_who_thought_again(wish: FeedbackRequest, tmp_path: Path):
    work = opened(wish)
    key = work.assignment.next(ANA)
    assert key is not None
    work.vote(ANA, key, PageChoice("left"))
    out = tmp_path / "out.jsonl"
    export_votes(work.store.path, out)
    other = tmp_path / "other.db"
    import_votes(other, str(out))
    (kept,) = read_items(read_events(other)).values()
    store = VoteStore(other, what=WHAT)
    store.append(Entry("Ana", "vote", kept.key, {"label": "bad"}))
    store.close()
    assert import_votes(other, str(out)).votes == 0


def test_votes_on_pairs_and_on_single_answers_are_not_written_as_one_format(tmp_path: Path):
    rows = [{"prompt": "p", "chosen": "x", "rejected": "y"}]
    import_votes(tmp_path / "new.db", write(tmp_path / "pairs.jsonl", rows))
    import_votes(
        tmp_path / "new.db", write(tmp_path / "thumbs.jsonl", [{"prompt": "p", "completion": "z", "label": True}])
    )
    with pytest.raises(Refused, match="pairs and on single answers; add --format pairs or thumbs"):
        export_votes(tmp_path / "new.db", tmp_path / "out.jsonl")
    assert export_votes(tmp_path / "new.db", tmp_path / "out.jsonl", format="pairs").rows == 1


def test_votes_on_planted_answers_and_names_that_no_file_can_hold_are_told_or_mended(
    wish: FeedbackRequest, tmp_path: Path
):
    row = {"prompt": "G", "chosen": "yes", "rejected": "no"}
    gold = write(tmp_path / "gold.jsonl", [row])
    opened(wish, gold=gold)
    held = {"prompt": "Prompt"}
    with pytest.raises(DataError, match="prompt is not one of|are a control item"):
        import_votes(tmp_path / "votes.db", gold)
    broken = write(tmp_path / "half.jsonl", [{**row, **held, "rater": "Ana \ud83d"}])
    import_votes(tmp_path / "new.db", broken)
    assert [one.rater for one in summarise_votes(tmp_path / "new.db").raters] == ["Ana ?"]


def test_planted_pairs_come_to_everybody_now_and_then_and_are_not_counted(wish: FeedbackRequest, tmp_path: Path):
    gold = write(tmp_path / "gold.jsonl", [{"prompt": f"G {n}", "chosen": "yes", "rejected": "no"} for n in range(2)])
    work = opened(wish, gold=gold, overlap=Overlap(1.0, 2))
    for who in (ANA, BO):
        got = judge_all(work, who)
        assert [n for n, key in enumerate(got) if work.items[key].gold] == [GOLD_EVERY - 1, 2 * GOLD_EVERY - 1]
    assert (work.progress().items, work.progress().judged) == (20, 20)
    found = summarise_votes(work.store.path)
    assert found.gold.items == 4
    assert export_votes(work.store.path, tmp_path / "out.jsonl").rows <= 20


@pytest.mark.parametrize(
    ("said", "word"),
    [(PageChoice("up"), "not a choice"), (PageChoice("first"), "not a choice"), (PageChoice("own", "  "), "empty"),
     (PageChoice("own", " short  3 "), "the same as one"), (PageChoice("own", "x" * 20_001), "at most")],
)  # fmt: skip
def test_what_cannot_be_said_is_refused_and_nothing_is_kept(wish: FeedbackRequest, said: PageChoice, word: str):
    work = opened(wish)
    key = next(key for key, one in work.items.items() if "short 3" in one.answers)
    with pytest.raises(DataError, match=word):
        work.vote(ANA, key, said)
    assert work.assignment.votes.standing() == []


def test_votes_go_out_as_rows_and_come_back_into_an_empty_store_as_the_same_rows(wish: FeedbackRequest, tmp_path: Path):
    work = opened(wish)
    judge_all(work, ANA, "left", most=9)
    judge_all(work, BO, "tie")
    out, again = tmp_path / "out.jsonl", tmp_path / "again.jsonl"
    done = export_votes(work.store.path, out)
    assert (done.rows, done.format, done.undecided) == (9, "pairs", 11)
    assert import_votes(tmp_path / "new.db", str(out)).votes == 9
    export_votes(tmp_path / "new.db", again)
    assert again.read_text() == out.read_text()
    # The same file once more adds nothing.
    more = import_votes(tmp_path / "new.db", str(out))
    assert (more.votes, more.items, more.known) == (0, 0, 9)


def test_nameless_rows_on_the_same_answers_are_one_person_each_and_a_second_import_adds_nothing(tmp_path: Path):
    row = {"prompt": "p", "chosen": "x", "rejected": "y"}
    file = write(tmp_path / "crowd.jsonl", [row, row, {"prompt": "p", "chosen": "y", "rejected": "x"}])
    done = import_votes(tmp_path / "new.db", file)
    assert (done.votes, done.items, done.known) == (3, 1, 0)
    assert [one.rater for one in summarise_votes(tmp_path / "new.db").raters] == [
        "crowd.jsonl", "crowd.jsonl #2", "crowd.jsonl #3"
    ]  # fmt: skip
    assert import_votes(tmp_path / "new.db", file).known == 3
    export_votes(tmp_path / "new.db", tmp_path / "out.jsonl")
    (kept,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (kept["chosen"], kept["raters"]) == ("x", ["crowd.jsonl", "crowd.jsonl #2"])


def test_a_person_who_says_two_things_of_the_same_answers_is_refused_with_both_lines(tmp_path: Path):
    rows = [{"prompt": "p", "chosen": a, "rejected": b, "rater": "Zoe"} for a, b in ("xy", "xz", "yx")]
    with pytest.raises(DataError, match=r"two.jsonl:3: Zoe judges the same answers differently at .*two.jsonl:1; "):
        import_votes(tmp_path / "new.db", write(tmp_path / "two.jsonl", rows))


def test_a_store_that_is_written_out_and_read_again_holds_the_same_votes(wish: FeedbackRequest, tmp_path: Path):
    work = opened(wish, overlap=Overlap(1.0, 2))
    judge_all(work, ANA, "left", most=5)
    for key in work.items:
        work.vote(BO, key, PageChoice("own", f"Bo on {key}"))
    out, again = tmp_path / "out.jsonl", tmp_path / "again.jsonl"
    assert export_votes(work.store.path, out).rows == 45
    assert import_votes(tmp_path / "new.db", str(out)).votes == 25
    assert export_votes(tmp_path / "new.db", again).rows == 45
    assert sorted(again.read_text().splitlines()) == sorted(out.read_text().splitlines())
    first, second = summarise_votes(work.store.path), summarise_votes(tmp_path / "new.db")
    assert (first.items, first.votes["own"]) == (second.items, second.votes["own"]) == (20, 20)
    assert [one.model for one in first.models] == [one.model for one in second.models]
    assert import_votes(tmp_path / "new.db", str(out)).votes == 0


def test_votes_on_other_prompts_are_refused_whole_and_nothing_is_lost(wish: FeedbackRequest, tmp_path: Path):
    work = opened(wish)
    judge_all(work, ANA, most=3)
    before = work.store.since()
    mixed = [{"prompt": f"Prompt {n}", "chosen": "x", "rejected": "y"} for n in (1, 2, 77)]
    with pytest.raises(DataError, match=r"mixed.jsonl:3: its prompt is not one of the 20"):
        import_votes(work.store.path, write(tmp_path / "mixed.jsonl", mixed))
    with pytest.raises(DataError, match="the same answer"):
        import_votes(
            work.store.path, write(tmp_path / "equal.jsonl", [{"prompt": "p", "chosen": "x", "rejected": "x"}])
        )
    with pytest.raises(DataError, match="20 of its 20 pairs are on prompts not in"):
        opened(wish, prompts=write(tmp_path / "others.jsonl", [{"prompt": "another"}]))
    assert work.store.since() == before
    # More prompts beside the same ones are no other set.
    longer = [*({"prompt": f"Prompt {n}"} for n in range(20)), {"prompt": "one more"}]
    assert len(opened(wish, prompts=write(tmp_path / "longer.jsonl", longer), rows=20).items) >= 1


def test_a_vote_on_a_prompt_whose_answers_came_out_equal_or_empty_is_taken(tmp_path: Path):
    prompts = write_prompts(tmp_path / "prompts.jsonl", 3)
    wish = FeedbackRequest(
        str(folder("llama")), prompts=str(prompts), store=tmp_path / "v.db", sampling=DRAWN, offline=True
    )
    give_answers(wish, [["same", "", "short"], ["same", "one", "long"]])
    assert len(opened(wish).items) == 1
    rows = [{"prompt": f"Prompt {n}", "chosen": "x", "rejected": "y"} for n in range(3)]
    done = import_votes(tmp_path / "v.db", write(tmp_path / "more.jsonl", rows))
    assert (done.votes, done.items) == (3, 3)
    with pytest.raises(DataError, match="its prompt is not one of the 3"):
        import_votes(tmp_path / "v.db", write(tmp_path / "other.jsonl", [{**rows[0], "prompt": "Another"}]))


def test_the_command_that_judges_the_rest_draws_by_the_very_same_numbers(wish: FeedbackRequest):
    drawn = replace(wish, sampling=replace(wish.sampling, temperature=0.7654321, top_p=0.1 + 0.2))
    with pytest.raises(Refused, match=r"--temperature 0.7654321 --top-p 0.30000000000000004 "):
        require_votes(opened(wish), drawn)


def test_a_vote_from_elsewhere_lands_on_the_pair_that_is_there(wish: FeedbackRequest, tmp_path: Path):
    work = opened(wish)
    row = {"prompt": "Prompt 3", "chosen": "a longer answer 3", "rejected": "short 3", "rater": "Zoe"}
    done = import_votes(work.store.path, write(tmp_path / "zoe.jsonl", [row]))
    assert (done.votes, done.items) == (1, 0)
    work.assignment.catch_up()
    assert work.progress().people == {"Zoe": 1}


def test_answers_of_a_model_that_was_tuned_again_are_not_mixed(wish: FeedbackRequest, monkeypatch: pytest.MonkeyPatch):
    opened(wish)
    monkeypatch.setattr(ahead, "sha256_of_file", lambda path: "other")
    with pytest.raises(DataError, match="before it was tuned again"):
        opened(wish)


def test_a_model_that_was_moved_or_is_spelled_otherwise_keeps_its_answers_and_votes(
    wish: FeedbackRequest, tmp_path: Path
):
    work = opened(wish)
    judge_all(work, ANA)
    shutil.copytree(wish.model, tmp_path / "moved")
    for model in (os.path.relpath(wish.model), str(tmp_path / "moved")):
        again = opened(wish, model=model)
        assert again.items.keys() == work.items.keys()
        assert again.progress().judged == 20


def test_a_model_that_was_moved_answers_what_is_open_itself_and_reads_as_much_as_it_is_told(
    wish: FeedbackRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    opened(wish)
    moved = shutil.copytree(wish.model, tmp_path / "moved")
    asked, real = list[tuple[str, Any]](), ahead.open_model

    def watching(name: str, **more: Any) -> Any:
        model = real(name, **more)
        model.limit = 512  # as a run has one of its own
        asked.append((name, model))
        return model

    monkeypatch.setattr(ahead, "open_model", watching)
    work = opened(wish, model=str(moved), rows=10, limit=100)
    assert {(name, model.limit) for name, model in asked} == {(str(moved), 100)}
    assert {name for item in work.items.values() for name in item.by} == {wish.model}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"thumbs": True, "against": "base"}, "omit one of them"),
        ({"against": "base"}, "a base model itself"),
        ({"prompts": ""}, "name prompts with --prompts"),
        ({"column": "nothing"}, "no column 'nothing'"),
        ({"overlap": Overlap(2.0)}, "expected a share"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_a_model_is_loaded(
    wish: FeedbackRequest, changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ahead, "open_model", None)
    with pytest.raises(TunesmithError, match=said):
        opened(wish, **changes)


def test_answers_that_are_all_the_same_leave_nothing_to_judge(tmp_path: Path):
    prompts = write_prompts(tmp_path / "p.jsonl", 2)
    wish = FeedbackRequest(
        str(folder("llama")), prompts=str(prompts), store=tmp_path / "v.db", sampling=DRAWN, offline=True
    )
    give_answers(wish, [["same", "same"], ["same", " same"]])
    told = list[str]()
    with pytest.raises(Refused, match="no prompt has two answers that differ"):
        open_panel(wish, log=told.append)
    assert told == ["2 of 2 prompts left out because both answers are the same"]


def test_an_export_of_nothing_is_refused_and_thumbs_come_from_pairs_too(wish: FeedbackRequest, tmp_path: Path):
    work = opened(wish)
    with pytest.raises(Refused, match="no vote makes a row"):
        export_votes(work.store.path, tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="no such file"):
        summarise_votes(tmp_path / "nothing.db")
    judge_all(work, ANA, "left", most=2)
    assert export_votes(work.store.path, tmp_path / "out.jsonl", format="thumbs").rows == 4
    with pytest.raises(Refused, match="no vote"):
        export_votes(work.store.path, tmp_path / "none.jsonl", without=["Ana"])


def test_prompts_with_tools_say_that_votes_do_not_keep_them(wish: FeedbackRequest, monkeypatch: pytest.MonkeyPatch):
    """Only a run's own test rows hold tools."""
    known = feedback._prompts
    tools = json.dumps([{"type": "function", "function": {"name": "look", "parameters": {}}}])

    def with_tools(*args: Any) -> Any:
        return {key: (replace(turns[0], tools=tools), *turns[1:]) for key, turns in known(*args).items()}

    told: list[str] = []
    monkeypatch.setattr(feedback, "_prompts", with_tools)
    open_panel(wish, log=told.append)
    assert any("the prompts declare tools, which votes do not store" in line for line in told)
