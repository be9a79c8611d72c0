"""LoRA: low-rank updates of the base's linear layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tunesmith.models.loading.locate import LoadOptions
from tunesmith.techniques.base import width_rule
from tunesmith.techniques.peft_base import Adapter, SplitNames, no_linear_layer, put_inside, unfit

if TYPE_CHECKING:
    from tunesmith.models.mixtures import Mixture
    from tunesmith.models.policy import Policy
    from tunesmith.techniques.lora_targets import Targets


class Lora(Adapter):
    """LoRA: W + (alpha / rank) B A in every linear layer, with B starting at zero, in PEFT's format.

        Lora()
        Lora(rank=64, rslora=True)
        Lora(quantize="nf4")  # QLoRA

    Papers: Hu et al. 2021, arXiv 2106.09685, equation 3; rsLoRA 2312.03732 (alpha / sqrt(rank)); DoRA 2402.09353
    (direction and magnitude separate); QLoRA 2305.14314 (over a 4-bit base; `lora_init` describes its
    initialization).
    """

    kind: Literal["lora"] = "lora"
    rank: int = Field(
        16, ge=1, le=1024, description="rank of the update; 8 to 16 is enough up to a few million learned tokens"
    )
    alpha: int = Field(0, ge=0, description="scale of the update; 0: twice the rank, with rslora 8")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout on the update's input; off for losses that use a reference model"
    )
    targets: Annotated[str | tuple[str, ...], SplitNames] = Field(
        "all-linear", description="layers by name, a pattern of names, or all-linear"
    )
    rslora: bool = Field(False, description="divide by the square root of the rank; more stable above rank 64")
    dora: bool = Field(False, description="learn direction and magnitude separately; slower")
    quantize: Literal["", "nf4"] = Field("", description="nf4: 4-bit base weights; less memory, more time")
    products: Literal["", "int8"] = Field(
        "", description="int8: training multiplies with frozen weights in 8-bit integers on a CPU; faster, less exact"
    )
    experts: bool = Field(True, description="all-linear includes the experts of a mixture")
    expert_rank: int = Field(
        0, ge=0, le=1024, description="rank of each expert's update; 0: the rank divided by the experts of a token"
    )
    router: bool = Field(
        False, description="all-linear includes the routers of a mixture; adds the load-balancing loss of its family"
    )

    @model_validator(mode="after")
    def _int8_is_plain(self) -> Self:
        """Raise ValueError for variants whose products are not those of a plain update."""
        if self.products and (
            other := next((key for key in ("quantize", "dora", "dropout") if getattr(self, key)), "")
        ):
            raise ValueError(f"products: int8 is not supported with {other}; leave one of them out")
        return self

    def load_options(self) -> LoadOptions:
        """Return the options of plain or 4-bit weights."""
        return LoadOptions(quantize=self.quantize)

    def learning_rate(self, hidden: int, family: str) -> float:
        """Return ten times the rate of full fine-tuning (LoRA Without Regret; tinker-cookbook)."""
        return 10 * width_rule(hidden, family)

    def refusal(self, base: Any, *, family: str) -> str:
        """Return why the layers in `targets` cannot be adapted: missing, of another type, or tied embeddings.

        Experts that share one parameter allow neither DoRA nor dropout.
        """
        from tunesmith.models.loading.text_part import adapter_tree
        from tunesmith.models.mixtures import find_mixture

        mixture = find_mixture(adapter_tree(base))
        if self.router and mixture is None:
            return "technique.router: this network has no router; leave it out"
        if self.targets != "all-linear":
            parts = () if mixture is None else (*mixture.experts, *mixture.routers)
            if reason := unfit(base, self.targets, parameters=parts):
                return reason
        elif mixture is None and (reason := no_linear_layer(base)):
            return reason
        if mixture is not None and (self.dora or self.dropout) and self._within(base, mixture).parameters:
            key = "dora" if self.dora else "dropout"
            fix = f"leave {key} out, or name technique.targets outside the experts"
            return f"technique.{key}: PEFT does not support it for experts that share a parameter; {fix}"
        return ""

    def _within(self, base: Any, mixture: Mixture) -> Targets:
        """Return what is adapted in a mixture of experts."""
        from tunesmith.techniques.lora_targets import mixture_targets

        return mixture_targets(base, mixture, self.targets, experts=self.experts, router=self.router)

    def _mixture_options(self, base: Any, mixture: Mixture, alpha: int) -> dict[str, Any]:
        """Return the targets in a mixture of experts and their ranks, as options of PEFT's LoraConfig."""
        within = self._within(base, mixture)
        options: dict[str, Any] = {
            "target_modules": list(within.modules),
            "target_parameters": list(within.parameters) or None,
        }
        # A token passes through `per_token` experts: at this rank its update has the rank of a dense layer's.
        rank = self.expert_rank or max(1, self.rank // mixture.per_token)
        if not within.experts or rank == self.rank:
            return options
        # The rank of the experts is that of the configuration and all others are the exception: of a pattern that
        # names only parameters, PEFT 0.21 warns that it matches no layer, although it uses it.
        options |= {"r": rank, "lora_alpha": alpha if self.rslora else alpha * rank / self.rank}
        others = "|".join((*within.modules, *(name for name in within.parameters if name not in within.experts)))
        if others:
            options |= {"rank_pattern": {others: self.rank}, "alpha_pattern": {others: alpha}}
        return options

    def adapt(self, base: Any, *, family: str, keep_reference: bool, start: Sequence[int] = ()) -> Policy:
        """Put updates into the base network; with the adapter disabled, the base computes exactly as before."""
        from peft import LoraConfig

        from tunesmith.models.loading.text_part import adapter_tree
        from tunesmith.models.mixtures import find_mixture

        # With rslora 8, whatever the rank: at rank 16 that gives the same scale, 2.
        alpha = self.alpha or (8 if self.rslora else 2 * self.rank)
        targets: dict[str, Any] = {
            "target_modules": self.targets if isinstance(self.targets, str) else list(self.targets)
        }
        if (mixture := find_mixture(adapter_tree(base))) is not None:
            targets = self._mixture_options(base, mixture, alpha)
        config = LoraConfig(
            **{"r": self.rank, "lora_alpha": alpha, **targets},
            lora_dropout=self.dropout,
            exclude_modules=_excluded(base, self.targets if mixture is None else ()),
            use_rslora=self.rslora,
            use_dora=self.dora,
        )
        wrapped = put_inside(base, config, targets=self.targets, fix="use all-linear")
        # Not with a reference model, which the policy has to equal at step 0, and not with DoRA, whose magnitudes are
        # those of the 4-bit weights.
        if self.quantize and start and not keep_reference and not self.dora:
            from tunesmith.techniques.lora_init import init_lora_from_quantization_error

            init_lora_from_quantization_error(base, start)
        return self._policy(base, wrapped, family)

    def _policy(self, base: Any, wrapped: Any, family: str) -> Policy:
        """Return the policy of any adapter, with plain updates on the fused path."""
        from tunesmith.models.kernels.experts_lora import fuse_experts
        from tunesmith.models.kernels.fused_lora import fuse

        fuse(base)
        fuse_experts(base)
        return super()._policy(base, wrapped, family)


def _excluded(base: Any, targets: object) -> str | None:
    """Return a pattern of the layers that are left out; None, which PEFT does not warn of, if there are none.

    These are an encoder's unused pooler, and for all-linear the layers whose adapter could be bypassed.
    """
    from tunesmith.models.loading.text_part import names_in_tree
    from tunesmith.models.profile import bypassed_layers

    names = names_in_tree(base, bypassed_layers(base)) if targets == "all-linear" else set()
    # Without the number of the layer: large models have many, and the pattern is stored with the adapter.
    patterns = sorted({re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(name)) for name in names})
    if any("pooler" in name for name, _ in base.named_modules()):
        patterns.append(".*pooler.*")
    return "|".join(patterns) or None
