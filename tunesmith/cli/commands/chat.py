"""`tunesmith ask` and `tunesmith chat`: one answer of a tuned model, or a conversation with it."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from functools import cache
from os import SEEK_END
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tunesmith.cli.commands.compare import KEY
from tunesmith.cli.commands.votes import LINES
from tunesmith.cli.options import (
    UsageError,
    add_common,
    add_sampling,
    add_thinking,
    naming_thinking,
    sampling_of,
)
from tunesmith.cli.signals import Interruption
from tunesmith.cli.terminal import hush, log, publish, show, show_table
from tunesmith.data.files import quoted
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError, TemplateError
from tunesmith.report.formatting import clean

if TYPE_CHECKING:
    from tunesmith.annotation.thumbs import Thumbs
    from tunesmith.cli.options import Commands
    from tunesmith.inference.local_model import LocalModel
    from tunesmith.models.generation.generate import Piece
    from tunesmith.models.generation.sampling import Sampling

HELP = (
    "/quit ends the chat, /reset clears the conversation, /system TEXT sets the system message and clears the "
    "conversation, /base shows what the base model answers to the last message, /save FILE appends the conversation "
    "to a jsonl file, /good and /bad rate the last answer"
)
SAVED = "chats.jsonl"
COMPARISON = "comparison.json"  # in the folder of a finished comparison


def add(commands: Commands) -> None:
    """Add `ask` and `chat`."""
    asking = commands.add_parser(
        "ask",
        help="answer one text with a tuned model, or with the recommended arm of a comparison",
        description="A run tuned with `classify` answers with a label and its probabilities, one tuned with `regress` "
        "with a number. A run tuned with `domain` "
        "continues the text; an encoder predicts the word at its mask token. Any other run answers with text. A "
        "comparison answers with its recommended arm, which searches the documents in their current state if it uses "
        "retrieval.",
    )
    asking.add_argument("folder", metavar="RUN|COMPARISON", type=Path, help="folder of a run or of a comparison")
    asking.add_argument("text", metavar="TEXT", help="the text, or - to read it from stdin")
    asking.add_argument("--task", default="", metavar="NAME", help="task of a multitask run")
    text = "arm of a comparison (default: the recommended one)"
    asking.add_argument("--arm", default="", metavar="NAME", help=text)
    add_sampling(asking, temperature=0.0, top_p=1.0)
    add_thinking(asking)
    add_common(asking)
    asking.set_defaults(run=ask)
    chatting = commands.add_parser(
        "chat",
        help="chat with a tuned decoder",
        description=f"Answers each line of input, typed or piped. Commands: {HELP}.",
    )
    chatting.add_argument("folder", metavar="RUN", type=Path, help="folder of a run")
    chatting.add_argument("--task", default="", metavar="NAME", help="task of a multitask run")
    chatting.add_argument("--system", default="", metavar="TEXT", help="system message before the conversation")
    add_sampling(chatting, temperature=0.7, top_p=0.9)
    add_thinking(chatting)
    add_common(chatting)
    chatting.set_defaults(run=chat)


def ask(args: argparse.Namespace) -> int:
    """Answer one text with a run or a comparison."""
    from tunesmith.inference.identify import find_model, read_manifest

    comparison = (args.folder / COMPARISON).is_file()
    if not comparison:
        folder = find_model(args.folder, offline=args.offline)
    text = _text(args)
    if comparison:
        hush()
        return _ask_comparison(args, text)
    check_run_options(args)
    if read_manifest(folder).objective.searches:
        return _ask_search(args, folder, text)
    from tunesmith.inference.saved_model import load  # after the checks, because it imports torch

    hush()
    model = load(args.folder, offline=args.offline).at(args.task)
    with naming_thinking(args):
        sampling = sampling_of(args, model.sampling_for(args.thinking))
        answer = _answer(model, text, sampling, thinking=args.thinking)
    _warn(model, text, answer, sampling)
    if not publish({"run": args.folder, "text": text, **answer}, args):
        _show_reply(model, answer)
    return 0


def _show_reply(model: LocalModel, answer: Mapping[str, Any]) -> None:
    """Print an answer of `_answer`."""
    if "probabilities" in answer:
        show(answer["label"])
        likely_first = sorted(answer["probabilities"].items(), key=lambda item: -item[1])
        show_table(("label", "probability>"), [(label, f"{p:.3f}") for label, p in likely_first])
    elif "number" in answer:
        show(f"{answer['number']:.6g}")
    elif model.objective.route == "answer":
        show_answer(answer)
    elif "words" in answer:
        show_table(("word", "probability>"), [(word, f"{p:.3f}") for word, p in answer["words"]])
    else:
        if answer.get("thoughts"):
            log(f"thoughts ({answer['thought_tokens']} tokens):\n{clean(answer['thoughts'])}\n")
        show(answer["answer"])
        if not answer["finished"] and model.objective.produces != "likelihood":
            part = "thoughts were" if answer.get("thoughts") and not answer["answer"] else "answer was"
            log(f"warning: the {part} cut off after {answer['new_tokens']} tokens; raise --max-new-tokens")


def show_answer(answer: Mapping[str, Any]) -> None:
    """Print a JSON object whose values are single ones, or lists of objects, which become tables."""
    for name, value in answer.items():
        if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
            heads = list(dict.fromkeys(key for item in value for key in item))
            show_table(heads, [[_cell(item.get(head, "")) for head in heads] for item in value])
        else:
            show(f"{name}: {_cell(value)}")


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _warn(model: LocalModel, text: str, answer: Mapping[str, Any], sampling: Sampling) -> None:
    """Log what the answer lacks: a part of the text, or confidence."""
    generates = model.policy.family == "decoder" and not model.objective.reads_texts
    limit = model.prompt_budget(sampling.max_new_tokens) if generates else model.limit
    if part := _dropped_part(model, text, limit):
        log(f"warning: the {part} of the text was dropped: it exceeds the prompt limit of {limit} tokens")
    if answer.get("reliable") is False:
        log(f"warning: below {model.threshold:.3f}, the confidence from which labels of validation rows were reliable")


def check_run_options(args: argparse.Namespace) -> None:
    """Raise UsageError for an option that only a comparison has."""
    if args.arm:
        raise UsageError(f"--arm: {args.folder} is a run, not a comparison; omit the option")


def check_arm_options(args: argparse.Namespace) -> None:
    """Raise UsageError for an option that a comparison does not have."""
    given = (args.temperature, args.top_p, args.max_new_tokens, args.seed, args.task, args.thinking)
    if given != (0.0, 1.0, None, 0, "", None):
        options = "--temperature, --top-p, --max-new-tokens, --seed, --task and --thinking"
        raise UsageError(f"ask: {args.folder} is a comparison, whose arms have fixed settings; omit {options}")


def _text(args: argparse.Namespace) -> str:
    """Return the text of the command line or of stdin. Raises UsageError for an empty text."""
    try:
        text = (_stdin().read() if args.text == "-" else args.text).strip()
        text.encode()  # in some locales, bytes that are not UTF-8 become lone surrogates
    except UnicodeError as error:
        what = "stdin" if args.text == "-" else "TEXT"
        raise UsageError(f"ask: {what} is not UTF-8; convert it, for example with iconv -f latin1 -t utf8") from error
    if not text:
        raise UsageError("ask: TEXT is empty; give a text, or - and a text on stdin")
    return text


def _ask_comparison(args: argparse.Namespace, text: str) -> int:
    """Answer with an arm of a comparison; the chunks it used are logged."""
    from tunesmith.cli.progress import listening
    from tunesmith.cli.signals import caught
    from tunesmith.pipelines.compare.ask import ArmQuestion, ask_arm
    from tunesmith.training.callbacks import Callbacks

    check_arm_options(args)
    with caught() as signals, listening(signals) as on_event:
        question = ArmQuestion(text, args.arm, os.environ.get(KEY, ""))
        reply = ask_arm(args.folder, question, callbacks=Callbacks(on_event, signals.stop), offline=args.offline)
    if publish({"comparison": args.folder, "text": text, **reply.model_dump()}, args):
        return 0
    show(reply.answer)
    retrieved = f"; retrieved {', '.join(reply.shown)}" if reply.shown else ""
    log(f"arm: {reply.arm}{retrieved}{f'; the closest to the answer is {reply.cites}' if reply.cites else ''}")
    return 0


def _ask_search(args: argparse.Namespace, folder: Path, text: str) -> int:
    """Show the passages nearest to a query."""
    from tunesmith.cli.progress import reported
    from tunesmith.pipelines.search import nearest

    hush()
    with reported() as on_event:
        answer = nearest(folder.parent, text, on_event=on_event, offline=args.offline)
    if not publish({"run": args.folder, "text": text, **answer}, args):
        show_answer(answer)
    return 0


def _answer(model: LocalModel, text: str, sampling: Sampling, *, thinking: bool | None) -> dict[str, Any]:
    """Return the output of the model as entries of the JSON document."""
    from tunesmith.inference.scoring import Classified

    reply = model.answer(text, sampling=sampling, thinking=thinking)
    if isinstance(reply, dict):
        return reply
    if isinstance(reply, Classified):
        found = {"label": reply.label, "labels": reply.labels, "probabilities": reply.probabilities}
        return {**found, "reliable": reply.reliable}
    if isinstance(reply, float):
        return {"number": reply}
    if isinstance(reply, list):
        return {"words": reply}
    counts = {"prompt_tokens": reply.prompt_tokens, "new_tokens": reply.new_tokens}
    answer = {"answer": reply.text, "finished": reply.finished, **counts}
    if model.template.thinks:
        answer |= {"thoughts": reply.thoughts, "thought_tokens": reply.thought_tokens}
    return answer


def _dropped_part(model: LocalModel, text: str, limit: int) -> str:
    """Return which part of the text exceeds `limit` tokens and was dropped; empty if none."""
    template = model.template
    if model.objective.produces == "likelihood":
        part = "beginning" if model.policy.family == "decoder" else "end"
        return part if len(template.document(text).ids) > limit else ""
    if template.chats:
        shortened = template.fit([model.objective.user_message(text)], limit)[1]
    else:
        shortened = len(template.document(template.harmless(text)).ids) > limit
    return "end" if shortened else ""


def chat(args: argparse.Namespace) -> int:
    """Answer line after line until /quit or the end of the input."""
    from tunesmith.annotation.thumbs import FILE, Thumbs
    from tunesmith.inference.identify import find_model, read_manifest, run_of

    manifest = read_manifest(find_model(args.folder, offline=args.offline))
    if manifest.family != "decoder":
        raise UsageError(
            f"{args.folder}: an encoder does not generate text; use `tunesmith ask {quoted(args.folder)} TEXT`"
        )
    from tunesmith.inference.open_model import open_model  # after the checks, because it imports torch
    from tunesmith.inference.saved_model import load

    hush()
    model = load(args.folder, offline=args.offline)
    model = model.at(args.task) if args.task else model
    with naming_thinking(args):
        model.thinks = model.thinking_mode(args.thinking)

    @cache
    def base() -> LocalModel:
        log("loading the base model")
        opened = open_model(manifest.base, limit=manifest.limit, offline=args.offline)
        opened.thinks = model.thinks
        return opened

    run = run_of(args.folder)
    name = run.resolve().name
    with closing(Thumbs(lambda _: run / FILE if run.exists() else Path(f"{name}-{FILE}"))) as thumbs:
        conversation = Conversation(
            model,
            sampling_of(args, model.sampling),
            name=name,
            base=base,
            thumbs=thumbs,
            system=args.system,
            silent=args.json,
        )
        if _stdin().isatty():
            log(HELP)
        for line in _lines():
            if line in ("/quit", "/exit"):
                break
            if line.startswith("/"):
                log(conversation.command(line))
            elif line:
                conversation.turn(line)
    publish({"run": args.folder, **conversation.row}, args)
    return 0


class Conversation:
    """Messages so far, and the model that answers the next one.

    `base` loads the base model for /base; `silent` prints no answers.
    """

    def __init__(
        self,
        model: LocalModel,
        sampling: Sampling,
        *,
        name: str,
        base: Callable[[], LocalModel],
        thumbs: Thumbs,
        system: str = "",
        silent: bool = False,
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.silent = silent
        self._name = name
        self._base = base
        self._thumbs = thumbs
        self._start(system)

    @property
    def row(self) -> dict[str, Any]:
        """The conversation as a row that `tunesmith tune` reads."""
        return {"messages": [_row_turn(message) for message in self.messages]}

    def turn(self, text: str) -> None:
        """Answer a message and print the answer while it is generated; Ctrl-C ends the answer, not the conversation."""
        # As in the training rows, the instruction is before the first user message.
        first = all(message.role != "user" for message in self.messages)
        self.messages.append(self.model.objective.user_message(text) if first else Message("user", text))
        self._fit()
        pieces: list[Piece] = []
        try:
            for piece in self.model.stream_pieces(self.messages, sampling=self.sampling):
                if piece.text and pieces and not any(earlier.text for earlier in pieces):
                    self._write("\n\n")  # between the thoughts and the answer
                pieces.append(piece)
                self._write(piece.thoughts, dim=True)
                self._write(piece.text)
        except KeyboardInterrupt as stopped:
            if isinstance(stopped, Interruption) and stopped.exit_code != 128 + signal.SIGINT:
                raise  # SIGTERM ends the command
            self._write(" ...")
        self._write("\n")
        answer = "".join(piece.text for piece in pieces).strip()
        thoughts = "".join(piece.thoughts for piece in pieces).strip()
        self.messages.append(Message("assistant", answer, thoughts=thoughts))

    def command(self, line: str) -> str:
        """Run a line that starts with a slash and return the message for the user."""
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        answered = bool(self.messages) and self.messages[-1].role == "assistant"
        if word in ("/base", "/save", "/good", "/bad") and not answered:
            return f"{word}: no answer yet; send a message first"
        match word:
            case "/reset":
                self._start(self.system)
                return "conversation cleared"
            case "/system":
                return self._set_system(rest)
            case "/base":
                return self._ask_base()
            case "/save":
                return self._save(Path(rest or SAVED).expanduser())
            case "/good" | "/bad":
                return self._rate(good=word == "/good")
        return HELP

    def _start(self, system: str) -> None:
        self.system = system
        self.messages = [Message("system", system)] if system else []

    def _set_system(self, text: str) -> str:
        try:
            self.model.template.prompt([*([Message("system", text)] if text else []), Message("user", "?")])
        except TemplateError as error:
            return str(error)
        self._start(text)
        return f"system message: {self.system or 'none'}"

    def _ask_base(self) -> str:
        *prompt, answer = self.messages
        base = self._base().reply(prompt, sampling=self.sampling).text
        if not self.silent:
            show_table((self._name, "base"), [(answer.content, base)])
        return f"the conversation continues with the answer of {self._name}"

    def _save(self, path: Path) -> str:
        """Append the conversation to a file of rows."""
        if not all(turn.content for turn in self.messages if turn.role == "assistant"):
            return "/save: the conversation contains an empty answer; use /reset and start again"
        if path.suffix.lower() not in LINES:
            return f"{path}: expected a file name ending in {LINES[0]}; rename it"
        try:
            with path.open("ab+") as file:
                file.seek(max(0, file.seek(0, SEEK_END) - 1))
                newline = b"\n" if file.read(1) not in (b"", b"\n") else b""  # the last line may be unterminated
                file.write(newline + json.dumps(self.row, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            return f"{path}: not written ({error.strerror}); name another file"
        return f"conversation appended to {path}; `tunesmith tune {quoted(path)}` trains on it"

    def _rate(self, *, good: bool) -> str:
        *prompt, answer = self.messages
        if not answer.content:
            return "the answer is empty and cannot be rated; send another message"
        try:
            path = self._thumbs.keep(prompt, answer.content, by=self._name, good=good)
        except DataError as error:
            return str(error)
        return f"rating saved in {path}; `tunesmith votes export {quoted(path)} rows.jsonl` writes rows"

    def _fit(self) -> None:
        """Drop the oldest messages if the conversation exceeds the prompt limit."""
        first = 1 if self.system else 0
        limit = self.model.prompt_budget(self.sampling.max_new_tokens)
        dropped = 0
        while len(self.messages) > first + 1 and self._tokens() > limit:
            del self.messages[first : first + 2]
            # The instruction was in the message that is gone.
            self.messages[first] = self.model.objective.user_message(self.messages[first].content)
            dropped += 2
        if dropped:
            log(f"{dropped} oldest messages dropped: the conversation exceeds the prompt limit of {limit} tokens")
        if self._tokens() > limit:
            log(f"warning: the message is shortened: it exceeds the prompt limit of {limit} tokens")

    def _tokens(self) -> int:
        return len(self.model.template.prompt(self.messages, thinking=self.model.thinking_mode()))

    def _write(self, piece: str, *, dim: bool = False) -> None:
        """Print a piece of text; thoughts are dim in a terminal."""
        if piece and not self.silent:
            text = clean(piece)
            print(f"\x1b[2m{text}\x1b[0m" if dim and sys.stdout.isatty() else text, end="", flush=True)


def _row_turn(message: Message) -> dict[str, str]:
    """Return a turn as rows have it, with its thoughts if there are any."""
    thoughts = {"reasoning_content": message.thoughts} if message.thoughts else {}
    return {"role": message.role, **thoughts, "content": message.content}


def _lines() -> Iterator[str]:
    """Yield the lines of the terminal or pipe without surrounding blanks; bytes that are not text become `?`."""
    if not _stdin().isatty():
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        yield from (_readable(line) for line in sys.stdin)
        return
    with suppress(ImportError):
        import readline  # noqa: F401 -- gives `input` a history and editing
    while True:
        try:
            yield _readable(input("> "))
        except EOFError:
            return


def _stdin() -> TextIO:
    if sys.stdin is None:
        raise UsageError("stdin is closed; give a text, or pipe one in")
    return sys.stdin


def _readable(line: str) -> str:
    return line.strip().encode(errors="replace").decode()
