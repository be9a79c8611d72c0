"""`tunesmith plan`: estimate memory and time of each technique and recommend one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.candidates import show_candidates
from tunesmith.cli.options import UsageError, add_common, add_schema, add_source, changes_of, recipe_of
from tunesmith.cli.progress import reported
from tunesmith.cli.terminal import emit, hush, publish, show, show_table
from tunesmith.data.files import check_folder, write_whole
from tunesmith.pipelines.plan.gpus import PER_MACHINE, gpu_of
from tunesmith.report.formatting import count, duration, size

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.config import Recipe
    from tunesmith.events import EventHandler
    from tunesmith.pipelines.plan.report import PaperEstimate, PlanReport, TechniqueEstimate


def add(commands: Commands) -> None:
    """Add `plan`."""
    parser = commands.add_parser(
        "plan",
        help="estimate memory, time and score of each technique and model, and recommend one",
        description="Count the rows and the parameters of the model, time a few training steps, and estimate for each "
        "technique its trainable parameters, peak memory, time and expected score. Recommends one technique. Exits "
        "with 1 if none fits into memory. With `--gpu`: memory and time on GPUs that are not here, from the model's "
        "configuration alone; exits with 1 if the recipe's own technique fits on none of them. With "
        "`--render`: the file that starts the run on a cluster.",
    )
    parser.add_argument("--quick", action="store_true", help="use analytic estimates only, without timing any steps")
    text = "plan on paper for GPUs that are not here: a100, h100, h200 or b200"
    parser.add_argument("--gpu", default="", metavar="NAME", help=text)
    text = "number of processes that share the run on this machine (default: 1)"
    parser.add_argument("--processes", type=int, default=1, metavar="N", help=text)
    text = "number of GPUs, with --machines on each of them; may be repeated (default: 1, 8 and 64; 8 of each machine)"
    parser.add_argument("--gpus", type=int, action="append", default=[], metavar="N", help=text)
    text = "print the file that starts the run on a cluster, or write it to --out: slurm, jobset or sky"
    parser.add_argument("--render", metavar="KIND", help=text)
    parser.add_argument("--machines", type=int, default=1, metavar="M", help="number of machines (default: 1)")
    text = "container image with tunesmith, for jobset and sky"
    parser.add_argument("--image", default="", metavar="NAME", help=text)
    text = "what all machines see, for the run folder: a folder (slurm), a volume claim (jobset) or a bucket (sky)"
    parser.add_argument("--store", default="", metavar="PLACE", help=text)
    add_source(parser)
    add_schema(parser, "tunesmith.pipelines.plan.report:PlanReport")
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the estimates; return 1 if no technique fits into memory, on paper that of the recipe."""
    from tunesmith.training.read import check_rows, check_settings

    if not args.render:
        args.gpu = gpu_of(args.gpu, args.gpus, args.machines)
    if args.processes != 1 and (args.gpu or args.render):
        raise UsageError(f"--processes {args.processes}: counts processes of this machine; give --gpus instead")
    if args.out:
        check_folder(Path(args.out))  # fail before steps are timed
    recipe = recipe_of(args, check=check_settings)
    if args.render:
        return _render(args)
    with reported() as on_event:
        check_rows(recipe, on_event=on_event, offline=args.offline)
        hush()
        if args.gpu:
            return _on_paper(recipe, args, on_event)
        from tunesmith.pipelines.plan.plan import plan_recipe  # after the checks, because it imports torch

        plan = plan_recipe(
            recipe, on_event=on_event, timed=not args.quick, processes=args.processes, offline=args.offline
        )
    if not publish(plan.model_dump(mode="json"), args):
        _show(plan)
    return 0 if plan.recommendation else 1


