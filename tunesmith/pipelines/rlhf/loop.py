"""The loop with people: answer, judge, learn, and so again; then the end beside the start."""

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
from tunesmith.inference.open_model import identify
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.loading.device import choose_machine
from tunesmith.pipelines.feedback import CompletionSource, FeedbackRequest, open_panel
from tunesmith.pipelines.rlhf.judge import Replies, as_rows, judge_by_rule, need_judged, over, replies_of
from tunesmith.pipelines.rlhf.learn import enough, learned, votes_so_far, write_rows
from tunesmith.pipelines.rlhf.report import LoopReport, Round, RoundRun, page, verdict_of
from tunesmith.pipelines.rlhf.setup import JSON, REPLIES, LoopState, read_loop, start_loop
from tunesmith.pipelines.tune.build_report import environment
from tunesmith.pipelines.tune.tune import Run
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.rewards import scorer
from tunesmith.training.run_folder import exclusive_lock

HTML, START = "rlhf.html", "start.json"
SIMULATED = "simulated"  # what the name of a rater says who is no person


def rlhf(recipe: Recipe, *, callbacks: Callbacks, out: Path | None = None, offline: bool = False) -> LoopReport:
    """Judge and learn as often as the recipe says; every step that is done is kept, and the same command goes on.

    Raises Refused with the command that opens the page while pairs wait for people, and where the votes of all rounds
    prefer too little to learn from; RecipeError for a recipe that learns nothing from judgements or names no judge for
    the end.
    """
    loop = read_loop(recipe, out, callbacks, offline=offline)
    if (known := loop.report()) is not None:
        return known
    with exclusive_lock(loop.folder):
        start_loop(loop)
        report = _report(loop, _rounds(loop))
        write_whole(loop.folder / HTML, page(report))
        write_whole(loop.folder / JSON, report.model_dump_json(indent=1))
    return report


def _rounds(loop: LoopState) -> list[Round]:
    """Every round, each answered by the policy of the one before."""
    rounds, model = list[Round](), loop.recipe.model
    start = own = _kept_replies(loop, model, loop.folder / START)
    for number in range(1, loop.settings.rounds + 1):
        place, asked = loop.round(number), model
        place.mkdir(exist_ok=True)
        _judged(loop, model, place, number)
        rows = votes_so_far(loop, number)
        runs = learned(loop, place) if enough(rows) else []
        if runs:
            model = str(runs[-1].folder)
            own = _kept_replies(loop, model, place / REPLIES)
        else:
            loop.callbacks.on_event(
                Note(f"round {number}: the votes so far make {len(rows)} rows, too few to learn from")
            )
        rounds.append(
            Round(
                number=number,
                answered_by=asked,
                votes=summarise_votes(loop.votes(number)),
                rows=len(rows),
                learned=[_told(run) for run in runs],
                over_start=over(start, own, loop.test, loop.final),
            )
        )
    if not rounds[-1].learned:
        raise Refused(f"{loop.folder}: {_too_few(loop, rounds)}")
    return rounds


def _too_few(loop: LoopState, rounds: list[Round]) -> str:
    """Why there was nothing to learn from, and what to do."""
    judge, judged = loop.settings.judge, sum(one.votes.judged for one in rounds)
    undecided = sum(
        preference_rows(one_store, PAIRS).undecided for one_store in map(loop.votes, range(1, len(rounds) + 1))
    )
    found = f"the votes of all rounds make {rounds[-1].rows} rows, too few to learn from"
    if judge != PEOPLE and undecided == judged:
        cure = "name one that does, or raise loop.temperature, and give another --out"
        return f"{found}: {judge} decided none of {judged} pairs; {cure}"
    cure = "raise loop.temperature and give another --out, or bring votes with `tunesmith votes import`"
    return f"{found}: {undecided} of {judged} judged pairs are undecided; {cure}"


def _judged(loop: LoopState, model: str, place: Path, number: int) -> None:
    """The round's prompts answered twice by the policy, and every pair judged."""
    settings = loop.settings
    some = loop.prompts["train"][(number - 1) * settings.prompts : number * settings.prompts]
    prompts = place / "prompts.jsonl"
    write_rows(prompts, as_rows(some))
    loop.callbacks.on_event(StageStarted(f"round {number}: {model} answers {len(some)} prompts twice"))
    sampling = Sampling(loop.longest, settings.temperature, seed=loop.recipe.seed + 2 * number)
    wish = FeedbackRequest(
        model,
        prompts=str(prompts),
        column="messages",
        rows=0,
        as_written=True,
        limit=loop.recipe.data.max_tokens,
        store=loop.votes(number),
        sampling=sampling,
        offline=loop.offline,
        warmer="loop.temperature",
        longer="objective.max_new_tokens",
    )
    panel = open_panel(wish, log=lambda text: loop.callbacks.on_event(Note(text)))
    try:
        if settings.judge != PEOPLE:
            score = scorer(settings.judge, key="loop.judge")
            judge_by_rule(panel, some, score, rater=f"{SIMULATED}: {settings.judge}")
        need_judged(panel, wish)
    finally:
        panel.store.close()


def _told(run: Run) -> RoundRun:
    report = run.report
    kept = report.retention
    cost = kept.general_nll_tuned - kept.general_nll_base if kept else None
    return RoundRun(
        objective=report.objective,
        folder=str(run.folder),
        task=report.task,
        general_nats=cost,
        alarms=report.warnings,
        broken_gates=tuple(report.broken_gates),
    )


def _kept_replies(loop: LoopState, name: str, kept: Path) -> Replies:
    """A model's answers to the held-out prompts, made once for these weights."""
    weights = CompletionSource(identify(name, offline=loop.offline), Sampling()).weights
    if kept.exists():
        held = read_page(kept, dict[str, Any])
        if held.pop("weights", weights) == weights:
            return Replies(**held)
    loop.callbacks.on_event(StageStarted(f"{name} answers {len(loop.test)} held-out prompts"))
    found = replies_of(name, loop.test, longest=loop.longest, limit=loop.recipe.data.max_tokens)
    write_whole(kept, json.dumps({"weights": weights, **asdict(found)}))
    return found


def _report(loop: LoopState, rounds: list[Round]) -> LoopReport:
    recipe, settings = loop.recipe, loop.settings
    wanted = recipe.machine
    machine = choose_machine(device=wanted.device, dtype=wanted.dtype, threads=wanted.threads)
    return LoopReport(
        name=loop.folder.name,
        folder=str(loop.folder),
        model=recipe.model,
        objective=recipe.objective.kind,
        technique=recipe.technique.kind,
        judge=settings.judge,
        simulated=any(SIMULATED in rater.rater.lower() for one in rounds for rater in one.votes.raters),
        final_judge=settings.final_judge,
        rounds=rounds,
        verdict=verdict_of(rounds),
        environment=environment(machine),
    )
