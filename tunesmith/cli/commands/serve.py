"""`tunesmith serve`: tuned models behind OpenAI's API, several over one base."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import Deprecated, UsageError, add_common
from tunesmith.cli.terminal import hush, log, publish, show

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.inference.serving.protocol import AnsweringEngine, Limits

    Sources = dict[str, list[Path]]

PORT = 8378
DRAIN = 30
ENGINES = ("torch", "llamacpp", "vllm")
SLOTS = 8


def add(commands: Commands) -> None:
    """Add `serve`."""
    parser = commands.add_parser(
        "serve",
        help="answer programs, with OpenAI's API; several runs over one base",
        description="Each run is a model under its folder's name, or NAME=RUN, and each task of a run of several is "
        "NAME/TASK. The same name again is a newer version, and /admin/rollback goes back. Runs over the same base "
        "share it in memory. A .gguf file is answered by llama.cpp. Ctrl-C ends what was begun first.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run, a .gguf file, or NAME=either")
    text = "what answers (default: llamacpp where a .gguf file is named, which of a run takes its GGUF export)"
    parser.add_argument("--engine", choices=ENGINES, help=text)
    text = "a name that stands for several by weight: NAME=RUN:0.9,RUN:0.1; may be repeated"
    parser.add_argument("--split", action="append", default=[], metavar="NAME=SHARES", help=text)
    text = "answers written at once (32; llama.cpp 8, which keeps memory for each)"
    parser.add_argument("--rows", type=int, metavar="N", help=text)
    parser.add_argument("--max-queue", type=int, default=256, metavar="N", help="questions that may wait (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=4096, metavar="N", help="tokens of an answer (%(default)s)")
    for old, new in (("--waiting", "--max-queue"), ("--longest", "--max-tokens")):
        dest = new[2:].replace("-", "_")
        parser.add_argument(old, dest=dest, type=int, action=Deprecated, const=new, help=argparse.SUPPRESS)
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
    from tunesmith.web.server import need_libraries

    need_libraries("serve")
    hush()
    sources = sources_of(args.runs)
    kind = _kind(args, sources)
    limits = _limits(args, kind)
    from tunesmith.annotation.thumbs import FILE, Thumbs
    from tunesmith.inference.serving.traffic_split import Splits
    from tunesmith.web.openai.app import POLICY, Api
    from tunesmith.web.openai.metrics import Metrics
    from tunesmith.web.server import Address, listen, serve, stored_token, url

    splits = Splits(shares_of(args.split, sources))
    address = Address(args.host, args.port)
    with listen(address) as sock:
        token = stored_token(address, args.token_file, option="--token-file")
        engine = STARTS[kind](sources, limits, offline=args.offline)
        _say(engine, url(sock, address), token, args)
        shelf = engine.registry
        thumbs = Thumbs(lambda name: args.store or _room(folder_of(name, sources, shelf.get(name).version)) / FILE)
        app = Api(engine, splits=splits, metrics=Metrics(), thumbs=thumbs).app()
        try:
            serve(app, sock, token=token, policy=POLICY, drain=DRAIN)
        finally:
            engine.close(DRAIN)
            thumbs.close()
    return 0


def _torch(sources: Sources, limits: Limits, *, offline: bool) -> AnsweringEngine:
    from tunesmith.inference.serving.engine import Engine
    from tunesmith.inference.serving.registry import ModelRegistry

    shelf = ModelRegistry(sources, offline=offline)
    for name in sources:
        log(f"reading {name}")
        shelf.load(name)
    return Engine(shelf, limits=limits, failed=log)


def _llamacpp(sources: Sources, limits: Limits, *, offline: bool) -> AnsweringEngine:
    from tunesmith.inference.serving.backends.external import ExternalEngine
    from tunesmith.inference.serving.backends.gguf import GgufBackend

    log(f"reading {', '.join(sources)}")
    places = {name: folders[0] for name, folders in sources.items()}
    return ExternalEngine(GgufBackend(places, slots=limits.rows), limits=limits, failed=log)


def _vllm(sources: Sources, limits: Limits, *, offline: bool) -> AnsweringEngine:
    from tunesmith.inference.serving.backends.external import ExternalEngine
    from tunesmith.inference.serving.backends.vllm import Vllm

    log(f"reading {', '.join(sources)}")
    folders = {name: places[0] for name, places in sources.items()}
    return ExternalEngine(Vllm(folders, rows=limits.rows, offline=offline), limits=limits, failed=log)


STARTS: dict[str, Callable[..., AnsweringEngine]] = {"torch": _torch, "llamacpp": _llamacpp, "vllm": _vllm}


def _kind(args: argparse.Namespace, sources: Sources) -> str:
    """Which engine answers what was named. Raises UsageError."""
    files = [place for folders in sources.values() for place in folders if _is_file(place)]
    kind = args.engine or ("llamacpp" if files else "torch")
    if kind != "llamacpp" and files:
        raise UsageError(f"{files[0]}: a GGUF file is answered by llama.cpp alone; leave --engine {kind} out")
    twice = [name for name, folders in sources.items() if len(folders) > 1]
    if kind != "torch" and twice:
        raise UsageError(f"{twice[0]}: versions of one name need --engine torch; give each a name of its own")
    return str(kind)


def _is_file(place: Path) -> bool:
    return place.suffix.lower() == ".gguf"


def _room(place: Path) -> Path:
    """Where what belongs to a model is kept: its folder."""
    return place.parent if _is_file(place) else place


def name_of(place: Path) -> str:
    """What a model is called where nobody says: its folder's name, or its file's, or of an export its run's."""
    place = place.resolve()
    if not _is_file(place):
        return place.name
    return place.parents[2].name if place.parts[-3:-2] == ("export",) else place.stem


