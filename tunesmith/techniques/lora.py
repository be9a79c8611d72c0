"""Low-rank updates beside the base's linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from tunesmith.model.four_bit import experts
from tunesmith.model.load import LoadOptions
from tunesmith.model.policy import Policy
from tunesmith.techniques.adapter import Adapter, names_in, put_inside, unfit
from tunesmith.techniques.base import width_rule


class Lora(Adapter):
    """W + (alpha / rank) B A beside every linear layer, B starting at zero, in PEFT's format.

    Paper: Hu et al. 2021, arXiv 2106.09685, equation 3; rsLoRA 2312.03732 (alpha / sqrt(rank));
    DoRA 2402.09353 (direction and magnitude apart); QLoRA 2305.14314 (over a base in 4 bits, see
    `tunesmith.model.lost` for how it begins).
    """

    kind: Literal["lora"] = "lora"
    rank: int = Field(
        16, ge=1, le=1024, description="width of the update; 8-16 is enough up to some million learned tokens"
    )
    alpha: int = Field(0, ge=0, description="scale; 0: twice the rank, with rslora 8")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout on the update's input; off under losses that compare with the start"
    )
    targets: str | tuple[str, ...] = Field(
        "all-linear", description="layers by name, a pattern of names, or all-linear"
    )
    rslora: bool = Field(False, description="divide by the square root of the rank; steadier above rank 64")
    dora: bool = Field(False, description="learn direction and magnitude apart; slower")
    quantize: Literal["", "nf4"] = Field("", description="nf4: keep the base in 4 bits; less memory, more time")

    @field_validator("targets", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        """A text of names is a list of them: PEFT would take it as a pattern of whole paths, which it never is."""
        return names_in(value)

    def load_options(self) -> LoadOptions:
        """Weights as they are, or in 4 bits."""
        return LoadOptions(quantize=self.quantize)

    def learning_rate(self, hidden: int, family: str) -> float:
        """Ten times full fine-tuning's (LoRA Without Regret; tinker-cookbook)."""
        return 10 * width_rule(hidden, family)

    def refusal(self, base: Any, *, family: str) -> str:
        """Layers that are named, or that a pattern is to match, must be there and no weight of both embeddings.

        Experts that lie together in one parameter take plain updates alone.
        """
        if self.targets != "all-linear":
            return unfit(base, self.targets)
        if (self.dora or self.dropout) and experts(base):
            key = "dora" if self.dora else "dropout"
            return f"technique.{key}: PEFT has none for experts that share a parameter, as here; leave it out"
        return ""

    def adapt(self, base: Any, *, family: str, keep_reference: bool, start: Sequence[int] = ()) -> Policy:
        """Updates in place in the base network; switched off they leave the base exactly."""
        from peft import LoraConfig

        config = LoraConfig(
            r=self.rank,
            # With rslora 8, whatever the rank: at rank 16 the scale is 2 then too.
            lora_alpha=self.alpha or (8 if self.rslora else 2 * self.rank),
            lora_dropout=self.dropout,
            target_modules=self.targets if isinstance(self.targets, str) else list(self.targets),
            # Where there is none, PEFT would warn whoever opens the adapter that nothing was excluded.
            exclude_modules=r".*pooler.*" if any("pooler" in name for name, _ in base.named_modules()) else None,
            use_rslora=self.rslora,
            use_dora=self.dora,
        )
        wrapped = put_inside(base, config, named=self.targets, cure="use all-linear")
        # What is compared with its start begins as the base; DoRA's magnitudes are those of the weights as they lie.
        if self.quantize and start and not keep_reference and not self.dora:
            from tunesmith.model.lost import give_back

            give_back(base, start)
        return self._policy(base, wrapped, family)

    def _policy(self, base: Any, wrapped: Any, family: str) -> Policy:
        """As every adapter's, plain updates on the short path."""
        from tunesmith.model.lowrank import fuse

        fuse(base)
        return super()._policy(base, wrapped, family)
