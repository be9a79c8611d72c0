"""What can be asked of a served model, and the ids that a question becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.examples import Message
from tunesmith.data.template import Template
from tunesmith.data.windows import beginning
from tunesmith.errors import TunesmithError
from tunesmith.inference.local import LocalModel
from tunesmith.model.families import positions_of
from tunesmith.model.sampling import Sampling
from tunesmith.objectives import Reward

# Longer questions are refused, not shortened: next to nothing of them would be left, and cutting takes time.
MOST_CHARACTERS = 65_536


class AskError(TunesmithError):
    """A question cannot be answered as it was asked."""


class UnknownModel(TunesmithError):
    """No model of that name is served here."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A chat, or a text to go on with; and how the answer is to be drawn.

    `schema` is what the answer must hold to; `best` how many likely tokens are told beside each (-1: no scores).
    """

    model: str
    messages: tuple[Message, ...] = ()
    text: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    schema: Mapping[str, Any] | None = None
    best: int = -1
    in_pieces: bool = False

    def check(self, model: LocalModel, *, most: int) -> None:
        """Nothing for a question that this model can be asked. Raises AskError."""
        if model.policy.family != "decoder":
            raise AskError(f"model: {self.model} is an encoder and writes no text; ask /classify or /v1/embeddings")
        if isinstance(model.objective, Reward):
            raise AskError(f"model: {self.model} is a reward model, which scores answers and writes none; ask another")
        self.check_size(limit=model.limit, most=most)

    def check_size(self, *, limit: int, most: int) -> None:
        """Nothing for a question and an answer of a size that is served. Raises AskError."""
        calls = sum(len(call.arguments) for message in self.messages for call in message.calls)
        characters = sum(len(message.content) + len(message.tools) for message in self.messages) + calls
        characters += len(self.text or "")
        if characters > max(MOST_CHARACTERS, 32 * limit):
            raise AskError(f"messages: {characters} characters, of which {limit} tokens are read; send less")
        if (longest := self.sampling.max_new_tokens) > most:
            raise AskError(f"max_tokens: {longest} are more than the {most} that are served; ask for at most {most}")

    def ids(self, template: Template, *, limit: int) -> tuple[list[int], bool]:
        """The question as `LocalModel` would put it, and whether some of it was left out.

        Raises AskError where nothing is left of it.
        """
        if self.text is None:
            fitted, shortened = template.fit(self.messages, limit)
            ids = template.prompt(fitted)
            if len(ids) > limit and not self.messages[0].tools:  # answers are never shortened
                raise AskError(f"messages: {len(ids)} tokens that cannot be cut, {limit} are read; send fewer turns")
            return ids, shortened
        ids = beginning(self.text, template, limit=limit)
        if not ids:
            raise AskError("prompt: there is nothing in it; send a text")
        # All that is cut stands before what is kept, so it is cut where more room would hold more.
        return ids, len(ids) == limit and len(beginning(self.text, template, limit=limit + 1)) > limit


def places_left(model: LocalModel, taken: int) -> int:
    """Tokens that an answer can have before the model runs out of positions."""
    most = positions_of(model.policy.network.config.to_dict())
    return most - taken if most else 2**31
