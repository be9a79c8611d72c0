"""`tunesmith doctor`: what is wrong with this machine, and how to mend it."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tunesmith.cli.options import add_common
from tunesmith.cli.terminal import publish, show
from tunesmith.report.formatting import size

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands

OK, WARN, FAIL = "ok", "warn", "fail"
WIDTH = 80
OLDEST_PYTHON = (3, 11)
# Both shipped models unpacked, and what a small run writes beside them.
NEEDED_BYTES, WANTED_BYTES = 700_000_000, 3_000_000_000
# Weights, gradients, optimizer and activations of the 135M decoder under LoRA, with room for the system.
WANTED_MEMORY = 3_000_000_000
# Operators of a version range, as pyproject.toml writes them.
RANGE: Mapping[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": lambda have, want: have >= want,
    "<": lambda have, want: have < want,
    "==": lambda have, want: have == want,
}


class DoctorCheck(NamedTuple):
    """One line: what was looked at, how it stands, what was found, and the cure if there is one."""

    name: str
    state: str
    finding: str
    fix: str = ""


def add(commands: Commands) -> None:
    """Add `doctor`."""
    parser = commands.add_parser(
        "doctor",
        help="what is wrong with this machine",
        description="Looks at versions, disk, memory, the cached models and the processor. Exits 1 if "
        "something stands in the way of a run.",
    )
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print every check; 1 if one failed."""
    checks = all_checks()
    failed = any(check.state == FAIL for check in checks)
    document = {"ok": not failed, "checks": [_as_document(check) for check in checks]}
    if not publish(document, args):
        for line in _lines(checks):
            show(line)
    return 1 if failed else 0


def _as_document(check: DoctorCheck) -> dict[str, str]:
    """Return a check with the keys of `--json`, where `fix` is called `cure`."""
    return {"cure" if key == "fix" else key: value for key, value in check._asdict().items()}


def _lines(checks: Sequence[DoctorCheck]) -> Iterator[str]:
    """Each check in its columns, wrapped where it is long, and its cure below it where there is one."""
    wide = max(len(check.name) for check in checks)
    margin = " " * (wide + len("warn") + 4)
    for check in checks:
        first = f"{check.state:<4}  {check.name:<{wide}}  "
        yield from _wrapped(check.finding, first, margin)
        if check.fix:
            yield from _wrapped(check.fix, f"{margin}cure: ", margin)


