"""The loop with people: answer, judge, learn, and so again; then the end beside the start."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.exercises import Exercise, Scorer
from tunesmith.data.files import write_whole
from tunesmith.errors import RecipeError
from tunesmith.model.device import choose_machine
from tunesmith.model.sampling import Sampling
from tunesmith.objectives import Preference, Reward, Rl
from tunesmith.recipe import PEOPLE, VOTES, Data, Loop, Recipe, Schedule, save_recipe
from tunesmith.report.rlhf import Learned, LoopReport, Round, page, verdict_of
from tunesmith.workflows.assemble import environment
from tunesmith.workflows.feedback import Wish, open_panel
from tunesmith.workflows.judging import Replies, as_rows, judge_by_rule, need_judged, over, replies_of
from tunesmith.workflows.prepare import Listener, read_data
from tunesmith.workflows.rewards import scorer
from tunesmith.workflows.run_folder import open_run
from tunesmith.workflows.tune import Run, tune_recipe
from tunesmith.workflows.votes import export_votes, summary_of

JSON, HTML = "rlhf.json", "rlhf.html"
# How a reward is learned from a few hundred votes.
BRIEF = Schedule(epochs=3, batch_rows=8)
START, REPLIES = "start.json", "replies.json"
SIMULATED = "simulated"  # what the name of a rater says who is no person


@dataclass(frozen=True, slots=True)
class Way:
    """How a loop is walked: what hears of it, what may stop it, whether the network may be used."""

    listen: Listener
    stop: Callable[[], bool] = lambda: False
    offline: bool = False


@dataclass(frozen=True, slots=True)
class _Loop:
    """A loop under way: its prompts, and who judges at its end."""

    recipe: Recipe
    folder: Path
    way: Way
    train: list[Exercise]
    test: list[Exercise]
    longest: int
    final: Scorer

    @property
    def settings(self) -> Loop:
        """The recipe's section about it."""
        return self.recipe.loop


def rlhf(recipe: Recipe, *, way: Way, out: Path | None = None) -> LoopReport:
    """Judge and learn as often as the recipe says; every step that is done is kept, and the same command goes on.

    Raises Refused with the command that opens the page while pairs wait for people, RecipeError for a recipe that
    learns nothing from judgements or names no judge for the end.
    """
    loop = _opened(recipe, out, way)
    kept = loop.folder / JSON
    if kept.exists():
        known = LoopReport.model_validate_json(kept.read_text(encoding="utf-8"))
        if known.final_judge == loop.settings.final_judge:
            return known
    start = _kept_replies(loop, recipe.model, loop.folder / START)
    rounds, model = list[Round](), recipe.model
    for number in range(1, loop.settings.rounds + 1):
        place = loop.folder / f"round-{number}"
        place.mkdir(exist_ok=True)
        _judged(loop, model, place, number)
        votes = _all_votes(loop, number)
        runs = _learned(loop, place)
        own = _kept_replies(loop, str(runs[-1].folder), place / REPLIES)
        rounds.append(
            Round(
                number=number,
                answered_by=model,
                votes=summary_of(place / "votes.db"),
                rows=votes,
                learned=[_told(run) for run in runs],
                over_start=over(start, own, loop.test, loop.final),
            )
        )
        model = str(runs[-1].folder)
    report = _report(loop, rounds)
    write_whole(loop.folder / HTML, page(report))
    write_whole(kept, report.model_dump_json(indent=1))
    return report


def ahead(recipe: Recipe, *, way: Way, out: Path | None = None) -> list[str]:
    """What the loop would do and has done, a line each; nothing is written. Raises what `rlhf` raises first."""
    loop, settings = _read(recipe, out, way), recipe.loop
    learns = "preference" if isinstance(recipe.objective, Preference) else f"a reward, then {recipe.objective.kind},"
    judge = "people judge on the page" if settings.judge == PEOPLE else f"{settings.judge} judges, a simulation"
    lines = [f"{len(loop.train)} prompts to train on, {len(loop.test)} held out"]
    for number in range(1, settings.rounds + 1):
        place = loop.folder / f"round-{number}"
        state = "done" if (place / REPLIES).exists() else "begun" if place.exists() else ""
        step = (
            f"round {number} of {settings.rounds}: {settings.prompts} prompts answered twice, {judge}, {learns} learns"
        )
        lines.append(f"{step} ({state})" if state else step)
    return [
        *lines,
        f"end: {len(loop.test)} held-out prompts answered by start and end, judged by {settings.final_judge}",
        f"folder: {loop.folder}",
    ]


def _opened(recipe: Recipe, out: Path | None, way: Way) -> _Loop:
    """The loop with its folder begun."""
    loop = _read(recipe, out, way)
    open_run(recipe, loop.folder).begin({})
    save_recipe(recipe, loop.folder / "recipe.yaml")
    return loop


