"""Defaults of answers: whether a model thinks first, and the greatest number of tokens. Imports no torch."""

from __future__ import annotations

from tunesmith.config import AnyObjective
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.errors import RecipeError
from tunesmith.models.generation.sampling import Sampling
from tunesmith.objectives.instruct import THOUGHT_TOKENS, Instruct

# The objective of a base model that is used as a chat model; small thinking models think at length on hard questions.
BASE_CHAT = Instruct(max_thinking_tokens=2048)


def sampling_of(objective: AnyObjective, *, thinking: bool | None = False) -> Sampling:
    """Return greedy sampling with the length of the training answers of an objective, and of thoughts if it thinks."""
    answer = objective.max_new_tokens or Sampling().max_new_tokens
    return Sampling(max_new_tokens=answer + (objective.thinking_tokens or THOUGHT_TOKENS if thinking else 0))


def checked_sampling(sampling: Sampling | None) -> Sampling | None:
    """Return sampling options as they are given. Raises RecipeError for another type, such as a dictionary."""
    if sampling is not None and not isinstance(sampling, Sampling):
        found = type(sampling).__name__
        raise RecipeError(f"sampling: expected a tunesmith.Sampling, got {found}; write Sampling(temperature=0.7)")
    return sampling


def thinking_mode(template: Template, thinking: bool | None, *, default: bool) -> bool | None:
    """Return the requested mode of a prompt, or the default, as `Template.prompt` takes it.

    None stands for a model that has no such mode. Raises RecipeError if thoughts are requested of it.
    """
    if not template.thinks:
        if thinking:
            raise RecipeError(
                "thinking: the chat template of this model has no thinking mode; leave the switch out, or use a model "
                "that thinks, such as Qwen3"
            )
        return None
    return default if thinking is None else thinking


def always_thinks(template: Template) -> bool:
    """Return whether a model that was not tuned thinks by itself: its prompt opens the thoughts, without a switch."""
    return template.thinks and not template.switch and template.opens(thinking=True)


def refuse_thinking(objective: AnyObjective, thinking: bool | None) -> None:
    """Raise RecipeError if thoughts are requested from a model that generates no answers to chats."""
    if thinking:
        raise RecipeError(f"thinking: a model tuned with {objective.kind} does not think; leave the switch out")
