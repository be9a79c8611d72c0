"""The loop of `tunesmith rlhf`: sample, judge, train, repeat; then compare the last policy with the base model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.annotation.import_export import preference_rows, summarise_votes
from tunesmith.annotation.vote_rows import PAIRS
from tunesmith.config import PEOPLE, Recipe
from tunesmith.data.files import read_page, write_whole
from tunesmith.errors import Refused
from tunesmith.events import Note, StageStarted
from tunesmith.inference.identify import identify
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.loading.device import choose_machine
from tunesmith.pipelines.feedback import CompletionSource, open_panel
from tunesmith.pipelines.requests import FeedbackRequest
from tunesmith.pipelines.rlhf.judge import (
    Replies,
    as_rows,
    judge_by_rule,
    replies_of,
    require_votes,
    win_rate_over_base,
)
from tunesmith.pipelines.rlhf.learn import enough, train_round, votes_so_far, write_rows
from tunesmith.pipelines.rlhf.report import LoopReport, Round, RoundRun, page, verdict_of
from tunesmith.pipelines.rlhf.setup import JSON, REPLIES, LoopState, read_loop, start_loop
from tunesmith.pipelines.tune.build_report import environment
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.rewards import scorer
from tunesmith.training.run_folder import exclusive_lock

HTML = "rlhf.html"
BASE_REPLIES = "start.json"
# Part of the name of a rater that is not a person.
SIMULATED = "simulated"


def rlhf(recipe: Recipe, *, callbacks: Callbacks, out: Path | None = None, offline: bool = False) -> LoopReport:
    """Judge and train for as many rounds as the recipe states. Finished steps are kept; the same command resumes.

    Args:
        recipe: a recipe with a `preference` objective, or `rl` with the reward `votes`.
        callbacks: observe and stop the loop.
        out: folder of the loop; by default a new one in `loops`.
        offline: do not access the network.

    Raises:
        Refused: pairs wait for raters (with the command that opens the page), or all votes together are too few.
        RecipeError: the objective does not learn from votes, or there is no final judge.
    """
    loop = read_loop(recipe, out, callbacks, offline=offline)
    if (report := loop.report()) is not None:
        return report
    with exclusive_lock(loop.folder):
        start_loop(loop)
        rounds = _run_rounds(loop)
        machine = choose_machine(**recipe.machine.model_dump(include={"device", "dtype", "threads", "products"}))
        report = LoopReport(
            name=loop.folder.name,
            folder=str(loop.folder),
            model=recipe.model,
            objective=recipe.objective.kind,
            technique=recipe.technique.kind,
            judge=loop.settings.judge,
            simulated=any(SIMULATED in vote.rater.lower() for each in rounds for vote in each.votes.raters),
            final_judge=loop.settings.final_judge,
            rounds=rounds,
            verdict=verdict_of(rounds),
            environment=environment(machine),
        )
        write_whole(loop.folder / HTML, page(report))
        write_whole(loop.folder / JSON, report.model_dump_json(indent=1))
    return report


def _run_rounds(loop: LoopState) -> list[Round]:
    """Run every round; the policy of each round generates the completions of the next."""
    rounds, model = list[Round](), loop.recipe.model
    base = tuned = _held_out_replies(loop, model, loop.folder / BASE_REPLIES)
    for number in range(1, loop.settings.rounds + 1):
        folder, answered_by = loop.round(number), model
        folder.mkdir(exist_ok=True)
        _judge_round(loop, model, number)
        rows = votes_so_far(loop, number)
        runs = train_round(loop, folder) if enough(rows) else []
        if runs:
            model = str(runs[-1].folder)
            tuned = _held_out_replies(loop, model, folder / REPLIES)
        else:
            loop.callbacks.on_event(
                Note(f"round {number}: the votes so far make {len(rows)} rows, too few to learn from")
            )
        rounds.append(
            Round(
                number=number,
                answered_by=answered_by,
                votes=summarise_votes(loop.votes(number)),
                rows=len(rows),
                learned=[RoundRun.of(run.folder, run.report) for run in runs],
                over_start=win_rate_over_base(base, tuned, loop.test, loop.final),
            )
        )
    if not rounds[-1].learned:
        raise Refused(f"{loop.folder}: {too_few_votes(loop, rounds)}")
    return rounds


def too_few_votes(loop: LoopState, rounds: list[Round]) -> str:
    """Explain that the votes of all rounds are too few to learn from, and what to do."""
    judge, judged = loop.settings.judge, sum(each.votes.judged for each in rounds)
    undecided = sum(preference_rows(loop.votes(number), PAIRS).undecided for number in range(1, len(rounds) + 1))
    problem = f"the votes of all rounds make {rounds[-1].rows} rows, too few to learn from"
    if judge != PEOPLE and undecided == judged:
        fix = "name a judge that distinguishes completions, or raise loop.temperature, and give another --out"
        return f"{problem}: {judge} decided none of {judged} pairs; {fix}"
    fix = "raise loop.temperature and give another --out, or import votes with `tunesmith votes import`"
    return f"{problem}: {undecided} of {judged} judged pairs are undecided; {fix}"


def _judge_round(loop: LoopState, model: str, number: int) -> None:
    """Sample two completions of each prompt of the round and have every pair judged; raise Refused if raters must."""
    settings = loop.settings
    prompts = loop.prompts["train"][(number - 1) * settings.prompts : number * settings.prompts]
    file = loop.round(number) / "prompts.jsonl"
    write_rows(file, as_rows(prompts))
    loop.callbacks.on_event(StageStarted(f"round {number}: {model} answers {len(prompts)} prompts twice"))
    request = FeedbackRequest(
        model,
        prompts=str(file),
        column="messages",
        rows=0,
        as_written=True,
        limit=loop.recipe.data.max_tokens,
        store=loop.votes(number),
        sampling=Sampling(loop.longest, settings.temperature, seed=loop.recipe.seed + 2 * number),
        offline=loop.offline,
        warmer="loop.temperature",
        longer="objective.max_new_tokens",
    )
    session = open_panel(request, log=lambda text: loop.callbacks.on_event(Note(text)))
    try:
        if settings.judge != PEOPLE:
            rule = scorer(settings.judge, key="loop.judge")
            judge_by_rule(session, prompts, rule, rater=f"{SIMULATED}: {settings.judge}")
        require_votes(session, request)
    finally:
        session.store.close()


def _held_out_replies(loop: LoopState, name: str, path: Path) -> Replies:
    """Return a model's completions of the held-out prompts, generated once for these weights and kept in a file."""
    weights = CompletionSource(identify(name, offline=loop.offline), Sampling()).weights
    if path.exists():
        recorded = read_page(path, dict[str, Any])
        if recorded.pop("weights", weights) == weights:
            return Replies(**recorded)
    loop.callbacks.on_event(StageStarted(f"{name} answers {len(loop.test)} held-out prompts"))
    replies = replies_of(name, loop.test, longest=loop.longest, limit=loop.recipe.data.max_tokens)
    write_whole(path, json.dumps({"weights": weights, **asdict(replies)}))
    return replies
