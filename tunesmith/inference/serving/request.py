"""Requests to a served model, their validation and encoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.tokenization.chat_template import Template
from tunesmith.data.tokenization.messages import Message
from tunesmith.data.tokenization.windows import beginning
from tunesmith.errors import TunesmithError
from tunesmith.inference.local_model import LocalModel
from tunesmith.models.families import positions_of
from tunesmith.models.generation.sampling import Sampling

# Longer prompts are rejected, not shortened: almost nothing of them would remain, and shortening takes time.
MOST_CHARACTERS = 65_536


class AskError(TunesmithError):
    """The request is invalid for this model."""


class UnknownModel(TunesmithError):
    """No model of this name is served."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request for a completion of a chat or a text."""

    model: str
    messages: tuple[Message, ...] = ()
    text: str | None = None  # completed without a chat template, instead of messages
    sampling: Sampling = field(default_factory=Sampling)
    schema: Mapping[str, Any] | None = None  # JSON schema of the completion
    best: int = -1  # alternatives reported per token; -1: no log-probabilities
    in_pieces: bool = False  # stream the completion
    thinking: bool | None = None  # mode of the prompt, as in `Template.prompt`
    effort: str = ""  # for templates that take one

    def check(self, model: LocalModel, *, most: int) -> None:
        """Raise AskError if the model cannot generate text or the request is too large."""
        if model.policy.family != "decoder":
            raise AskError(f"model: {self.model} is an encoder and cannot generate; use /classify or /v1/embeddings")
        if model.objective.needs_head:
            raise AskError(
                f"model: {self.model} returns {model.objective.results} and cannot generate; use another model"
            )
        self.check_size(limit=model.limit, most=most)

    def check_size(self, *, limit: int, most: int) -> None:
        """Raise AskError if the prompt has more than `limit` tokens, or more than `most` new ones are requested."""
        calls = sum(len(call.arguments) for message in self.messages for call in message.calls)
        characters = sum(len(message.content) + len(message.tools) for message in self.messages) + calls
        characters += len(self.text or "")
        if characters > max(MOST_CHARACTERS, 32 * limit):
            raise AskError(f"messages: {characters} characters exceed the limit of {limit} tokens; send less")
        if self.schema is not None and self.thinking:
            fix = "send enable_thinking false, or leave response_format out"
            raise AskError(f"response_format: a schema would bind the thoughts as well; {fix}")
        if (longest := self.sampling.max_new_tokens) > most:
            raise AskError(f"max_tokens: expected at most {most}, got {longest}; lower it")

    def ids(self, template: Template, *, limit: int) -> tuple[list[int], bool]:
        """Encode the prompt as `LocalModel` does.

        Args:
            template: tokenizer and chat template.
            limit: greatest number of tokens.

        Returns:
            Token ids, and whether the prompt was shortened.

        Raises:
            AskError: the prompt is empty or cannot be shortened to the limit.
        """
        if self.text is None:
            fitted, shortened = template.fit(self.messages, limit, thinking=self.thinking)
            effort = self.effort if template.switch == "reasoning_effort" else ""
            ids = template.prompt(fitted, thinking=self.thinking, effort=effort)
            if len(ids) > limit and not self.messages[0].tools:  # assistant messages are never shortened
                raise AskError(f"messages: expected at most {limit} tokens, got {len(ids)}; send fewer messages")
            return ids, shortened
        ids = beginning(self.text, template, limit=limit)
        if not ids:
            raise AskError("prompt: empty; send a text")
        # The beginning is cut off, so a limit one token larger shows whether anything was.
        return ids, len(ids) == limit and len(beginning(self.text, template, limit=limit + 1)) > limit


def places_left(model: LocalModel, taken: int) -> int:
    """Return the number of new tokens that fit into the context after `taken` tokens; unbounded if none is set."""
    positions = positions_of(model.policy.network.config.to_dict())
    return positions - taken if positions else 2**31
