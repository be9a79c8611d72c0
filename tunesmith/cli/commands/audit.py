"""`tunesmith audit`: what is wrong with the rows, and a cleaned copy of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import add_common, add_schema, add_set
from tunesmith.cli.terminal import hush, log, publish, show, show_table
from tunesmith.data.files import write_whole

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.data.audit.findings import Audit
    from tunesmith.pipelines.audit import Done

SAMPLES_SHOWN = 3


def add(commands: Commands) -> None:
    """Add `audit`."""
    parser = commands.add_parser(
        "audit",
        help="what is wrong with the rows, and a cleaned copy",
        description="Look at every row for copies, leaked test rows, wrong labels, broken letters, personal data, "
        "secrets and more. Exits with 1 where something must be cured before a run. Nothing is changed; --fix writes a "
        "cleaned copy and a log of every row it changed or dropped.",
    )
    parser.add_argument("source", metavar="DATA|RECIPE", help="rows as jsonl, json, csv, tsv, parquet, or recipe.yaml")
    parser.add_argument("--against", default="", metavar="TEST", help="test rows that must not stand in the data")
    parser.add_argument("--fix", type=Path, metavar="OUT", help="write a cleaned copy, and OUT.log.jsonl")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the findings as a page")
    parser.add_argument(
        "--model",
        default="",
        help="a model that judges labels too and finds rows too long for it; an encoder also finds reworded leaks",
    )
    add_set(parser, "how the rows are read, such as objective.text=body")
    add_schema(parser, _schema)
    add_common(parser)
    parser.set_defaults(run=run)


def _schema() -> str:
    from tunesmith.data.audit.findings import schema

    return schema()


def run(args: argparse.Namespace) -> int:
    """Audit as the command line says; 1 where something blocks."""
    from tunesmith.data.cpu_count import cores
    from tunesmith.pipelines.audit import AuditRequest, audit_rows

    if args.model:
        hush()
    pages = tuple(path for path in (args.html, args.out) if path is not None)
    wish = AuditRequest(args.source, args.against, args.model, tuple(args.changes), args.fix, pages)
    done = audit_rows(wish, workers=cores(), offline=args.offline, log=log)
    if args.html is not None:
        _write_page(done.audit, args.html)
    fixed = None if done.fixed is None else {"path": done.fixed.out, "log": done.fixed.log}
    if not publish({**done.audit.model_dump(mode="json"), **({"fixed": fixed} if fixed else {})}, args):
        _show(done)
    if done.audit.verdict == "blocked":
        cure = "cure the rows, or use --fix OUT" if done.fixed is None else f"go on with the copy {done.fixed.out}"
        log(f"error: {args.source}: {', '.join(f.kind for f in done.audit.blocking)}; {cure}")
        return 1
    return 0


def _write_page(audit: Audit, path: Path) -> None:
    from tunesmith.pipelines.audit import page

    write_whole(path, page(audit))


def _show(done: Done) -> None:
    """All findings as a table, some rows of each, and what became of the copy."""
    from tunesmith.pipelines.audit import sentence

    audit = done.audit
    show(sentence(audit))
    if audit.findings:
        rows = [(f.kind, f.severity, str(f.count), f"{100 * f.share:.2f} %", f.fix) for f in audit.findings]
        show_table(("kind", "severity", "rows>", "share>", "cure"), rows)
    for finding in audit.findings:
        show(f"{finding.kind}: {finding.about}")
        for sample in finding.samples[:SAMPLES_SHOWN]:
            show(f"  {sample.where}: {f'({sample.note}) ' if sample.note else ''}{sample.text}")
        if finding.count > SAMPLES_SHOWN:
            show(f"  ... {finding.count} in all; --json lists every row")
    for note in audit.notes:
        show(note)
    if done.fixed is not None:
        kept = f"{done.fixed.kept} rows kept ({done.fixed.changed} of them changed), {done.fixed.dropped} dropped"
        show(f"written: {done.fixed.out}: {kept}; every change stands in {done.fixed.log}")
