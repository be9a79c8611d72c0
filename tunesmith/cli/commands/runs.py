"""`tunesmith runs` and `tunesmith models`: list or compare runs; list, download or check models."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.cli.options import UsageError, add_common, add_schema
from tunesmith.cli.terminal import hush, log, publish, show, show_table
from tunesmith.errors import CheckpointError
from tunesmith.report.formatting import count, duration, figure, p_value, size

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.models.certificate import Certificate

COLUMNS = ("run", "task", "metric", "base>", "tuned>", "p-value>", "when", "state")


def add(commands: Commands) -> None:
    """Add `runs` and `models`."""
    runs = commands.add_parser(
        "runs",
        help="list runs and their results, or compare two runs",
        description="List the runs of a folder, newest last. `runs diff A B` compares the predictions of two runs on "
        "the same test rows.",
    )
    text = "folder of the runs (default: runs), or `diff` and two run folders"
    runs.add_argument("words", nargs="*", metavar="FOLDER | diff A B", help=text)
    runs.add_argument("--task", default="", metavar="NAME", help="task to compare, for `diff` of multitask runs")
    add_common(runs)
    runs.set_defaults(run=run_runs)
    models = commands.add_parser(
        "models",
        help="list the bundled models, download them, or check any model",
        description="List the models that have an alias, with their size and licence. `models check MODEL` measures on "
        "that very network what training, scoring, generation and exports rely on, and exits with 1 if a claim fails.",
    )
    text = "`check` and an alias, Hub id, folder, run folder or GGUF file"
    models.add_argument("words", nargs="*", metavar="check MODEL", help=text)
    models.add_argument("--fetch", action="store_true", help="download them to the cache")
    add_schema(models, "tunesmith.models.certificate:Certificate")
    add_common(models)
    models.set_defaults(run=run_models)


def run_runs(args: argparse.Namespace) -> int:
    """List the runs of a folder, newest last, or compare two runs."""
    words = args.words or ["runs"]
    if words[0] == "diff":
        return _diff(args, words[1:])
    if len(words) > 1:
        raise UsageError(f"runs: expected one folder, got {len(words)}; see `tunesmith runs --help`")
    folder = Path(words[0])
    if args.words and not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; name a folder with runs")
    from tunesmith.report.run_list import list_runs

    runs = list_runs(folder, on_problem=lambda text: log(f"warning: {text}"))
    if publish({"runs": runs}, args):
        return 0
    if not runs:
        show(f"no runs in {folder}; `tunesmith tune RECIPE` creates one")
    else:
        show_table(COLUMNS, [cells(run) for run in runs], drop=("when", "p-value", "base"))
    return 0


def _diff(args: argparse.Namespace, folders: Sequence[str]) -> int:
    from tunesmith.report.run_diff import diff_runs, lines

    if len(folders) != 2:
        raise UsageError(f"runs diff: expected two runs, got {len(folders)}; write `tunesmith runs diff A B`")
    diff = diff_runs(Path(folders[0]), Path(folders[1]), args.task)
    if not publish(diff.model_dump(mode="json"), args):
        for line in lines(diff):
            show(line)
    return 0


def cells(run: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a run as a row of the table."""
    if run["report"] is None:
        return (str(run["run"]), "-", "-", "-", "-", "-", run["when"], run["state"])
    task = run["report"]["task"]
    scores = (figure(task["base"]), figure(task["tuned"]), p_value(task["p_value"]))
    return (str(run["run"]), run["report"]["what"], task["metric"], *scores, run["when"], run["state"])


def run_models(args: argparse.Namespace) -> int:
    """List the bundled models, after downloading them under `--fetch`; or check one."""
    if args.words:
        return _check(args)
    models = list_models(fetch_all=args.fetch, offline=args.offline)
    if publish({"models": models}, args):
        return 0
    rows = []
    for entry in models:
        cache = ("yes", size(entry["bytes"])) if entry["in_cache"] else ("no", "-")
        rows.append((entry["alias"], entry["about"], *cache, entry["licence"], entry["hub_id"]))
    show_table(("alias", "description", "in cache", "size>", "licence", "Hub id"), rows)
    if not all(entry["in_cache"] for entry in models):
        show("missing models are downloaded on first use, or by `tunesmith models --fetch`")
    return 0


def _check(args: argparse.Namespace) -> int:
    """Measure the certificate of a model; exit with 1 if a claim fails."""
    if args.words[0] != "check" or len(args.words) != 2:
        raise UsageError(f"models: expected `check MODEL`, got {' '.join(args.words)!r}; see `tunesmith models --help`")
    from tunesmith.cli.progress import reported
    from tunesmith.pipelines.certify.certify import check_model

    hush()
    with reported() as on_event:
        certificate = check_model(args.words[1], on_event=on_event, offline=args.offline)
    if not publish({"certificate": certificate.model_dump(mode="json")}, args):
        show_certificate(certificate)
    return 1 if certificate.failed else 0


def show_certificate(certificate: Certificate) -> None:
    """Print the claims with what was measured, and the techniques that this network refuses."""
    show(f"{certificate.model}: {certificate.kind}, {certificate.family}, {count(certificate.parameters)} parameters")
    rows = [(check.claim, check.outcome, check.figure, check.note) for check in certificate.checks]
    show_table(("claim", "outcome", "difference>", "note"), rows)
    for kind, reason in certificate.refused_techniques.items():
        show(f"technique {kind}: {reason}")
    show(f"{certificate.summary()} ({duration(certificate.seconds)})")


def list_models(*, fetch_all: bool, offline: bool) -> list[dict[str, Any]]:
    """Return the bundled models as entries of the JSON document; download them first if `fetch_all`."""
    from tunesmith.models.loading.bundled_models import BUNDLED_MODELS, fetch, folder_of, is_whole

    models: list[dict[str, Any]] = []
    for alias, model in BUNDLED_MODELS.items():
        folder = folder_of(alias)
        if fetch_all:
            log(f"{alias}: {'already in the cache' if is_whole(folder) else 'downloading'}")
            fetch(alias, offline=offline)
        cached = is_whole(folder)
        total = sum(path.stat().st_size for path in folder.iterdir()) if cached else None
        about = {"alias": alias, "about": model.about, "hub_id": model.hub_id, "licence": model.licence}
        models.append({**about, "in_cache": cached, "bytes": total, "folder": folder})
    return models
