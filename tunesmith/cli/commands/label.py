"""`tunesmith label`: a page on which raters label rows, the most informative rows first."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import ROW_FILES, add_common
from tunesmith.cli.page_server import Page, add_place, stay
from tunesmith.cli.terminal import log, publish, show
from tunesmith.data.files import quoted

if TYPE_CHECKING:
    from tunesmith.annotation.labelling import LabelSession
    from tunesmith.cli.options import Commands
    from tunesmith.pipelines.requests import LabelRequest


def add(commands: Commands) -> None:
    """Add `label`."""
    parser = commands.add_parser(
        "label",
        help="label rows in the browser, the most informative rows first",
        description="Serve a labelling page on this machine. Every label is saved at once in a file next to the data; "
        "the same command resumes. Ctrl-C stops the server.",
    )
    parser.add_argument("data", metavar="DATA", help=ROW_FILES)
    text = "initial labels; raters can add more"
    parser.add_argument("--labels", default="", metavar="A,B,...", help=text)
    text = "mark spans of the texts, with these labels initially; raters can add more"
    parser.add_argument("--spans", default="", metavar="A,B,...", help=text)
    text = "column of the text to label (default: detected, such as `text`)"
    parser.add_argument("--text", default="", metavar="COLUMN", help=text)
    text = "column of the label, existing or new (default: label; of spans: spans)"
    parser.add_argument("--label", default="", metavar="COLUMN", help=text)
    parser.add_argument("--show", default="", metavar="COLUMN,...", help="columns to show above the text")
    parser.add_argument("--import", dest="brought", default="", metavar="FILE", help="labelled rows to start with")
    parser.add_argument("--export", type=Path, metavar="FILE", help="write the labelled rows and exit")
    text = "of the file with spans: rows, spacy (training data) or label-studio (tasks) (default: rows)"
    parser.add_argument("--format", default="", metavar="NAME", help=text)
    text = "features for choosing rows: tfidf, or an encoder such as minilm-l6 (default: %(default)s)"
    parser.add_argument("--features", default="tfidf", metavar="NAME", help=text)
    text = "seed for the first rows to label (default: %(default)s)"
    parser.add_argument("--seed", type=int, default=0, help=text)
    add_place(parser, "DATA.labels.db")
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve the page, or export the labels under `--export`."""
    from tunesmith.pipelines.label import export_labels

    request = _request(args)
    if args.export is not None:
        done = export_labels(request, args.export, log=log)
        if not publish({"file": args.export, "rows": done.rows, "tied": done.tied}, args):
            show(f"{done.rows} labelled rows written to {args.export}")
            show(f"next:\n  tunesmith tune {quoted(args.export)} --dry-run")
        return 0
    page = page_of(request, say=lambda work, url: _show_address(work, url, args))
    return stay(page, args, request.kept_in)


def page_of(
    request: LabelRequest, *, say: Callable[[LabelSession, str], None], log: Callable[[str], None] = log
) -> Page[LabelSession]:
    """Return the labelling page of a request.

    Args:
        request: the rows and how they are labelled.
        say: receives the session and the URL when the page opens.
        log: receives messages while it is loaded.
    """
    from tunesmith.pipelines.label import open_labelling
    from tunesmith.web.pages.label import label_app, label_policy

    data = f"{quoted(request.source)}{request.options()}"
    export = quoted(_export_name(request.source))
    return Page(
        make=lambda: open_labelling(request, log=log),
        app=label_app,
        say=say,
        bye=f"`tunesmith label {data} --export {export}` writes the labelled rows",
        policy=label_policy,
    )


def _request(args: argparse.Namespace) -> LabelRequest:
    from tunesmith.annotation.assignment import Overlap
    from tunesmith.annotation.label_rows import Columns
    from tunesmith.pipelines.requests import LabelRequest, listed

    return LabelRequest(
        source=args.data,
        columns=Columns(args.text, args.label, listed(args.show)),
        labels=listed(args.labels),
        spans=listed(args.spans),
        form=args.format,
        brought=args.brought,
        store=args.store,
        overlap=Overlap(args.overlap, args.raters),
        features=args.features,
        seed=args.seed,
        offline=args.offline,
    )


def _show_address(work: LabelSession, url: str, args: argparse.Namespace) -> None:
    progress = work.progress()
    counts = {"rows": len(work.rows.rows), "items": progress.items, "labelled": progress.labelled}
    document = {"url": url, "store": work.store.path, **counts, "labels": progress.labels}
    if not publish(document, args):
        show(f"{progress.labelled} of {progress.items} texts labelled; labels are saved in {work.store.path}")
        show(f"open {url}")
        show("Ctrl-C stops the server; every label is saved at once")


def _export_name(data: str) -> Path:
    """Return a name for the labelled rows, next to their file."""
    path = Path(data.partition("#")[0])
    return path.with_name(f"{path.name.partition('.')[0]}-labelled.jsonl")
