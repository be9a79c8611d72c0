"""The layers and parameters of a mixture of experts that LoRA adapts, as PEFT's configuration names them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.models.loading.text_part import adapter_tree, names_in_tree
from tunesmith.models.mixtures import Mixture
from tunesmith.models.profile import bypassed_layers
from tunesmith.techniques.peft_base import reaches

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets of PEFT's LoraConfig: layers, single parameters, and those parameters that belong to experts."""

    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    experts: tuple[str, ...]  # those of `parameters` that hold a matrix for every expert


def mixture_targets(
    base: Any, mixture: Mixture, targets: str | Sequence[str], *, experts: bool, router: bool
) -> Targets:
    """Return what to adapt in a mixture of experts.

    PEFT adapts a parameter that several experts share through `target_parameters`. It rewrites the targets of some
    families, in which `up_proj` once was a separate expert: a linear layer of that name, as in a shared expert,
    would silently lose its update. Such a layer's weight is therefore a target parameter, too.

    Args:
        base: the network without an adapter.
        mixture: the experts and routers of its adapter tree.
        targets: as in the recipe: `all-linear`, names of layers, or a pattern of full names.
        experts: `all-linear` includes the experts.
        router: `all-linear` includes the routers.
    """
    tree = adapter_tree(base)
    modules = dict(tree.named_modules())
    layers = {name for name, module in modules.items() if isinstance(module, (nn.Linear, Conv1D))}
    routers = set(map(_owner, mixture.routers))
    stacked = set(mixture.experts)
    if targets == ALL_LINEAR:
        output = tree.get_output_embeddings()
        left_out = {*routers, *names_in_tree(base, bypassed_layers(base))}
        layers = {name for name in layers if modules[name] is not output and name not in left_out}
        stacked = stacked if experts else set()
        routers = routers if router else set()
    else:
        layers = {name for name in modules if name not in routers and reaches(name, targets)}
        layers -= set(map(_owner, stacked))
        stacked = {name for name in stacked if any(reaches(part, targets) for part in (name, _owner(name)))}
        routers = {name for name in routers if reaches(name, targets) or reaches(f"{name}.weight", targets)}
    # A router that computes more than a product, such as Llama 4's, is adapted through its weight.
    linear_routers = {name for name in routers if type(modules[name]) is nn.Linear}
    layers |= linear_routers
    renamed = {name for name in layers if name.rpartition(".")[2] in _rewritten(tree, layers)}
    own = {name for name in mixture.routers if _owner(name) in routers - linear_routers}
    parameters = {*stacked, *own, *(f"{name}.weight" for name in renamed)}
    # Of layers and parameters together, so that the name of the one is not the end of another's.
    names = [*modules, *(name for name, _ in tree.named_parameters())]
    return Targets(
        modules=_suffixes(layers - renamed, names),
        parameters=_suffixes(parameters, names),
        experts=_suffixes(stacked, names),
    )


def _owner(name: str) -> str:
    """Return the module of a parameter."""
    return name.rpartition(".")[0]


def _rewritten(base: Any, layers: Iterable[str]) -> set[str]:
    """Return the last names of layers that PEFT would take for experts of an older version of the family."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    lost = set()
    for leaf in {name.rpartition(".")[2] for name in layers}:
        config = LoraConfig(target_modules=[leaf])
        try:
            convert_peft_config_for_transformers(config, base, None)
        except ValueError:  # this layer alone is half of what PEFT would make of it
            lost.add(leaf)
        if leaf not in (config.target_modules or ()):
            lost.add(leaf)
    return lost


def _suffixes(names: Collection[str], everything: Iterable[str]) -> tuple[str, ...]:
    """Return the shortest ends of names, cut at dots, by which PEFT finds these names and no others."""
    others = {end for name in everything if name not in names for end in _ends(name)}
    return tuple(sorted({next((end for end in _ends(name) if end not in others), name) for name in names}))


def _ends(name: str) -> list[str]:
    """Return the ends of a name, cut at dots, shortest first."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
