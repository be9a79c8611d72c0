"""`tunesmith ask` and `tunesmith chat`: a tuned model answers, once or in turns."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tunesmith.cli.compare import KEY
from tunesmith.cli.options import UsageError, add_common, add_sampling, sampling_of
from tunesmith.cli.terminal import hush, log, publish, show, show_table
from tunesmith.training.callbacks import Callbacks

if TYPE_CHECKING:
    from tunesmith.cli.conversation import Beside
    from tunesmith.cli.options import Commands
    from tunesmith.inference.folder import ModelManifest
    from tunesmith.inference.local import LocalModel
    from tunesmith.model.sampling import Sampling


def add(commands: Commands) -> None:
    """Add `ask` and `chat`."""
    asking = commands.add_parser(
        "ask",
        help="put one text to a tuned model, or to the arm that a comparison chose",
        description="A run tuned to label answers with a label and probabilities, one tuned on texts goes on with the "
        "text (an encoder finds what its mask token hides), any other answers with text. A comparison answers by the "
        "arm of its verdict, which looks into the documents as they are now where it reads any.",
    )
    asking.add_argument("folder", metavar="RUN|COMPARISON", type=Path, help="folder of a run, or of a comparison")
    asking.add_argument("text", metavar="TEXT", help="the text; - reads it from stdin")
    asking.add_argument("--task", default="", metavar="NAME", help="which task of a run that learned several")
    asking.add_argument("--arm", default="", metavar="NAME", help="which arm of a comparison (default: its verdict's)")
    add_sampling(asking, temperature=0.0, top_p=1.0)
    add_common(asking)
    asking.set_defaults(run=ask)
    chatting = commands.add_parser(
        "chat",
        help="talk with a tuned decoder",
        description="Reads a turn a line, also from a pipe. /quit ends, /reset forgets the conversation, "
        "/system TEXT sets the system turn and forgets, /base shows the base's answer beside the last one, /save FILE "
        "adds the conversation to a file of rows, /good and /bad judge the last answer.",
    )
    chatting.add_argument("folder", metavar="RUN", type=Path, help="folder of a run")
    chatting.add_argument("--task", default="", metavar="NAME", help="which task of a run that learned several")
    chatting.add_argument("--system", default="", metavar="TEXT", help="system turn before the conversation")
    add_sampling(chatting, temperature=0.7, top_p=0.9)
    add_common(chatting)
    chatting.set_defaults(run=chat)


def ask(args: argparse.Namespace) -> int:
    """Answer one text."""
    from tunesmith.inference.folder import find_model, load
    from tunesmith.objectives import Classify, Domain
    from tunesmith.workflows.ask_arm import compared

    hush()
    comparison = compared(args.folder)
    if not comparison:
        find_model(args.folder)
    text = _given(args.text).strip()
    if not text:
        raise UsageError("ask: TEXT is empty; give a text, or - and a text on stdin")
    if comparison:
        return _ask_arm(args, text)
    if args.arm:
        raise UsageError(f"--arm: {args.folder} is a run, not a comparison; leave it out")
    model = load(args.folder, offline=args.offline).at(args.task)
    sampling = sampling_of(args, model.sampling)
    told = _told(model, text, sampling)
    written = model.policy.family == "decoder" and not isinstance(model.objective, Classify)
    room = model.prompt_budget(sampling.max_new_tokens) if written else model.limit
    if part := _left_out(model, text, room):
        log(f"ask: the text is longer than the {room} tokens there are for it; its {part} was left out")
    if publish({"run": args.folder, "text": text, **told}, args):
        return 0
    if "probabilities" in told:
        show(told["label"])
        likely_first = sorted(told["probabilities"].items(), key=lambda item: -item[1])
        show_table(("label", "probability>"), [(label, f"{p:.3f}") for label, p in likely_first])
    elif "words" in told:
        show_table(("word", "probability>"), [(word, f"{p:.3f}") for word, p in told["words"]])
    else:
        show(told["answer"])
        if told.get("finished") is False and not isinstance(model.objective, Domain):
            log(f"ask: the answer was cut at {told['new_tokens']} tokens; see --max-new-tokens")
    return 0


def _given(text: str) -> str:
    """The text, or what is piped in. Raises UsageError and DataError for what is not UTF-8."""
    from tunesmith.data.turns import whole

    try:
        return whole(_stdin().read() if text == "-" else text, "ask: TEXT")
    except UnicodeDecodeError as error:
        raise UsageError("ask: what is piped in is not UTF-8; convert it, as with iconv -f latin1 -t utf8") from error


def _ask_arm(args: argparse.Namespace, text: str) -> int:
    """Answer by an arm of a comparison; which chunks it saw goes to stderr."""
    from tunesmith.cli.progress import listening
    from tunesmith.cli.signals import caught
    from tunesmith.workflows.ask_arm import ArmQuestion, ask_arm

    if (args.temperature, args.top_p, args.max_new_tokens, args.seed, args.task) != (0.0, 1.0, None, 0, ""):
        options = "--temperature, --top-p, --max-new-tokens, --seed and --task"
        raise UsageError(
            f"ask: {args.folder} is a comparison, and its arms answer as they did there; leave out {options}"
        )
    with caught() as signals, listening(signals) as on_event:
        question = ArmQuestion(text, args.arm, os.environ.get(KEY, ""))
        found = ask_arm(args.folder, question, callbacks=Callbacks(on_event, signals.stop), offline=args.offline)
    if publish({"comparison": args.folder, "text": text, **found.model_dump()}, args):
        return 0
    show(found.answer)
    seen = f"; saw {', '.join(found.shown)}" if found.shown else ""
    log(f"by {found.arm}{seen}{f'; {found.cites} holds the answer' if found.cites else ''}")
    return 0


def _left_out(model: LocalModel, text: str, room: int) -> str:
    """Which part of the text the model did not see in so many tokens; empty where it saw the whole."""
    from tunesmith.cli.conversation import opening
    from tunesmith.objectives import Classify, Domain

    if isinstance(model.objective, Domain):
        part = "beginning" if model.policy.family == "decoder" else "end"
        return part if len(model.template.document(text).ids) > room else ""
    if isinstance(model.objective, Classify):
        cut = model.objective.question(text, model.template, limit=room)[1]
    else:
        cut = model.template.fit([opening(model, text)], room)[1]
    return "end" if cut else ""


def _told(model: LocalModel, text: str, sampling: Sampling) -> dict[str, Any]:
    """What the model makes of the text, by what it was tuned to do."""
    from tunesmith.objectives import Classify, Domain

    if isinstance(model.objective, Classify):
        return _label(model, text)
    if not isinstance(model.objective, Domain):
        return _answer(model, text, sampling)
    if model.policy.family == "encoder":
        return {"words": model.fill([text])[0]}
    reply = model.complete([text], sampling=sampling)[0]
    counts = {"prompt_tokens": reply.prompt_tokens, "new_tokens": reply.new_tokens}
    return {"answer": reply.text, "finished": reply.finished, **counts}


def _label(model: LocalModel, text: str) -> dict[str, Any]:
    found = model.classify([text])[0]
    return {"label": found.label, "labels": found.labels, "probabilities": found.probabilities}


def _answer(model: LocalModel, text: str, sampling: Sampling) -> dict[str, Any]:
    from tunesmith.cli.conversation import opening

    reply = model.reply([opening(model, text)], sampling=sampling)
    counts = {"prompt_tokens": reply.prompt_tokens, "new_tokens": reply.new_tokens}
    return {"answer": reply.text, "finished": reply.finished, **counts}


def chat(args: argparse.Namespace) -> int:
    """Answer line after line until /quit or the end of the input."""
    from tunesmith.cli.conversation import HELP, Conversation
    from tunesmith.inference.folder import find_model, load, read_manifest

    hush()
    about = read_manifest(find_model(args.folder))
    if about.family != "decoder":
        raise UsageError(f"{args.folder}: an encoder writes no text; use `tunesmith ask {args.folder} TEXT`")
    model, beside = load(args.folder, offline=args.offline), _beside(args, about)
    model = model.at(args.task) if args.task else model
    talk = Conversation(model, sampling_of(args, model.sampling), system=args.system, silent=args.json, beside=beside)
    if _stdin().isatty():
        log(HELP)
    for line in _lines():
        if line in ("/quit", "/exit"):
            break
        if line.startswith("/"):
            log(talk.command(line))
        elif line:
            talk.turn(line)
    publish({"run": args.folder, **talk.row}, args)
    return 0


def _beside(args: argparse.Namespace, manifest: ModelManifest) -> Beside:
    """The base of the run, read when it is asked for, and the file of thumbs in the run's folder."""
    from tunesmith.cli.conversation import Beside
    from tunesmith.inference.open import open_model
    from tunesmith.workflows.thumbs import FILE, Thumbs

    @cache
    def base() -> LocalModel:
        log("reading the base")
        return open_model(manifest.base, limit=manifest.limit, offline=args.offline)

    return Beside(args.folder.resolve().name, base, Thumbs(lambda _: args.folder / FILE))


def _lines() -> Iterator[str]:
    """What is typed, or what is piped in, line by line without blanks around it."""
    if not _stdin().isatty():
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        yield from (_readable(line) for line in sys.stdin)
        return
    with suppress(ImportError):
        import readline  # noqa: F401 -- once it is imported, `input` has history and editing
    while True:
        try:
            yield _readable(input("> "))
        except EOFError:
            return


def _stdin() -> TextIO:
    """What is piped in. Raises UsageError where it was closed."""
    if sys.stdin is None:
        raise UsageError("nothing can be read: stdin is closed; give a text, or pipe one in")
    return sys.stdin


def _readable(line: str) -> str:
    """A line without blanks around it; bytes that were no text are question marks."""
    return line.strip().encode(errors="replace").decode()
