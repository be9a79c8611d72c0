"""A conversation with a tuned model: its turns, the words that steer it, and the next answer as it comes."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os import SEEK_END
from pathlib import Path
from typing import Any

from tunesmith.cli.signals import Interruption
from tunesmith.cli.terminal import log, show_table
from tunesmith.cli.votes import LINES
from tunesmith.data.examples import Message
from tunesmith.errors import DataError, TemplateError
from tunesmith.inference.local import LocalModel
from tunesmith.model.sampling import Sampling
from tunesmith.objectives import Classify
from tunesmith.report.figures import clean
from tunesmith.workflows.thumbs import Thumbs

HELP = (
    "/quit ends, /reset forgets the conversation, /system TEXT sets the system turn and forgets, /base shows what the "
    "base says to the same, /save FILE adds the conversation to a file of rows, /good and /bad judge the last answer"
)
SAVED = "chats.jsonl"


def opening(model: LocalModel, text: str) -> Message:
    """The first user turn as the training rows put it: the recipe's instruction stands before it."""
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
