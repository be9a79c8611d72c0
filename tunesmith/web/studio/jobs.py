"""Jobs of the page: commands of `tunesmith` that run in separate processes, and what they have written.

Everything about a job is in its folder, so that a new server finds the jobs of an earlier one, running or finished.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from tunesmith.data.files import command_line, write_whole
from tunesmith.errors import TunesmithError

COMMAND, STATE, OUTPUT, ERRORS, STOP, PLACE = ("command.json", "state.json", "output.json", "log.txt", "stop", "place")
LOCK = "queue.lock"
STARTING = 20.0  # seconds after which a job without a runner is lost
LOG_BYTES = 200_000  # of the end of a log that is shown
StateName = Literal["waiting", "running", "finished", "stopped", "failed", "lost"]


class JobError(TunesmithError):
    """There is no such job, or it cannot be changed now."""


@dataclass(frozen=True, slots=True)
class Command:
    """Arguments of `tunesmith`, and what they are for."""

    words: list[str]  # beginning with the name of the command
    cwd: str  # folder in which it runs
    subject: str = ""  # the file, recipe or run that it is about
    queued: bool = True  # whether it waits for earlier jobs; servers and short commands do not
    seconds: float = 0.0  # after which it is stopped, and at last killed; 0: no limit
    owner: tuple[int, float] = (0, 0.0)  # process, as `process_mark` returns it, with which it is stopped; 0: none

    @property
    def orphaned(self) -> bool:
        """Return whether the process that the command belongs to has ended."""
        return bool(self.owner[0]) and not _runs(self.owner)


@dataclass(frozen=True, slots=True)
class State:
    """State of a job."""

    name: StateName
    runner: tuple[int, float] = (0, 0.0)  # process of the job, as `process_mark` returns it; 0 before it has one
    started: float = 0.0  # time at which the command started, in seconds since 1970; 0 before
    ended: float = 0.0  # time at which it ended; 0 before
    code: int | None = None  # exit code of the command

    def write(self, folder: Path) -> None:
        """Replace the state in the folder of a job."""
        write_whole(folder / STATE, json.dumps(asdict(self)))


@dataclass(frozen=True)
class Job:
    """A job, read from its folder."""

    folder: Path

    @property
    def name(self) -> str:
        """Return the name of the job; names sort by time."""
        return self.folder.name

    @cached_property
    def command(self) -> Command:
        """Return the command, which never changes."""
        return Command(**json.loads((self.folder / COMMAND).read_text(encoding="utf-8")))

    @property
    def line(self) -> str:
        """Return the command as one would type it."""
        return f"tunesmith {command_line(self.command.words)}"

    def state(self) -> State:
        """Return the state; `lost` if the process of the job has ended without recording how."""
        try:
            fields = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
            state = State(**{**fields, "runner": tuple(fields["runner"])})
        except FileNotFoundError:
            command = self.folder / COMMAND  # deleted since it was listed, if it is not there
            late = not command.exists() or time.time() - command.stat().st_mtime > STARTING
            return State("lost" if late else "waiting")
        except (ValueError, KeyError, TypeError):  # damaged by a power failure
            return State("lost", ended=1.0)
        if state.ended or _runs(state.runner):
            return state
        return State("lost", state.runner, state.started, (self.folder / STATE).stat().st_mtime)

    @property
    def place(self) -> str:
        """Return a key by which waiting jobs sort: the name of the job, unless it was moved in the queue."""
        try:
            return (self.folder / PLACE).read_text(encoding="utf-8")
        except FileNotFoundError:
            return self.name

    @property
    def is_active(self) -> bool:
        """Return whether the job waits or runs."""
        return self.state().name in ("waiting", "running")

    def log(self) -> str:
        """Return the end of what the command printed for people."""
        return _tail(self.folder / ERRORS)

    def output(self) -> Any:
        """Return the first JSON document that the command printed; None until there is one."""
        path = self.folder / OUTPUT
        try:
            return _document(path, path.stat().st_size)
        except FileNotFoundError:
            return None

    def error(self) -> str:
        """Return the message of a command that has failed, without the word before it."""
        document = self.output()
        if isinstance(document, Mapping) and isinstance(document.get("error"), Mapping):
            return str(document["error"].get("message", ""))
        return ""

    def stop(self) -> None:
        """Send Ctrl-C: the first lets a run save its progress, the second stops it at once."""
        with (self.folder / STOP).open("a", encoding="utf-8") as file:
            file.write("stop\n")


class Jobs:
    """The jobs of a working folder.

    Args:
        folder: where they are kept.
        cwd: the working folder, in which their commands run.
    """

    def __init__(self, folder: Path, cwd: Path) -> None:
        self.folder, self.cwd = folder, cwd
        self._known: dict[str, Job] = {}  # a command never changes, so that each is read once
        self._ended: set[str] = set()

    def start(
        self,
        words: Sequence[str],
        *,
        subject: str = "",
        queued: bool = True,
        limit: float = 0.0,
        owned: bool = False,
    ) -> Job:
        """Start a command in a process that outlives this one.

        Args:
            words: arguments of `tunesmith`.
            subject: the file, recipe or run that it is about.
            queued: whether it waits for earlier jobs.
            limit: seconds after which it is stopped, and at last killed; 0: none.
            owned: stop it when this process ends.
        """
        seconds, rest = divmod(time.time_ns(), 10**9)  # read once: the clock of `strftime` alone lags by milliseconds
        day = time.strftime("%Y%m%d-%H%M%S", time.localtime(seconds))
        folder = self.folder / f"{day}-{rest:09d}-{secrets.token_hex(2)}"
        folder.mkdir(parents=True)
        owner = process_mark() if owned else (0, 0.0)
        command = Command(list(words), str(self.cwd), subject, queued, limit, owner)
        write_whole(folder / COMMAND, json.dumps(asdict(command)))
        _detach([sys.executable, "-P", "-m", "tunesmith.web.studio.job_runner", str(folder)])
        return Job(folder)

    def __iter__(self) -> Iterator[Job]:
        """Return the jobs, newest first."""
        for name in sorted(os.listdir(self.folder) if self.folder.is_dir() else (), reverse=True):
            if name not in self._known and (self.folder / name / COMMAND).is_file():
                self._known[name] = Job(self.folder / name)
            if name in self._known:
                yield self._known[name]

    def get(self, name: str) -> Job:
        """Return a job. Raises JobError if there is none."""
        folder = self.folder / Path(name).name
        if not (folder / COMMAND).is_file():
            raise JobError(f"{name}: no such job; see the list of jobs")
        return Job(folder)

    def about(self, subject: str, *commands: str) -> Job | None:
        """Return the newest job about a subject, of one of these commands."""
        return next(
            (job for job in self if job.command.subject == subject and job.command.words[0] in commands),
            None,
        )

    def active(self) -> list[Job]:
        """Return the jobs that wait or run: those that run first, then those that wait, in their order."""
        found = []
        for job in self:
            state = job.state() if job.name not in self._ended else None
            if state and state.ended:
                self._ended.add(job.name)
            elif state and state.name in ("waiting", "running"):
                found.append((state.name == "waiting", job.place, job))
        return [job for *_, job in sorted(found, key=lambda entry: entry[:2])]

    def waiting(self) -> list[Job]:
        """Return the jobs of the queue that wait for their turn, the next one first."""
        return [job for job in self.active() if job.command.queued and job.state().name == "waiting"]

    def move_up(self, name: str) -> None:
        """Let a waiting job change places with the one before it; the first one, and one that runs, stay."""
        with FileLock(self.folder / LOCK):  # no job begins meanwhile
            waiting = self.waiting()
            at = next((i for i, job in enumerate(waiting) if job.name == name), 0)
            if at:
                one, other = waiting[at - 1 : at + 1]
                places = one.place, other.place
                write_whole(one.folder / PLACE, places[1])
                write_whole(other.folder / PLACE, places[0])

    def begin(self, job: Job, state: State) -> bool:
        """Record the state of a queued job that begins, if it is its turn; of several that ask at once, one gets it."""
        with FileLock(self.folder / LOCK):
            queued = [other for other in self.active() if other.command.queued]
            if not queued or queued[0].name != job.name:
                return False
            state.write(job.folder)
            return True

    def delete(self, name: str) -> None:
        """Delete a job that has ended. Raises JobError while it is active."""
        job = self.get(name)
        if job.is_active:
            raise JobError(f"{job.line}: still running; stop it first")
        shutil.rmtree(job.folder)


def process_mark() -> tuple[int, float]:
    """Return number and start time of this process; the number alone may be given to another one later."""
    import psutil

    return os.getpid(), psutil.Process().create_time()


def _runs(mark: tuple[int, float]) -> bool:
    import psutil

    try:
        process = psutil.Process(mark[0])
        return bool(process.create_time() == mark[1]) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _detach(words: list[str]) -> None:
    """Start a process that receives no signal of this one's terminal, and ends by itself."""
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS}
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(words, stdin=nowhere, stdout=nowhere, stderr=nowhere, close_fds=True, **options)
    threading.Thread(target=process.wait, daemon=True).start()  # else it stays a zombie until this process ends


@lru_cache(maxsize=16)
def _document(path: Path, _bytes: int) -> Any:
    """Return the first JSON document of a file that only grows; None until it is whole."""
    try:  # a server that is stopped prints a second one
        return json.JSONDecoder().raw_decode(path.read_text(encoding="utf-8"))[0]
    except ValueError:
        return None


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_BYTES))
            return file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
