"""`tunesmith collect`: documents, FAQ pages, tables and calls to rows, and rows that a model writes from them."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import UsageError, add_common, add_drawing, add_schema, drawing
from tunesmith.cli.progress import Lines
from tunesmith.cli.terminal import emit, hush, log, show
from tunesmith.data.documents.to_rows import SHAPES

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.pipelines.collect import Collected, CollectRequest

# The key is read here and handed on: nothing further in looks into the environment.
KEYS = ("TUNESMITH_API_KEY", "OPENAI_API_KEY")
NAMED = 10


def add(commands: Commands) -> None:
    """Add `collect`."""
    shapes = "; ".join(f"{name}: {shape.about}" for name, shape in SHAPES.items())
    parser = commands.add_parser(
        "collect",
        help="documents, FAQ pages and tables to rows; rows that a model writes",
        description="Turn pdf, docx, pptx, html, md, txt, epub and OpenAPI files into rows, each with its origin, and "
        "let a model write more of them. A second time only what changed is converted again.",
        epilog=f"--as {shapes}",
        conflict_handler="resolve",  # what is written here are rows, not the JSON document
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="file or folder of documents")
    parser.add_argument("--as", dest="shape", choices=list(SHAPES), default="domain", help="what rows (%(default)s)")
    parser.add_argument("--size", type=int, default=1800, metavar="N", help="longest text in characters (%(default)s)")
    _add_written(parser)
    add_schema(parser, _schema)
    add_common(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("collected.jsonl"), metavar="FILE", help="the rows to write (%(default)s)"
    )
    parser.set_defaults(run=run)


def _add_written(parser: argparse.ArgumentParser) -> None:
    """What a model is asked to write, and how."""
    written = parser.add_argument_group("rows that a model writes, marked `origin: synthetic`")
    written.add_argument(
        "--write", action="append", default=[], metavar="TEMPLATE",
        help="questions or calls (--as instruct), paraphrases (--as domain), or a yaml file; may be repeated",
    )  # fmt: skip
    written.add_argument("--writer", default="", metavar="MODEL", help="local model, or http://HOST:PORT/v1")
    written.add_argument("--writer-name", default="", metavar="NAME", help="the model to ask for at that address")
    written.add_argument("--examples", default="", metavar="FILE", help="rows that show the model what is wanted")
    written.add_argument("--per-passage", type=int, default=3, metavar="N", help="rows for each passage (%(default)s)")
    written.add_argument("--passages", type=int, default=0, metavar="N", help="ask about N passages drawn at random")
    add_drawing(written, temperature=0.7, longest=512)


def _schema() -> str:
    from tunesmith.pipelines.collect import schema

    return schema()


def run(args: argparse.Namespace) -> int:
    """Collect, and say what came of it."""
    from tunesmith.pipelines.collect import collect

    asked = _asked(args)
    if asked.writer is not None and not asked.writer.remote:
        hush()
    page = collect(asked, on_event=Lines(), offline=args.offline)
    for note in page.notes:
        log(f"note: {note}")
    for doc_id, why in page.failed.items():
        log(f"warning: left out {doc_id}: {why}")
    if args.json:
        emit(page.model_dump(mode="json"))
    else:
        _show(page)
    return 0


def _asked(args: argparse.Namespace) -> CollectRequest:
    """What the command line asks for. Raises UsageError."""
    from tunesmith.models.generation.sampling import Sampling
    from tunesmith.pipelines.collect import CollectRequest, Writer

    if args.size < 200:
        raise UsageError(f"--size: {args.size} is too short for a passage; give 200 or more")
    if not 1 <= args.per_passage <= 5:
        raise UsageError(f"--per-passage: {args.per_passage} is not between 1 and 5; more are copies of each other")
    if args.passages < 0:
        raise UsageError(f"--passages: {args.passages} is below zero; 0 asks about all of them")
    drawing(Sampling(), temperature=args.temperature, max_new_tokens=args.max_new_tokens)
    writer = None
    if args.writer:
        key = next((os.environ[name] for name in KEYS if os.environ.get(name)), "")
        writer = Writer(args.writer, args.writer_name, key, args.temperature, args.max_new_tokens, args.seed)
    return CollectRequest(
        sources=tuple(args.sources),
        shape=args.shape,
        out=args.out,
        size=args.size,
        templates=tuple(args.write),
        writer=writer,
        seeds=args.examples,
        per_passage=args.per_passage,
        passages=args.passages,
    )


def _show(page: Collected) -> None:
    """The account in a few lines."""
    origins = ", ".join(f"{count} {origin}" for origin, count in page.origins.items())
    show(f"{page.rows} rows ({origins}) from {page.sources} files: {page.path}")
    show(f"converted {page.converted}, unchanged {page.unchanged}, left out {len(page.failed)}")
    if page.skipped:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(page.skipped.items()))
        show(f"of another kind: {kinds}")
    if page.copies_removed or page.repeated_removed:
        repeats = f"{page.repeated_removed} blocks that most files repeat"
        show(f"removed: {page.copies_removed} copies of rows, {repeats}")
    if page.without_rows:
        more = f" and {len(page.without_rows) - NAMED} more" if len(page.without_rows) > NAMED else ""
        show(f"without rows: {', '.join(page.without_rows[:NAMED])}{more}")
    if page.left_out:
        reasons = sorted(page.left_out.items(), key=lambda item: -item[1])
        show(f"written but left out: {', '.join(f'{why} ({count})' for why, count in reasons)}")
    show(f"next: tunesmith audit {shlex.quote(page.path)}")
