"""Mixtures of experts: where a network keeps experts and routers, and the loss that balances its routers.

Letters: E experts, D hidden width, I inner width, N tokens of a forward pass, B rows, L tokens of the longest row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models.batch import Batch

# The name under which transformers' families define the load-balancing loss and declare what it is computed from.
LOSS = "load_balancing_loss_func"
LOGITS = "router_logits"


@dataclass(frozen=True, slots=True)
class Mixture:
    """Names of the weights by which a mixture of experts differs from a dense network."""

    experts: tuple[str, ...]  # parameters with a matrix for every expert, [E, ., .]
    routers: tuple[str, ...]  # weights of the routers, [E, D]
    per_token: int  # experts that compute one token


def find_mixture(network: Any) -> Mixture | None:
    """Return the experts and routers of a network without an adapter; None if it has no experts in shared parameters.

    Experts are parameters of three dimensions next to a router: a matrix with one row for each of them.
    """
    modules = dict(network.named_modules())
    declared = [name for name, _, _ in _declared_routers(network)]
    experts: list[str] = []
    routers: list[str] = []
    for name, module in modules.items():
        stacked = {key: value for key, value in module.named_parameters(recurse=False) if value.dim() == 3}
        if not stacked or isinstance(module, nn.Conv1d):
            continue
        count = next(iter(stacked.values())).shape[0]
        block = name.rpartition(".")[0]
        beside = [
            key
            for key, value in modules[block].named_parameters(prefix=block)
            if value.dim() == 2 and len(value) == count and not key.startswith(f"{name}.")
        ]
        # A shared expert may have as many rows as there are experts, so the family's own declaration comes first.
        own = [key for key in beside if any(key.startswith(f"{router}.") for router in declared)] or beside
        if own:
            experts += [f"{name}.{key}" for key in stacked]
            routers += [key for key in own if key not in routers]
    if not experts:
        return None
    router = modules[routers[0].rpartition(".")[0]]
    config = network.config.get_text_config()
    per_token = getattr(router, "top_k", None) or getattr(config, "num_experts_per_tok", None) or 1
    return Mixture(tuple(experts), tuple(routers), int(per_token))


class RouterLoss:
    """The load-balancing loss of a mixture, as the family's own forward adds it to the language-modelling loss.

    It is computed from the logits of all routers over all tokens. A prefix that packed rows share is counted once for
    each of them, and padding not at all.

        router_loss.begin()
        with router_loss.record(batch):  # as `Policy.states` does
            states = network(...)
        loss = nll / units + router_loss.value()

    Args:
        function: the family's `load_balancing_loss_func`.
        coefficient: its weight in the loss per unit.
        per_token: experts that compute one token.
        routers: each router, and the place of the logits in its output.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        coefficient: float,
        *,
        per_token: int,
        routers: Sequence[tuple[nn.Module, int]],
    ) -> None:
        self.coefficient = coefficient
        self._function = function
        self._per_token = per_token
        self._routers = routers
        # The loss of each forward pass since `begin`, and its tokens; None outside of a training pass.
        self._recorded: list[tuple[Tensor, int]] | None = None

    @classmethod
    def of(cls, network: Any) -> RouterLoss | None:
        """Return the loss that belongs to training this network; None if there is none.

        It does if the network's configuration asks for it (`output_router_logits`), as in transformers, or if routers
        are trained: without it, training tends to send all tokens to a few experts.
        """
        # FSDP2 gives a network that it divides a new class, below that of the family.
        modules = [sys.modules[kind.__module__] for kind in type(network).__mro__]
        function = next((getattr(module, LOSS) for module in modules if hasattr(module, LOSS)), None)
        config = network.config.get_text_config()
        coefficient = getattr(config, "router_aux_loss_coef", None) or getattr(config, "aux_loss_coef", None) or 0.0
        routers = _declared_routers(network)
        if function is None or not coefficient or not routers:
            return None
        # PEFT puts a router with an update into a module of the router's name.
        adapted = [network.get_submodule(name.partition(".base_layer")[0]) for name, _, _ in routers]
        trained = any(value.requires_grad for router in adapted for value in router.parameters())
        if not (trained or getattr(config, "output_router_logits", False)):
            return None
        per_token = getattr(network, "num_experts_per_tok", None) or config.num_experts_per_tok
        places = [(router, place) for _, router, place in routers]
        return cls(function, float(coefficient), per_token=int(per_token), routers=places)

    @contextmanager
    def record(self, batch: Batch) -> Iterator[None]:
        """Enter a context in which the network runs over a batch once, and keep the loss of its routers.

        Nothing is kept before `begin` and after `value`, such as of gradients that are only compared.
        """
        if self._recorded is None or not torch.is_grad_enabled():
            yield
            return
        logits: list[list[Tensor]] = [[] for _ in self._routers]

        def keep(parts: list[Tensor], place: int) -> Callable[..., None]:
            return lambda _, __, out: parts.append((out[place] if isinstance(out, tuple) else out).flatten(0, -2))

        handles = [
            router.register_forward_hook(keep(parts, place))
            for (router, place), parts in zip(self._routers, logits, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        gates = tuple(torch.cat(parts) for parts in logits if parts)
        weights = _tokens_per_entry(batch, len(gates[0]))
        value = self._function(gates, gates[0].shape[-1], self._per_token, weights)
        self._recorded.append((value, int(weights.sum())))

    def begin(self) -> None:
        """Start to record."""
        self._recorded = []

    def value(self) -> Tensor:
        """Return the weighted loss of what was recorded since `begin`, a scalar per unit of the main loss, and end."""
        recorded, self._recorded = self._recorded or [], None
        tokens = sum(count for _, count in recorded)
        total = sum((value * count for value, count in recorded), torch.zeros(()))
        return self.coefficient * total / max(1, tokens)


def _tokens_per_entry(batch: Batch, size: int) -> Tensor:
    """Return how many tokens of the rows each router input stands for, [size].

    Inputs are the packed tokens, or rows padded to one length, with virtual tokens in front or without.
    """
    real = batch.row_index >= 0
    if size == len(batch.ids):
        return torch.bincount(batch.row_index[real], minlength=size)
    if size == int(real.sum()):  # the rows ran one after another
        return real.new_ones(size, dtype=torch.long)
    virtual = real.new_ones(batch.rows, size // batch.rows - real.shape[1])
    return torch.cat([virtual, real], dim=1).flatten().long()


def _declared_routers(network: Any) -> list[tuple[str, nn.Module, int]]:
    """Return name, module and place of the logits in the output of the routers that a family declares."""
    records = (getattr(module, "_can_record_outputs", None) or {} for module in network.modules())
    declared = next((found for outputs in records if (found := outputs.get(LOGITS)) is not None), None)
    recorders = declared if isinstance(declared, list) else [declared] if declared is not None else []
    found = []
    for recorder in recorders:
        kind: Any = getattr(recorder, "target_class", recorder)
        inside = getattr(recorder, "layer_name", None) or ""
        place = getattr(recorder, "index", 0)
        found += [(n, m, place) for n, m in network.named_modules() if isinstance(m, kind) and inside in n]
    return found
