"""`tunesmith label`: a page where people label rows, the row worth most first."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import UsageError, add_common, listed
from tunesmith.cli.page_server import Page, add_place, stay
from tunesmith.cli.terminal import log, publish, show

if TYPE_CHECKING:
    from tunesmith.annotation.labelling import LabelSession
    from tunesmith.cli.options import Commands
    from tunesmith.pipelines.label import LabelRequest


def add(commands: Commands) -> None:
    """Add `label`."""
    parser = commands.add_parser(
        "label",
        help="the page where people label rows, the most useful row first",
        description="Opens a page on this machine. Every label is on disk before the page says so, in a file beside "
        "the data; the same command goes on where it was left. Ctrl-C ends it.",
    )
    parser.add_argument("data", metavar="DATA", help="rows as jsonl, json, csv, tsv, parquet")
    parser.add_argument("--labels", default="", metavar="A,B,...", help="labels to begin with; the page can add more")
    parser.add_argument("--text", default="", metavar="COLUMN", help="what people read (default: text or the like)")
    parser.add_argument("--label", default="", metavar="COLUMN", help="where the label is, or will be (default: label)")
    parser.add_argument("--show", default="", metavar="COLUMN,...", help="columns that are shown above the text")
    parser.add_argument("--import", dest="brought", default="", metavar="FILE", help="rows that have labels already")
    parser.add_argument("--export", type=Path, metavar="FILE", help="write the labelled rows as jsonl, and end")
    parser.add_argument("--features", default="tfidf", metavar="NAME", help="tfidf, or an encoder such as minilm-l6")
    parser.add_argument("--seed", type=int, default=0, help="another seed begins with other rows (%(default)s)")
    add_place(parser, "DATA.labels.db")
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Open the page, or export what was labelled."""
    wish = _wish(args)
    if args.export is not None:
        return _export(wish, args)
    from tunesmith.pipelines.label import open_labelling
    from tunesmith.web.pages.label import label_app

    page = Page(
        make=lambda: open_labelling(wish, log=log),
        app=label_app,
        say=lambda work, place: _say(work, place, args),
        bye=f"tunesmith label {args.data} --export FILE writes the rows",
    )
    return stay(page, args, wish.kept_in)


def _wish(args: argparse.Namespace) -> LabelRequest:
    from tunesmith.annotation.assignment import Overlap
    from tunesmith.annotation.label_rows import Columns
    from tunesmith.pipelines.label import LabelRequest

    if args.export is not None and args.export.resolve() == Path(args.data).resolve():
        raise UsageError(f"--export: {args.export} is the data itself; name another file")
    if args.export is not None and args.export.suffix.lower() not in (".jsonl", ".ndjson"):
        raise UsageError(f"--export: {args.export} is not named as JSON lines, which are written; end it in .jsonl")
    return LabelRequest(
        source=args.data,
        columns=Columns(args.text, args.label, listed(args.show)),
        labels=listed(args.labels),
        brought=args.brought,
        store=args.store,
        overlap=Overlap(args.overlap, args.raters),
        features=args.features,
        seed=args.seed,
        offline=args.offline,
    )


def _export(request: LabelRequest, args: argparse.Namespace) -> int:
    from tunesmith.pipelines.label import export_labels

    done = export_labels(request, args.export, log=log)
    document = {"file": args.export, "rows": done.rows, "tied": done.tied}
    if not publish(document, args):
        show(f"{done.rows} labelled rows in {args.export}")
        show(f"next:\n  tunesmith tune {args.export}")
    return 0


def _say(work: LabelSession, place: str, args: argparse.Namespace) -> None:
    """Where the page is and how far it is."""
    progress = work.progress()
    about = {"rows": len(work.rows.rows), "items": progress.items, "labelled": progress.labelled}
    document = {"url": place, "store": work.store.path, **about, "labels": progress.labels}
    if not publish(document, args):
        show(f"{progress.labelled} of {progress.items} texts have a label; votes are kept in {work.store.path}")
        show(f"open {place}")
        show("Ctrl-C ends it; every label is on disk before the page says so")
