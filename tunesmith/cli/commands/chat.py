"""A conversation with a tuned model: its turns, the words that steer it, and the next answer as it comes."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from os import SEEK_END
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tunesmith.cli.commands.compare import KEY
from tunesmith.cli.commands.votes import LINES
from tunesmith.cli.options import UsageError, add_common, add_sampling, sampling_of
from tunesmith.cli.signals import Interruption
from tunesmith.cli.terminal import hush, log, publish, show, show_table
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError, TemplateError
from tunesmith.report.formatting import clean
from tunesmith.training.callbacks import Callbacks

if TYPE_CHECKING:
    from tunesmith.annotation.thumbs import Thumbs
    from tunesmith.cli.options import Commands
    from tunesmith.inference.local_model import LocalModel
    from tunesmith.inference.saved_model import ModelManifest
    from tunesmith.models.generation.sampling import Sampling


HELP = (
    "/quit ends, /reset forgets the conversation, /system TEXT sets the system turn and forgets, /base shows what the "
    "base says to the same, /save FILE adds the conversation to a file of rows, /good and /bad judge the last answer"
)


SAVED = "chats.jsonl"


def opening(model: LocalModel, text: str) -> Message:
    """The first user turn as the training rows put it: the recipe's instruction stands before it."""
    from tunesmith.objectives import Classify

    if isinstance(model.objective, Classify):
        return model.objective.messages(text)[0]
    return Message("user", "\n\n".join(filter(None, (model.objective.instruction, text))))


@dataclass(frozen=True, slots=True)
class Beside:
    """What a conversation needs beside its model: the model's name, its base when asked for, and where thumbs go."""

    name: str
    base: Callable[[], LocalModel]
    thumbs: Thumbs


