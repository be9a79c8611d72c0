"""`tunesmith rlhf`: repeat generating answers, collecting judgements and training on them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tunesmith.cli.commands.tune import verdict
from tunesmith.cli.options import add_changes, add_common, add_schema, changes_of, naming_options
from tunesmith.cli.progress import work
from tunesmith.cli.terminal import emit, hush, log, show, show_table
from tunesmith.report.formatting import bounds, figure, metric_name, p_value, share, signed

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.config import Recipe
    from tunesmith.pipelines.rlhf.report import LoopPlan, LoopReport


def add(commands: Commands) -> None:
    """Add `rlhf`."""
    parser = commands.add_parser(
        "rlhf",
        help="alternate rating answers and training on the ratings",
        description="In each round, generate two answers per prompt, have the pairs judged, and train on all "
        "judgements so far: directly with `preference`, or with a reward model and `rl`. After the last round, judge "
        "the final model against the base model. While pairs wait for human raters, the command prints how to open "
        "the page and exits; the same command resumes.",
    )
    text = "recipe.yaml with a section `loop` and prompts as rows"
    parser.add_argument("recipe", metavar="RECIPE", help=text)
    add_changes(parser)
    add_common(parser, out="folder of the loop (default: loops/NAME)")
    parser.add_argument("--dry-run", action="store_true", help="print all steps with their state and exit")
    add_schema(parser, "tunesmith.pipelines.rlhf.report:LoopReport")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the loop until it ends or waits for raters."""
    from tunesmith.config import load_recipe
    from tunesmith.config.checks import check_model

    with naming_options(args):
        recipe, notes = load_recipe(args.recipe, changes=changes_of(args))
    for note in notes:
        log(note)
    check_model(recipe)
    from tunesmith.pipelines.rlhf.loop import rlhf  # after the checks, because it imports torch
    from tunesmith.pipelines.rlhf.setup import plan_loop

    if args.dry_run:
        plan = plan_loop(recipe, out=args.out, offline=args.offline)
        if args.json:
            emit(plan.model_dump(mode="json"))
        else:
            for line in _steps(recipe, plan):
                show(line)
        return 0
    hush()
    with work() as callbacks:
        report = rlhf(recipe, callbacks=callbacks, out=args.out, offline=args.offline)
    if args.json:
        emit(report.model_dump(mode="json"))
    else:
        _show(report)
    return verdict(report.folder, report.broken_gates)


def _steps(recipe: Recipe, plan: LoopPlan) -> Iterator[str]:
    """Yield the steps of the loop; those started or done are marked."""
    loop, objective = recipe.loop, recipe.objective
    train = f"{objective.kind} training"
    if objective.samples_completions:
        train = f"a reward model is trained on the votes, then {objective.kind} on the reward"
    judge = "human raters judge" if loop.judge == "page" else f"{loop.judge} judges (simulation)"
    marks = {"ahead": "", "begun": " (started)", "done": " (done)"}
    yield f"{plan.train} training prompts, {plan.held_out} held out"
    for item in plan.rounds:
        answers = f"{loop.prompts} prompts, two answers each"
        yield f"round {item.number} of {loop.rounds}: {answers}; {judge}; {train}{marks[item.state]}"
    final = f"base and final model answer {plan.held_out} held-out prompts; {loop.final_judge} judges"
    yield f"end: {final}{marks['done'] if plan.done else ''}"
    yield f"folder: {plan.folder}"


def _show(report: LoopReport) -> None:
    show(report.verdict)
    judge = f"{report.judge}{' (simulation)' if report.simulated else ''}"
    show(f"judge of the rounds: {judge}; judge of the final comparison: {report.final_judge}")
    show()
    heads = ("round", "win rate>", "95 % interval", "at equal length>", "95 % interval", "p>", "training votes>")
    rows = []
    for item in report.rounds:
        won = item.over_start
        raw = (share(won.rate), bounds(won.ci95, decides=0.5))
        controlled = (share(won.controlled), bounds(won.controlled_ci95, decides=0.5))
        rows.append((str(item.number), *raw, *controlled, p_value(won.p_value), str(item.rows)))
    show_table(heads, rows, drop=("training votes", "p"))
    for item in report.rounds:
        for learned in item.learned:
            task = learned.task
            gain = f"{figure(task.base)} to {figure(task.tuned)} ({signed(task.delta)}, {p_value(task.p_value)})"
            show(f"round {item.number}, {learned.objective}: {metric_name(task.metric)} {gain}; {learned.folder}")
            for alarm in learned.alarms:
                show(f"warning: {alarm}")
    show(f"full results: {report.folder}")
