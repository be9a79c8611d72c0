"""Tune the examples by every technique, cell by cell, and write the results as one page of Markdown.

    python -m bench.technique_grid                                   # every cell
    python -m bench.technique_grid --only classify/lora/decoder      # one cell; '*/lora/*' for all of LoRA's
    python -m bench.technique_grid --minutes 0                       # only write the page

Finished cells are skipped; interrupted ones resume.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.technique_grid.cells import TASKS, Setting, cells
from bench.technique_grid.report import Grid, control, page
from bench.technique_grid.run import FAILED, REFUSED, fill, read
from tunesmith.cli import main as tunesmith
from tunesmith.cli.options import Parser, UsageError, add_place
from tunesmith.cli.signals import Interruption, Signals, caught
from tunesmith.cli.terminal import log, show, show_table
from tunesmith.data.files import check_folder, write_whole
from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.pipelines.many_runs import LOCAL, check_place
from tunesmith.report.formatting import bounds, figure, p_value, signed

POLL_SECONDS = 0.5
# Up to this number of cells that cannot work are printed with the reason; the page lists all of them.
REASONS_SHOWN = 8
INTERRUPTED = (130, 143)  # exit codes of a run that was asked to stop and has saved
BUG = 70  # exit code of an unexpected exception


def main(argv: Sequence[str] | None = None) -> int:
    """Run the missing cells, write the page and return the exit code."""
    try:
        return _run(_parser().parse_args(argv))
    except TunesmithError as error:
        log(f"error: {error}")
        return error.exit_code
    except Interruption as error:
        log(f"interrupted: {error.text}; run the same command again to resume")
        return error.exit_code


def _parser() -> Parser:
    default = Setting()
    parser = Parser(
        prog="python -m bench.technique_grid",
        description="Tune the examples by every technique, compare each run with its controls, and write one page. "
        "Finished cells are skipped; interrupted ones resume.",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="CELL",
        help="run only matching cells: classify/lora/decoder, */lora/*; may be repeated",
    )
    parser.add_argument("--rows", type=int, default=600, metavar="N", help="training rows per cell (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds per cell (%(default)s)")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="start no cell after M minutes; 0 only writes the page"
    )
    parser.add_argument(
        "--examples", type=Path, default=default.examples, metavar="FOLDER", help="folder of the recipes (%(default)s)"
    )
    parser.add_argument(
        "--no-controls",
        dest="controls",
        action="store_false",
        help="skip the frozen head and the shuffled labels",
    )
    parser.add_argument(
        "--results", type=Path, default=default.results, metavar="FILE", help="file of the results (%(default)s)"
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="file of the page (default: grid.md in --out)")
    parser.add_argument(
        "--out", type=Path, default=default.out, metavar="FOLDER", help="folder of the runs (%(default)s)"
    )
    add_place(parser)
    parser.add_argument("--offline", action="store_true", help="do not access the network")
    return parser


def _run(args: argparse.Namespace) -> int:
    if args.rows < 1 or args.seeds < 1:
        raise UsageError(f"--rows, --seeds: expected integers >= 1, got {args.rows} and {args.seeds}; give 1 or more")
    if args.minutes is not None and not args.minutes >= 0:
        raise UsageError(f"--minutes: expected a number >= 0, got {args.minutes}; give 0 to write only the page")
    check_place(args.on)
    recipes = sorted({task.recipe for task in TASKS.values()})
    if not any((args.examples / name).is_file() for name in recipes):
        raise UsageError(
            f"--examples: none of {', '.join(recipes)} is in {args.examples}; name the folder examples/ of a clone"
        )
    path = args.page or args.out / "grid.md"
    if args.page:
        check_folder(path)  # before hours of runs, not after them
    chosen = [cell.name for cell in cells(args.only)]
    setting = Setting(args.examples, args.out, args.results, args.rows, args.seeds, args.controls)
    received = _fill(setting, args)
    grid = read(setting)
    write_whole(path, page(grid, linked=(path.parent / "metrics.md").exists()))
    if received:
        raise Interruption(received, "stopped and saved")
    _show(grid, chosen, path)
    return 0


def _fill(setting: Setting, args: argparse.Namespace) -> int:
    """Run the missing cells and return the number of the signal that stopped it, or 0."""
    end = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    offline = ["--offline"] * args.offline
    with caught() as signals:

        def stop() -> bool:
            return signals.stop() or (end is not None and time.monotonic() >= end)

        def tune(recipe: Path, folder: Path) -> tuple[str, str]:
            words = [sys.executable, "-m", "tunesmith", "tune", str(recipe), "--out", str(folder), "--json", *offline]
            return _outcome(*_child(words, signals))

        elsewhere = partial(tune_in_task, offline)
        chosen = tune if args.on == LOCAL else elsewhere
        fill(cells(args.only), setting, tune=chosen, on_event=lambda event: log(event.text), stop=stop, on=args.on)
        return signals.received


def tune_in_task(offline: Sequence[str], recipe: Path, folder: Path) -> tuple[str, str]:
    """Tune in the process of a Ray task, which does nothing else, and ends with it if it is killed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = tunesmith(["tune", str(recipe), "--out", str(folder), "--json", *offline])
    return _outcome(code, printed.getvalue())


