"""The judging in a loop: pairs of answers for people to judge, or a rule that stands in for them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.annotation.items import TIE, cut_off, prompt_key
from tunesmith.annotation.pair_judging import LEFT, RIGHT, PageChoice, PairSession
from tunesmith.annotation.vote_store import Who
from tunesmith.data.examples.prompts import Completion, RLPrompt, Scorer
from tunesmith.errors import Refused
from tunesmith.inference.open_model import open_model
from tunesmith.metrics.resampling import groups_of
from tunesmith.metrics.win_rate import WinRate, win_rate
from tunesmith.models.generation.sampling import Sampling
from tunesmith.objectives import Instruct
from tunesmith.pipelines.feedback import FeedbackRequest

TAB = "rule"


@dataclass(frozen=True, slots=True)
class Replies:
    """A model's greedy answers to held-out prompts, and which of them ended by themselves."""

    texts: list[str]
    finished: list[bool]


def judge_by_rule(panel: PairSession, exercises: Sequence[RLPrompt], score: Scorer, *, rater: str) -> None:
    """A vote on every pair that has none: the answer with the higher score wins, equal scores are a tie.

    The votes go through the same door as people's, under a name that says that nobody cast them.
    """
    who, known = Who(rater, TAB), {prompt_key(one.prompt): one for one in exercises}
    cut = cut_off(panel.store.since())
    while (key := panel.assignment.next(who)) is not None:
        item, shown = panel.item(key), panel.shown(key, who.rater)
        prompt, texts = prompt_key(item.messages), [item.answers[place] for place in shown]
        left, right = score([Completion(known[prompt], text, (prompt, text) not in cut) for text in texts])
        panel.vote(who, key, PageChoice(TIE if left == right else LEFT if left > right else RIGHT))


def need_judged(panel: PairSession, request: FeedbackRequest) -> None:
    """Nothing where every pair has a vote. Raises Refused with the command that opens the page for the rest."""
    progress = panel.progress()
    if progress.judged == progress.items:
        return
    drawn = request.sampling
    words = [
        "tunesmith", "feedback", request.model, "--prompts", request.prompts, "--column", request.column, "--rows", "0",
        "--max-tokens", str(request.limit),
        "--store", str(request.store),
        "--temperature", str(drawn.temperature), "--top-p", str(drawn.top_p),
        "--max-new-tokens", str(drawn.max_new_tokens), "--seed", str(drawn.seed),
        "--as-written",
    ]  # fmt: skip
    raise Refused(
        f"{request.store}: {progress.judged} of {progress.items} pairs are judged; judge the others with "
        f"`{shlex.join(words)}`, then run the same command again"
    )


def replies_of(name: str, exercises: Sequence[RLPrompt], *, longest: int, limit: int) -> Replies:
    """What a run or a base answers, greedily and as it is asked."""
    model = open_model(name, objective=Instruct(max_new_tokens=longest), offline=True, limit=limit)
    found = model.replies([one.prompt for one in exercises], sampling=Sampling(max_new_tokens=longest))
    return Replies([reply.text for reply in found], [reply.finished for reply in found])


def over(start: Replies, own: Replies, exercises: Sequence[RLPrompt], score: Scorer) -> WinRate:
    """How often a judge that trained nothing scores the one side's answers above the start's.

    Raises Refused for a judge that finds all answers of both sides equal.
    """
    sides = [
        score([Completion(*each) for each in zip(exercises, side.texts, side.finished, strict=True)])
        for side in (start, own)
    ]
    if len({*sides[0], *sides[1]}) == 1 and start.texts != own.texts:
        raise Refused(
            f"loop.final_judge: gives all {2 * len(exercises)} answers {sides[0][0]:g}, so it tells nothing apart; "
            "name one that does and run it again; what was judged and learned is kept"
        )
    outcomes = [0.5 if a == b else float(b > a) for a, b in zip(*sides, strict=True)]
    return win_rate(outcomes, (start.texts, own.texts), groups=groups_of(exercises))


def as_rows(exercises: Sequence[RLPrompt]) -> list[dict[str, object]]:
    """The exercises as rows of a file: whole turns, and the row's answer where it has one."""
    rows = []
    for one in exercises:
        turns = [{"role": message.role, "content": message.content} for message in one.messages]
        rows.append({**one.row, "messages": turns})
    return rows
