"""The common part of PEFT's techniques: a configuration, a wrapped base, and a folder that PEFT writes and reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BeforeValidator

from tunesmith.errors import CheckpointError, RecipeError, briefly
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.techniques.base import Technique

if TYPE_CHECKING:
    from tunesmith.models.policy import Policy

NAMES = re.compile(r"\s*[\w.]+(\s*,\s*[\w.]+)*\s*")


class Adapter(Technique):
    """A technique that does not change the base's weights; the result is a small folder in PEFT's format."""

    def save(self, policy: Policy, folder: Path) -> None:
        """Write an adapter folder that `PeftModel.from_pretrained` loads."""
        import torch

        # no_grad: an LSTM sums in another order with gradient, and p-tuning has to save what inference computes.
        with quiet(), torch.no_grad():
            # save_embedding_layers="auto" would ask the Hub whether embedding rows were added; none ever are here.
            policy.adapter.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card; the run writes another

    def restore(self, base: Any, folder: Path, *, family: str) -> Policy:
        """Load the saved adapter over a fresh base; raise CheckpointError or ModelError if its files cannot be used."""
        from tunesmith.models.loading.adapter_files import open_adapter
        from tunesmith.models.loading.text_part import adapter_tree, share_head

        if not (folder / "adapter_model.safetensors").exists():
            raise CheckpointError(
                f"{folder}: no adapter_model.safetensors in it; the run was not finished, run `tunesmith tune` again"
            )
        with quiet():
            wrapped = open_adapter(adapter_tree(base), folder, where=str(folder))
            share_head(base)
            return self._policy(base, wrapped, family)

    def _policy(self, base: Any, wrapped: Any, family: str) -> Policy:
        """Return a policy over the adapted base, whose reference context disables the adapter."""
        from tunesmith.models.policy import Policy

        policy = Policy.over(base, family=family, reference=wrapped.disable_adapter)
        policy.adapter = wrapped
        return policy


def put_inside(base: Any, config: Any, *, targets: object, fix: str) -> Any:
    """Return PEFT's model with an adapter inside the base's layers. Raises RecipeError if it has no such layers."""
    from peft import get_peft_model

    from tunesmith.models.loading.text_part import adapter_tree, part_of, share_head

    tree = adapter_tree(base)
    names = [name for name, _ in tree.named_modules()]
    with quiet():
        try:
            wrapped: Any = get_peft_model(tree, config)
        except ValueError as error:  # no layer of these names, or one of a type that PEFT cannot adapt
            raise RecipeError(f"technique.targets: {targets!r}: {briefly(error)}; {fix}") from error
    share_head(base)
    layers = wrapped.base_model.targeted_module_names
    if layers and part_of(base) is not None:  # over the whole checkpoint, names alone would reach its other towers too
        wrapped.peft_config["default"].target_modules = pattern_of(layers, names)
    return wrapped


def pattern_of(layers: Sequence[str], names: Sequence[str]) -> str | list[str]:
    """Return a pattern for the full names of some layers among all, or their names if no short pattern is exact."""
    parts = [name.split(".") for name in layers]
    common = [first for first, *others in zip(*parts, strict=False) if all(other == first for other in others)]
    last = sorted({part[-1] for part in parts})
    pattern = rf"{re.escape('.'.join(common))}\..*\.({'|'.join(last)})"
    exact = {name for name in names if re.fullmatch(pattern, name)} == {*layers}
    return pattern if exact else sorted(layers)


def _names_in(value: object) -> object:
    """Split a text of comma-separated names; return anything else unchanged."""
    if isinstance(value, str) and NAMES.fullmatch(value):
        return tuple(name.strip() for name in value.split(","))
    return value


# Makes a text of names a tuple: PEFT would take it as a pattern of full names, which it never is.
SplitNames = BeforeValidator(_names_in)


def reaches(name: str, targets: str | Sequence[str]) -> bool:
    """Return whether PEFT adapts a layer of this full name: `targets` is a pattern for it, or a list of last parts."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(f".{name}".endswith(f".{part}") for part in targets)


def no_linear_layer(base: Any) -> str:
    """Return why `all-linear` adapts nothing in a network, such as one of convolutions; empty if it does."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from tunesmith.models.loading.text_part import adapter_tree

    modules = {name: module for name, module in adapter_tree(base).named_modules() if "pooler" not in name}
    if any(isinstance(module, (nn.Linear, Conv1D)) for module in modules.values()):
        return ""
    others = sorted({name.rpartition(".")[2] for name, module in modules.items() if isinstance(module, nn.Conv1d)})
    named = f"name technique.targets, some of {', '.join(others)}; " if others else ""
    return f"technique.targets: a {base.config.model_type} has no linear layers; {named}nearest that works: full"


def unfit(base: Any, targets: str | Sequence[str], *, embeddings: bool = True, parameters: Sequence[str] = ()) -> str:
    """Return why these layers of a network cannot be adapted; empty if they can.

    Args:
        base: the base network.
        targets: as in `reaches`.
        embeddings: the technique can adapt embeddings and one-dimensional convolutions.
        parameters: single parameters that it can adapt: experts and routers.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from tunesmith.models.loading.text_part import adapter_tree

    base = adapter_tree(base)
    if not targets:
        return "technique.targets: expected at least one layer; name one, or leave it out"
    try:
        parts: list[str | tuple[str, ...]] = (
            [re.compile(targets).pattern] if isinstance(targets, str) else [(name,) for name in targets]
        )
    except re.error as error:
        return f"technique.targets: {targets!r} is not a valid pattern ({error}); write .* for any characters"
    changeable = (nn.Linear, Conv1D, nn.Conv2d, nn.Conv3d, *((nn.Embedding, nn.Conv1d) if embeddings else ()))
    modules = {name: module for name, module in base.named_modules() if "pooler" not in name}
    layers = {name for name, module in modules.items() if isinstance(module, changeable)}
    # The name of such a parameter stands for it, and the name of its module for all of them.
    layers |= {*parameters, *(name.rpartition(".")[0] for name in parameters)}
    modules |= dict.fromkeys(parameters)
    for part in parts:
        matches = [name for name in modules if reaches(name, part)]
        if not layers.intersection(matches):
            available = ", ".join(sorted({name.rpartition(".")[2] for name in layers - {*parameters}}))
            what = f"matches {part!r}" if isinstance(part, str) else f"is called {''.join(part)!r}"
            return f"technique.targets: no layer {what}; use one of {available}"
        if other := [name for name in matches if name not in layers]:
            return f"technique.targets: {part!r} matches {other[0]}, which cannot be adapted; name layers inside it"
    # Tied embeddings share one weight: an adapter next to one of them acts there only, merged it would act in both.
    inner, outer = base.get_input_embeddings(), base.get_output_embeddings()
    if outer is None or outer.weight is not inner.weight:
        return ""
    for name in layers:
        if reaches(name, targets) and modules[name] in (inner, outer):
            return (
                f"technique.targets: {name} shares its weight with the model's other embedding, so an adapter of "
                "one of them could not be merged; leave it out, or use technique: full"
            )
    return ""