def _child(words: list[str], signals: Signals) -> tuple[int, str]:
    """Return the exit code and stdout of a child process: only its own process measures a run's peak memory."""
    # In its own session, Ctrl-C reaches the child only through this process, once, and the child saves.
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True) as child:
        signals.patient = True
        terminated = False
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    stdout, _ = child.communicate(timeout=POLL_SECONDS)
                    return child.returncode, stdout
                if signals.stop() and not terminated:
                    child.terminate()
                    terminated = True
        except BaseException:
            child.kill()
            raise
        finally:
            signals.patient = False


def _outcome(code: int, stdout: str) -> tuple[str, str]:
    """Return how a run ended unfinished (REFUSED or FAILED) and why; two empty strings if it finished or saved.

    Raises:
        TunesmithError: The run ended with an unexpected exception.
    """
    if code == 0 or code in INTERRUPTED:
        return "", ""
    if code == BUG:
        raise TunesmithError(f"technique grid: a run ended with exit code {code}, a bug; report its lines above")
    try:
        document = json.loads(stdout)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        return FAILED, f"ended with exit code {code}; see its log"
    if "error" not in document:  # a report: a gate was violated, and the run is finished
        return "", ""
    error = document["error"]
    return REFUSED if (code, error["kind"]) == (2, RecipeError.__name__) else FAILED, str(error["message"])


def _show(grid: Grid, chosen: Sequence[str], path: Path) -> None:
    """Print one line per cell, the chosen cells that cannot work or did not run, and the path of the page."""
    rows = []
    for cell in grid.cells:
        name = f"{cell.objective}/{cell.technique}/{cell.family}"
        gain = f"{signed(cell.delta)} ({bounds(cell.ci95, sign=True)})"
        scores = (figure(cell.base), figure(cell.tuned), gain, p_value(cell.p_value))
        rows.append((name, str(cell.seed), *scores, control(cell.head_only), control(cell.shuffled), cell.verdict))
    columns = ("cell", "seed>", "base>", "tuned>", "gain>", "p>", "head only (p)>", "shuffled (p)>", "verdict")
    show_table(columns, rows)
    refused, missing, stale = (
        sum(name in part for name in chosen) for part in (grid.refused, grid.missing, grid.stale)
    )
    for name in chosen if refused <= REASONS_SHOWN else ():
        if name in grid.refused:
            show(f"{name} cannot work: {grid.refused[name]}")
    others = f", {stale} belong to another recipe" if stale else ""
    show(f"{refused} of {len(chosen)} cells cannot work, {missing} have not run{others}; page: {path}")


if __name__ == "__main__":
    sys.exit(main())
