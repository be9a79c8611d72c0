"""Judging in a loop: pairs of completions for raters or a simulating rule, and the final comparison with the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.annotation.items import TIE, cut_off, prompt_key
from tunesmith.annotation.pair_judging import LEFT, RIGHT, PageChoice, PairSession
from tunesmith.annotation.vote_store import Who
from tunesmith.data.examples.prompts import Completion, RLPrompt, Scorer
from tunesmith.data.files import command_line
from tunesmith.errors import Refused
from tunesmith.inference.open_model import open_model
from tunesmith.metrics.resampling import groups_of
from tunesmith.metrics.win_rate import WinRate, win_rate
from tunesmith.models.generation.sampling import Sampling
from tunesmith.objectives import Instruct
from tunesmith.pipelines.requests import FeedbackRequest

# The browser tab that a vote names, for votes of a rule.
TAB = "rule"


@dataclass(frozen=True, slots=True)
class Replies:
    """Greedy completions of held-out prompts, and which of them reached their end token."""

    texts: list[str]
    finished: list[bool]


def judge_by_rule(session: PairSession, prompts: Sequence[RLPrompt], score: Scorer, *, rater: str) -> None:
    """Vote on every pair without a vote: the completion with the higher score wins, equal scores are a tie.

    Votes are cast as raters cast them; the name of the rater shows that it is a simulation.
    """
    who = Who(rater, TAB)
    prompt_of = {prompt_key(prompt.prompt): prompt for prompt in prompts}
    truncated = cut_off(session.store.since())
    while (key := session.assignment.next(who)) is not None:
        item = session.item(key)
        texts = [item.answers[index] for index in session.shown(key, who.rater)]
        prompt = prompt_key(item.messages)
        left, right = score([Completion(prompt_of[prompt], text, (prompt, text) not in truncated) for text in texts])
        session.vote(who, key, PageChoice(TIE if left == right else LEFT if left > right else RIGHT))


def require_votes(session: PairSession, request: FeedbackRequest) -> None:
    """Raise Refused, with the command that opens the page, unless every pair has a vote."""
    progress = session.progress()
    if progress.judged == progress.items:
        return
    sampling = request.sampling
    words = [
        "tunesmith", "feedback", request.model, "--prompts", request.prompts, "--column", request.column, "--rows", "0",
        "--max-tokens", str(request.limit),
        "--store", str(request.store),
        "--temperature", str(sampling.temperature), "--top-p", str(sampling.top_p),
        "--max-new-tokens", str(sampling.max_new_tokens), "--seed", str(sampling.seed),
        "--as-written",
    ]  # fmt: skip
    refused = Refused(
        f"{request.store}: {progress.judged} of {progress.items} pairs are judged; judge the others with "
        f"`{command_line(words)}`, then run the same command again"
    )
    refused.command = words
    raise refused


def replies_of(name: str, prompts: Sequence[RLPrompt], *, longest: int, limit: int) -> Replies:
    """Generate greedy completions of at most `longest` tokens for prompts that are used unchanged."""
    model = open_model(name, objective=Instruct(max_new_tokens=longest), offline=True, limit=limit)
    replies = model.replies([prompt.prompt for prompt in prompts], sampling=Sampling(max_new_tokens=longest))
    return Replies([reply.text for reply in replies], [reply.finished for reply in replies])


def win_rate_over_base(base: Replies, tuned: Replies, prompts: Sequence[RLPrompt], score: Scorer) -> WinRate:
    """Compute how often the final judge, which trains nothing, prefers the completions of the tuned model.

    Raises Refused if it gives all completions of both models the same score.
    """
    base_scores, tuned_scores = (
        score([Completion(*fields) for fields in zip(prompts, replies.texts, replies.finished, strict=True)])
        for replies in (base, tuned)
    )
    if len({*base_scores, *tuned_scores}) == 1 and base.texts != tuned.texts:
        raise Refused(
            f"loop.final_judge: gives all {2 * len(prompts)} completions the score {base_scores[0]:g}; name a judge "
            "that distinguishes them and run the command again, which keeps all votes and models"
        )
    outcomes = [0.5 if a == b else float(b > a) for a, b in zip(base_scores, tuned_scores, strict=True)]
    return win_rate(outcomes, (base.texts, tuned.texts), groups=groups_of(prompts))


def as_rows(prompts: Sequence[RLPrompt]) -> list[dict[str, object]]:
    """Return the prompts as rows of a file: whole chats, with the other columns of their rows."""
    return [
        {**prompt.row, "messages": [{"role": turn.role, "content": turn.content} for turn in prompt.messages]}
        for prompt in prompts
    ]
