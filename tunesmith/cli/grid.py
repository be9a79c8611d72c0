"""`tunesmith grid`: objective by technique by family, from runs, with controls."""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import UsageError, add_common, add_schema
from tunesmith.cli.signals import Interruption, Signals, caught
from tunesmith.cli.terminal import emit, log, show, show_table
from tunesmith.data.files import check_folder, write_whole
from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.report.figures import bounds, figure, p_value, signed

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.report.grid import Grid
    from tunesmith.workflows.cells import Setting

# How often a cell that runs is looked after.
SECONDS = 0.5
# Of so many cells that cannot work each is told with its reason; of more they stand on the page.
FEW = 8
# What `tune` exits with when it was asked to stop and has saved.
STOPPED = (130, 143)
# And with what over a fault of our own.
BUG = 70


def add(commands: Commands) -> None:
    """Add `grid`."""
    parser = commands.add_parser(
        "grid",
        help="every technique on every objective and family, from runs, with controls",
        description="Tunes the examples by every technique, cell by cell, beside a head alone and shuffled labels, "
        "and writes what came of it as one page. Finished cells are not run again; a stopped one is gone on with.",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="CELL",
        help="run only such cells: classify/lora/decoder, */lora/*; may be repeated",
    )
    parser.add_argument("--rows", type=int, default=600, metavar="N", help="training rows of a cell (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="run each cell with N seeds (%(default)s)")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="begin no cell later than this; 0: only write the page"
    )
    parser.add_argument(
        "--examples", type=Path, default=Path("examples"), metavar="FOLDER", help="where the recipes lie (%(default)s)"
    )
    parser.add_argument(
        "--no-controls",
        dest="controls",
        action="store_false",
        help="no head alone and no shuffled labels: techniques are only compared with their base and with each other",
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page here (default: grid.md in --out)")
    add_common(parser, out="folder of the runs (default: runs/grid)")
    add_schema(parser, _schema)
    parser.set_defaults(run=run)


def _schema() -> str:
    from tunesmith.report.grid import Grid

    return json.dumps(Grid.model_json_schema(), indent=1)


def run(args: argparse.Namespace) -> int:
    """Fill the grid as the command line says, and write its page."""
    from tunesmith.report.gridpage import page
    from tunesmith.workflows.cells import TASKS, Setting, cells
    from tunesmith.workflows.grid import read

    if args.rows < 1 or args.seeds < 1:
        raise UsageError("--rows, --seeds: a cell needs rows, and a seed; give 1 or more")
    if args.minutes is not None and not args.minutes >= 0:
        raise UsageError(f"--minutes: {args.minutes} is no time; give 0 or more")
    if not args.examples.is_dir():
        raise UsageError(
            f"--examples: there is no folder {args.examples}; the grid runs in a clone, or name its examples"
        )
    wanted = sorted({task.recipe for task in TASKS.values()})
    if not any((args.examples / name).is_file() for name in wanted):
        raise UsageError(f"--examples: none of {', '.join(wanted)} is in {args.examples}; name the examples of a clone")
    if args.page:
        check_folder(args.page)  # now, and not after hours of runs
    chosen = [cell.name for cell in cells(args.only)]
    setting = Setting(args.examples, args.out or Path("runs/grid"), args.rows, args.seeds, args.controls)
    received = _fill(setting, args)
    found = read(setting)
    place = args.page or setting.out / "grid.md"
    write_whole(place, page(found, linked=(place.parent / "proof.md").exists()))
    if received:
        raise Interruption(received, "stopped and saved")
    if args.json:
        emit(found.model_dump(mode="json"))
    else:
        _show(found, chosen, place)
    return 0


def _fill(setting: Setting, args: argparse.Namespace) -> int:
    """Run what is missing; the signal that stopped it, or 0."""
    from tunesmith.workflows.cells import cells
    from tunesmith.workflows.grid import fill

    ends = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    with caught() as signals:

        def stop() -> bool:
            return signals.stop() or (ends is not None and time.monotonic() >= ends)

        def tune(recipe: Path, folder: Path) -> tuple[str, str]:
            offline = ["--offline"] if args.offline else []
            words = [sys.executable, "-m", "tunesmith", "tune", str(recipe), "--out", str(folder), "--json", *offline]
            return _outcome(*_child(words, signals))

        fill(cells(args.only), setting, tune=tune, listen=lambda event: log(event["text"]), stop=stop)
        return signals.received


def _child(words: list[str], signals: Signals) -> tuple[int, str]:
    """The exit code and stdout of a run in a process of its own, so that its peak memory is its own."""
    # A session of its own: Ctrl-C reaches it through us alone, once, and it saves.
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True) as child:
        signals.patient, asked = True, False
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    said, _ = child.communicate(timeout=SECONDS)
                    return child.returncode, said
                if signals.stop() and not asked:
                    child.terminate()
                    asked = True
        except BaseException:
            child.kill()
            raise
        finally:
            signals.patient = False


def _outcome(code: int, said: str) -> tuple[str, str]:
    """How a run that is not finished ended, and why; nothing twice for one that was finished or saved.

    Raises TunesmithError for a bug of ours.
    """
    from tunesmith.workflows.grid import FAILED, REFUSED

    if code == 0 or code in STOPPED:
        return "", ""
    try:
        document = json.loads(said)
    except ValueError:
        document = None
    if code == BUG:
        raise TunesmithError(f"grid: a run ended with exit code {code}, our own bug; please report its lines above")
    if not isinstance(document, dict):
        return FAILED, f"it ended with exit code {code}; its own lines say why"
    if "error" not in document:  # a report: a gate was broken, and the run is finished
        return "", ""
    error = document["error"]
    return REFUSED if (code, error["kind"]) == (2, RecipeError.__name__) else FAILED, str(error["message"])


def _show(found: Grid, chosen: Sequence[str], place: Path) -> None:
    """Each cell in a line, what of the chosen ones cannot work or was not run, and where the page is."""
    from tunesmith.report.gridpage import control

    rows = []
    for cell in found.cells:
        name = f"{cell.objective}/{cell.technique}/{cell.family}"
        gain = f"{signed(cell.delta)} ({bounds(cell.ci95, sign=True)})"
        scores = (figure(cell.base), figure(cell.tuned), gain, p_value(cell.p_value))
        rows.append((name, str(cell.seed), *scores, control(cell.head_only), control(cell.shuffled), cell.verdict))
    columns = ("cell", "seed>", "base>", "tuned>", "gain>", "p>", "head only (p)>", "shuffled (p)>", "verdict")
    show_table(columns, rows)
    parts = (found.refused, found.missing, found.stale)
    refused, missing, stale = (sum(name in part for name in chosen) for part in parts)
    for name in chosen if refused <= FEW else ():
        if name in found.refused:
            show(f"{name} cannot work: {found.refused[name]}")
    others = f", {stale} were made by another recipe" if stale else ""
    show(f"{refused} of {len(chosen)} cells cannot work, {missing} were not run yet{others}; all of it: {place}")
