"""What every technique of PEFT's shares: a configuration, a wrapped base, and a folder as PEFT writes and reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import CheckpointError, RecipeError, briefly
from tunesmith.model.load import LoadOptions
from tunesmith.model.policy import Policy
from tunesmith.model.quiet import quiet

# Kinds of layers that PEFT puts a change beside.
CHANGEABLE = (nn.Linear, nn.Embedding, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NAMES = re.compile(r"\s*[\w.]+(\s*,\s*[\w.]+)*\s*")


class Adapter(BaseModel):
    """A technique that leaves the base's weights alone; what it learns is a small folder in PEFT's format."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def load_options(self) -> LoadOptions:
        """Plain weights."""
        return LoadOptions()

    def virtual_tokens(self) -> int:
        """None."""
        return 0

    def refusal(self, base: Any, *, family: str) -> str:
        """Every network can be tuned so."""
        return ""

    def save(self, policy: Policy, folder: Path) -> None:
        """An adapter folder that `PeftModel.from_pretrained` opens."""
        # Answers are given without gradient, where an LSTM sums in another order: what it makes is kept as it answers.
        with quiet(), torch.no_grad():
            # The question whether embedding rows were added would go to the Hub; none ever are here.
            policy.adapter.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; the run writes one from measured facts

    def restore(self, base: Any, folder: Path, *, family: str) -> Policy:
        """The saved numbers over a fresh base. Raises CheckpointError where there are none."""
        from peft import PeftModel

        if not (folder / "adapter_model.safetensors").exists():
            raise CheckpointError(
                f"{folder}: no adapter_model.safetensors in it; the run was not finished, run `tunesmith tune` again"
            )
        with quiet():
            return self._policy(base, PeftModel.from_pretrained(base, folder), family)

    def _policy(self, base: Any, wrapped: Any, family: str) -> Policy:
        """The base with what PEFT put into it, and the switch that turns it off."""
        policy = Policy.over(base, family=family, reference=wrapped.disable_adapter)
        policy.adapter = wrapped
        return policy


def put_inside(base: Any, config: Any, *, named: object, cure: str) -> Any:
    """PEFT's model with changes inside the base's layers. Raises RecipeError where the layers named are not there."""
    from peft import get_peft_model

    with quiet():
        try:
            return get_peft_model(base, config)
        except ValueError as error:  # no layer of these names, or one that takes no change
            raise RecipeError(f"technique.targets: {named!r}: {briefly(error)}; {cure}") from error


def names_in(value: object) -> object:
    """The names in a text of nothing but names, with commas between them; anything else as it is."""
    if isinstance(value, str) and NAMES.fullmatch(value):
        return tuple(name.strip() for name in value.split(","))
    return value


def reaches(name: str, wanted: str | Sequence[str]) -> bool:
    """Whether PEFT takes the layer of this name: by a pattern for all of it, or by a list of names for its end."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(f".{name}".endswith(f".{word}") for word in wanted)


def unfit(base: Any, wanted: str | Sequence[str], changeable: tuple[type[nn.Module], ...] = CHANGEABLE) -> str:
    """Why these layers of a network cannot be changed; empty where they can. `wanted` as in `reaches`."""
    if not wanted:
        return "technique.targets: names no layer; name one, or leave it out"
    try:
        parts: list[str | tuple[str, ...]] = (
            [re.compile(wanted).pattern] if isinstance(wanted, str) else [(word,) for word in wanted]
        )
    except re.error as error:
        return f"technique.targets: {wanted!r} is no pattern ({error}); a star for any letters is written .*"
    modules = {name: module for name, module in base.named_modules() if "pooler" not in name}
    layers = {name for name, module in modules.items() if isinstance(module, changeable)}
    for part in parts:
        found = [name for name in modules if reaches(name, part)]
        if not layers.intersection(found):
            there = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            what = f"matches {part!r}" if isinstance(part, str) else f"is called {''.join(part)!r}"
            return f"technique.targets: no layer {what}; the last parts of names here: {there}"
        if other := [name for name in found if name not in layers]:
            return f"technique.targets: {part!r} reaches {other[0]}, which cannot be changed so; name layers inside it"
    return _tied(base, [name for name in layers if reaches(name, wanted)])


def _tied(base: Any, names: Sequence[str]) -> str:
    """Why no change fits the one weight of both embeddings: beside one of them it acts, merged it acts in both."""
    inner, outer = base.get_input_embeddings(), base.get_output_embeddings()
    if outer is None or outer.weight is not inner.weight:
        return ""
    for name in names:
        if base.get_submodule(name) in (inner, outer):
            return (
                f"technique.targets: {name} shares its weight with the model's other embedding, so that what is "
                "learned beside one could not be merged; leave it out, or take technique: full"
            )
    return ""
