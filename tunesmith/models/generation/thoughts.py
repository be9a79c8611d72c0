"""Thoughts of a completion apart from its answer, complete or while it is generated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from tunesmith.data.tokenization.chat_template import Template

# The end of a text that may become a mark of thoughts, such as `</thi`, or marks with words between them, as harmony's
# `<|channel|>final<|message|>`.
UNDECIDED = re.compile(r"(?:<\|?[a-z_]+\|?>[a-z]{0,24})*(?:[<\[][^<>\[\]\s]{0,24})?$")
# Appended to a text to see whether it would belong to the thoughts or to the answer.
PROBE = "zq"


@dataclass(frozen=True, slots=True)
class ThoughtSplitter:
    """Splits the completions of one prompt; without a thinking template, every text is an answer."""

    template: Template  # the chat template of the model
    open: bool = False  # whether the prompt has opened the block of thoughts

    @classmethod
    def of(cls, template: Template, *, thinking: bool | None) -> Self:
        """Return the splitter for the prompts of a mode, as in `Template.prompt`."""
        return cls(template, template.thinks and template.opens(thinking=thinking))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a completion with the marks of its thoughts, which may be special tokens."""
        return self.template.decode_thinking(ids) if self.template.thinks else self.template.decode(ids)

    def split(self, text: str) -> tuple[str, str]:
        """Return the thoughts and the answer of a text; the answer is empty if the thoughts have not ended."""
        if not self.template.thinks:
            return "", text
        return self.template.split_thoughts(text, open=self.open)

    def ready(self, text: str) -> tuple[str, str]:
        """Return the parts of a growing text that later tokens cannot change: without the beginning of a mark."""
        return self.split(UNDECIDED.sub("", text) if self.template.thinks else text)

    def ended(self, text: str) -> bool:
        """Return whether further text would belong to the answer: there are no thoughts, or they have ended."""
        return bool(self.split(text + PROBE)[1])

    def thought_tokens(self, ids: Sequence[int]) -> int:
        """Return how many ids belong to the thoughts, their marks included; 0 if there are no thoughts."""
        if not self.split(self.decode(ids))[0]:
            return 0
        if not self.ended(self.decode(ids)):
            return len(ids)
        # From the first token within the thoughts on, they end once, so that the end is found by bisection.
        low = next((count for count in range(len(ids)) if not self.ended(self.decode(ids[:count]))), 0)
        high = len(ids)
        while low + 1 < high:
            middle = (low + high) // 2
            if self.ended(self.decode(ids[:middle])):
                high = middle
            else:
                low = middle
        return high
