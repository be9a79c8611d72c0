"""Experiment trackers that receive the records of a run, in addition to the training log."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from tunesmith.errors import RecipeError, briefly, suggestion

PROJECT = "tunesmith"


class Tracker(Protocol):
    """Receives the records of a run."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Log the values of a record under its `step`."""
        ...

    def close(self) -> None:
        """Write buffered records and close; nothing is logged afterwards."""
        ...


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
            opened.append(TRACKERS[name](Session(run, config)))
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


class TensorBoard:
    """Event files in `RUN/tensorboard`, through torch's writer or tensorboardX."""

    def __init__(self, session: Session) -> None:
        module = _library("tensorboard")
        self._writer = module.SummaryWriter(str(session.run / "tensorboard"))
        self._writer.add_text("recipe", f"```json\n{json.dumps(session.config, indent=1, default=str)}\n```", 0)

    def log(self, record: Mapping[str, Any]) -> None:
        """Write one scalar per value."""
        for name, value in scalar_metrics(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class Wandb:
    """Weights & Biases, offline: its files are in `RUN/wandb`; `wandb sync` uploads them."""

    def __init__(self, session: Session) -> None:
        library = _library("wandb")
        quiet = library.Settings(silent=True, console="off")
        settings = {
            "project": PROJECT,
            "name": session.name,
            "dir": str(session.run),
            "config": dict(session.config),
            "id": session.id,
        }
        try:
            self._run = library.init(**settings, mode="offline", settings=quiet)
        except library.errors.Error as error:
            raise RecipeError(f"track: wandb cannot start ({briefly(error)}); leave wandb out of track") from error

    def log(self, record: Mapping[str, Any]) -> None:
        """Log the values of the step; a second record of the same step is added to it."""
        self._run.log(scalar_metrics(record), step=record["step"])

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class MLflow:
    """MLflow, with plain files in `RUN/mlruns`."""

    def __init__(self, session: Session) -> None:
        library = _library("mlflow")
        # Its default database needs the full package; plain files must be allowed explicitly.
        importlib.import_module("mlflow.environment_variables").MLFLOW_ALLOW_FILE_STORE.set(True)
        self._failure: type[Exception] = library.exceptions.MlflowException
        address = (session.run / "mlruns").absolute().as_uri()
        self._lost = False
        try:
            self._client = library.MlflowClient(tracking_uri=address)
            self._id = self._begin(session)
        except self._failure as error:
            raise RecipeError(f"track: mlflow cannot start ({briefly(error)}); leave mlflow out of track") from error

    def _begin(self, session: Session) -> str:
        """Return the run of this folder, or create one with the recipe as its parameters."""
        client = self._client
        existing = client.get_experiment_by_name(PROJECT)
        experiment = existing.experiment_id if existing else client.create_experiment(PROJECT)
        there = client.search_runs([experiment], f"tags.tunesmith_run = '{session.id}'", max_results=1)
        if there:
            client.update_run(there[0].info.run_id, status="RUNNING")
            return str(there[0].info.run_id)
        made = client.create_run(experiment, run_name=session.name, tags={"tunesmith_run": session.id})
        for name, value in flat(session.config).items():
            client.log_param(made.info.run_id, name, str(value)[:500])
        return str(made.info.run_id)

    def log(self, record: Mapping[str, Any]) -> None:
        """Log one metric per value; if the disk fails, tracking ends and the run continues."""
        if self._lost:
            return
        try:
            for name, value in scalar_metrics(record).items():
                self._client.log_metric(self._id, name, value, step=record["step"])
        except self._failure as error:
            self._lost = True
            warnings.warn(f"mlflow: {briefly(error)}; tracking stopped; journal.jsonl has all records", stacklevel=2)

    def close(self) -> None:
        """Mark the run as finished."""
        if not self._lost:
            self._client.set_terminated(self._id)


class Trackio:
    """Trackio, which has all runs of this machine in a local database."""

    def __init__(self, session: Session) -> None:
        self._library = _library("trackio")
        quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        # It prints to stdout, which is reserved for the result of the command.
        with redirect_stdout(sys.stderr):
            self._run = self._library.init(
                project=PROJECT,
                name=f"{session.name}-{session.id[:6]}",
                config=flat(session.config),
                resume="allow",
                **quiet,
            )

    def log(self, record: Mapping[str, Any]) -> None:
        """Log the values of the step."""
        self._run.log(scalar_metrics(record), step=record["step"])

    def close(self) -> None:
        """Wait until all records are in the database."""
        with redirect_stdout(sys.stderr):
            self._library.finish()


# Name in the recipe's `track` -> tracker.
TRACKERS: Mapping[str, Callable[[Session], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def _library(tracker: str) -> ModuleType:
    """Import the library of a tracker. Raises RecipeError if it is not installed."""
    for module in ("torch.utils.tensorboard", "tensorboardX") if tracker == "tensorboard" else (tracker,):
        try:
            return importlib.import_module(module)
        except ImportError:
            continue
    raise RecipeError(f"track: {tracker} is not installed; run pip install 'tunesmith[track]' or remove it")
