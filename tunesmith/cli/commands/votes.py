"""`tunesmith votes`: what people judged, as rows, from rows, and what it amounts to."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import UsageError, add_common, add_schema
from tunesmith.cli.terminal import publish, show, show_table
from tunesmith.report.formatting import NONE, p_value, several, share

if TYPE_CHECKING:
    from tunesmith.annotation.ranking import Duel, Ranked
    from tunesmith.annotation.rater_quality import Rater
    from tunesmith.annotation.summary import Summary
    from tunesmith.cli.options import Commands

LINES = (".jsonl", ".ndjson")
MODELS = ("model", "beats the average>", "95 % interval", "votes>")
DUELS = ("against", "votes>", "won>", "95 % interval", "won at equal length>")
RATERS = ("rater", "votes>", "left>", "seconds>", "too fast>", "planted right>", "as the others>", "by chance>")


def add(commands: Commands) -> None:
    """Add `votes`."""
    parser = commands.add_parser(
        "votes",
        help="judgements as rows, from rows, and what they amount to",
        description="summary STORE says how far it is, how far people agree, which model they prefer, and who clicks "
        "at random. export STORE FILE writes what people preferred as rows of objective: preference. import STORE "
        "FILE adds the judgements of such a file.",
    )
    parser.add_argument("act", metavar="ACT", choices=tuple(ACTS), help=", ".join(ACTS))
    parser.add_argument("store", metavar="STORE", type=Path, help="file of votes, as feedback keeps them")
    parser.add_argument("file", metavar="FILE", nargs="?", default="", help="rows to write or to read")
    parser.add_argument("--format", choices=("pairs", "thumbs"), default="", help="export: else as they were cast")
    parser.add_argument(
        "--without", action="append", default=[], metavar="NAME", help="leave out this person's votes; may be repeated"
    )
    parser.add_argument("--rater", default="", metavar="NAME", help="import: whose votes, where rows name nobody")
    add_schema(parser, _schema)
    add_common(parser)
    parser.set_defaults(run=run)


def _schema() -> str:
    from tunesmith.annotation.import_export import schema

    return schema()


def run(args: argparse.Namespace) -> int:
    """Do what was named."""
    return ACTS[args.act](args)


def export(args: argparse.Namespace) -> int:
    """Write the votes as rows."""
    from tunesmith.annotation.import_export import export_votes

    out = Path(_file(args))
    if out.suffix.lower() not in LINES:
        raise UsageError(f"FILE: {out} is not named as JSON lines, which are written; end it in .jsonl")
    done = export_votes(args.store, out, format=args.format, without=args.without)
    if not publish({"file": out, **asdict(done)}, args):
        undecided = several(done.undecided, "judged prompt")
        show(f"{several(done.rows, 'row')} ({done.format}) in {out}; without a preference: {undecided}")
        run = args.store.parent
        start = f" --model {shlex.quote(str(run))}" if (run / "model").is_dir() else ""
        show(f"next:\n  tunesmith tune {shlex.quote(str(out))} --objective preference{start}")
    return 0


def bring(args: argparse.Namespace) -> int:
    """Add the votes of a file."""
    from tunesmith.annotation.import_export import import_votes

    done = import_votes(args.store, _file(args), rater=args.rater, offline=args.offline)
    if not publish({"store": args.store, **asdict(done)}, args):
        added = f"{several(done.votes, 'vote')} added with {several(done.items, 'new item')}"
        show(f"{args.store}: {added}; {done.known} stood there already")
    return 0


def summary(args: argparse.Namespace) -> int:
    """Say what the votes amount to."""
    from tunesmith.annotation.import_export import summarise_votes

    page = summarise_votes(args.store, without=args.without)
    if publish(page.model_dump(mode="json"), args):
        return 0
    show(f"judged: {page.judged} of {several(page.items, 'prompt')} ({_counts(page.votes)})")
    if page.models:
        show_table(MODELS, [_model(one) for one in page.models])
    if page.duels:
        show_table(DUELS, [_duel(one) for one in page.duels])
    if page.raters:
        show_table(RATERS, [_rater(one) for one in page.raters])
    for line in _sayings(page):
        show(line)
    return 0


ACTS = {"summary": summary, "export": export, "import": bring}


def _counts(votes: Mapping[str, int]) -> str:
    """How often each thing was said; which of two answers was better is told by the tables."""
    better = sum(votes.get(side, 0) for side in ("first", "second"))
    others = [(label, count) for label, count in votes.items() if label not in ("first", "second")]
    said = [*([("one is better", better)] if better else []), *others]
    return ", ".join(f"{label}: {count}" for label, count in said) or "no vote yet"


def _model(one: Ranked) -> tuple[str, ...]:
    return one.model, share(one.strength), _bounds(one.ci95), str(one.votes)


def _duel(one: Duel) -> tuple[str, ...]:
    names = f"{one.models[0]} against {one.models[1]}"
    return names, str(one.votes), share(one.won), _bounds(one.ci95), share(one.same_length)


def _rater(one: Rater) -> tuple[str, ...]:
    seconds = "" if one.seconds is None else f"{one.seconds:.1f}"
    planted = f"{share(one.gold.right)} of {one.gold.items}" if one.gold.items else ""
    return (
        _line(one.rater), str(one.votes), share(one.position.left), seconds, share(one.too_fast), planted,
        share(one.agreed), share(one.by_chance),
    )  # fmt: skip


def _sayings(page: Summary) -> Iterator[str]:
    """What a table cannot say."""
    found = page.agreement
    if found.items and found.same is not None:
        alpha = "not defined" if found.alpha is None else f"{found.alpha:.2f}"
        agreed = f"they agree in {share(found.same)}, Krippendorff's alpha {alpha}"
        yield f"judged by several: {several(found.items, 'prompt')}; {agreed}"
    if page.position.p_value is not None and page.position.left is not None:
        side = page.position
        chosen = f"{share(side.left)} of {several(side.votes, 'vote')}"
        yield f"the left answer was chosen in {chosen} ({p_value(side.p_value)})"
    for one in page.raters:
        for reason in one.reasons:
            cure = f"leave the votes out with --without {shlex.quote(one.rater)}"
            yield f"{_line(one.rater)} seems to click at random: {reason}; {cure}"


def _line(name: str) -> str:
    """A name on one line."""
    return " ".join(name.split())


def _bounds(interval: tuple[float, float] | None) -> str:
    return NONE if interval is None else f"{share(interval[0])} to {share(interval[1])}"


def _file(args: argparse.Namespace) -> str:
    if not args.file:
        raise UsageError(f"votes {args.act}: no FILE; write tunesmith votes {args.act} STORE FILE")
    return str(args.file)
