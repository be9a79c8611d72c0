"""`tunesmith evaluate`: score a model on a file, alone or against another model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.cli.options import UsageError, add_common, add_engine, add_schema, add_set
from tunesmith.cli.progress import reported
from tunesmith.cli.terminal import hush, log, publish, show, show_table, write_result
from tunesmith.data.files import quoted
from tunesmith.display import model_label, model_labels
from tunesmith.report.formatting import bounds, figure, p_value

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.pipelines.evaluate import Compared, ScoredAlone
    from tunesmith.pipelines.requests import EvaluateRequest


def add(commands: Commands) -> None:
    """Add `evaluate`."""
    parser = commands.add_parser(
        "evaluate",
        help="score a model on a file, alone or against another model",
        description="Score a run, a base model, a merged model or any PEFT adapter on the rows of a file, alone or "
        "against another model on the same rows.",
    )
    parser.add_argument("model", metavar="MODEL", help="run, adapter or model folder, alias, Hub id or GGUF file")
    parser.add_argument("file", nargs="?", default="", metavar="FILE", help="rows to score on")
    parser.add_argument("--data", default="", metavar="FILE", help="the same as FILE")
    text = "model to compare with; `base` for the base of MODEL"
    parser.add_argument("--against", default="", metavar="MODEL2", help=text)
    text = "classify, domain or instruct (default: that of the run, or detected from the rows)"
    parser.add_argument("--objective", default="", metavar="KIND", help=text)
    text = "base model for the adapter (default: the base named in the adapter)"
    parser.add_argument("--base", default="", metavar="MODEL", help=text)
    parser.add_argument("--task", default="", metavar="NAME", help="task of a multitask run")
    text = "score on N random rows, 0 for all (default: %(default)s)"
    parser.add_argument("--rows", type=int, default=0, metavar="N", help=text)
    parser.add_argument("--answers", type=Path, metavar="FILE", help="write prompts and answers to this jsonl file")
    add_engine(parser)
    add_set(parser, "set how rows are read, for example objective.text=body or data.group=thread")
    add_schema(parser, "tunesmith.pipelines.evaluate:Page")
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score the model and print the result."""
    request = _request(args)
    _check(request, offline=args.offline)
    from tunesmith.pipelines.evaluate import Compared, evaluate  # after the checks, because it imports torch

    hush()
    with reported() as on_event:
        done = evaluate(request, on_event=on_event, offline=args.offline)
    for note in done.page.notes:
        log(note if note.startswith("warning") else f"note: {note}")
    if args.answers is not None:
        write_answers(args.answers, done.answers)
    if publish(done.page.model_dump(mode="json"), args):
        return 0
    if isinstance(done.page, Compared):
        _show_comparison(done.page)
    else:
        _show_scores(done.page)
    return 0


def _check(request: EvaluateRequest, *, offline: bool) -> None:
    """Raise TunesmithError if there is no such model or file, or an engine cannot answer for the model."""
    from tunesmith.data.readers.read import read_rows
    from tunesmith.inference.engine_program import check_engine

    names = (request.model, "" if request.against == "base" else request.against)
    local = [name for name in names if name and not name.startswith(("http://", "https://"))]
    check_engine(request.engine, *local, offline=offline)
    read_rows(request.data, offline=offline)


def _request(args: argparse.Namespace) -> EvaluateRequest:
    """Return the request of `evaluate`. Raises UsageError without exactly one file."""
    from tunesmith.pipelines.requests import EvaluateRequest

    if bool(args.file) == bool(args.data):
        problem = f"FILE {args.file} and --data {args.data}: two files of rows" if args.file else "no file of rows"
        fix = f"give one of them, as in `tunesmith evaluate {quoted(args.model)} {quoted(args.file or 'FILE')}`"
        raise UsageError(f"{problem}; {fix}")
    return EvaluateRequest(
        args.model,
        args.file or args.data,
        args.against,
        args.objective,
        args.base,
        rows=args.rows,
        changes=tuple(args.changes),
        task=args.task,
        engine=args.engine,
    )


def write_answers(path: Path, answers: Sequence[Mapping[str, Any]]) -> None:
    """Write prompts, references and answers as JSON lines."""
    write_result(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in answers))


def _show_scores(page: ScoredAlone) -> None:
    show(f"{page.model} on {page.data}")
    rows = [(task.metric, figure(task.score), bounds(task.ci95), str(task.n)) for task in page.tasks]
    show_table(("metric", "score>", "95 % interval", "rows>"), rows)


def _show_comparison(page: Compared) -> None:
    show(f"{model_label(page.model)} against {model_label(page.against)} on {page.data}")
    rows = []
    for task in page.tasks:
        values = (figure(task.base), figure(task.tuned), figure(task.delta))
        rows.append((task.metric, *values, bounds(task.ci95, sign=True), p_value(task.p_value), str(task.n)))
    labels = model_labels((page.against, page.model))
    against, model = (labels[name] for name in (page.against, page.model))
    show_table(("metric", f"{against}>", f"{model}>", "delta>", "95 % interval", "p-value>", "rows>"), rows)
    show(page.sentence)