def _wrapped(text: str, first: str, margin: str) -> list[str]:
    """Lines of a width that every terminal has; a path or a command's word is never cut in two."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
    )


def all_checks() -> list[DoctorCheck]:
    """Every check, in the order in which one would ask."""
    declared = _requirements()
    parts = (python(), libraries(declared), disk(), memory(), models(), machine(), extras(declared))
    return [check for part in parts for check in part]


def python() -> list[DoctorCheck]:
    """The interpreter."""
    version = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        return [DoctorCheck("python", FAIL, version, "install Python 3.11 or newer")]
    return [DoctorCheck("python", OK, f"{version} at {sys.executable}")]


def libraries(requirements: Sequence[str]) -> list[DoctorCheck]:
    """Every declared dependency against its range, as one line if all is well."""
    if not requirements:
        finding = "tunesmith is not installed, so its ranges are not known"
        return [DoctorCheck("libraries", WARN, finding, "pip install it, or make setup in its repository")]
    needed = [text for text in requirements if "extra ==" not in text]
    faults = [fault for text in needed if (fault := _fault(text))]
    shown = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers", "peft"))
    return faults or [DoctorCheck("libraries", OK, f"{len(needed)} in their supported ranges ({shown})")]


def extras(requirements: Sequence[str]) -> list[DoctorCheck]:
    """Which optional parts are installed; none is needed."""
    parts: dict[str, list[str]] = {}
    for text in requirements:
        named = re.search(r"extra == ['\"]([\w-]+)['\"]", text)
        if named and named[1] not in ("all", "dev"):
            parts.setdefault(named[1], []).append(_name(text))
    found = []
    for extra, names in parts.items():
        missing = [name for name in names if _version(name) is None]
        state = f"not installed (lacks {', '.join(missing)}); optional" if missing else "installed"
        cure = f"for it: pip install 'tunesmith[{extra}]'" if missing else ""
        found.append(DoctorCheck(f"extra {extra}", OK, state, cure))
    return found


def disk(free_in: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free) -> list[DoctorCheck]:
    """Room for the models and for runs, and whether the cache can be written."""
    from tunesmith.models.loading.bundled_models import cache_dir

    found = []
    for name, place in (("disk for models", cache_dir()), ("disk for runs", Path.cwd())):
        there = next(path for path in (place, *place.absolute().parents) if path.exists())
        free = free_in(there)
        state = FAIL if free < NEEDED_BYTES else WARN if free < WANTED_BYTES else OK
        cure = "" if state == OK else f"free some space, or {_elsewhere(name)}"
        if not os.access(there, os.W_OK):
            state, cure = FAIL, f"make {there} writable, or {_elsewhere(name)}"
        found.append(DoctorCheck(name, state, f"{size(free)} free at {place}", cure))
    return found


def _elsewhere(name: str) -> str:
    return "name another folder in TUNESMITH_CACHE" if name == "disk for models" else "work in another folder"


def memory() -> list[DoctorCheck]:
    """Free memory."""
    import psutil

    free = int(psutil.virtual_memory().available)
    short = free < WANTED_MEMORY
    cure = "close other programs, or tune minilm-l6, which needs less" if short else ""
    return [DoctorCheck("memory", WARN if short else OK, f"{size(free)} free", cure)]


def models() -> list[DoctorCheck]:
    """The always-there models, every file compared with the digest it was written with."""
    from tunesmith.models.loading.bundled_models import BUNDLED_MODELS, damaged, folder_of, is_whole

    found = []
    for alias in BUNDLED_MODELS:
        folder = folder_of(alias)
        broken = damaged(alias)
        if broken:
            cure = f"delete {folder}, then tunesmith models --fetch"
            found.append(DoctorCheck(f"model {alias}", FAIL, f"damaged: {', '.join(broken)}", cure))
        elif not is_whole(folder):
            found.append(DoctorCheck(f"model {alias}", WARN, "not in the cache yet", "tunesmith models --fetch"))
        else:
            found.append(DoctorCheck(f"model {alias}", OK, f"every file as it was written, in {folder}"))
    return found


def machine() -> list[DoctorCheck]:
    """What a run would compute on, by measurement."""
    from tunesmith.models.loading.device import choose_machine

    return [DoctorCheck("machine", OK, choose_machine().why)]


def _requirements() -> list[str]:
    """What the installed package says it needs; nothing when it runs without being installed."""
    from importlib import metadata

    try:
        return metadata.requires("tunesmith") or []
    except metadata.PackageNotFoundError:
        return []


def _fault(requirement: str) -> DoctorCheck | None:
    """A check that failed, None for a library in its range."""
    name = _name(requirement)
    have, cure = _version(name), f"pip install '{requirement.partition(';')[0].strip()}'"
    if have is None:
        return DoctorCheck(name, FAIL, "not installed", cure)
    wrong = [f"{sign}{want}" for sign, want in _bounds(requirement) if not RANGE[sign](_numbers(have), _numbers(want))]
    return DoctorCheck(name, FAIL, f"{have}, supported is {' and '.join(wrong)}", cure) if wrong else None


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]


def _bounds(requirement: str) -> list[tuple[str, str]]:
    return re.findall(r"(>=|==|<)\s*([\d.]+)", requirement.partition(";")[0])


def _numbers(version: str) -> tuple[int, ...]:
    """2.13.0+cpu is (2, 13), so that trailing zeros do not count."""
    found = [int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part]  # type: ignore[index]
    while found and found[-1] == 0:
        found.pop()
    return tuple(found)


def _version(name: str) -> str | None:
    """The installed version of a distribution."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
