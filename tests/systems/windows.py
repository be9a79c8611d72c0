"""What Windows refuses, simulated here: for our modules, for files below one folder, and for the console.

Our modules see `win32`, an `os` and a `signal` without the names of Unix, and cannot import its modules. Below the
folder, a file that this process holds open or mapped cannot be renamed or deleted, a folder cannot be opened, a rename
replaces nothing, and names that Windows reserves are refused. Text files get CRLF unless their writer says otherwise.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import ntpath
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from types import ModuleType
from typing import Any

import psutil


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text))


UNIX_MODULES = _words("crypt curses fcntl grp nis posix pty pwd readline resource spwd syslog termios tty")
UNIX_NAMES: Mapping[str, frozenset[str]] = {
    "os": _words(
        """chown chroot confstr ctermid fchdir fchmod fchown fdatasync fork forkpty getegid geteuid getgid getgroups
        getloadavg getpgid getpgrp getpriority getresuid getsid getuid initgroups killpg lchown lockf mkfifo mknod nice
        openpty pathconf pidfd_open pipe2 posix_fadvise posix_fallocate pread pwrite readv sched_getaffinity
        sched_setaffinity sched_yield sendfile setgid setpgid setpriority setsid setuid statvfs sync sysconf tcgetpgrp
        ttyname uname wait wait3 wait4 waitid writev O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC WNOHANG"""
    ),
    "signal": _words(
        """SIGALRM SIGBUS SIGCHLD SIGCONT SIGHUP SIGIO SIGKILL SIGPIPE SIGPROF SIGQUIT SIGRTMAX SIGRTMIN SIGSTOP SIGSYS
        SIGTRAP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGUSR1 SIGUSR2 SIGVTALRM SIGWINCH SIGXCPU SIGXFSZ alarm getitimer pause
        pthread_kill pthread_sigmask setitimer siginterrupt sigpending sigwait"""
    ),
    "mmap": _words("MADV_DONTNEED MADV_SEQUENTIAL MADV_WILLNEED MAP_PRIVATE MAP_SHARED PROT_READ"),
    "socket": _words("AF_UNIX"),
    "time": _words("tzset clock_gettime"),
    "sys": _words("abiflags"),
}
BREAK = signal.SIGTTIN  # stands for SIGBREAK, which has its number
RESERVED = frozenset('<>:"|?*')
LONGEST = 200  # characters of a path in the working folder: 260 in all, and the folder itself has some


def reserved(name: str) -> bool:
    """Whether Python says that Windows reserves a name; the method of paths is deprecated from Python 3.13 on."""
    by_name = getattr(ntpath, "isreserved", None)
    return bool(by_name(name)) if by_name else PureWindowsPath(name).is_reserved()


class _Seen(ModuleType):
    """A module as our modules see it: without some names, with others."""

    def __init__(self, real: ModuleType, missing: frozenset[str], **others: Any) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(_real=real, _missing=missing, **others)

    def __getattr__(self, name: str) -> Any:
        if name in self._missing:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} on Windows")
        return getattr(self._real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._real, name, value)


class _Popen(subprocess.Popen[Any]):
    """Processes of Windows: options of Unix do nothing or are refused, and there are three signals."""

    def __init__(self, *words: Any, creationflags: int = 0, **options: Any) -> None:
        if options.get("preexec_fn") or options.get("pass_fds"):
            raise ValueError("preexec_fn and pass_fds are not supported on Windows platforms")
        for name in ("process_group", "start_new_session"):
            options.pop(name, None)
        super().__init__(*words, start_new_session=bool(creationflags), **options)

    def kill(self) -> None:
        super().send_signal(signal.SIGKILL)

    def send_signal(self, sig: int) -> None:
        if sig == 1:  # CTRL_BREAK_EVENT
            super().send_signal(BREAK)
        elif sig == signal.SIGTERM:
            super().send_signal(signal.SIGKILL)
        else:
            raise ValueError(f"Unsupported signal: {sig}")


class _Process(psutil.Process):
    def memory_info(self) -> Any:
        class Info:
            rss = peak_wset = psutil.Process.memory_info(self).rss

        return Info


def _modules() -> dict[str, ModuleType]:
    """Return the modules of Windows by name, as our modules see them."""
    extra: dict[str, dict[str, Any]] = {
        "os": {"name": "nt"},
        "sys": {"platform": "win32"},
        "signal": {"SIGBREAK": BREAK, "CTRL_C_EVENT": 0, "CTRL_BREAK_EVENT": 1},
        "subprocess": {"Popen": _Popen, "CREATE_NEW_PROCESS_GROUP": 0x200, "DETACHED_PROCESS": 8},
        "psutil": {"Process": _Process},
    }
    return {
        name: _Seen(__import__(name), UNIX_NAMES.get(name, frozenset()), **extra.get(name, {}))
        for name in {*extra, *UNIX_NAMES}
    }


def install(folder: Path, notes: Path) -> Disk:
    """Simulate Windows in this process, which has not imported tunesmith yet.

    Args:
        folder: only files below it are refused anything.
        notes: gets a line for each refusal, also of those that the program expects.
    """
    assert "tunesmith" not in sys.modules
    _import_as_windows()
    disk = Disk(str(folder.resolve()), notes)
    disk.patch()
    sys.addaudithook(disk.audit)
    return disk


def _import_as_windows() -> None:
    seen, real = _modules(), builtins.__import__

    def import_(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        ours = bool(globals) and str((globals or {}).get("__name__", "")).partition(".")[0] == "tunesmith"
        first = name.partition(".")[0]
        if ours and not level and first in UNIX_MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        module = real(name, globals, locals, fromlist or (), level)
        return seen[first] if ours and not level and (name in seen or (first in seen and not fromlist)) else module

    builtins.__import__ = import_


class Disk:
    """The file system of Windows below one folder."""

    def __init__(self, folder: str, notes: Path) -> None:
        self.folder, self.notes = folder, str(notes)
        self.kill_at = ""  # this process ends where something is renamed to a path with this end

    def patch(self) -> None:
        """Replace what has no audit event, or one that does not name all it does."""
        shutil._use_fd_functions = False  # type: ignore[attr-defined]
        for module in (builtins, io):
            module.open = partial(self._open, io.open)  # type: ignore[attr-defined]
        os.rename = partial(self._rename, os.rename, any_target=True)
        os.replace = partial(self._rename, os.replace, any_target=False)
        os.fsync = partial(self._fsync, os.fsync)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """Refuse an operation by an error, as the system would."""
        if event == "open" and (path := self._inside(args[0])):
            if os.path.isdir(path):
                self._refuse(errno.EACCES, "Permission denied", path)
            if isinstance(args[2], int) and args[2] & os.O_CREAT and not os.path.lexists(path):
                self._check_name(path)
        elif event in ("os.remove", "os.rmdir") and (path := self._inside(args[0])):
            self._check_free(path)
        elif event == "os.rename":
            self._audit_rename(*map(self._inside, args[:2]))
        elif event == "os.mkdir" and (path := self._inside(args[0])):
            self._check_name(path)
        elif event == "os.symlink" and (path := self._inside(args[1])):
            self._refuse(errno.EPERM, "A required privilege is not held by the client", path)

    def _audit_rename(self, source: str, target: str) -> None:
        for path in filter(None, (source, target)):
            self._check_free(path)
        if target:
            self._check_name(target)
            if self.kill_at and target.endswith(self.kill_at):
                os.kill(os.getpid(), signal.SIGKILL)

    def _inside(self, path: Any) -> str:
        if not isinstance(path, str | bytes | os.PathLike):
            return ""
        found = os.path.abspath(os.fsdecode(path))
        return found if found.startswith(self.folder + "/") else ""

    def _check_free(self, path: str) -> None:
        """Refuse a file that this process has open or mapped, and a folder with one."""
        links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
        used = {os.readlink(link) for link in links if os.path.lexists(link)}
        with os.fdopen(os.open("/proc/self/maps", os.O_RDONLY), encoding="utf-8") as maps:
            used |= {line[line.index("/") :].rstrip("\n") for line in maps if "/" in line}
        if holds := [name for name in used if f"{name}/".startswith(f"{path}/") and not os.path.isdir(name)]:
            self._refuse(errno.EACCES, f"The process cannot access the file because it is in use: {holds[0]}", path)

    def _check_name(self, path: str) -> None:
        name = os.path.basename(path)
        if RESERVED & set(name) or name != name.rstrip(". ") or reserved(name):
            self._refuse(errno.EINVAL, "The filename is incorrect", path)
        with os.scandir(os.path.dirname(path)) as entries:
            if any(entry.name != name and entry.name.lower() == name.lower() for entry in entries):
                self._refuse(errno.EEXIST, "There is a file that differs in case only", path)
        if len(path) - len(self.folder) > LONGEST:
            self._refuse(errno.ENOENT, "The path is too long", path)

    def _refuse(self, number: int, reason: str, path: str) -> None:
        handle = os.open(self.notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, f"{reason}: {path}\n".encode())
        os.close(handle)
        raise OSError(number, reason, path)

    def _open(self, real: Callable[..., Any], file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        options |= dict(zip(("buffering", "encoding", "errors", "newline", "closefd", "opener"), args, strict=False))
        if "b" not in mode:
            if options.get("encoding") in (None, "locale") and _caller() == "tunesmith":
                raise EncodingWarning(f"{file}: opened in the encoding of the locale")
            if set(mode) & set("wax+") and options.get("newline") is None and self._inside(file):
                options["newline"] = "\r\n"
        return real(file, mode, **options)

    def _rename(self, real: Callable[..., None], source: Any, target: Any, *, any_target: bool, **options: Any) -> None:
        place = self._inside(target)
        if place and os.path.lexists(place) and (any_target or os.path.isdir(place)):
            code = errno.EEXIST if any_target else errno.EACCES
            self._refuse(code, "Cannot rename to a file or folder that exists", place)
        real(source, target, **options)

    def _fsync(self, real: Callable[[int], None], handle: Any) -> None:
        number = handle if isinstance(handle, int) else handle.fileno()
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(number)


def _caller() -> str:
    """Return the package that opens a file, by itself or through a `Path`."""
    frame = sys._getframe(2)
    while (name := frame.f_globals["__name__"]) == "pathlib" and frame.f_back:
        frame = frame.f_back
    return str(name).partition(".")[0]
