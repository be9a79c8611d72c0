"""`tunesmith doctor`: check this installation and machine."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tunesmith.cli.options import add_common
from tunesmith.cli.terminal import publish, show
from tunesmith.data.files import quoted
from tunesmith.data.user_cache import ANSWERS, CLEARED, cache_dir, clear_caches
from tunesmith.report.formatting import size

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from tunesmith.cli.options import Commands

OK, WARN, FAIL = "ok", "warn", "fail"
WIDTH = 80
OLDEST_PYTHON = (3, 11)
MISSING = "not installed"
# Both bundled models unpacked; with the files of a small run.
NEEDED_BYTES, WANTED_BYTES = 700_000_000, 3_000_000_000
# Weights, gradients, optimizer and activations of the 135M decoder under LoRA, and the operating system.
WANTED_MEMORY = 3_000_000_000


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
    parts = (
        python(),
        libraries(requirements),
        disk(),
        memory(),
        models(),
        caches(),
        machine(),
        extras(requirements),
        plugins(),
    )
    return [check for part in parts for check in part]


def plugins() -> list[DoctorCheck]:
    """List the extensions of installed packages, and those that take the name of one of ours; none is loaded."""
    from tunesmith.config.messages import PARTS
    from tunesmith.data.readers.read import READERS
    from tunesmith.metrics.task_scores import PER_ROW, WHOLE
    from tunesmith.plugins import GROUPS, offered, taken

    checks = []
    for group in GROUPS:
        own = {"metrics": {*PER_ROW, *WHOLE}, "readers": {kind[1:] for kind in READERS}}.get(group, set(PARTS))
        for name, entry in offered(group).items():
            if name in own and group != "rewards":
                problem, _, fix = taken(group, name).partition("; ")
                checks.append(DoctorCheck("extension", WARN, problem, fix))
            else:
                package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.module
                checks.append(DoctorCheck("extension", OK, f"{package} offers {group} {name!r}"))
    return checks


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
    needed = _by_extra(requirements)[""]
    failed = [
        DoctorCheck(one.name, FAIL, problem, install(_without_marker(one)))
        for one in needed
        if (problem := _problem(one))
    ]
    shown = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers", "peft"))
    return failed or [DoctorCheck("libraries", OK, f"{len(needed)} libraries, all supported versions ({shown})")]


def extras(requirements: Sequence[str]) -> list[DoctorCheck]:
    """Report which optional extras are installed, and which have libraries that are too old or too new."""
    checks = []
    for extra, needed in _by_extra(requirements).items():
        if extra in ("", "all", "dev") or not needed:
            continue
        problems = {one.name: problem for one in needed if (problem := _problem(one))}
        missing = [name for name, problem in problems.items() if problem == MISSING]
        unfit = [f"{name} {problem}" for name, problem in problems.items() if problem != MISSING]
        parts = [*([f"missing {', '.join(missing)}"] if missing else []), *unfit]
        finding = f"not installed ({'; '.join(parts)}); optional" if parts else "installed"
        # To lack a library is a choice, but one in the wrong version fails when a command uses it.
        fix = install(f"tunesmith[{extra}]") if parts else ""
        checks.append(DoctorCheck(f"extra {extra}", WARN if unfit else OK, finding, fix))
    return checks


def install(requirement: str) -> str:
    """Return the command that installs a requirement into this environment."""
    if (Path(sys.prefix) / "uv-receipt.toml").exists():  # of `uv tool install`
        return f"uv tool install --with {quoted(requirement)} tunesmith"
    if find_spec("pip"):
        return f"pip install {quoted(requirement)}"
    return f"uv pip install --python {quoted(sys.executable)} {quoted(requirement)}"


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


def _by_extra(requirements: Sequence[str]) -> dict[str, list[Requirement]]:
    """Return the requirements that this system has, by extra; those of the core have an empty name."""
    from packaging.requirements import Requirement

    parsed = [Requirement(text) for text in requirements]
    names = dict.fromkeys(name for text in requirements for name in re.findall(r"extra == ['\"]([\w-]+)['\"]", text))
    parts: dict[str, list[Requirement]] = {}
    for extra in ("", *names):
        found = [one for one in parsed if one.marker is None or one.marker.evaluate({"extra": extra})]
        # `all` and others are lists of extras.
        parts[extra] = [one for one in found if one.name != "tunesmith" and one not in parts.get("", [])]
    return parts


def _problem(requirement: Requirement) -> str:
    """Return why the installed version does not do; empty if it does."""
    have = _version(requirement.name)
    if have is None:
        return MISSING
    wrong = sorted(str(one) for one in requirement.specifier if not one.contains(have, prereleases=True))
    return f"{have}, supported: {' and '.join(wrong)}" if wrong else ""


def _without_marker(requirement: Requirement) -> str:
    return str(requirement).partition(";")[0].strip()


def _version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
