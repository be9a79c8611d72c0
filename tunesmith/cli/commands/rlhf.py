"""`tunesmith rlhf`: the model answers, people judge, the model learns, people judge again."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tunesmith.cli.commands.tune import verdict
from tunesmith.cli.options import add_changes, add_common, add_schema, changes_of
from tunesmith.cli.progress import work
from tunesmith.cli.terminal import emit, hush, log, show, show_table
from tunesmith.report.formatting import bounds, figure, metric_name, p_value, share, signed

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.config import Recipe
    from tunesmith.metrics.win_rate import WinRate
    from tunesmith.pipelines.rlhf.report import LoopPlan, LoopReport


def add(commands: Commands) -> None:
    """Add `rlhf`."""
    parser = commands.add_parser(
        "rlhf",
        help="the loop with people: answer, judge, learn, judge again",
        description="Let a model answer prompts twice, have the pairs judged, learn from all judgements so far by "
        "preference or by a reward and rl, as often as the recipe says, and judge the end against the start. While "
        "pairs wait for people it says how to open the page, and the same command goes on where it was left.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="recipe.yaml with a section `loop`, whose rows hold prompts")
    add_changes(parser)
    add_common(parser, out="folder of the loop (default: loops/NAME)")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done and what is done, and stop")
    add_schema(parser, _schema)
    parser.set_defaults(run=run)


def _schema() -> str:
    from tunesmith.pipelines.rlhf.report import schema

    return schema()


def run(args: argparse.Namespace) -> int:
    """Walk the loop as far as it goes."""
    from tunesmith.config import load_recipe

    recipe, notes = load_recipe(args.recipe, changes=changes_of(args))
    for note in notes:
        log(note)
    if args.dry_run:
        return _dry_run(recipe, args)
    found = _walk(recipe, args)
    if args.json:
        emit(found.model_dump(mode="json"))
    else:
        _show(found)
    return verdict(found.folder, found.broken_gates)


def _dry_run(recipe: Recipe, args: argparse.Namespace) -> int:
    """The steps of the loop, nothing written."""
    from tunesmith.pipelines.rlhf.setup import plan_loop

    found = plan_loop(recipe, out=args.out, offline=args.offline)
    if args.json:
        emit(found.model_dump(mode="json"))
    else:
        for line in _steps(recipe, found):
            show(line)
    return 0


def _steps(recipe: Recipe, found: LoopPlan) -> Iterator[str]:
    """The steps in words, those done and begun marked."""
    loop, kind = recipe.loop, recipe.objective.kind
    learns = "a reward learns from the votes, then rl from the reward" if kind == "rl" else f"{kind} learns"
    judges = "people judge on the page" if loop.judge == "page" else f"{loop.judge} judges, a simulation"
    yield f"{found.train} prompts to train on, {found.held_out} held out"
    for one in found.rounds:
        step = f"round {one.number} of {loop.rounds}: {loop.prompts} prompts answered twice; {judges}; {learns}"
        yield step if one.state == "ahead" else f"{step} ({one.state})"
    end = f"end: start and end answer {found.held_out} held-out prompts; {loop.final_judge} judges"
    yield f"{end} (done)" if found.done else end
    yield f"folder: {found.folder}"


def _walk(recipe: Recipe, args: argparse.Namespace) -> LoopReport:
    """The loop, told as it goes; Ctrl-C ends it after a step, with everything kept."""
    from tunesmith.pipelines.rlhf.loop import rlhf

    hush()
    with work(kept="kept") as callbacks:
        return rlhf(recipe, callbacks=callbacks, out=args.out, offline=args.offline)


def _show(found: LoopReport) -> None:
    """The verdict, round by round, and where the rest lies."""
    show(found.verdict)
    show(f"judged by {'a simulation, ' if found.simulated else ''}{found.judge}; the end by {found.final_judge}")
    show()
    heads = ("round", "preferred>", "95 % interval", "at equal length>", "95 % interval", "p>", "votes learned from>")
    show_table(heads, [_line(one.number, one.over_start, one.rows) for one in found.rounds])
    for one in found.rounds:
        for learned in one.learned:
            task = learned.task
            gain = f"{figure(task.base)} to {figure(task.tuned)} ({signed(task.delta)}, {p_value(task.p_value)})"
            show(f"round {one.number}, {learned.objective}: {metric_name(task.metric)} {gain}; {learned.folder}")
            for alarm in learned.alarms:
                show(f"alarm: {alarm}")
    show(f"everything: {found.folder}")


def _line(number: int, won: WinRate, rows: int) -> tuple[str, ...]:
    """A round as a line of the table."""
    return (
        str(number),
        share(won.rate),
        bounds(won.ci95),
        share(won.controlled),
        bounds(won.controlled_ci95),
        p_value(won.p_value),
        str(rows),
    )
