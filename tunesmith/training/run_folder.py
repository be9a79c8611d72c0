"""The folder of a run: its name, its lock, its identity, and what a resumed run must repeat.

The identity is a digest of the recipe and of the files that it names. A folder belongs to one identity, so a changed
recipe or changed rows never resume a run.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from tunesmith.config import Ledger, Loop, Recipe, Retention, Teacher, Verdict, with_places
from tunesmith.config.recipe import Machine
from tunesmith.data.audit.chunks import head
from tunesmith.data.files import (
    begin_digests,
    function_in,
    holds_files,
    is_there,
    portable,
    read_page,
    sha256_of_file,
    write_whole,
    writing,
)
from tunesmith.data.readers.text_file import locate
from tunesmith.data.schema.accepted import UNANSWERABLE
from tunesmith.data.schema.cells import has_column
from tunesmith.data.schema.split_names import DEFAULT_SPLIT
from tunesmith.errors import CheckpointError, DataError
from tunesmith.models.world import current_world
from tunesmith.plugins import used

if TYPE_CHECKING:
    from tunesmith.models.loading.device import ChosenMachine

PAGE = "run.json"
# Error codes of file systems without locks.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
SPLIT_ROWS = 200  # rows in which a split column is looked for
# Of each part of a folder name; the digest at its end makes it unique. A whole path of Windows has 260 characters.
MAX_NAME_CHARS = 20 if sys.platform == "win32" else 60


def task_dir(run: Path, task: str) -> Path:
    """Return the folder for files of one task: a subfolder, or the run folder itself for a single task."""
    return run / "tasks" / task if task else run


def drop_checkpoints(run: Path) -> None:
    """Delete the checkpoints of a finished run, of its controls and of its masked-LM head; `model/` has the weights.

    A run that was finished by an earlier version may still have them.
    """
    parts = [run, run / "control", run / "gold", *run.glob("alone/*"), *run.glob("tasks/*")]
    for folder in (part / name for part in parts for name in ("checkpoints", "base_head_checkpoints")):
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)


# Recipe keys that no result of a run depends on.
OLD_KEYS_WITHOUT_EFFECT: Any = {
    "machine": True,
    "schedule": {"recompute"},
    "data": {"audit"},
    **dict.fromkeys(("documents", "arms", "compare"), True),
}
KEYS_WITHOUT_EFFECT: Any = {**OLD_KEYS_WITHOUT_EFFECT, "track": True, "challenge": True}  # older identities include it

# Keys that were added later -> value that has no effect.
NEW_KEYS = {
    **dict.fromkeys(("split", "context", "choices", "winner", "engine", "products"), ""),
    "unanswerable": UNANSWERABLE,
    "retention": Retention().model_dump(),
    "ledger": Ledger().model_dump(),
    "verdict": Verdict().model_dump(),
    **dict.fromkeys(("min_thoughts_finished", "max_thinking_loss", "min_switch_obeyed")),
    "thoughts": "",
    "thinking": "auto",
    "max_thinking_tokens": 512,
    "think_by_default": "auto",
    "experts": True,
    "expert_rank": 0,
    "router": False,
    "optimizer": "adamw",
    "canaries": 0,
    "teacher": Teacher().model_dump(),
    "challenge": True,
}


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of a run and the digest of everything that its result depends on."""

    path: Path
    identity: str
    file: str = PAGE  # the file that holds the identity

    @property
    def finished(self) -> bool:
        """Return whether the run has finished."""
        return (self.path / "report.json").exists()

    @property
    def started(self) -> bool:
        """Return whether a run was started here."""
        return (self.path / self.file).exists()

    def page(self) -> dict[str, Any]:
        """Read the facts recorded at the start of the run."""
        return read_page(self.path / self.file, dict[str, Any])

    def since(self, key: str, now: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
        """Compare digests with those recorded at the start of the run.

        Args:
            key: key of the recorded digests.
            now: present digests by name.

        Returns:
            The digests to record, where recorded ones are kept, and the names whose digest has changed.
        """
        recorded: dict[str, str] = self.page().get(key, {}) if self.started else {}
        return {**now, **recorded}, [name for name, digest in now.items() if recorded.get(name, digest) != digest]

    def pinned(self, recipe: Recipe) -> Recipe:
        """Return the recipe with the machine settings and audit mode of the run's start; unchanged for a new run.

        Threads, dtype and products decide the last bits of a result, so a resumed run must repeat them.
        """
        if not self.started:
            return recipe
        recorded = self.page()
        data = recipe.data.model_copy(update={"audit": recorded.get("audit", recipe.data.audit)})
        return recipe.model_copy(
            update={"machine": recipe.machine.model_copy(update=recorded["machine"]), "data": data}
        )

    def start(self, recipe: Recipe, *, machine: ChosenMachine, base: str, **facts: Any) -> None:
        """Record the identity, the machine and the base model, so that only the same run resumes here.

        Args:
            recipe: names the base model, for the error.
            machine: the machine that the run uses.
            base: fingerprint of the base model.
            facts: further facts to record.

        Raises:
            CheckpointError: the base model has changed since the run was started.
        """
        self.check_base(recipe.model, base)
        plugins = {"plugins": packages} if (packages := used(recipe)) else {}
        self.begin({"machine": machine_settings(machine), "base": base, **plugins, **facts})

    def check_base(self, model: str, fingerprint: str) -> None:
        """Raise CheckpointError if the base model has changed since the run was started."""
        if self.started and self.page().get("base", fingerprint) != fingerprint:
            problem = f"the base model {model} has changed since this run started"
            raise CheckpointError(f"{self.path}: {problem}; give another --out or delete the folder")

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Record the identity and further facts, so that only the same run resumes here."""
        if not current_world().leads:
            return
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            begin_digests(self.path)
        text = json.dumps({"identity": self.identity, **facts}, indent=1)
        write_whole(self.path / self.file, text)


def machine_settings(machine: ChosenMachine) -> dict[str, Any]:
    """Return the settings that pin a recipe to a machine."""
    return {
        "device": machine.device,
        "dtype": machine.dtype,
        "threads": machine.threads,
        "products": machine.products,
    }


def pin_machine(recipe: Recipe, file: Path) -> Recipe:
    """Return the recipe with the machine settings in a file, which is written on the first call.

    Args:
        recipe: its `machine` section restricts the first choice.
        file: JSON file of the settings, for folders that hold no run.
    """
    if not file.exists():
        from tunesmith.models.loading.device import choose_machine

        settings = recipe.machine
        machine = choose_machine(**settings.model_dump(include={"device", "dtype", "threads", "products"}))
        write_whole(file, settings.model_copy(update=machine_settings(machine)).model_dump_json())
    return recipe.model_copy(update={"machine": read_page(file, Machine)})


def _without(neutral: Mapping[str, object], value: Any) -> Any:
    """Return a recipe without keys that had no effect before they existed, so that older runs keep their identity.

    Args:
        neutral: key -> value without effect.
        value: the recipe, or a part of it.
    """
    if not isinstance(value, dict):
        return value
    return {
        key: _without(neutral, inner) for key, inner in value.items() if not (key in neutral and inner == neutral[key])
    }


def identity_of(*values: Any) -> str:
    """Return a digest of JSON values, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def with_name(out: Path) -> Path:
    """Return a path that ends in the folder's name, also for `.` and `..`."""
    return out.resolve() if out.name in ("", "..") else out


class RunLockedError(CheckpointError):
    """Locked by another process."""


@contextmanager
def exclusive_lock(run: Path) -> Iterator[None]:
    """Hold the lock of a folder; the system releases it if the process dies.

    Of several processes of one run, the first one holds it for all.

    Args:
        run: the folder, which need not exist.

    Raises:
        RunLockedError: another process holds the lock.
        CheckpointError: the lock file cannot be opened.
    """
    if not current_world().leads:
        yield
        return
    # Next to the folder, because a file inside would make an empty folder look used.
    path = run.with_name(f".{run.name}.lock")
    made = [parent for parent in path.parents if not parent.exists()]
    with writing(run):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, blocking=False)
    locked = True
    try:
        lock.acquire()
    except Timeout:
        fix = "wait until it exits, or stop it and resume"
        raise RunLockedError(f"{run}: locked by another process; {fix}") from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS and path.exists():
            fix = "delete it if no process uses the folder"
            raise CheckpointError(f"{path}: cannot be opened ({error.strerror}); {fix}") from error
        locked = False  # no lock is possible here, so other processes go unnoticed
    try:
        yield
    finally:
        if locked:
            with suppress(OSError):
                path.unlink()
            lock.release()
        with suppress(OSError):  # raised for a folder that is not empty
            for parent in made:
                parent.rmdir()


