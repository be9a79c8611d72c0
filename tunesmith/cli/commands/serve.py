"""`tunesmith serve`: serve tuned models through an OpenAI-compatible API; runs over one base share it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.cli.options import DeprecatedOption, UsageError, add_common, add_engine, add_thinking
from tunesmith.cli.page_server import add_address
from tunesmith.cli.terminal import hush, log, publish, show, show_table
from tunesmith.data.user_cache import cache_dir
from tunesmith.errors import briefly

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.inference.serving.protocol import AnsweringEngine, Limits
    from tunesmith.pipelines.verify.challenge import Challenge
    from tunesmith.web.openai.shadow import ShadowRequest
    from tunesmith.web.server import OpenServer

    Sources = dict[str, list[Path]]  # model name -> its folders or GGUF files, oldest version first

PORT = 8378
SHUTDOWN_SECONDS = 30  # that running requests may take to finish
LLAMACPP_ROWS = 8


def add(commands: Commands) -> None:
    """Add `serve`."""
    parser = commands.add_parser(
        "serve",
        help="serve runs or base models through an OpenAI-compatible API",
        description="Serve each run as a model, named like its folder or by NAME=RUN; each task of a multitask run is "
        "NAME/TASK. A base decoder, such as smollm2-135m, is served as a chat model. "
        "A name given twice is a new version of that model, and /admin/rollback returns to the previous "
        "one. Runs over the same base model share it in memory. A .gguf file is served by llama.cpp. Ctrl-C finishes "
        "running requests, then exits.",
    )
    text = "run folder, base model (alias, Hub id or folder) or .gguf file, or NAME= and one of these"
    parser.add_argument("runs", metavar="RUN", nargs="+", help=text)
    add_engine(parser, "torch", "llamacpp", default="llamacpp for .gguf files, torch otherwise")
    text = (
        "precision of weights and computation with the torch engine: bfloat16 takes half the memory, and some answers "
        "may differ from those in the report (default: float32 on a CPU, bfloat16 on GPUs that have it)"
    )
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help=text)
    text = "model name that splits requests by weight: NAME=RUN:0.9,RUN:0.1; may be repeated"
    parser.add_argument("--split", action="append", default=[], metavar="NAME=SHARES", help=text)
    text = "concurrent requests (default: 32; llamacpp 8, because it reserves memory for each)"
    parser.add_argument("--rows", type=int, metavar="N", help=text)
    text = "maximum queued requests (default: %(default)s)"
    parser.add_argument("--max-queue", type=int, default=256, metavar="N", help=text)
    text = "maximum tokens per answer (default: %(default)s)"
    parser.add_argument("--max-tokens", type=int, default=4096, metavar="N", help=text)
    for old, dest, new in (("--waiting", "max_queue", "--max-queue"), ("--longest", "max_tokens", "--max-tokens")):
        parser.add_argument(
            old, dest=dest, type=int, action=DeprecatedOption, const=new,
            default=argparse.SUPPRESS, help=argparse.SUPPRESS,
        )  # fmt: skip
    text = "time limit per request in seconds (default: %(default)s)"
    parser.add_argument("--seconds", type=float, default=120.0, metavar="S", help=text)
    text = "file of the access token for other machines (default: %(default)s)"
    parser.add_argument("--token-file", type=Path, default=Path("tunesmith-serve.token"), metavar="FILE", help=text)
    text = "file of the token of /admin, always required there (default: admin.token in Tunesmith's cache folder)"
    parser.add_argument("--admin-token-file", type=Path, metavar="FILE", help=text)
    text = "file of ratings (default: thumbs.db in the folder of each run; for a base model, NAME-thumbs.db)"
    parser.add_argument("--store", type=Path, metavar="FILE", help=text)
    _add_shadow(parser)
    add_thinking(parser)
    add_address(parser, port=PORT)
    add_common(parser)
    parser.set_defaults(run=run)


def _add_shadow(parser: argparse.ArgumentParser) -> None:
    """Add `--shadow` and its options."""
    text = (
        "paid model with OpenAI's API that answers chats until RUN is shown to agree with it, and RUN from then on; "
        "its key is read from TUNESMITH_SHADOW_KEY"
    )
    parser.add_argument("--shadow", default="", metavar="URL#MODEL", help=text)
    text = "agreement that may be missing where RUN answers, as a fraction (default: %(default)s)"
    parser.add_argument("--shadow-margin", type=float, default=0.05, metavar="SHARE", help=text)
    text = "share of chats that always go to the paid model, to notice changes (default: %(default)s)"
    parser.add_argument("--shadow-control", type=float, default=0.05, metavar="SHARE", help=text)
    text = "price of a million tokens of the paid model, in and out, for the report"
    parser.add_argument("--shadow-price", type=float, nargs=2, metavar=("IN", "OUT"), help=text)
    text = "folder of figures and decisions (default: shadow in the folder of the run)"
    parser.add_argument("--shadow-folder", type=Path, metavar="FOLDER", help=text)
    text = "allow a paid model on another machine without https, if it needs no key"
    parser.add_argument("--shadow-http", action="store_true", help=text)
    text = (
        "keep the texts of compared chats, personal data masked: those sent with the header X-Tunesmith-Keep: yes, or "
        "all but those with no (default: none)"
    )
    parser.add_argument("--keep-rows", choices=("none", "asked", "all"), default="none", help=text)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    from tunesmith.web.server import serve

    with opened(args, say=lambda engine, place, token: _show_address(engine, place, token, args)) as made:
        serve(made.app, made.sock, token=made.token, policy=made.policy, drain=made.drain)
    return 0


@contextmanager
def opened(args: argparse.Namespace, *, say: Callable[[AnsweringEngine, str, str], None]) -> Iterator[OpenServer]:
    """Load the models and listen; the engine is stopped at the end.

    Args:
        args: arguments of the command.
        say: receives the engine, the URL and the token when the models are loaded.
    """
    from tunesmith.inference.engine_program import check_engine
    from tunesmith.web.server import need_libraries

    need_libraries("serve")
    sources = sources_of(args.runs)
    kind = _kind(args, sources)
    paths = [path for versions in sources.values() for path in versions]
    for path in paths:
        _check_source(path, offline=args.offline)
    if kind not in ("torch", "llamacpp"):
        check_engine(kind, *paths, offline=args.offline)
    hush()
    limits = _limits(args, kind)
    asked = _shadow_of(args, sources, kind)
    from tunesmith.annotation.thumbs import FILE, Thumbs
    from tunesmith.inference.identify import run_of
    from tunesmith.inference.serving.traffic_split import Splits
    from tunesmith.web.openai.app import POLICY, Api
    from tunesmith.web.openai.metrics import Metrics
    from tunesmith.web.server import Address, OpenServer, listen, read_token, stored_token, url

    def ratings_file(name: str) -> Path:
        path = folder_of(name, sources, engine.registry.get(name).version)
        if not _is_gguf(path) and not _is_run(path):  # a base model, in a folder that is not ours
            return args.store or Path(f"{name_of(path)}-{FILE}")
        return args.store or (path.parent if _is_gguf(path) else run_of(path)) / FILE

    splits = Splits(shares_of(args.split, sources))
    address = Address(args.host, args.port)
    with listen(address) as sock:
        token = stored_token(address, args.token_file, option="--token-file")
        args.admin_token_file = args.admin_token_file or cache_dir() / "admin.token"
        policy = replace(POLICY, admin_token=read_token(args.admin_token_file, option="--admin-token-file"))
        engine = _started(kind, sources, limits, dtype=args.dtype, offline=args.offline)
        thumbs = Thumbs(ratings_file)
        try:
            _check_thinking(engine, args.thinking)
            with asked.over(engine, log) if asked else nullcontext() as shadow:
                place = url(sock, address)
                say(engine, place, token)
                options = {"thumbs": thumbs, "thinking": args.thinking, "shadow": shadow}
                check = partial(_verify, engine, sources)
                app = Api(engine, splits=splits, metrics=Metrics(), **options, at_start=check).app()
                try:
                    yield OpenServer(app, sock, place, token, policy, SHUTDOWN_SECONDS)
                finally:
                    if shadow is not None and not args.json:
                        _show_shadow(shadow.summary())
        finally:
            engine.close(SHUTDOWN_SECONDS)
            thumbs.close()


async def _verify(engine: AnsweringEngine, sources: Sources) -> None:
    """Ask the served models the challenges of their runs, and log a line for each."""
    from tunesmith.pipelines.verify.challenge import FILE, read_challenge
    from tunesmith.pipelines.verify.verdict import judge

    for name, versions in sources.items():
        path = versions[-1].resolve()
        run = path.parents[2] if _is_gguf(path) and path.parts[-3:-2] == ("export",) else path
        try:
            if (run / FILE).is_file():
                challenge = read_challenge(run)
                judgement = judge(challenge.prompts, await _answers(engine, name, challenge))
                log(f"{'' if judgement.verdict == 'tuned' else 'warning: '}{name}: {judgement.sentence()}")
            elif _is_run(run):
                log(f"{name}: not verified (its run has no {FILE})")
        except Exception as error:  # of a task, whose failure is not shown otherwise
            log(f"{name}: not verified ({briefly(error)})")


async def _answers(engine: AnsweringEngine, name: str, challenge: Challenge) -> list[str]:
    """Return the answers of a served model: of its engine, so that they are not counted and no paid model is asked."""
    from tunesmith.inference.serving.request import GenerationRequest
    from tunesmith.models.generation.sampling import Sampling
    from tunesmith.pipelines.verify.challenge import compared
    from tunesmith.web.openai.stream import CompletionStream

    thinking = engine.registry.get(name).thinking_mode(challenge.thinking)
    sampling = Sampling(max_new_tokens=challenge.tokens)
    answers = []
    for prompt in challenge.prompts:
        stream = CompletionStream(None, lambda last: None)
        try:
            request = GenerationRequest(name, tuple(prompt.chat), sampling=sampling, thinking=thinking)
            stream.ticket = engine.ask(request, stream.on_chunk)
            last = await stream.whole()
        finally:
            stream.release()
        answers.append(compared(last.thoughts, last.text))
    return answers


def _shadow_of(args: argparse.Namespace, sources: Sources, kind: str) -> ShadowRequest | None:
    """Return what `--shadow` asks for, checked before models are loaded; None without it."""
    if not args.shadow:
        return None
    from tunesmith.web.openai.shadow import ShadowRequest

    (name, versions), *others = sources.items()
    if others or len(versions) > 1:
        raise UsageError("--shadow: expected one RUN to compare with the paid model; serve others without --shadow")
    shares = [("--shadow-margin", args.shadow_margin, 1), ("--shadow-control", args.shadow_control, 1)]
    for option, value, most in [*shares, *(("--shadow-price", price, 10**6) for price in args.shadow_price or ())]:
        if not 0 < value < most and (option, value) != ("--shadow-price", 0):
            raise UsageError(f"{option} {value}: expected a number between 0 and {most}; see `tunesmith serve --help`")
    place = versions[0].parent if _is_gguf(versions[0]) else versions[0]
    own = place / "shadow" if _is_run(place) or _is_gguf(versions[0]) else Path(f"{name}-shadow")
    return ShadowRequest(
        name,
        versions[0],
        args.shadow,
        args.shadow_folder or own,
        margin=args.shadow_margin,
        control=args.shadow_control,
        price=args.shadow_price,
        keep=args.keep_rows,
        offline=args.offline,
        plain_http=args.shadow_http,
        engine=f"{kind} {args.thinking} {args.max_tokens}",
    )


def _show_shadow(page: Mapping[str, Any]) -> None:
    """Print the figures of a shadow."""
    from tunesmith.report.formatting import bounds, count, duration, price, share

    requests, model = page["requests"], page["model"]
    total = max(1, sum(requests.values()))
    if page["shadow"]:
        cells = [
            (
                f"{row['from']:.2f}",
                count(row["rows"]),
                share(row["agreement"]),
                bounds(row["interval"]),
                str(row["evidence"]),
            )
            for row in page["shadow"]
        ]
        show_table(("confidence from", "rows>", "agreement>", "95 % interval", "evidence>"), cells)
        show(f"{model} answers where the evidence for {1 - page['margin']:.0%} reaches {page['evidence_needed']}")
    if page["threshold"] is not None:
        control = page["control"]
        text = (
            f"agreement {share(control['agreement'])} ({bounds(control['interval'])})"
            if control["rows"]
            else "none yet"
        )
        show(f"{model} answers from confidence {page['threshold']}; {control['rows']} control rows: {text}")
    parts = [f"{by} {count(n)} ({n / total:.0%}, {duration(page['seconds'][by][0])})" for by, n in requests.items()]
    show(f"chats by who answered: {', '.join(parts)}")
    periods = [f"{tuned / max(1, n):.0%}" for _, n, tuned, *_ in page["periods"]]
    show(f"share of {model} over time: {' '.join(periods[:: max(1, len(periods) // 12)])}")
    if page["cost_spent"] is not None and page["cost_saved"]:
        saved, low, high = page["cost_saved"]
        within = f" ({price(low)} to {price(high)})" if low is not None else ""
        show(f"spent {price(page['cost_spent'])}, saved {price(saved)}{within}")
    if page["seconds_saved"]:
        saved, low, high = page["seconds_saved"]
        show(f"a reply of {model} is {saved:.2f} s faster ({low:.2f} to {high:.2f} s)")


def _check_thinking(engine: AnsweringEngine, thinking: bool | None) -> None:
    """Raise UsageError if thinking is requested of models that cannot think."""
    if not thinking or any(run.template.thinks for run in engine.registry.runs()):
        return
    fix = "leave the option out, or serve a model that thinks, such as Qwen3"
    raise UsageError(f"--thinking: none of the served models can think; {fix}")


def _torch(sources: Sources, limits: Limits, *, dtype: str, offline: bool) -> AnsweringEngine:
    from tunesmith.inference.serving.engine import Engine
    from tunesmith.inference.serving.registry import ModelRegistry

    registry = ModelRegistry(sources, dtype=dtype, offline=offline)
    for name in sources:
        log(f"loading {name}")
        registry.load(name)
    return Engine(registry, limits=limits, failed=log)


def _llamacpp(sources: Sources, limits: Limits, *, offline: bool) -> AnsweringEngine:
    from tunesmith.inference.serving.backends.external import ExternalEngine
    from tunesmith.inference.serving.backends.gguf import GgufBackend

    log(f"loading {', '.join(sources)}")
    paths = {name: versions[0] for name, versions in sources.items()}
    return ExternalEngine(GgufBackend(paths, slots=limits.rows), limits=limits, failed=log)


def _program(engine: str, sources: Sources, limits: Limits, *, offline: bool) -> AnsweringEngine:
    from tunesmith.inference.engine_server import EngineServer
    from tunesmith.inference.serving.backends.external import ExternalEngine
    from tunesmith.inference.serving.backends.openai_server import EngineBackend

    server = EngineServer(engine, offline=offline, rows=limits.rows, adapters=len(sources))
    log(f"loading {', '.join(sources)} in {engine}")
    paths = {name: versions[0] for name, versions in sources.items()}
    try:
        return ExternalEngine(EngineBackend(paths, server, offline=offline), limits=limits, failed=log)
    except BaseException:
        server.close()
        raise


def _started(engine: str, sources: Sources, limits: Limits, *, dtype: str, offline: bool) -> AnsweringEngine:
    if engine == "torch":
        return _torch(sources, limits, dtype=dtype, offline=offline)
    if engine == "llamacpp":
        return _llamacpp(sources, limits, offline=offline)
    return _program(engine, sources, limits, offline=offline)


def _kind(args: argparse.Namespace, sources: Sources) -> str:
    """Return the engine. Raises TunesmithError if there is none of that name, or it cannot serve the sources."""
    files = [path for versions in sources.values() for path in versions if _is_gguf(path)]
    kind = args.engine or ("llamacpp" if files else "torch")
    if kind != "llamacpp" and files:
        raise UsageError(f"{files[0]}: only llama.cpp serves GGUF files; omit --engine {kind}")
    bases = [path for versions in sources.values() for path in versions if not _is_gguf(path) and not _is_run(path)]
    if kind == "llamacpp" and bases:
        raise UsageError(f"{bases[0]}: neither a run nor a .gguf file, which llama.cpp serves; omit --engine {kind}")
    if kind != "torch" and args.dtype != "auto":
        raise UsageError(f"--dtype {args.dtype}: only torch takes it, and these models are served by {kind}; omit it")
    repeated = [name for name, versions in sources.items() if len(versions) > 1]
    if kind != "torch" and repeated:
        raise UsageError(f"{repeated[0]}: only --engine torch serves several versions; use different names")
    return str(kind)


def _check_source(path: Path, *, offline: bool) -> None:
    """Raise TunesmithError if there is no such model, before torch is imported."""
    from tunesmith.inference.identify import identify

    if not _is_gguf(path):
        identify(path, offline=offline)
    elif not path.is_file():
        raise UsageError(f"{path}: no such file; check the path, or `tunesmith export RUN --format gguf` writes one")


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def _is_run(path: Path) -> bool:
    return any((path / page).exists() for page in ("run.json", "tunesmith.json", "model/tunesmith.json"))


def name_of(path: Path) -> str:
    """Return the default name of a model: that of its run folder, of the run of a GGUF export, or of the file."""
    path = path.resolve()
    if not _is_gguf(path):
        return path.name
    return path.parents[2].name if path.parts[-3:-2] == ("export",) else path.stem


def sources_of(runs: list[str]) -> dict[str, list[Path]]:
    """Return the paths of each model name, oldest version first. Raises UsageError for an invalid name."""
    sources: dict[str, list[Path]] = {}
    for run in runs:
        named = "=" in run and not Path(run).expanduser().exists()
        name, _, path = run.partition("=") if named else ("", "", run)
        folder = Path(path).expanduser()
        name = name or name_of(folder)
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise UsageError(f"{run}: invalid model name {name!r}; use NAME=RUN with letters, digits, `.`, `_` and `-`")
        sources.setdefault(name, []).append(folder)
    return sources


def folder_of(name: str, sources: dict[str, list[Path]], version: int = 1) -> Path:
    """Return the path of a version of a model; a base model has none and uses that of the first run."""
    versions = sources.get(name.partition("/")[0])
    return versions[version - 1] if versions else next(iter(sources.values()))[0]


def shares_of(options: list[str], sources: dict[str, list[Path]]) -> dict[str, dict[str, float]]:
    """Parse `--split`: the weight of each model by the name of the split. Raises UsageError."""
    splits: dict[str, dict[str, float]] = {}
    for option in options:
        name, _, shares = option.partition("=")
        for share in shares.split(","):
            model, _, weight = share.partition(":")
            if not name or name in sources or model not in sources:
                problem = "NAME must be new and each RUN one that is served"
                raise UsageError(f"--split {option}: {problem}; write NAME=RUN:0.9,RUN:0.1")
            try:
                splits.setdefault(name, {})[model] = float(weight or 1)
            except ValueError:
                raise UsageError(f"--split {option}: invalid weight {weight!r}; write NAME=RUN:0.9,RUN:0.1") from None
        weights = splits[name].values()
        if any(not 0 <= weight < 1e6 for weight in weights) or not sum(weights):
            problem = "expected weights >= 0, at least one of them > 0"
            raise UsageError(f"--split {option}: {problem}; write NAME=RUN:0.9,RUN:0.1")
    return splits


def _limits(args: argparse.Namespace, kind: str) -> Limits:
    from tunesmith.inference.serving.protocol import Limits

    if args.rows is None:
        args.rows = LLAMACPP_ROWS if kind == "llamacpp" else Limits().rows
    for name in ("rows", "max_queue", "max_tokens", "seconds"):
        if not 1 <= getattr(args, name) < 2**31:
            option = name.replace("_", "-")
            raise UsageError(f"--{option}: expected a number >= 1, got {getattr(args, name)}; use a larger number")
    return Limits(rows=args.rows, waiting=args.max_queue, new_tokens=args.max_tokens, seconds=args.seconds)


def _show_address(engine: AnsweringEngine, address: str, token: str, args: argparse.Namespace) -> None:
    models = [run.name for run in engine.registry.runs()]
    token_file = {"token_file": args.token_file} if token else {}
    token_file["admin_token_file"] = args.admin_token_file
    if publish({"url": f"{address}v1", "models": models, **token_file}, args):
        return
    show(f"models: {', '.join(models)}")
    show(f"OpenAI-compatible API: {address}v1")
    for run in engine.registry.runs():
        if run.objective.instruction and run.objective.produces != "labels":
            # `ask` and `chat` insert the instruction; clients of the API have to send it.
            show(f"{run.name} was tuned with an instruction; send it before each text: {run.objective.instruction}")
    if token:
        show(f"API key: content of {args.token_file}")
    show(f"API key of /admin: content of {args.admin_token_file}")
    if args.shadow:
        show(f"chats go to {args.shadow} until {models[0]} is shown to agree with it; figures: {address}admin/shadow")
    show("Ctrl-C finishes running requests, then exits")
