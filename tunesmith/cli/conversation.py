"""A conversation with a tuned model: its turns, the words that steer it, and the next answer as it comes."""

from __future__ import annotations

from tunesmith.cli.terminal import log
from tunesmith.data.examples import Message
from tunesmith.inference.local import LocalModel
from tunesmith.model.sampling import Sampling
from tunesmith.objectives import Classify, Instruct, Preference, Rl
from tunesmith.report.figures import clean

HELP = "/quit ends, /reset forgets the conversation, /system TEXT sets the system turn and forgets"


def opening(model: LocalModel, text: str) -> Message:
    """The first user turn as the training rows put it: the recipe's instruction stands before it."""
    if isinstance(model.objective, Classify):
        return model.objective.messages(text)[0]
    instruction = model.objective.instruction if isinstance(model.objective, Instruct | Preference | Rl) else ""
    return Message("user", "\n\n".join(filter(None, (instruction, text))))


class Conversation:
    """Turns so far, and a model that answers the next; `silent` prints nothing."""

    def __init__(self, model: LocalModel, sampling: Sampling, *, system: str, silent: bool) -> None:
        self.model, self.sampling, self.silent = model, sampling, silent
        self._begin(system)

    def command(self, line: str) -> str:
        """Do what a line with a slash says, and tell what was done."""
        word, _, rest = line.partition(" ")
        if word == "/reset":
            self._begin(self.system)
            return "forgotten"
        if word == "/system":
            self._begin(rest.strip())
            return f"system turn: {self.system or 'none'}"
        return HELP

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
        except KeyboardInterrupt:
            self._write(" ...")
        self._write("\n")
        self.messages.append(Message("assistant", "".join(said).strip()))

    def _begin(self, system: str) -> None:
        self.system = system
        self.messages = [Message("system", system)] if system else []

    def _shorten(self) -> None:
        """Forget the oldest turns when the conversation outgrows what the model was tuned on."""
        first = 1 if self.system else 0
        forgotten = 0
        while len(self.messages) > first + 1 and self._tokens() > self.model.limit:
            del self.messages[first : first + 2]
            forgotten += 2
        if forgotten:
            log(f"the {forgotten} oldest turns no longer fit into {self.model.limit} tokens and are forgotten")

    def _tokens(self) -> int:
        return len(self.model.template.prompt(self.messages))

    def _write(self, piece: str) -> None:
        if not self.silent:
            print(clean(piece), end="", flush=True)