def open_run(
    recipe: Recipe,
    out: Path | None,
    *,
    prefix: str = "",
    file: str = PAGE,
    fix: str = "give another --out or delete the folder",
) -> RunFolder:
    """Find the folder of a recipe's run, or the one that a new run should use.

    Args:
        recipe: the recipe.
        out: the folder; None for one in `runs/` named after the recipe.
        prefix: start of the name, for folders of other commands than `tune`.
        file: file that holds the identity, for folders of other commands.
        fix: end of the error for a folder of another run.

    Raises:
        CheckpointError: the folder holds something else.
    """
    out = out and with_name(out)
    runs = out.parent if out else Path("runs")
    known, without_split = identities(recipe, runs)
    # Such as reviews-classify-lora-smollm2-135m-1a2b3c.
    rows = "+".join(recipe.parts) or Path(recipe.data.train).stem
    parts = (rows, recipe.objective.kind, recipe.technique.kind, Path(recipe.model).name)
    name = portable("-".join(re.sub(r"[^\w.]+", "-", part)[:MAX_NAME_CHARS] for part in parts))

    def places(digests: Sequence[str]) -> list[Path]:
        return [out] if out else [runs / f"{prefix}{name}-{digest[:6]}" for digest in digests]

    if any((path / file).exists() for path in places(without_split)) and not _may_name_parts(recipe):
        known += without_split
    paths = places(known)
    path = next((path for path in paths if (path / file).exists()), paths[0])
    folder = RunFolder(path, known[0], file)
    if folder.started:
        if folder.page().get("identity") not in known:
            raise CheckpointError(f"{path}: holds a run of another recipe or of other rows; {fix}")
    elif holds_files(path):
        raise CheckpointError(f"{path}: exists and is not a run; give another --out")
    return folder


