"""`tunesmith votes`: export, import or summarise votes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import UsageError, add_common, add_schema
from tunesmith.cli.terminal import publish, show, show_table
from tunesmith.data.files import quoted
from tunesmith.display import model_labels
from tunesmith.report.formatting import NONE, p_value, several, share

if TYPE_CHECKING:
    from tunesmith.annotation.ranking import Duel, Ranked
    from tunesmith.annotation.rater_quality import Rater
    from tunesmith.annotation.summary import Summary
    from tunesmith.cli.options import Commands

LINES = (".jsonl", ".ndjson")
MODELS = ("model", "win rate against average>", "95 % interval", "votes>")
DUELS = ("pair", "votes>", "win rate>", "95 % interval", "at equal length>")
RATERS = (
    "rater",
    "votes>",
    "left chosen>",
    "seconds>",
    "too fast>",
    "controls correct>",
    "agreement>",
    "chance agreement>",
)


def add(commands: Commands) -> None:
    """Add `votes`."""
    parser = commands.add_parser(
        "votes",
        help="export, import or summarise votes",
        description="`summary STORE` prints progress, agreement between raters, win rates of the models, and raters "
        "who seem to click at random. `export STORE FILE` writes the votes as rows for `objective: preference`. "
        "`import STORE FILE` adds the votes of such a file.",
    )
    parser.add_argument("act", metavar="ACTION", choices=tuple(ACTS), help=", ".join(ACTS))
    parser.add_argument("store", metavar="STORE", type=Path, help="file of votes, as written by `tunesmith feedback`")
    parser.add_argument("file", metavar="FILE", nargs="?", default="", help="rows to write or to read")
    text = "export format (default: the format in which votes were cast)"
    parser.add_argument("--format", choices=("pairs", "thumbs"), default="", help=text)
    text = "ignore the votes of this rater; may be repeated"
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help=text)
    text = "import: rater of the rows that name none"
    parser.add_argument("--rater", default="", metavar="NAME", help=text)
    add_schema(parser, "tunesmith.annotation.import_export:Summary")
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the action."""
    if args.act != "summary" and not args.file:
        raise UsageError(
            f"votes {args.act}: FILE is missing; write `tunesmith votes {args.act} {quoted(args.store)} rows.jsonl`"
        )
    return ACTS[args.act](args)


def export_rows(args: argparse.Namespace) -> int:
    """Write the votes as rows."""
    from tunesmith.annotation.import_export import export_votes

    out = check_export(Path(args.file))
    done = export_votes(args.store, out, format=args.format, without=args.without)
    if not publish({"file": out, **asdict(done)}, args):
        undecided = several(done.undecided, "judged prompt")
        show(f"{several(done.rows, 'row')} ({done.format}) written to {out}; without a preference: {undecided}")
        run = args.store.parent
        start = f" --model {quoted(run)}" if (run / "model").is_dir() else ""
        show(f"next:\n  tunesmith tune {quoted(out)} --objective preference{start}")
    return 0


def check_export(out: Path) -> Path:
    """Return the path. Raises UsageError for a file name that does not end in .jsonl."""
    if out.suffix.lower() not in LINES:
        raise UsageError(f"FILE: expected a file name ending in .jsonl, got {out}; rename it")
    return out


def import_rows(args: argparse.Namespace) -> int:
    """Add the votes of a file to the store."""
    from tunesmith.annotation.import_export import import_votes

    done = import_votes(args.store, args.file, rater=args.rater, offline=args.offline)
    if not publish({"store": args.store, **asdict(done)}, args):
        added = f"{several(done.votes, 'vote')} added with {several(done.items, 'new item')}"
        show(f"{args.store}: {added}; {done.known} already in the store")
    return 0


def summary(args: argparse.Namespace) -> int:
    """Print progress, win rates and agreement."""
    from tunesmith.annotation.import_export import summarise_votes

    page = summarise_votes(args.store, without=args.without)
    if publish(page.model_dump(mode="json"), args):
        return 0
    show(f"judged: {page.judged} of {several(page.items, 'prompt')} ({_counts(page.votes)})")
    labels = model_labels(model.model for model in page.models)
    if page.models:
        show_table(MODELS, [_model(model, labels) for model in page.models])
    if page.duels:
        show_table(DUELS, [_duel(duel, labels) for duel in page.duels])
    if page.raters:
        show_table(RATERS, [_rater(rater) for rater in page.raters], drop=("chance agreement", "seconds", "too fast"))
    _show_agreement(page)
    return 0


ACTS = {"summary": summary, "export": export_rows, "import": import_rows}


def _counts(votes: Mapping[str, int]) -> str:
    """Format the number of votes by label; `first` and `second` are counted together, the tables have them apart."""
    decided = sum(votes.get(side, 0) for side in ("first", "second"))
    counts = {"one answer preferred": decided} if decided else {}
    counts |= {label: count for label, count in votes.items() if label not in ("first", "second")}
    return ", ".join(f"{label}: {count}" for label, count in counts.items()) or "no votes yet"


def _model(model: Ranked, labels: Mapping[str, str]) -> tuple[str, ...]:
    return labels[model.model], share(model.strength), _bounds(model.ci95), str(model.votes)


def _duel(duel: Duel, labels: Mapping[str, str]) -> tuple[str, ...]:
    names = " against ".join(labels.get(name, name) for name in duel.models)
    return names, str(duel.votes), share(duel.won), _bounds(duel.ci95), share(duel.same_length)


def _rater(rater: Rater) -> tuple[str, ...]:
    seconds = "" if rater.seconds is None else f"{rater.seconds:.1f}"
    controls = f"{share(rater.gold.right)} of {rater.gold.items}" if rater.gold.items else ""
    agreement = (share(rater.agreed), share(rater.by_chance))
    pace = (share(rater.position.left), seconds, share(rater.too_fast))
    return _one_line(rater.rater), str(rater.votes), *pace, controls, *agreement


def _show_agreement(page: Summary) -> None:
    agreement = page.agreement
    if agreement.items and agreement.same is not None:
        alpha = "not defined" if agreement.alpha is None else f"{agreement.alpha:.2f}"
        shared = several(agreement.items, "prompt")
        show(f"{shared} with several raters: {share(agreement.same)} agreement, Krippendorff's alpha {alpha}")
    if page.position.p_value is not None and page.position.left is not None:
        position = page.position
        votes = several(position.votes, "vote")
        show(f"left answer chosen in {share(position.left)} of {votes} ({p_value(position.p_value)})")
    for rater in page.raters:
        for reason in rater.reasons:
            fix = f"ignore these votes with --without {quoted(rater.rater)}"
            show(f"{_one_line(rater.rater)} seems to click at random: {reason}; {fix}")


def _one_line(name: str) -> str:
    return " ".join(name.split())


def _bounds(interval: tuple[float, float] | None) -> str:
    return NONE if interval is None else f"{share(interval[0])} to {share(interval[1])}"
