"""Experiment trackers that receive the records of a run, in addition to the training log.

accelerate's trackers call the libraries. Here are the settings that keep each library offline, quiet, in the run folder
if it can, and in the same run when a run is resumed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tunesmith.errors import RecipeError, briefly, suggestion

PROJECT = "tunesmith"


class Tracker:
    """A tracker that has started, and that cannot end the run.

    Args:
        name: a name of TRACKERS.
        session: the run.

    Raises:
        RecipeError: the tracker cannot start.
    """

    def __init__(self, name: str, session: Session) -> None:
        from accelerate import tracking

        # accelerate's logger and its check for the first process would set up processes; ours is the only one here.
        tracking.logger = logging.getLogger(tracking.__name__)
        self.name = name
        self._lost = False
        try:
            with redirect_stdout(sys.stderr):  # stdout is reserved for the result of the command
                options = TRACKERS[name](session)
                self._tracker = tracking.LOGGER_TYPE_TO_CLASS[name](**options)
                self._tracker.main_process_only = False
                self._tracker.start()
                if name == "tensorboard":
                    self._tracker.log({"recipe": f"```json\n{json.dumps(session.config, indent=1)}\n```"}, step=0)
                elif "config" not in options and not options.get("run_id"):
                    self._tracker.store_init_configuration(session.values)
        except Exception as error:  # of any kind: each library has its own
            raise RecipeError(f"track: {name} cannot start ({briefly(error)}); leave {name} out of track") from error

    def log(self, record: Mapping[str, Any]) -> None:
        """Log the values of a record under its `step`; if that fails, tracking ends and the run continues."""
        if self._lost:
            return
        with self._bounded():
            self._tracker.log(scalar_metrics(record), step=record["step"])

    def close(self) -> None:
        """Write buffered records and close; nothing is logged afterwards."""
        if not self._lost:
            with redirect_stdout(sys.stderr), self._bounded():
                self._tracker.finish()

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        """Enter a context whose errors end tracking, with a warning, and not the run."""
        try:
            yield
        except Exception as error:  # such as a full disk, which every library reports in its own way
            self._lost = True
            problem = f"{self.name}: {briefly(error)}; tracking stopped; journal.jsonl has all records"
            warnings.warn(problem, stacklevel=4)


@dataclass(frozen=True, slots=True)
class Session:
    """The run that a tracker logs: its folder and its recipe."""

    run: Path
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return the name of the run, that of its folder."""
        return self.run.absolute().name

    @property
    def id(self) -> str:
        """Return an identifier that is the same when the run resumes."""
        return hashlib.sha256(str(self.run.absolute()).encode()).hexdigest()[:16]

    @property
    def values(self) -> dict[str, str | float]:
        """Return the recipe with dotted keys, and values of the types that every tracker takes."""
        items = flat(self.config).items()
        return {name: value if isinstance(value, int | float) else str(value)[:500] for name, value in items}


def check_trackers(names: Sequence[str]) -> None:
    """Raise RecipeError for a tracker that is unknown or not installed."""
    for name in names:
        if name not in TRACKERS:
            hint = suggestion(name, TRACKERS)
            raise RecipeError(f"track: no tracker {name!r}; {hint}{' ' * bool(hint)}there are {', '.join(TRACKERS)}")
        _library(name)