def earlier_run(recipe: Recipe, out: Path | None) -> Path | None:
    """Return the folder of an earlier run that a new one would replace; None if there is none, or an empty one.

    Args:
        recipe: the recipe of the new run.
        out: its folder; None for the default of the recipe.

    Raises:
        CheckpointError: the folder exists and is not a run.
    """
    folder = with_name(out) if out else open_run(recipe, None).path
    if (folder / PAGE).is_file():
        return folder
    if holds_files(folder):
        raise CheckpointError(f"{folder}: not a run folder, not overwritten by --force; use another --out")
    return None


def delete_run(recipe: Recipe, out: Path | None) -> Path | None:
    """Delete the earlier run in the folder of a run.

    Args:
        recipe: the recipe of the run.
        out: the run folder; None for the default of the recipe.

    Returns:
        The folder whose files were deleted, or None if there was none.

    Raises:
        CheckpointError: the folder exists and is not a run.
    """
    with exclusive_lock(with_name(out) if out else open_run(recipe, None).path):
        folder = earlier_run(recipe, out)
        # Not the folder itself, which may be the working directory. The page last: without it, what a kill leaves would
        # not be known as a run.
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == PAGE) if folder else ():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return folder


def _may_name_parts(recipe: Recipe) -> bool:
    """Return whether a train file has the column that splits it by default, or cannot be looked at here."""
    for task in recipe.tasks.values():
        source = task.data.train
        if not is_there(Path(source)) and locate(source) is None:  # a Hub dataset
            return True
        with suppress(DataError):  # a folder of documents has no columns
            if has_column(head(source, SPLIT_ROWS), DEFAULT_SPLIT):
                return True
    return False


def source_digests(recipe: Recipe) -> list[str]:
    """Return the digests of the local files of rows that a recipe names."""
    data = [task.data for task in recipe.tasks.values()]
    sources = [source for rows in data for source in (rows.train, rows.validation, rows.test)]
    sources += [getattr(task.objective, key) for task in recipe.tasks.values() for key in task.objective.file_keys]
    digests = []
    for source in (s for s in (*sources, recipe.replay.source, recipe.teacher.rows) if isinstance(s, str) and s):
        file = locate(source)
        path = file.path if file else Path(source)
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        digests += [sha256_of_file(file) for file in files if file.is_file()]
    return digests


def identities(recipe: Recipe, runs: Path) -> tuple[list[str], list[str]]:
    """Return digests of a recipe and of the files it names.

    Args:
        recipe: the recipe.
        runs: folder that the locations of models and reward functions are relative to.

    Returns:
        Today's digest and that of runs older than `track`; then the same of runs older than `data.split`, whose split
        is that of today unless a file has a column of this name.
    """
    digests = source_digests(recipe)

    def relative(name: str) -> str:
        path, function = function_in(name)
        path = os.path.expanduser(path)
        if not is_there(path):
            return name
        with suppress(ValueError):  # another drive of Windows
            path = Path(os.path.relpath(Path(path).resolve(), runs.resolve())).as_posix()
        return f"{path}:{function}" if function else path

    # Every location in one spelling: files of rows, which their digests identify, by name alone, everything else
    # relative to the folder of the runs.
    normalized = with_places(recipe, rows=lambda name: Path(name).name, code=relative, model=relative)
    # With another final judge or more rounds, existing votes and models stay valid.
    loop = normalized.loop.model_copy(update={"final_judge": "", "rounds": Loop().rounds})
    normalized = normalized.model_copy(update={"model": relative(recipe.model), "loop": loop})
    pages = [
        _without(NEW_KEYS, normalized.model_dump(mode="json", exclude=keys))
        for keys in (KEYS_WITHOUT_EFFECT, OLD_KEYS_WITHOUT_EFFECT)
    ]
    older = [_without({"split": DEFAULT_SPLIT}, page) for page in pages]
    return [identity_of(page, digests) for page in pages], [identity_of(page, digests) for page in older]
