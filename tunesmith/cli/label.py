"""`tunesmith label`: a page where people label rows, the row worth most first."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import UsageError, add_common
from tunesmith.cli.terminal import log, publish, show

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.workflows.label import Labelling
    from tunesmith.workflows.label_open import Wish

PORT = 8377


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
    parser.add_argument("--overlap", type=float, default=0.0, metavar="SHARE", help="rows that several people label")
    parser.add_argument("--raters", type=int, default=2, metavar="N", help="people for each of them (%(default)s)")
    parser.add_argument("--features", default="tfidf", metavar="NAME", help="tfidf, or an encoder such as minilm-l6")
    parser.add_argument("--seed", type=int, default=0, help="another seed begins with other rows (%(default)s)")
    parser.add_argument("--store", type=Path, metavar="FILE", help="where votes are kept (default: DATA.labels.db)")
    parser.add_argument("--host", default="127.0.0.1", help="elsewhere than here a token is asked for (%(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="0 takes a free one (%(default)s)")
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Open the page, or export what was labelled."""
    wish = _wish(args)
    if args.export is not None:
        return _export(wish, args)
    from tunesmith.web.label import label_app
    from tunesmith.web.serve import Address, kept_token, listen, need_libraries, serve, url
    from tunesmith.workflows.label_open import open_labelling

    need_libraries()
    address = Address(args.host, args.port)
    with listen(address) as sock:
        work = open_labelling(wish, told=log)
        token = kept_token(address, wish.kept_in.with_suffix(".token"))
        place = url(sock, address, token)
        _say(work, place, args)
        try:
            serve(label_app(work), sock, token=token)
        finally:
            work.store.close()
            log(f"every label is in {work.store.path}; tunesmith label {args.data} --export FILE writes the rows")
    return 0


def _wish(args: argparse.Namespace) -> Wish:
    from tunesmith.workflows.label import Overlap
    from tunesmith.workflows.label_open import Wish
    from tunesmith.workflows.label_rows import Columns

    if args.export is not None and args.export.resolve() == Path(args.data).resolve():
        raise UsageError(f"--export: {args.export} is the data itself; name another file")
    if args.export is not None and args.export.suffix.lower() not in (".jsonl", ".ndjson"):
        raise UsageError(f"--export: {args.export} is not named as JSON lines, which are written; end it in .jsonl")
    return Wish(
        source=args.data,
        columns=Columns(args.text, args.label, _listed(args.show)),
        labels=_listed(args.labels),
        brought=args.brought,
        store=args.store,
        overlap=Overlap(args.overlap, args.raters),
        features=args.features,
        seed=args.seed,
        offline=args.offline,
    )


def _listed(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",") if word.strip())


def _export(wish: Wish, args: argparse.Namespace) -> int:
    from tunesmith.workflows.label_open import export_labels

    done = export_labels(wish, args.export, told=log)
    document = {"file": args.export, "rows": done.rows, "tied": done.tied}
    if not publish(document, args):
        show(f"{done.rows} labelled rows in {args.export}")
        show(f"next:\n  tunesmith tune {args.export}")
    return 0


def _say(work: Labelling, place: str, args: argparse.Namespace) -> None:
    """Where the page is and how far it is."""
    progress = work.progress()
    about = {"rows": len(work.rows.rows), "items": progress.items, "labelled": progress.labelled}
    document = {"url": place, "store": work.store.path, **about, "labels": progress.labels}
    if not publish(document, args):
        show(f"{progress.labelled} of {progress.items} texts have a label; votes are kept in {work.store.path}")
        show(f"open {place}")
        show("Ctrl-C ends it; every label is on disk before the page says so")
