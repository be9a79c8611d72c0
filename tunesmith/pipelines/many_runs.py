"""Independent pieces of work: one after another in this process, or at the same time as tasks of a Ray cluster.

Ray is for many runs. The processes of one run are started by torchrun. Ray sends functions and results between its own
processes by pickle, so connect only to a cluster that is yours.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.data.cpu_count import cores
from tunesmith.data.files import quoted
from tunesmith.errors import OptionError, TunesmithError, briefly

C = TypeVar("C")
R = TypeVar("R")

LOCAL = "local"
RETRIES = 3  # of a task whose worker is lost
POLL_SECONDS = 0.5


def check_place(on: str, *, controls: bool = True) -> None:
    """Raise OptionError if work cannot run at a place: `local`, `ray`, or the address of a Ray cluster.

    Args:
        on: the place.
        controls: of a single run: whether it has control runs, which alone can run elsewhere.
    """
    if on == LOCAL:
        return
    if not controls:
        raise OptionError(f"--on {on}: this recipe has no control runs to train there; set controls: true, or omit it")
    if on != "ray" and not on.startswith("ray://"):
        raise OptionError(f"--on: expected local, ray or ray://HOST:PORT, not {on!r}")
    if importlib.util.find_spec("ray") is None:
        raise OptionError(f"--on {on}: Ray is missing; pip install {quoted('tunesmith[ray]')}, or leave --on out")


def each(
    work: Callable[[C], R],
    cells: Sequence[C],
    *,
    on: str = LOCAL,
    threads: int = 1,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[C, R]]:
    """Do the same work for each cell and yield cell and result, as soon as there is one.

    A worker that is lost, with its process or its machine, loses only its task, which starts again elsewhere. Work that
    keeps its progress in files therefore has to resume from them.

    Args:
        work: a function of a cell. On Ray it runs in another process, in the same folder.
        cells: what it is called with.
        on: `local`, `ray` (the cluster of `RAY_ADDRESS`, or one that only this machine can reach), or
            `ray://HOST:PORT`.
        threads: processor cores that a task takes. It also gets a GPU if the cluster has any.
        stop: start nothing more, and stop what runs elsewhere, once this is true.

    Raises:
        OptionError: Ray is not installed, `on` names something else, or the cluster cannot be reached.
        TunesmithError: a task lost its worker each time; otherwise whatever `work` raises.
    """
    check_place(on)
    if on == LOCAL:
        for cell in cells:
            if stop():
                return
            yield cell, work(cell)
        return
    address = on if on != "ray" else os.environ.get("RAY_ADDRESS", LOCAL)
    import ray
    from ray._private import ray_constants

    if not ray.is_initialized():
        own = {"num_cpus": cores(), "include_dashboard": False} if address == LOCAL else {}
        if address == LOCAL:  # as on macOS, take 127.0.0.1 for the address of this machine, which is all that listens
            ray_constants.ENABLE_RAY_CLUSTER = False
        # Since 2.60 a cluster asks for the token in ~/.ray, where `ray://` does not look by itself.
        with suppress(ImportError):
            setup = importlib.import_module("ray._private.authentication.authentication_token_setup")
            setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
        except ConnectionError as error:
            fix = "start it, or check the address and RAY_AUTH_TOKEN"
            raise OptionError(f"--on {on}: cannot be reached at {address} ({briefly(error)}); {fix}") from None
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    # Each task has a process to itself, whose peak memory is that of the task.
    task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=RETRIES, max_calls=1)(_in_folder)
    running = {task.remote(work, str(Path.cwd()), cell): cell for cell in cells}
    try:
        while running and not stop():
            done, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            for reference in done:
                yield running.pop(reference), _result(ray, reference)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _in_folder(work: Callable[[C], R], folder: str, cell: C) -> R:
    """Do a task where its paths are valid."""
    os.chdir(folder)
    return work(cell)


def _result(ray: Any, reference: Any) -> Any:
    """Return the result of a task, or raise its own error."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, ray.exceptions.RayError):
            raise error.cause from None
        lines = str(error.cause).strip().splitlines()
        reason = briefly(lines[-1] if lines else error.cause)  # such as a module that a worker lacks
        raise TunesmithError(
            f"ray: a task cannot start ({reason}); install the same Tunesmith in all workers"
        ) from error
    except ray.exceptions.RayError as error:
        lost = f"a task lost its worker {RETRIES + 1} times ({type(error).__name__})"
        raise TunesmithError(f"ray: {lost}; finished work is kept, run the same command again") from error
