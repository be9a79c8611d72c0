"""Embeddings before every row, learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tunesmith.model.load import LoadOptions
from tunesmith.model.policy import Policy
from tunesmith.techniques import soft
from tunesmith.techniques.folder import save_adapter


class Prompt(BaseModel):
    """Prompt tuning: virtual tokens whose embeddings are learned, in PEFT's format.

    Paper: Lester et al. 2021, arXiv 2104.08691. Behind full tuning below some billions of weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["prompt"] = "prompt"
    tokens: int = Field(20, ge=1, le=512, description="virtual tokens; 20 to 50, more than 100 do harm")
    init: Literal["text", "random"] = Field("text", description="text: the words of instruction and labels")

    def load_options(self) -> LoadOptions:
        """Plain weights."""
        return LoadOptions()

    def learning_rate(self, hidden: int, family: str) -> float:
        """Whatever the width, some tens of times LoRA's; the paper's 0.3 is Adafactor's."""
        return 3e-2

    def virtual_tokens(self) -> int:
        """As many as there are."""
        return self.tokens

    def refusal(self, base: Any, *, family: str) -> str:
        """A decoder must go on from keys and values."""
        return soft.refusal(base, family=family)

    def adapt(self, base: Any, *, family: str, keep_reference: bool, start: Sequence[int] = ()) -> Policy:
        """The base as it is, virtual tokens before it."""
        from peft import PromptTuningConfig

        config = PromptTuningConfig(task_type=soft.TASKS[family], num_virtual_tokens=self.tokens, **soft.sizes(base))
        first = None
        if self.init == "text":
            first = base.get_input_embeddings()(soft.opening(start, self.tokens, base.device))
        return soft.adapt(base, config, family=family, start=first)

    def save(self, policy: Policy, folder: Path) -> None:
        """An adapter folder that `PeftModel.from_pretrained` opens."""
        save_adapter(policy, folder)

    def restore(self, base: Any, folder: Path, *, family: str) -> Policy:
        """The saved tokens before a fresh base."""
        return soft.restore(base, folder, family=family)