def _read(recipe: Recipe, out: Path | None, way: Way) -> _Loop:
    """The loop's prompts and place; all that can be refused is refused here, and nothing is written."""
    objective, settings = recipe.objective, recipe.loop
    if not isinstance(objective, Preference | Rl):
        cure = "use objective: preference, or objective: {kind: rl, reward: votes}"
        raise RecipeError(f"objective {objective.kind}: learns nothing from judgements of answers; {cure}")
    if isinstance(objective, Rl) and VOTES not in _named(objective):
        raise RecipeError(
            "objective.reward: a loop learns its reward from the votes; write reward: votes, or weigh it in"
        )
    if settings.judge == settings.final_judge:
        raise RecipeError("loop.final_judge: judges the rounds too, and so trains the policy; name another")
    final = scorer(settings.final_judge, key="loop.final_judge")
    if settings.judge != PEOPLE:
        scorer(settings.judge, key="loop.judge")
    folder = open_run(recipe, out or Path("loops") / open_run(recipe, None).path.name)
    asks = {"prompt", "instruction", "max_new_tokens"}  # an answer in a row of preference is one that was judged
    reader = Rl(**objective.model_dump(include=asks | {"answer", "messages"} if isinstance(objective, Rl) else asks))
    split = read_data(recipe.model_copy(update={"objective": reader}), offline=way.offline).split
    train, test = ([e for e in part if isinstance(e, Exercise)] for part in (split.train, split.test))
    wanted, there = settings.prompts * settings.rounds, len(train)
    if there < wanted or not test:
        cure = "give more rows, or lower loop.rounds or loop.prompts"
        raise RecipeError(
            f"{recipe.data.train}: {there} prompts to train on and {len(test)} held out for {wanted}; {cure}"
        )
    longest = reader.bind(train, "decoder").max_new_tokens
    return _Loop(recipe, folder.path, way, train, test[: settings.held_out], longest, final)


def _named(objective: Rl) -> dict[str, float]:
    return {objective.reward: 1.0} if isinstance(objective.reward, str) else objective.reward


def _judged(loop: _Loop, model: str, place: Path, number: int) -> None:
    """The round's prompts answered twice by the policy, and every pair judged."""
    settings, way = loop.settings, loop.way
    some = loop.train[(number - 1) * settings.prompts : number * settings.prompts]
    prompts = place / "prompts.jsonl"
    _write(prompts, as_rows(some))
    way.listen({"event": "stage", "text": f"round {number}: {model} answers {len(some)} prompts twice"})
    sampling = Sampling(loop.longest, settings.temperature, seed=loop.recipe.seed + 2 * number)
    wish = Wish(
        model,
        prompts=str(prompts),
        column="messages",
        rows=0,
        store=place / "votes.db",
        sampling=sampling,
        offline=way.offline,
    )
    panel = open_panel(wish, told=lambda text: way.listen({"event": "note", "text": text}))
    try:
        if settings.judge != PEOPLE:
            score = scorer(settings.judge, key="loop.judge")
            judge_by_rule(panel, some, score, rater=f"{SIMULATED}: {settings.judge}")
        need_judged(panel, wish)
    finally:
        panel.store.close()


def _all_votes(loop: _Loop, number: int) -> int:
    """All judgements so far as rows of the preference objective, in the round's folder; how many there are."""
    lines = list[str]()
    for one in range(1, number + 1):
        place = loop.folder / f"round-{one}"
        export_votes(place / "votes.db", place / "own.jsonl", format="pairs")
        lines += (place / "own.jsonl").read_text(encoding="utf-8").splitlines()
    write_whole(loop.folder / f"round-{number}" / "votes.jsonl", "".join(f"{line}\n" for line in lines))
    return len(lines)


def _learned(loop: _Loop, place: Path) -> list[Run]:
    """The round's runs, the policy last: from the untuned model on, by all judgements so far."""
    recipe, objective = loop.recipe, loop.recipe.objective
    votes = recipe.model_copy(
        update={
            "data": Data(train=str(place / "votes.jsonl"), audit="note", max_tokens=recipe.data.max_tokens),
            "loop": Loop(),
        }
    )
    if isinstance(objective, Preference):
        plain = objective.model_copy(update={"prompt": "", "instruction": "", "max_new_tokens": loop.longest})
        return [_tuned(loop, votes.model_copy(update={"objective": plain}), place / "policy")]
    assert isinstance(objective, Rl)
    judge = _tuned(loop, votes.model_copy(update={"objective": Reward(), "schedule": BRIEF}), place / "reward")
    for name, part in (("train.jsonl", loop.train), ("test.jsonl", loop.test)):
        _write(place / name, as_rows(part))
    sources = {str(judge.folder) if name == VOTES else name: weight for name, weight in _named(objective).items()}
    plain_rl = objective.model_copy(
        update={
            "prompt": "",
            "answer": "",
            "instruction": "",
            "messages": "messages",
            "reward": sources,
            "max_new_tokens": loop.longest,
        }
    )
    data = recipe.data.model_copy(
        update={
            "train": str(place / "train.jsonl"),
            "test": str(place / "test.jsonl"),
            "group": "",
            "where": {},
            "audit": "note",
        }
    )
    practice = recipe.model_copy(update={"objective": plain_rl, "data": data, "loop": Loop()})
    return [judge, _tuned(loop, practice, place / "policy")]


def _tuned(loop: _Loop, recipe: Recipe, out: Path) -> Run:
    """A finished run of the loop, gone on with where it stopped."""
    way = loop.way
    way.listen({"event": "stage", "text": f"{out}: {recipe.objective.kind}"})
    return tune_recipe(recipe, out=out, listen=way.listen, stop=way.stop, offline=way.offline)


def _told(run: Run) -> Learned:
    report = run.report
    kept = report.retention
    cost = kept.general_nll_tuned - kept.general_nll_base if kept else None
    return Learned(
        objective=report.objective, folder=str(run.folder), task=report.task, general_nats=cost, alarms=report.alarms
    )


def _kept_replies(loop: _Loop, name: str, kept: Path) -> Replies:
    """A model's answers to the held-out prompts, made once."""
    if kept.exists():
        return Replies(**json.loads(kept.read_text(encoding="utf-8")))
    loop.way.listen({"event": "stage", "text": f"{name} answers {len(loop.test)} held-out prompts"})
    found = replies_of(name, loop.test, longest=loop.longest, limit=loop.recipe.data.max_tokens)
    write_whole(kept, json.dumps(asdict(found)))
    return found


def _report(loop: _Loop, rounds: list[Round]) -> LoopReport:
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


def _write(path: Path, rows: Sequence[Any]) -> None:
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
