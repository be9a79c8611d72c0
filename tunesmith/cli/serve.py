"""`tunesmith serve`: tuned models behind OpenAI's API, several over one base."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import UsageError, add_common
from tunesmith.cli.terminal import hush, log, publish, show

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.inference.engine import Engine, Limits

PORT = 8378
DRAIN = 30


def add(commands: Commands) -> None:
    """Add `serve`."""
    parser = commands.add_parser(
        "serve",
        help="answer programs, with OpenAI's API; several runs over one base",
        description="Each run is a model under its folder's name, or NAME=RUN; the same name again is a newer version, "
        "and /admin/rollback goes back. Runs over the same base share it in memory. Ctrl-C ends what was begun first.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run, or NAME=FOLDER")
    text = "a name that stands for several by weight: NAME=RUN:0.9,RUN:0.1; may be repeated"
    parser.add_argument("--split", action="append", default=[], metavar="NAME=SHARES", help=text)
    parser.add_argument("--rows", type=int, default=32, metavar="N", help="answers written at once (%(default)s)")
    parser.add_argument("--waiting", type=int, default=256, metavar="N", help="questions that may wait (%(default)s)")
    parser.add_argument("--longest", type=int, default=4096, metavar="N", help="tokens of an answer (%(default)s)")
    parser.add_argument("--seconds", type=float, default=120.0, metavar="S", help="for one answer (%(default)s)")
    text = "where the token of other machines is kept (default: tunesmith-serve.token)"
    parser.add_argument("--token-file", type=Path, default=Path("tunesmith-serve.token"), metavar="FILE", help=text)
    text = "where thumbs are kept (default: thumbs.db in the folder of each run; those for a base in the first one's)"
    parser.add_argument("--store", type=Path, metavar="FILE", help=text)
    parser.add_argument("--host", default="127.0.0.1", help="elsewhere than here a token is asked for (%(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="0 takes a free one (%(default)s)")
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer until a signal comes."""
    from tunesmith.web.serve import need_libraries

    need_libraries("serve")
    hush()
    limits, sources = _limits(args), sources_of(args.runs)
    from tunesmith.inference.engine import Engine
    from tunesmith.inference.shelf import Shelf
    from tunesmith.inference.split import Splits
    from tunesmith.web.api import MANNER, Api
    from tunesmith.web.metrics import Metrics
    from tunesmith.web.serve import Address, kept_token, listen, serve, url
    from tunesmith.workflows.thumbs import FILE, Thumbs

    splits = Splits(shares_of(args.split, sources))
    address = Address(args.host, args.port)
    with listen(address) as sock:
        shelf = Shelf(sources, offline=args.offline)
        for name in sources:
            log(f"reading {name}")
            shelf.load(name)
        token = kept_token(address, args.token_file)
        engine = Engine(shelf, limits=limits, failed=log)
        _say(engine, url(sock, address), token, args)
        thumbs = Thumbs(lambda name: args.store or folder_of(name, sources) / FILE)
        app = Api(engine, splits=splits, metrics=Metrics(), thumbs=thumbs).app()
        try:
            serve(app, sock, token=token, manner=MANNER, drain=DRAIN)
        finally:
            engine.close(DRAIN)
            thumbs.close()
    return 0


def sources_of(runs: list[str]) -> dict[str, list[Path]]:
    """Name -> its folders, oldest first. Raises UsageError."""
    sources: dict[str, list[Path]] = {}
    for given in runs:
        name, _, place = given.rpartition("=")
        folder = Path(place).expanduser()
        name = name or folder.resolve().name
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise UsageError(f"{given}: {name!r} is no name for a model; give NAME=FOLDER, of letters, digits, . _ -")
        sources.setdefault(name, []).append(folder)
    return sources


def folder_of(name: str, sources: dict[str, list[Path]]) -> Path:
    """Where the thumbs of a model are kept: a base has no folder of its own, and shares that of the first run."""
    return sources.get(name, next(iter(sources.values())))[0]


def shares_of(given: list[str], sources: dict[str, list[Path]]) -> dict[str, dict[str, float]]:
    """Split -> model -> weight. Raises UsageError."""
    found: dict[str, dict[str, float]] = {}
    for split in given:
        name, _, shares = split.partition("=")
        for share in shares.split(","):
            model, _, weight = share.partition(":")
            if not name or name in sources or model not in sources:
                raise UsageError(f"--split {split}: NAME must be new and each RUN served; write NAME=RUN:0.9,RUN:0.1")
            try:
                found.setdefault(name, {})[model] = float(weight or 1)
            except ValueError:
                raise UsageError(f"--split {split}: {weight!r} is no weight; write NAME=RUN:0.9,RUN:0.1") from None
        if any(not 0 <= weight < 1e6 for weight in found[name].values()) or not sum(found[name].values()):
            raise UsageError(f"--split {split}: weights are numbers from 0 on, one of them above; write 0.9 and 0.1")
    return found


def _limits(args: argparse.Namespace) -> Limits:
    from tunesmith.inference.engine import Limits

    for name in ("rows", "waiting", "longest", "seconds"):
        if not 1 <= getattr(args, name) < 2**31:
            raise UsageError(f"--{name}: {getattr(args, name)} is not possible; give 1 or more")
    return Limits(rows=args.rows, waiting=args.waiting, new_tokens=args.longest, seconds=args.seconds)


def _say(engine: Engine, place: str, token: str, args: argparse.Namespace) -> None:
    """Where the server is and what it serves."""
    models = [run.name for run in engine.shelf.runs()]
    kept = {"token_file": args.token_file} if token else {}
    if not publish({"url": f"{place}v1", "models": models, **kept}, args):
        show(f"models: {', '.join(models)}")
        show(f"OpenAI's API: {place}v1")
        if token:
            show(f"api key: what stands in {args.token_file}")
        show("Ctrl-C ends it when the answers that were begun are out")
