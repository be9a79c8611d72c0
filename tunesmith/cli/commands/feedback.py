"""`tunesmith feedback`: a page on which raters judge model answers blind and side by side."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from tunesmith.cli.options import add_common, add_sampling, sampling_of
from tunesmith.cli.page_server import Page, add_place, stay
from tunesmith.cli.terminal import hush, log, publish, show
from tunesmith.data.files import quoted

if TYPE_CHECKING:
    from tunesmith.annotation.pair_judging import PairSession
    from tunesmith.cli.options import Commands
    from tunesmith.pipelines.requests import FeedbackRequest


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
    request = _request(args)
    for name in (request.model, "" if request.against == "base" else request.against):
        if name:
            identify(name, offline=args.offline)
    from tunesmith.pipelines.feedback import usual_sampling  # after the checks, because it imports torch

    usual = usual_sampling(request.model, offline=args.offline)
    request = replace(request, sampling=sampling_of(args, usual))
    hush()
    page = page_of(request, say=lambda work, url: _show_address(work, url, args))
    return stay(page, args, request.kept_in)


def page_of(
    request: FeedbackRequest, *, say: Callable[[PairSession, str], None], log: Callable[[str], None] = log
) -> Page[PairSession]:
    """Return the page of a request.

    Args:
        request: the models and prompts.
        say: receives the session and the URL when the page opens.
        log: receives messages while it is loaded.
    """
    from tunesmith.pipelines.feedback import open_panel
    from tunesmith.web.pages.feedback import feedback_app

    return Page(
        make=lambda: open_panel(request, log=log),
        app=feedback_app,
        say=say,
        bye=f"`tunesmith votes summary {quoted(request.kept_in)}` summarises them",
    )


def _request(args: argparse.Namespace) -> FeedbackRequest:
    from tunesmith.annotation.assignment import Overlap
    from tunesmith.pipelines.requests import FeedbackRequest

    return FeedbackRequest(
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


def _show_address(work: PairSession, url: str, args: argparse.Namespace) -> None:
    progress = work.progress()
    document = {"url": url, "store": work.store.path, "items": progress.items, "judged": progress.judged}
    if not publish(document, args):
        items = "answers" if args.thumbs else "pairs of answers"
        show(f"{progress.judged} of {progress.items} {items} judged; votes are saved in {work.store.path}")
        show(f"open {url}")
        show("Ctrl-C stops the server; every vote is saved at once")
