"""`tunesmith doctor`: check this installation and machine."""

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
from tunesmith.data.user_cache import ANSWERS, CLEARED, cache_dir, clear_caches
from tunesmith.report.formatting import size

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands

OK, WARN, FAIL = "ok", "warn", "fail"
WIDTH = 80
OLDEST_PYTHON = (3, 11)
# Both bundled models unpacked; with the files of a small run.
NEEDED_BYTES, WANTED_BYTES = 700_000_000, 3_000_000_000
# Weights, gradients, optimizer and activations of the 135M decoder under LoRA, and the operating system.
WANTED_MEMORY = 3_000_000_000
# Operators of the version ranges in pyproject.toml.
RANGE: Mapping[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": lambda have, want: have >= want,
    "<": lambda have, want: have < want,
    "==": lambda have, want: have == want,
}


class DoctorCheck(NamedTuple):
    """The result of one check."""

    name: str
    state: str  # OK, WARN or FAIL
    finding: str
    fix: str = ""


def add(commands: Commands) -> None:
    """Add `doctor`."""
    parser = commands.add_parser(
        "doctor",
        help="check this installation and machine",
        description="Check library versions, disk space, memory, cached models and compute device. Exits with 1 if a "
        "check fails.",
    )
    parser.add_argument(
        "--clear-cache",
        action="store_true",
        help="delete what runs keep to compute it only once; models, certificates and times stay",
    )
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print every check; return 1 if one failed."""
    if args.clear_cache:
        clear_caches()
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
    """Format the checks in columns, each with its fix below."""
    wide = max(len(check.name) for check in checks)
    margin = " " * (wide + len("warn") + 4)
    for check in checks:
        yield from _wrapped(check.finding, f"{check.state:<4}  {check.name:<{wide}}  ", margin)
        if check.fix:
            yield from _wrapped(check.fix, f"{margin}fix: ", margin)


def _wrapped(text: str, first: str, margin: str) -> list[str]:
    # Paths and options are never broken, so that they can be copied.
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
    )


def all_checks() -> list[DoctorCheck]:
    """Run all checks."""
    from importlib import metadata

    try:
        requirements = metadata.requires("tunesmith") or []
    except metadata.PackageNotFoundError:  # run from a source tree
        requirements = []
    parts = (python(), libraries(requirements), disk(), memory(), models(), caches(), machine(), extras(requirements))
    return [check for part in parts for check in part]


def python() -> list[DoctorCheck]:
    """Check the version of Python."""
    version = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        return [DoctorCheck("python", FAIL, version, "install Python 3.11 or newer")]
    return [DoctorCheck("python", OK, f"{version} at {sys.executable}")]


def libraries(requirements: Sequence[str]) -> list[DoctorCheck]:
    """Check the installed version of each required library; one line if all are supported."""
    if not requirements:
        problem = "tunesmith is not installed, so its version requirements are unknown"
        return [DoctorCheck("libraries", WARN, problem, "install it with pip, or run `make setup` in its repository")]
    needed = [text for text in requirements if "extra ==" not in text]
    failed = [check for text in needed if (check := _failed_requirement(text))]
    shown = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers", "peft"))
    return failed or [DoctorCheck("libraries", OK, f"{len(needed)} libraries, all supported versions ({shown})")]


def extras(requirements: Sequence[str]) -> list[DoctorCheck]:
    """Report which optional extras are installed."""
    parts: dict[str, list[str]] = {}
    for text in requirements:
        named = re.search(r"extra == ['\"]([\w-]+)['\"]", text)
        if named and named[1] != "dev" and _name(text) != "tunesmith":  # `all` and others are lists of extras
            parts.setdefault(named[1], []).append(_name(text))
    checks = []
    for extra, names in parts.items():
        missing = [name for name in names if _version(name) is None]
        finding = f"not installed (missing {', '.join(missing)}); optional" if missing else "installed"
        fix = f"pip install 'tunesmith[{extra}]'" if missing else ""
        checks.append(DoctorCheck(f"extra {extra}", OK, finding, fix))
    return checks


def disk(free_in: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free) -> list[DoctorCheck]:
    """Check free space and write access of the model cache and the working directory."""
    checks = []
    for name, path, elsewhere in (
        ("disk for models", cache_dir(), "set TUNESMITH_CACHE to another folder"),
        ("disk for runs", Path.cwd(), "work in another folder"),
    ):
        existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        free = free_in(existing)
        state = FAIL if free < NEEDED_BYTES else WARN if free < WANTED_BYTES else OK
        fix = "" if state == OK else f"free some space, or {elsewhere}"
        if not os.access(existing, os.W_OK):
            state, fix = FAIL, f"make {existing} writable, or {elsewhere}"
        checks.append(DoctorCheck(name, state, f"{size(free)} free at {path}", fix))
    return checks


def memory() -> list[DoctorCheck]:
    """Check available memory."""
    import psutil

    free = int(psutil.virtual_memory().available)
    short = free < WANTED_MEMORY
    fix = "close other programs, or tune minilm-l6, which needs less" if short else ""
    return [DoctorCheck("memory", WARN if short else OK, f"{size(free)} free", fix)]


def models() -> list[DoctorCheck]:
    """Compare the files of the cached bundled models with their digests."""
    from tunesmith.models.loading.bundled_models import BUNDLED_MODELS, damaged, folder_of, is_whole

    checks = []
    for alias in BUNDLED_MODELS:
        folder = folder_of(alias)
        name = f"model {alias}"
        if broken := damaged(alias):
            fix = f"delete {folder}, then run `tunesmith models --fetch`"
            checks.append(DoctorCheck(name, FAIL, f"damaged: {', '.join(broken)}", fix))
        elif not is_whole(folder):
            checks.append(DoctorCheck(name, WARN, "not in the cache", "run `tunesmith models --fetch`"))
        else:
            checks.append(DoctorCheck(name, OK, f"all files intact in {folder}"))
    return checks


def caches() -> list[DoctorCheck]:
    """Report the size of what runs keep, and the number of entries."""
    from tunesmith.models.kept_answers import kinds_of_answers

    checks = []
    for path in (cache_dir() / name for name in CLEARED):
        if path.exists():
            bytes_of = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
            kinds = (f"{count:,} {kind}" for kind, (count, _) in kinds_of_answers().items())
            entries = ", ".join(kinds) if path.name == ANSWERS else f"{len(list(path.iterdir())):,} entries"
            checks.append(DoctorCheck(f"cache {path.stem}", OK, f"{size(bytes_of)}: {entries}"))
    return checks


def machine() -> list[DoctorCheck]:
    """Report the compute device that a run would choose, and the measured speed."""
    from tunesmith.models.loading.device import choose_machine

    return [DoctorCheck("machine", OK, choose_machine().why)]


def _failed_requirement(requirement: str) -> DoctorCheck | None:
    """Return a failed check if the library is missing or has an unsupported version."""
    name = _name(requirement)
    specifier = requirement.partition(";")[0].strip()
    have, fix = _version(name), f"pip install '{specifier}'"
    if have is None:
        return DoctorCheck(name, FAIL, "not installed", fix)
    bounds = re.findall(r"(>=|==|<)\s*([\d.]+)", specifier)
    wrong = [f"{sign}{want}" for sign, want in bounds if not RANGE[sign](_release(have), _release(want))]
    return DoctorCheck(name, FAIL, f"{have}, supported: {' and '.join(wrong)}", fix) if wrong else None


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]


def _release(version: str) -> tuple[int, ...]:
    """Parse 2.13.0+cpu as (2, 13), so that trailing zeros do not count."""
    parts = [int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part]  # type: ignore[index]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def _version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
