"""Make a release, up to the upload: `make release VERSION=0.2.0`.

Writes the version into `tunesmith/__init__.py`, the only place that has it, and cuts the section Unreleased of
CHANGELOG.md. Builds sdist and wheel twice from a clean copy and compares their digests, lets twine check them, and
writes an SBOM of the core's locked dependencies. Then it stops: commit, tag and upload are a person's decision, and
the commands for them are printed. `--dry-run` does all of it in a copy and leaves the checkout alone.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from bench.install import run
from bench.licences import needed

ROOT = Path(__file__).resolve().parents[1]
VERSION_FILE = Path("tunesmith", "__init__.py")
VERSION_LINE = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
UNRELEASED = "## [Unreleased]\n"
NOTHING_YET = re.compile(r"Nothing has been released yet\..*?\n\n", re.DOTALL)
INSTALL_PAGE = Path("docs", "how-to", "install.md")
NOT_ON_PYPI = re.compile(r" Nothing has been released yet, so `tunesmith` below is .*?`dist/`\.", re.DOTALL)


NEXT = """
Nothing was uploaded. Read CHANGELOG.md, then:
  git commit --all --message 'Version {version}'
  git tag --annotate v{version} --message 'Version {version}'
  git push origin main v{version}
The tag starts .github/workflows/release.yml, which builds the same bytes and waits for an approval to publish them."""


def set_version(text: str, version: str) -> str:
    """Return the package's `__init__.py` with another version; refuse one that is not newer.

    Raises:
        SystemExit: if the version is not one of PEP 440 in its normal form, or not newer than that of the text.
    """
    found = VERSION_LINE.search(text)
    if not found:
        raise SystemExit(f"{VERSION_FILE}: has no line __version__ = ...")
    try:
        wanted = Version(version)
    except InvalidVersion:
        raise SystemExit(f"VERSION={version}: not a version; write it like 1.2.0 or 1.2.0rc1") from None
    if str(wanted) != version or wanted.is_devrelease or wanted.local:
        raise SystemExit(f"VERSION={version}: write it as {wanted.public}, without a local or a dev part")
    # The first release has the version that the file begins with.
    if wanted < Version(found[1]):
        raise SystemExit(f"VERSION={version}: older than {found[1]} in {VERSION_FILE}")
    return VERSION_LINE.sub(f'__version__ = "{version}"', text, count=1)


def cut_changelog(text: str, version: str, day: dt.date) -> str:
    """Return the changelog with what was unreleased under a version, and an empty section Unreleased above it.

    Raises:
        SystemExit: if nothing is unreleased, or the version has a section already.
    """
    if f"## [{version}]" in text:
        raise SystemExit(f"CHANGELOG.md: {version} has a section already")
    before, found, after = text.partition(UNRELEASED)
    section, rest = re.split(r"(?=^## \[)|\Z", after, maxsplit=1, flags=re.MULTILINE) if found else ("", "")
    section = NOTHING_YET.sub("", section).strip()
    if not section:
        raise SystemExit(f"CHANGELOG.md: nothing under {UNRELEASED.strip()}, so there is nothing to release")
    return f"{before}{UNRELEASED}\n## [{version}] - {day.isoformat()}\n\n{section}\n" + (f"\n{rest}" if rest else "")


def copy_of(root: Path, target: Path) -> None:
    """Copy what git would track: the files of the checkout as they are, without those it ignores."""
    names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=root).split("\0")
    for name in filter(None, names):
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, target / name)


def build(source: Path, out: Path, epoch: int) -> list[Path]:
    """Build sdist and wheel with the locked build backend; equal sources give equal bytes.

    Args:
        source: a checkout.
        out: folder for the files.
        epoch: time of every entry in them, in seconds since 1970.
    """
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0"}
    run(sys.executable, "-m", "hatchling", "build", "--directory", out, cwd=source, environment=environment)
    return sorted(out.iterdir())


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def build_twice(root: Path, out: Path, epoch: int) -> list[Path]:
    """Build from two copies in different places, compare, and put one result into a folder.

    Raises:
        SystemExit: if the builds differ.
    """
    with tempfile.TemporaryDirectory() as name:
        built = []
        for copy in (Path(name, "first", "place"), Path(name, "second")):
            copy.mkdir(parents=True)
            copy_of(root, copy)
            built.append(build(copy, copy / "dist", epoch))
        first, second = ([(path.name, digest(path)) for path in paths] for paths in built)
        if first != second:
            raise SystemExit(f"two builds of the same files differ: {sorted(set(first) ^ set(second))}")
        out.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy(path, out)) for path in built[0]]


def sbom(root: Path, out: Path) -> Path:
    """Write a CycloneDX document of what the core needs, in the versions of the lock and with their hashes."""
    core = needed()
    entries = re.split(r"\n(?=\w)", (root / "requirements.lock").read_text(encoding="utf-8"))
    locked = [entry for entry in entries if canonicalize_name(re.match(r"[\w.-]*", entry)[0]) in core]  # type: ignore[index]
    with tempfile.TemporaryDirectory() as name:
        listed = Path(name, "requirements.txt")
        # Which torch depends on the machine, so the lock has none.
        listed.write_text("\n".join([*locked, "torch"]) + "\n", encoding="utf-8")
        kind = ["--mc-type", "library", "--output-reproducible", "--pyproject", "pyproject.toml"]
        run(sys.executable, "-m", "cyclonedx_py", "requirements", *kind, "--output-file", out, listed, cwd=root)
    return out


def day_of(changelog: str, version: str) -> dt.date:
    """Return the day that the changelog gives for a version.

    Raises:
        SystemExit: if the version has no section.
    """
    found = re.search(rf"^## \[{re.escape(version)}\] - (\S+)$", changelog, re.MULTILINE)
    if not found:
        raise SystemExit(f"CHANGELOG.md: no section for {version}; `make release VERSION={version}` writes it")
    return dt.date.fromisoformat(found[1])


def write_version(root: Path, version: str, day: dt.date) -> None:
    """Write version and changelog of a new release."""
    init, changelog, page = root / VERSION_FILE, root / "CHANGELOG.md", root / INSTALL_PAGE
    texts = {
        init: set_version(init.read_text(encoding="utf-8"), version),
        changelog: cut_changelog(changelog.read_text(encoding="utf-8"), version, day),
        page: NOT_ON_PYPI.sub("", page.read_text(encoding="utf-8")),
    }
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


def refuse_tag(root: Path, version: str) -> None:
    """Raise SystemExit if the tag of a version exists."""
    if run("git", "tag", "--list", f"v{version}", cwd=root):
        raise SystemExit(f"VERSION={version}: the tag v{version} exists; choose a newer version, or delete the tag")


def make_files(root: Path, version: str) -> list[Path]:
    """Build and check the files of a version that the checkout already has; return those of `dist/`."""
    found = VERSION_LINE.search((root / VERSION_FILE).read_text(encoding="utf-8"))
    if not found or found[1] != version:
        raise SystemExit(f"{VERSION_FILE}: its version is {found and found[1]}, not {version}")
    day = day_of((root / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    # Midnight of the day: the same release built again on another machine has the same bytes.
    epoch = int(dt.datetime.combine(day, dt.time(), dt.UTC).timestamp())
    shutil.rmtree(root / "dist", ignore_errors=True)
    files = build_twice(root, root / "dist", epoch)
    run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=root)
    return [*files, sbom(root, root / "dist" / f"tunesmith-{version}.cdx.json")]


def main(argv: list[str] | None = None) -> None:
    """Make the release that the command line asks for, and print what a person does next."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="work in a copy, and leave the checkout alone")
    mode.add_argument(
        "--rebuild", action="store_true", help="only build the files of a version that was written before"
    )
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) if args.dry_run else ROOT
        if args.dry_run:
            copy_of(ROOT, root)
            run("git", "init", "--quiet", cwd=root)
        elif changed := run("git", "status", "--porcelain", cwd=ROOT):
            raise SystemExit(f"the checkout has changes; commit them first:\n{changed}")
        if not args.rebuild:
            refuse_tag(ROOT, args.version)
            write_version(root, args.version, dt.datetime.now(dt.UTC).date())
        for path in make_files(root, args.version):
            print(f"{digest(path)}  {path.relative_to(root)}")
    if args.dry_run:
        print("dry run: nothing was changed")
    elif not args.rebuild:
        print(NEXT.format(version=args.version))


if __name__ == "__main__":
    main()
