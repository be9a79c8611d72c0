"""Which folder a run lives in, and whether what is there may be gone on with."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tunesmith.config import Loop, Recipe, with_places
from tunesmith.data.files import is_there, read_page, sha256_of_file, write_whole, writing
from tunesmith.errors import CheckpointError

PAGE = "run.json"
# What a disk says that knows no locks.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
MAX_NAME_CHARS = 60  # characters of each part of a name; the digest at its end tells runs apart


def task_dir(run: Path, task: str) -> Path:
    """Where a run of several tasks keeps what only one of them needs; the run's folder for the only task of another."""
    return run / "tasks" / task if task else run


# What a recipe may say that no number of a run depends on.
OLD_KEYS_WITHOUT_EFFECT: Any = {"machine": True, "data": {"audit"}, "documents": True, "arms": True, "compare": True}
KEYS_WITHOUT_EFFECT: Any = {**OLD_KEYS_WITHOUT_EFFECT, "track": True}  # before, trackers were a part of a run


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run's folder and the digest of all that decides its result."""

    path: Path
    identity: str
    file: str = PAGE  # what says whose folder it is

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "report.json").exists()

    @property
    def begun(self) -> bool:
        """Whether a run of this recipe was started here."""
        return (self.path / self.file).exists()

    def page(self) -> dict[str, Any]:
        """What was written down when the run began."""
        return read_page(self.path / self.file, dict[str, Any])

    def since(self, key: str, now: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
        """Digests as they were when the run began, and the names of those that are others now."""
        kept: dict[str, str] = self.page().get(key, {}) if self.begun else {}
        return {**now, **kept}, [name for name, digest in now.items() if kept.get(name, digest) != digest]

    def check_base(self, model: str, fingerprint: str) -> None:
        """Raise CheckpointError where the run began over a base that was changed since."""
        if self.begun and self.page().get("base", fingerprint) != fingerprint:
            cure = "give another --out, or delete it"
            raise CheckpointError(f"{self.path}: began over {model} before that was changed; {cure}")

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Write down what the run is, so that only the same run goes on here."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"identity": self.identity, **facts}, indent=1)
        write_whole(self.path / self.file, text)


def with_name(out: Path) -> Path:
    """The same folder by a path that ends in its name, which `.` and `..` do not."""
    return out.resolve() if out.name in ("", "..") else out


class RunLockedError(CheckpointError):
    """Another process works in a folder."""


@contextmanager
def exclusive_lock(run: Path) -> Iterator[None]:
    """A context in which no other process works in this folder. Raises RunLockedError where another one does."""
    place = run.with_name(f".{run.name}.lock")  # beside it: what lies in a folder makes it a run or none
    made = [parent for parent in place.parents if not parent.exists()]
    with writing(run):
        place.parent.mkdir(parents=True, exist_ok=True)
    release = _locked(place, run)
    try:
        yield
    finally:
        release()
        with suppress(OSError):  # what is not empty stays
            for parent in made:
                parent.rmdir()


def _locked(place: Path, run: Path) -> Callable[[], None]:
    """Take the lock of a run; what lets go of it, as the system does where the process dies."""
    lock = FileLock(place, blocking=False)

    def release() -> None:
        with suppress(OSError):
            place.unlink()
        lock.release()

    try:
        lock.acquire()
    except Timeout:
        cure = "wait until it is done, or stop it and go on from its last checkpoint"
        raise RunLockedError(f"{run}: another process is at work on this run; {cure}") from None
    except OSError as error:
        if error.errno in WITHOUT_LOCKS or not place.exists():  # there is no telling who else is at work
            return lambda: None
        raise CheckpointError(f"{place}: cannot be opened ({error.strerror}); delete it where nobody works") from error
    return release


def open_run(
    recipe: Recipe,
    out: Path | None,
    *,
    prefix: str = "",
    file: str = PAGE,
    fix: str = "give another --out, or delete it",
) -> RunFolder:
    """The folder of this recipe's run, by name or by what the recipe and its files are.

    `prefix` and `file` keep apart what is no run of `tune`. Raises CheckpointError where it holds something else.
    """
    out = out and with_name(out)
    runs = out.parent if out else Path("runs")
    known = identities(recipe, runs)
    places = [out] if out else [runs / f"{prefix}{_name(recipe, identity)}" for identity in known]
    path = next((place for place in places if (place / file).exists()), places[0])
    folder = RunFolder(path, known[0], file)
    if folder.begun:
        if folder.page().get("identity") not in known:
            raise CheckpointError(f"{path}: holds a run of another recipe or of other rows; {fix}")
    elif path.is_file() or (path.exists() and any(path.iterdir())):
        raise CheckpointError(f"{path}: exists and is not a run; give another --out")
    return folder


def _placed(recipe: Recipe, runs: Path) -> Recipe:
    """The recipe with every place in it spelled one way: rows, whose bytes tell them apart, by the name alone, what
    else lies on the disk as it is seen from the folder of the runs."""

    def seen(name: str) -> str:
        path, colon, function = name.partition(":")
        if not is_there(path):
            return name
        return f"{os.path.relpath(Path(path).resolve(), runs.resolve())}{colon}{function}"

    placed = with_places(recipe, rows=lambda name: Path(name).name, code=seen)
    return placed.model_copy(update={"model": seen(recipe.model)})


def identities(recipe: Recipe, runs: Path) -> list[str]:
    """Return digests of a recipe and of the files it names: first today's, then that of runs older than `track`.

    Args:
        recipe: The recipe.
        runs: Folder that the locations of models and reward functions are relative to.
    """
    rows = [one.data for one in recipe.parts.values() or [recipe]]
    places = [place for data in rows for place in (data.train, data.validation, data.test)]
    named = [Path(place) for place in (*places, recipe.replay.source) if isinstance(place, str) and place]
    files = [sha256_of_file(file) for path in named for file in _files(path)]
    # Another last judge looks at the same answers, and more rounds come after those that are there: what people judged
    # and what was learned from it stays.
    goes_on = {"final_judge": "", "rounds": Loop().rounds}
    placed, found = _placed(recipe, runs), []
    for beside in (KEYS_WITHOUT_EFFECT, OLD_KEYS_WITHOUT_EFFECT):
        rest = placed.model_copy(update={"loop": placed.loop.model_copy(update=goes_on)})
        told = rest.model_dump(mode="json", exclude=beside)
        found.append(hashlib.sha256(json.dumps([told, files]).encode()).hexdigest()[:16])
    return found


def _files(path: Path) -> list[Path]:
    """The file itself, or every file of a folder in the order of names."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path] * path.is_file()


def _name(recipe: Recipe, identity: str) -> str:
    """reviews-classify-lora-smollm2-135m-1a2b3c."""
    parts = (
        "+".join(recipe.parts) or Path(recipe.data.train).stem,
        recipe.objective.kind,
        recipe.technique.kind,
        Path(recipe.model).name,
    )
    return "-".join(re.sub(r"[^\w.]+", "-", part)[:MAX_NAME_CHARS] for part in parts) + f"-{identity[:6]}"