def open_trackers(names: Sequence[str], *, run: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """Open trackers.

    Args:
        names: names of TRACKERS.
        run: the run folder.
        config: the recipe as JSON values.

    Raises:
        RecipeError: a tracker is unknown, not installed or cannot start.
    """
    check_trackers(names)
    opened: list[Tracker] = []
    try:
        for name in dict.fromkeys(names):
            opened.append(Tracker(name, Session(run, config)))
    except BaseException:
        for tracker in opened:
            tracker.close()
        raise
    return opened


def scalar_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numeric values of a record."""
    return {
        name: float(value)
        for name, value in record.items()
        if name not in ("step", "steps") and isinstance(value, int | float) and not isinstance(value, bool)
    }


def flat(config: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    """Return the recipe with dotted keys: {"technique": {"rank": 8}} becomes {"technique.rank": 8}."""
    values: dict[str, Any] = {}
    for name, value in config.items():
        values |= flat(value, f"{under}{name}.") if isinstance(value, Mapping) else {f"{under}{name}": value}
    return values


def _wandb(session: Session) -> dict[str, Any]:
    """Return settings of Weights & Biases: files in `RUN/wandb`; `wandb sync` uploads them."""
    return {
        "run_name": PROJECT,
        "name": session.name,
        "dir": str(session.run),
        "config": dict(session.config),
        "id": session.id,
        "mode": "offline",
        "settings": _library("wandb").Settings(silent=True, console="off"),
    }


def _mlflow(session: Session) -> dict[str, Any]:
    """Return settings of MLflow: plain files in `RUN/mlruns`, and the run there if this run is resumed."""
    library = _library("mlflow")
    # Its default database needs the full package; plain files must be allowed explicitly.
    importlib.import_module("mlflow.environment_variables").MLFLOW_ALLOW_FILE_STORE.set(True)
    library.set_tracking_uri((session.run / "mlruns").absolute().as_uri())
    same_run = f"tags.tunesmith_run = '{session.id}'"
    found = library.search_runs(experiment_names=[PROJECT], filter_string=same_run, output_format="list")
    return {
        "experiment_name": PROJECT,
        "run_name": session.name,
        "tags": {"tunesmith_run": session.id},
        "run_id": found[0].info.run_id if found else None,
    }


def _comet(session: Session) -> dict[str, Any]:
    """Return settings of Comet: archives in `RUN/comet`; `comet upload` uploads them."""
    settings = _library("comet_ml").ExperimentConfig(
        name=session.name,
        offline_directory=str(session.run / "comet"),
        log_code=False,
        log_git_metadata=False,
        log_env_details=False,
        auto_output_logging=False,
        parse_args=False,
    )
    return {"run_name": PROJECT, "online": False, "experiment_key": session.id * 2, "experiment_config": settings}


def _clearml(session: Session) -> dict[str, Any]:
    """Return settings of ClearML: an archive in `~/.clearml`; `Task.import_offline_session` uploads it."""
    _library("clearml").Task.set_offline(offline_mode=True)
    automatic = ("connect_arg_parser", "connect_frameworks", "connect_streams", "resource_monitoring")
    return {"run_name": PROJECT, "task_name": session.name, **{f"auto_{name}": False for name in automatic}}


# Name in the recipe's `track`, which is accelerate's and transformers' name -> arguments of accelerate's tracker.
# Not DVCLive: it would make the user's git repository one of DVC and stage files in it.
# Not Aim: its release 3.29 did not start where it was tried.
TRACKERS: Mapping[str, Callable[[Session], dict[str, Any]]] = {
    "tensorboard": lambda session: {"run_name": "tensorboard", "logging_dir": session.run},
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": lambda session: {  # all runs of this machine are in one database
        "run_name": PROJECT,
        "name": f"{session.name}-{session.id[:6]}",
        "config": flat(session.config),
        "resume": "allow",
        "embed": False,
        "auto_log_gpu": False,
        "auto_log_cpu": False,
    },
    "comet_ml": _comet,
    "clearml": _clearml,
    "swanlab": lambda session: {
        "run_name": PROJECT,
        "experiment_name": session.name,
        "logdir": str(session.run / "swanlab"),
        "config": dict(session.config),
        "mode": "offline",
        "id": session.id,
        "resume": "allow",
    },
}
EXTRAS = ("tensorboard", "wandb", "mlflow", "trackio")


def _library(tracker: str) -> ModuleType:
    """Import the library of a tracker. Raises RecipeError if it is not installed."""
    for module in ("torch.utils.tensorboard", "tensorboardX") if tracker == "tensorboard" else (tracker,):
        try:
            return importlib.import_module(module)
        except ImportError:
            continue
    install = f"'tunesmith[track-{tracker}]'" if tracker in EXTRAS else tracker.replace("_", "-")
    raise RecipeError(f"track: {tracker} is not installed; run pip install {install} or remove it")
