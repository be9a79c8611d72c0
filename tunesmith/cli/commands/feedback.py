"""`tunesmith feedback`: a page where people judge what models answer, blind and side by side."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from tunesmith.cli.options import UsageError, add_common, add_sampling, sampling_of
from tunesmith.cli.page_server import Page, add_place, stay
from tunesmith.cli.terminal import hush, log, publish, show

if TYPE_CHECKING:
    from tunesmith.annotation.pair_judging import PairSession
    from tunesmith.cli.options import Commands
    from tunesmith.pipelines.feedback import FeedbackRequest


def add(commands: Commands) -> None:
    """Add `feedback`."""
    parser = commands.add_parser(
        "feedback",
        help="the page where people judge answers",
        description="Makes the answers first, then opens a page on this machine: two answers to a prompt, side by "
        "side, nobody told whose they are. Without --against both are the model's own, drawn twice. Every vote is on "
        "disk before the page says so; the same command goes on where it was left. Ctrl-C ends it.",
    )
    parser.add_argument("model", metavar="RUN", help="run, adapter or model folder, alias, Hub id or file.gguf")
    parser.add_argument(
        "--against", default="", metavar="RUN|base", help="another model, or what the run was tuned over"
    )
    parser.add_argument(
        "--prompts", default="", metavar="FILE", help="what is asked (default: the run's own test rows)"
    )
    parser.add_argument(
        "--column", default="", metavar="NAME", help="its column with the prompt (default: prompt or the like)"
    )
    parser.add_argument(
        "--rows", type=int, default=100, metavar="N", help="prompts drawn from them; 0 for all (%(default)s)"
    )
    text = "put the prompts as they stand, without the run's own instruction"
    parser.add_argument("--as-written", action="store_true", help=text)
    text = "tokens of a prompt that are read, 0 for as many as in training (%(default)s)"
    parser.add_argument("--max-tokens", type=int, default=0, metavar="N", help=text)
    parser.add_argument("--thumbs", action="store_true", help="one answer at a time: good or bad")
    parser.add_argument("--gold", default="", metavar="FILE", help="judged rows planted among them, to see who looks")
    add_sampling(parser, temperature=0.8, top_p=0.95)
    add_place(parser, "feedback.db in the run's folder")
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make what is to be judged, and open the page."""
    from tunesmith.pipelines.feedback import open_panel
    from tunesmith.web.pages.feedback import feedback_app
    from tunesmith.web.server import need_libraries

    need_libraries()  # before an answer is made
    hush()
    wish = _wish(args)
    page = Page(
        make=lambda: open_panel(wish, log=log),
        app=feedback_app,
        say=lambda work, place: _say(work, place, args),
        bye=f"tunesmith votes summary {wish.kept_in} says what it amounts to",
    )
    return stay(page, args, wish.kept_in)


def _wish(args: argparse.Namespace) -> FeedbackRequest:
    from tunesmith.annotation.assignment import Overlap
    from tunesmith.pipelines.feedback import FeedbackRequest, usual_sampling

    if args.rows < 0:
        raise UsageError(f"--rows: {args.rows} is no number of prompts; give 1 or more, or 0 for all")
    if args.max_tokens < 0:
        raise UsageError(f"--max-tokens: {args.max_tokens} is no number of tokens; give 1 or more, or leave it out")
    wish = FeedbackRequest(
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
    return replace(wish, sampling=sampling_of(args, usual_sampling(wish.model, offline=args.offline)))


def _say(work: PairSession, place: str, args: argparse.Namespace) -> None:
    """Where the page is and how far it is."""
    progress = work.progress()
    document = {"url": place, "store": work.store.path, "items": progress.items, "judged": progress.judged}
    if not publish(document, args):
        what = "answers" if args.thumbs else "pairs of answers"
        show(f"{progress.judged} of {progress.items} {what} are judged; votes are kept in {work.store.path}")
        show(f"open {place}")
        show("Ctrl-C ends it; every vote is on disk before the page says so")
