"""`tunesmith feedback`: a page on which raters judge model answers blind and side by side."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from tunesmith.cli.options import UsageError, add_common, add_sampling, sampling_of
from tunesmith.cli.page_server import Page, add_place, stay
from tunesmith.cli.terminal import hush, log, publish, show
from tunesmith.data.files import quoted

if TYPE_CHECKING:
    from tunesmith.annotation.pair_judging import PairSession
    from tunesmith.cli.options import Commands
    from tunesmith.pipelines.feedback import FeedbackRequest


def add(commands: Commands) -> None:
    """Add `feedback`."""
    parser = commands.add_parser(
        "feedback",
        help="rate model answers in the browser",
        description="Generate answers, then serve a page on this machine that shows two answers to a prompt side by "
        "side, without showing which model wrote which. Without --against, both answers are sampled from MODEL. "
        "Every vote is saved at once; the same command resumes. Ctrl-C stops the server.",
    )
    parser.add_argument("model", metavar="MODEL", help="run, adapter or model folder, alias, Hub id or GGUF file")
    text = "model to compare with; `base` for the base of MODEL"
    parser.add_argument("--against", default="", metavar="MODEL2", help=text)
    parser.add_argument("--prompts", default="", metavar="FILE", help="prompts (default: the test rows of the run)")
    text = "column of the prompts (default: detected, such as `prompt`)"
    parser.add_argument("--column", default="", metavar="NAME", help=text)
    text = "number of random prompts, 0 for all (default: %(default)s)"
    parser.add_argument("--rows", type=int, default=100, metavar="N", help=text)
    text = "use the prompts unchanged, without the instruction of the run"
    parser.add_argument("--as-written", action="store_true", help=text)
    text = "maximum tokens per prompt, 0 for the limit of training (default: %(default)s)"
    parser.add_argument("--max-tokens", type=int, default=0, metavar="N", help=text)
    parser.add_argument("--thumbs", action="store_true", help="show one answer at a time, rated good or bad")
    text = "pre-judged control items that detect inattentive raters"
    parser.add_argument("--gold", default="", metavar="FILE", help=text)
    add_sampling(parser, temperature=0.8, top_p=0.95)
    add_place(parser, "feedback.db in the run folder")
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate the answers and serve the page."""
    from tunesmith.inference.identify import identify
    from tunesmith.web.server import need_libraries

    need_libraries()  # fail before answers are generated
    _check_options(args)
    for name in (args.model, "" if args.against == "base" else args.against):
        if name:
            identify(name.rstrip("/") or name, offline=args.offline)
    request = request_of(args)
    hush()
    return stay(page_of(request, args), args, request.kept_in)


def page_of(
    request: FeedbackRequest, args: argparse.Namespace, *, log: Callable[[str], None] = log
) -> Page[PairSession]:
    """Return the page of a request; `log` receives messages while it is loaded."""
    from tunesmith.pipelines.feedback import open_panel
    from tunesmith.web.pages.feedback import feedback_app

    return Page(
        make=lambda: open_panel(request, log=log),
        app=feedback_app,
        say=lambda work, url: _show_address(work, url, args),
        bye=f"`tunesmith votes summary {quoted(request.kept_in)}` summarises them",
    )


def request_of(args: argparse.Namespace) -> FeedbackRequest:
    """Return the checked request of `feedback`. Raises UsageError for an invalid option."""
    from tunesmith.annotation.assignment import Overlap
    from tunesmith.pipelines.feedback import FeedbackRequest, usual_sampling

    _check_options(args)
    request = FeedbackRequest(
        model=args.model.rstrip("/") or args.model,
        against=args.against.rstrip("/"),
        prompts=args.prompts,
        column=args.column,
        rows=args.rows,
        as_written=args.as_written,
        limit=args.max_tokens,
        thumbs=args.thumbs,
        gold=args.gold,
        store=args.store,
        overlap=Overlap(args.overlap, args.raters),
        offline=args.offline,
    )
    return replace(request, sampling=sampling_of(args, usual_sampling(request.model, offline=args.offline)))


def _check_options(args: argparse.Namespace) -> None:
    if args.rows < 0:
        raise UsageError(f"--rows: expected an integer >= 0, got {args.rows}; use 0 for all prompts")
    if args.max_tokens < 0:
        raise UsageError(f"--max-tokens: expected an integer >= 0, got {args.max_tokens}; use 0 for the training limit")


def _show_address(work: PairSession, url: str, args: argparse.Namespace) -> None:
    progress = work.progress()
    document = {"url": url, "store": work.store.path, "items": progress.items, "judged": progress.judged}
    if not publish(document, args):
        items = "answers" if args.thumbs else "pairs of answers"
        show(f"{progress.judged} of {progress.items} {items} judged; votes are saved in {work.store.path}")
        show(f"open {url}")
        show("Ctrl-C stops the server; every vote is saved at once")