def _render(args: argparse.Namespace) -> int:
    """Print or write the file that starts the run on a cluster."""
    from tunesmith.pipelines.plan.render import Cluster, render

    gpus = args.gpus[-1] if args.gpus else PER_MACHINE
    cluster = Cluster(args.render, args.machines, gpus, gpu=args.gpu, image=args.image, store=args.store)
    text = render(args.source, changes_of(args), cluster)
    if args.out:
        write_whole(args.out, text)
    if args.json:
        emit({"render": args.render, "file": args.out, "text": text})
    else:
        show(f"written: {args.out}" if args.out else text.rstrip("\n"))
    return 0


def _on_paper(recipe: Recipe, args: argparse.Namespace, on_event: EventHandler) -> int:
    """Print the estimates for GPUs that are not here; return 1 if nothing fits."""
    from tunesmith.pipelines.plan.on_paper import plan_on_paper

    plan = plan_on_paper(
        recipe, gpu=args.gpu, gpus=args.gpus, machines=args.machines, on_event=on_event, offline=args.offline
    )
    if not publish(plan.model_dump(mode="json"), args):
        show(f"{plan.model}, {plan.objective} on {count(plan.train_rows)} rows: {count(plan.steps)} steps")
        columns = ("GPUs>", "technique", "shards>", "recompute", "memory>", "fits", "tokens/s per GPU>", "training>")
        show_table(columns, [_paper_cells(option) for option in plan.paper], drop=("shards", "tokens/s per GPU"))
        show(f"{plan.machine}, {size(plan.room_bytes)} each; {plan.how}; *: of the recipe; --json has the bounds")
        for note in plan.notes:
            show(note)
        show(plan.fits_on)
    return 0 if any(option.own and option.fits for option in plan.paper) else 1


def _paper_cells(option: PaperEstimate) -> tuple[str, ...]:
    fits = "yes" if option.fits else f"no: {option.change}"
    seconds = duration(option.seconds.expected)
    cells = (size(option.memory.expected), fits, count(option.tokens_per_second), seconds)
    name = option.technique + "*" * option.own
    return (count(option.gpus), name, count(option.shards), "yes" if option.recompute else "no", *cells)


def _show(plan: PlanReport) -> None:
    rows, tokens = count(plan.train_rows), count(plan.tokens)
    show(f"{plan.model}, {plan.objective} on {rows} rows: {count(plan.steps)} steps, {tokens} tokens")
    columns = ("technique", "trainable>", "peak memory>", "training>", "whole run>", "fits", "expected score", "")
    # The expected score is repeated below, and the whole run includes training.
    show_table(columns, [_cells(option) for option in plan.options], drop=("expected score", "trainable", "training"))
    show(f"{plan.how}; {size(plan.room_bytes)} of memory available")
    show("in brackets: estimated bounds; memory and training time were within them in 12 small runs (bench/PLAN.md)")
    for option in plan.options:
        if not option.refused:
            measured = f"published: {option.published}; our measurements: {option.ours}"
            show(f"  {option.technique}: {option.standing}; {measured}")
    if plan.candidates:
        show()
        show_candidates(plan.candidates, plan.metric)
    if plan.recommendation is None:
        show("no technique fits into memory; use a smaller model or a lower data.max_tokens")
        return
    show(f"recommended: {plan.recommendation.technique}")
    for reason in plan.recommendation.reasons:
        show(f"  - {reason}")
    if plan.recommended_model:
        show(f"recommended model: {plan.recommended_model}")
    for reason in plan.model_reasons:
        show(f"  - {reason}")


def _cells(option: TechniqueEstimate) -> tuple[str, ...]:
    from tunesmith.pipelines.plan.report import memory, time

    if option.prediction is None or option.whole_seconds is None:
        return (option.technique, "", "", "", "", "no", "", option.refused)
    cost = option.prediction
    bounded = (memory(cost.memory), time(cost.seconds), time(option.whole_seconds))
    estimates = [text.replace(" (", "\n(") for text in bounded]  # bounds on a separate line
    return (option.technique, count(cost.trainable), *estimates, "yes" if option.fits else "no", option.standing, "")
