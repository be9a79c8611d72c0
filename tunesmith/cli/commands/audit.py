"""`tunesmith audit`: check rows for problems and write a cleaned copy."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import ROW_FILES, add_common, add_schema, add_set
from tunesmith.cli.terminal import hush, log, publish, show, show_table
from tunesmith.data.files import write_whole

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.pipelines.audit import Done

SAMPLES_SHOWN = 3


def add(commands: Commands) -> None:
    """Add `audit`."""
    parser = commands.add_parser(
        "audit",
        help="check rows for problems and write a cleaned copy",
        description="Check every row for duplicates, leaked test rows, wrong labels, broken encoding, personal data, "
        "secrets and other problems. The data is not changed; --fix writes a cleaned copy and a log of every changed "
        "or dropped row. Exits with 1 if errors block training; with --fix, only if a copy cannot resolve them.",
    )
    parser.add_argument("source", metavar="DATA|RECIPE", help=f"{ROW_FILES}, or recipe.yaml")
    parser.add_argument("--against", default="", metavar="TEST", help="test rows that must not appear in the data")
    parser.add_argument("--fix", type=Path, metavar="OUT", help="write a cleaned copy, and its log to OUT.log.jsonl")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the findings as an HTML page")
    parser.add_argument(
        "--model",
        default="",
        help="model that also checks labels and row lengths; an encoder also detects paraphrased test rows",
    )
    add_set(parser, "set how rows are read, for example objective.text=body")
    add_schema(parser, "tunesmith.data.audit.findings:Audit")
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Audit the rows; return 1 if a finding blocks training that the cleaned copy, if one was written, has too."""
    from tunesmith.cli.progress import reported
    from tunesmith.config.commands import audit_fix, set_options
    from tunesmith.data.cpu_count import cores
    from tunesmith.events import StageStarted
    from tunesmith.pipelines.audit import audit_rows, next_command, page
    from tunesmith.pipelines.requests import AuditRequest

    if args.model:
        hush()
    pages = tuple(path for path in (args.html, args.out) if path is not None)
    request = AuditRequest(args.source, args.against, args.model, tuple(args.changes), args.fix, pages)
    with reported() as on_event:
        done = audit_rows(request, workers=cores(), offline=args.offline, log=lambda text: on_event(StageStarted(text)))
    if args.html is not None:
        write_whole(args.html, page(done.audit))
    fixed = asdict(done.fixed) if done.fixed else {}
    fixed = {"path": fixed.pop("out"), **fixed} if fixed else {}
    if not publish({**done.audit.model_dump(mode="json"), **({"fixed": fixed} if fixed else {})}, args):
        _show(done)
    left = done.audit.left_to_user
    if blocking := left if done.fixed else done.audit.blocking:
        fixes = [finding.fix for finding in left]
        if blocking != left:
            command = audit_fix(args.source, set_options(args.changes), against=args.against, model=args.model)
            fixes.insert(0, f"run `{command}`, or correct the rows")
        log(f"error: {args.source}: {', '.join(f.kind for f in blocking)}; {', and '.join(fixes)}")
        return 1
    if done.fixed is not None:
        log(f"next: {next_command(args.source, done.fixed.out, args.changes)}")
    return 0


def _show(done: Done) -> None:
    """Print the findings with sample rows, and what the cleaned copy contains."""
    from tunesmith.pipelines.audit import sentence

    audit = done.audit
    show(sentence(audit))
    if audit.findings:
        rows = [(f.kind, f.severity, str(f.count), f"{100 * f.share:.2f} %", f.fix) for f in audit.findings]
        show_table(("finding", "severity", "rows>", "share>", "fix"), rows)
    for finding in audit.findings:
        show(f"{finding.kind}: {finding.about}")
        for sample in finding.samples[:SAMPLES_SHOWN]:
            show(f"  {sample.where}: {f'({sample.note}) ' if sample.note else ''}{sample.text}")
        if finding.count > SAMPLES_SHOWN:
            show(f"  ... {finding.count} in total; --json lists all rows")
    for note in audit.notes:
        show(note)
    if done.fixed is not None:
        counts = f"{done.fixed.kept} rows kept ({done.fixed.changed} of them changed), {done.fixed.dropped} dropped"
        show(f"written: {done.fixed.out}: {counts}; every change is logged in {done.fixed.log}")
