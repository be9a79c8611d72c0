"""A tiny model that thinks, and completions that are written for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.bases import template
from tunesmith.inference.serving.live_answer import ActiveRequest

KIND = "qwen3"  # its template has the switch `enable_thinking`
THOUGHTS, ANSWER = "two and two\nis 4", "It is four."
WHOLE = f"<think>\n{THOUGHTS}\n</think>\n\n{ANSWER}"
UNFINISHED = f"<think>\n{THOUGHTS}"


def ids_of(text: str, *, end: bool = True) -> list[int]:
    """Return the ids by which the tiny model would write a completion."""
    form = template(KIND)
    ids = list(form.tokenizer(text, add_special_tokens=False)["input_ids"])
    return [*ids, *form.end_ids[-1:]] if end else ids


def dictate(patch: pytest.MonkeyPatch, on: Sequence[int], off: Sequence[int] | None = None) -> None:
    """Make every model write these ids, `off` behind prompts that ask for no thoughts; the last id is repeated.

    A model without thoughts, whose ids are others, ends at once.
    """
    closed = ids_of("</think>\n\n", end=False)

    def of(prompt: list[int]) -> Sequence[int]:
        return off if off is not None and prompt[-len(closed) :] == closed else on

    def draw(row: ActiveRequest, logits: Any) -> int:
        if not row.run.model.template.thinks:
            return min(row.run.model.template.stop_ids)
        script = of(row.prompt)
        return script[min(len(row.ids), len(script) - 1)]

    def steps(policy: Any, prompts: Any, *, sampling: Any, template: Any, copies: int = 1) -> Any:
        for row, prompt in enumerate(prompts):
            for index in range(sampling.max_new_tokens):
                script = of(prompt)
                token = script[min(index, len(script) - 1)]
                yield row, token, token in template.stop_ids
                if token in template.stop_ids:
                    break

    patch.setattr(ActiveRequest, "draw", draw)
    patch.setattr("tunesmith.models.generation.generate._steps", steps)
