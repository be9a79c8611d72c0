"""`tunesmith runs` and `tunesmith models`: what is here."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.cli.options import UsageError, add_common
from tunesmith.cli.terminal import log, publish, show, show_table
from tunesmith.errors import CheckpointError
from tunesmith.report.formatting import figure, p_value, size

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands

Verb = Callable[[argparse.Namespace, Sequence[str]], int]


def run_diff(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Two runs on the same test rows: which rows changed, and whether that is more than chance."""
    from tunesmith.report.run_diff import diff_runs, lines

    if len(words) != 2:
        raise UsageError(f"runs diff: two runs are compared, found {len(words)}; write `tunesmith runs diff A B`")
    found = diff_runs(Path(words[0]), Path(words[1]), args.task)
    if not publish(found.model_dump(mode="json"), args):
        for line in lines(found):
            show(line)
    return 0


# `tunesmith runs VERB ...`: word -> what it does with the words after it.
VERBS: Mapping[str, Verb] = {"diff": run_diff}


def add(commands: Commands) -> None:
    """Add `runs` and `models`."""
    runs = commands.add_parser("runs", help="what was tuned here, and what it brought")
    runs.add_argument(
        "words",
        nargs="*",
        metavar="FOLDER | diff A B",
        help="where the runs lie (default: runs), or two runs to compare",
    )
    runs.add_argument("--task", default="", metavar="NAME", help="diff: by which task of runs that learned several")
    add_common(runs)
    runs.set_defaults(run=run_runs)
    models = commands.add_parser("models", help="the models that are always there")
    models.add_argument("--fetch", action="store_true", help="bring them into the cache now")
    add_common(models)
    models.set_defaults(run=run_models)


def run_runs(args: argparse.Namespace) -> int:
    """List the runs of a folder, the newest last."""
    words = args.words or ["runs"]
    if words[0] in VERBS:
        return VERBS[words[0]](args, words[1:])
    if len(words) > 1:
        raise UsageError(f"runs: one folder at a time, found {len(words)}; see `tunesmith runs --help`")
    folder = Path(words[0])
    if args.words and not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; name one that holds runs")
    found = [_about(path) for path in _run_folders(folder)]
    found.sort(key=lambda line: str(line["when"]))
    if publish({"runs": found}, args):
        return 0
    if not found:
        show(f"no runs in {folder}; `tunesmith tune RECIPE` makes one")
    else:
        show_table(
            ("run", "task", "metric", "base>", "tuned>", "p-value>", "when", "state"),
            [_cells(run) for run in found],
        )
    return 0


def _run_folders(folder: Path) -> list[Path]:
    """The folder itself if it is a run, else the runs in it."""
    from tunesmith.training.run_folder import PAGE

    places = [folder, *(sorted(folder.iterdir()) if folder.is_dir() else [])]
    runs = [path for path in places if any((path / name).is_file() for name in (PAGE, "report.json"))]
    return [folder] if folder in runs else runs


def _about(path: Path) -> dict[str, Any]:
    """One run as a line of the table; a report that cannot be read is said in its state."""
    from tunesmith.report.schema import read_report
    from tunesmith.training.journal import Journal

    page = next(p for p in (path / "report.json", path / "journal.jsonl", path / "run.json") if p.exists())
    when = datetime.fromtimestamp(page.stat().st_mtime).isoformat(sep=" ", timespec="minutes")
    line: dict[str, Any] = {"run": path, "when": when, "state": "finished", "step": None, "report": None}
    if not (path / "report.json").exists():
        steps = [record for record in Journal(path / "journal.jsonl").read() if "steps" in record]
        last = steps[-1] if steps else None
        where = f", step {last['step']} of {last['steps']}" if last else ""
        return line | {"state": f"unfinished{where}", "step": last["step"] if last else 0}
    try:
        report = read_report(path)
    except CheckpointError as error:
        log(f"warning: {error}")
        return line | {"state": "unreadable"}
    task = report.task.model_dump(mode="json")
    what = f"{report.objective}, {_technique(path, report.technique)}, {report.model}"
    return line | {"step": report.training.steps, "report": {"what": what, "task": task}}


def _technique(path: Path, kind: str) -> str:
    """The technique as people call it: LoRA's options have names of their own."""
    import yaml

    from tunesmith.techniques import SHORTHANDS

    page = path / "recipe.yaml"
    try:
        options = yaml.safe_load(page.read_text(encoding="utf-8"))["technique"].items()
    except (OSError, yaml.YAMLError, UnicodeError, KeyError, TypeError, AttributeError):  # a page that people edited
        return kind
    return "+".join(word for word, short in SHORTHANDS.items() if len(short) > 1 and short.items() <= options) or kind


def _cells(line: Mapping[str, Any]) -> tuple[str, ...]:
    if line["report"] is None:
        return (str(line["run"]), "-", "-", "-", "-", "-", line["when"], line["state"])
    task = line["report"]["task"]
    scores = (figure(task["base"]), figure(task["tuned"]), p_value(task["p_value"]))
    return (str(line["run"]), line["report"]["what"], task["metric"], *scores, line["when"], line["state"])


def run_models(args: argparse.Namespace) -> int:
    """List the aliases and whether they are in the cache; with `--fetch` they are afterwards."""
    from tunesmith.models.loading.bundled_models import BUNDLED_MODELS, fetch, folder_of, is_whole

    if args.fetch:
        for alias in BUNDLED_MODELS:
            log(f"{alias}: {'here' if is_whole(folder_of(alias)) else 'fetching'}")
            fetch(alias, offline=args.offline)
    found: list[dict[str, Any]] = []
    for alias, model in BUNDLED_MODELS.items():
        folder = folder_of(alias)
        here = is_whole(folder)
        held = sum(path.stat().st_size for path in folder.iterdir()) if here else None
        what = {"alias": alias, "about": model.about, "hub_id": model.hub_id, "licence": model.licence}
        found.append({**what, "in_cache": here, "bytes": held, "folder": folder})
    if publish({"models": found}, args):
        return 0
    rows = []
    for line in found:
        state = ("yes", size(line["bytes"])) if line["in_cache"] else ("no", "-")
        rows.append((line["alias"], line["about"], *state, line["licence"], line["hub_id"]))
    show_table(("alias", "what", "in cache", "size>", "licence", "on the Hub"), rows)
    if not all(line["in_cache"] for line in found):
        show("`tunesmith models --fetch` brings the missing ones; so does the first use")
    return 0
