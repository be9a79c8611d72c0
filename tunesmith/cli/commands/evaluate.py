"""`tunesmith evaluate`: any model scored on any file of rows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import UsageError, add_common, add_schema, add_set
from tunesmith.cli.progress import Lines
from tunesmith.cli.terminal import hush, log, publish, show, show_table
from tunesmith.data.files import write_whole
from tunesmith.report.formatting import bounds, figure, p_value

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.pipelines.evaluate import Compared, ScoredAlone


def add(commands: Commands) -> None:
    """Add `evaluate`."""
    parser = commands.add_parser(
        "evaluate",
        help="score a run, a base or anybody's adapter on any file",
        description="Score a run, a base model, a merged folder or anybody's PEFT adapter on the rows of a file, "
        "alone or against another model on the same rows.",
    )
    parser.add_argument("model", metavar="MODEL", help="run, adapter or model folder, alias, Hub id or file.gguf")
    parser.add_argument("--data", required=True, metavar="FILE", help="rows to score on")
    parser.add_argument(
        "--against", default="", metavar="MODEL2", help="compare with its base (the word base) or a model"
    )
    parser.add_argument(
        "--objective", default="", metavar="KIND", help="classify, domain or instruct; else as tuned, or detected"
    )
    parser.add_argument("--base", default="", metavar="MODEL", help="put the adapter over this base")
    parser.add_argument("--task", default="", metavar="NAME", help="which task of a run that learned several")
    parser.add_argument(
        "--rows", type=int, default=0, metavar="N", help="score on N rows drawn at random; 0 for all (%(default)s)"
    )
    parser.add_argument("--answers", type=Path, metavar="FILE", help="write every question with its answers, as jsonl")
    add_set(parser, "how the rows are read, such as objective.text=body or data.group=thread")
    add_schema(parser, _schema)
    add_common(parser)
    parser.set_defaults(run=run)


def _schema() -> str:
    from tunesmith.pipelines.evaluate import schema

    return schema()


def run(args: argparse.Namespace) -> int:
    """Score as the command line says."""
    from tunesmith.pipelines.evaluate import Compared, EvaluateRequest, evaluate

    if args.rows < 0:
        raise UsageError(f"--rows: {args.rows} is no number of rows; give 1 or more, or 0 for all")
    hush()
    asked = EvaluateRequest(
        args.model,
        args.data,
        args.against,
        args.objective,
        args.base,
        rows=args.rows,
        changes=tuple(args.changes),
        task=args.task,
    )
    done = evaluate(asked, on_event=Lines(), offline=args.offline)
    for note in done.page.notes:
        log(note if note.startswith("warning") else f"note: {note}")
    if args.answers is not None:
        write_whole(args.answers, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in done.answers))
    if publish(done.page.model_dump(mode="json"), args):
        return 0
    if isinstance(done.page, Compared):
        _show_comparison(done.page)
    else:
        _show_scores(done.page)
    return 0


def _show_scores(page: ScoredAlone) -> None:
    """Every metric of one model with its interval."""
    show(f"{page.model} on {page.data}")
    rows = [(task.metric, figure(task.score), bounds(task.ci95), str(task.n)) for task in page.tasks]
    show_table(("metric", "score>", "95 % interval", "rows>"), rows)


def _show_comparison(page: Compared) -> None:
    """Both models side by side, and what may be said about them."""
    show(f"{page.model} against {page.against} on {page.data}")
    rows = []
    for task in page.tasks:
        values = (figure(task.base), figure(task.tuned), figure(task.delta))
        rows.append((task.metric, *values, bounds(task.ci95), p_value(task.p_value), str(task.n)))
    show_table(("metric", f"{page.against}>", f"{page.model}>", "delta>", "95 % interval", "p-value>", "rows>"), rows)
    show(page.sentence)