class Conversation:
    """Turns so far, and a model that answers the next; `silent` prints nothing."""

    def __init__(
        self, model: LocalModel, sampling: Sampling, *, system: str = "", silent: bool = False, beside: Beside
    ) -> None:
        self.model, self.sampling, self.silent, self._beside = model, sampling, silent, beside
        self._begin(system)

    def command(self, line: str) -> str:
        """Do what a line with a slash says, and tell what was done."""
        word, _, rest = line.partition(" ")
        known: dict[str, Callable[[str], str]] = {
            "/reset": self._reset,
            "/system": self._set_system,
            "/base": self._compare,
            "/save": self._save,
            "/good": partial(self._judge, good=True),
            "/bad": partial(self._judge, good=False),
        }
        if word in ("/base", "/save", "/good", "/bad") and self._answered is None:
            return f"{word}: nothing is answered yet; ask something first"
        return known[word](rest.strip()) if word in known else HELP

    @property
    def row(self) -> dict[str, Any]:
        """The conversation as a row that `tunesmith tune` reads."""
        return {"messages": [{"role": message.role, "content": message.content} for message in self.messages]}

    @property
    def _answered(self) -> tuple[list[Message], str] | None:
        """The last answer and what it was given to; None before the first."""
        if not self.messages or self.messages[-1].role != "assistant":
            return None
        return self.messages[:-1], self.messages[-1].content

    def _reset(self, _: str) -> str:
        self._begin(self.system)
        return "forgotten"

    def _set_system(self, text: str) -> str:
        try:
            self.model.template.prompt([*([Message("system", text)] if text else []), Message("user", "?")])
        except TemplateError as error:
            return str(error)
        self._begin(text)
        return f"system turn: {self.system or 'none'}"

    def _compare(self, _: str) -> str:
        """The last answer beside the base's."""
        assert self._answered is not None
        asked, answer = self._answered
        base = self._beside.base().reply(asked, sampling=self.sampling).text
        if not self.silent:
            show_table((self._beside.name, "base"), [(answer, base)])
        return "the base was asked the same; the conversation goes on with the first answer"

    def _save(self, place: str) -> str:
        """The conversation as one row more of a file."""
        if not all(turn.content for turn in self.messages if turn.role == "assistant"):
            return "an answer is empty; there is nothing to learn in it"
        path = Path(place or SAVED).expanduser()
        if path.suffix.lower() not in LINES:
            return f"{path}: a row is written as a JSON line; name a file ending in {LINES[0]}"
        try:
            with path.open("ab+") as file:
                file.seek(max(0, file.seek(0, SEEK_END) - 1))
                begins = b"\n" if file.read(1) not in (b"", b"\n") else b""  # behind a last line without an end
                file.write(begins + json.dumps(self.row, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            return f"{path}: not written ({error.strerror}); name another file"
        return f"a row more in {path}; `tunesmith tune {path}` learns from it"

    def _judge(self, _: str, *, good: bool) -> str:
        """A thumb for the last answer."""
        assert self._answered is not None
        asked, answer = self._answered
        if not answer:
            return "the answer is empty; there is nothing to judge"
        try:
            path = self._beside.thumbs.keep(asked, answer, by=self._beside.name, good=good)
        except DataError as error:
            return str(error)
        return f"kept in {path}; `tunesmith votes export {path} rows.jsonl` writes rows"

    def turn(self, text: str) -> None:
        """Answer, piece by piece; Ctrl-C ends the answer and not the conversation."""
        # As in training: the instruction stands before the first user turn of a chat.
        begins = all(message.role != "user" for message in self.messages)
        self.messages.append(opening(self.model, text) if begins else Message("user", text))
        self._shorten()
        said: list[str] = []
        try:
            for piece in self.model.stream(self.messages, sampling=self.sampling):
                said.append(piece)
                self._write(piece)
        except KeyboardInterrupt as stopped:
            if isinstance(stopped, Interruption) and stopped.exit_code != 128 + signal.SIGINT:
                raise  # whoever sends another signal ends the command
            self._write(" ...")
        self._write("\n")
        self.messages.append(Message("assistant", "".join(said).strip()))

    def _begin(self, system: str) -> None:
        self.system = system
        self.messages = [Message("system", system)] if system else []

    def _shorten(self) -> None:
        """Forget the oldest turns when the conversation outgrows what the model was tuned on."""
        first, room = 1 if self.system else 0, self.model.prompt_budget(self.sampling.max_new_tokens)
        forgotten = 0
        while len(self.messages) > first + 1 and self._tokens() > room:
            del self.messages[first : first + 2]
            self.messages[first] = opening(self.model, self.messages[first].content)  # which stood before the oldest
            forgotten += 2
        if forgotten:
            log(f"the {forgotten} oldest turns no longer fit into {room} tokens and are forgotten")
        if self._tokens() > room:
            log(f"this turn is longer than the {room} tokens there are for it; what is too much is left out")

    def _tokens(self) -> int:
        return len(self.model.template.prompt(self.messages))

    def _write(self, piece: str) -> None:
        if not self.silent:
            print(clean(piece), end="", flush=True)


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
    from tunesmith.inference.saved_model import find_model, load
    from tunesmith.objectives import Classify, Domain
    from tunesmith.pipelines.compare.ask import compared

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
    from tunesmith.data.tokenization.messages import whole

    try:
        return whole(_stdin().read() if text == "-" else text, "ask: TEXT")
    except UnicodeDecodeError as error:
        raise UsageError("ask: what is piped in is not UTF-8; convert it, as with iconv -f latin1 -t utf8") from error


def _ask_arm(args: argparse.Namespace, text: str) -> int:
    """Answer by an arm of a comparison; which chunks it saw goes to stderr."""
    from tunesmith.cli.progress import listening
    from tunesmith.cli.signals import caught
    from tunesmith.pipelines.compare.ask import ArmQuestion, ask_arm

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

    reply = model.reply([opening(model, text)], sampling=sampling)
    counts = {"prompt_tokens": reply.prompt_tokens, "new_tokens": reply.new_tokens}
    return {"answer": reply.text, "finished": reply.finished, **counts}


def chat(args: argparse.Namespace) -> int:
    """Answer line after line until /quit or the end of the input."""
    from tunesmith.inference.saved_model import find_model, load, read_manifest

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
    from tunesmith.annotation.thumbs import FILE, Thumbs
    from tunesmith.inference.open_model import open_model

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