def sources_of(runs: list[str]) -> dict[str, list[Path]]:
    """Name -> its folders, oldest first. Raises UsageError."""
    sources: dict[str, list[Path]] = {}
    for given in runs:
        named = "=" in given and not Path(given).expanduser().exists()
        name, _, place = given.partition("=") if named else ("", "", given)
        folder = Path(place).expanduser()
        name = name or name_of(folder)
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise UsageError(f"{given}: {name!r} is no name for a model; give NAME=FOLDER, of letters, digits, . _ -")
        sources.setdefault(name, []).append(folder)
    return sources


def folder_of(name: str, sources: dict[str, list[Path]], version: int = 1) -> Path:
    """Where the thumbs of a version of a model are kept: a base has no folder of its own, and shares that of the first
    run."""
    folders = sources.get(name.partition("/")[0])
    return folders[version - 1] if folders else next(iter(sources.values()))[0]


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


def _limits(args: argparse.Namespace, kind: str) -> Limits:
    from tunesmith.inference.serving.protocol import Limits

    if args.rows is None:
        args.rows = SLOTS if kind == "llamacpp" else Limits().rows
    for name in ("rows", "max_queue", "max_tokens", "seconds"):
        if not 1 <= getattr(args, name) < 2**31:
            raise UsageError(f"--{name.replace('_', '-')}: {getattr(args, name)} is not possible; give 1 or more")
    return Limits(rows=args.rows, waiting=args.max_queue, new_tokens=args.max_tokens, seconds=args.seconds)


def _say(engine: AnsweringEngine, place: str, token: str, args: argparse.Namespace) -> None:
    """Where the server is, what it serves, and what a request has to carry that `ask` puts there by itself."""
    from tunesmith.objectives import Classify

    models = [run.name for run in engine.registry.runs()]
    kept = {"token_file": args.token_file} if token else {}
    if not publish({"url": f"{place}v1", "models": models, **kept}, args):
        show(f"models: {', '.join(models)}")
        show(f"OpenAI's API: {place}v1")
        for run in engine.registry.runs():
            if run.objective.instruction and not isinstance(run.objective, Classify):
                show(f"{run.name} learned behind an instruction; send it before each text: {run.objective.instruction}")
        if token:
            show(f"api key: what stands in {args.token_file}")
        show("Ctrl-C ends it when the answers that were begun are out")
