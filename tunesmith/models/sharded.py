"""Networks whose weights are divided among the processes of a run, and the one way to run the body of any network.

A sharded parameter is a DTensor: each process holds a part of it (FSDP2). A layer gathers its weights from all
processes before it computes and drops them afterwards, so all processes have to run equally many passes, forward and
backward. Adapters and heads are plain parameters, whole in every process.

    shard(network, Sharding(shards=8, replicas=2), device="cuda")  # 16 processes on two machines
    states = run_body(network, input_ids=ids).last_hidden_state

torch.distributed is imported only for sharded networks.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models.kernels.float32_products import short_pass


@dataclass(frozen=True, slots=True)
class Sharding:
    """The number of processes among which the weights of a network are divided."""

    shards: int  # processes that hold one copy of the weights together
    replicas: int = 1  # such copies; more than one lets only gradients pass between machines


def run_body(network: Any, **inputs: Any) -> Any:
    """Run a network without its output layer, and return what transformers' base model returns.

    Nothing else may call the base model: a sharded network gathers the weights outside its layers only in methods that
    FSDP knows.
    """
    run = network.run_sharded_body if is_sharded(network) else network.base_model
    ids = inputs.get("input_ids")
    with short_pass(ids.numel()) if ids is not None and ids.device.type == "cpu" else nullcontext():
        return run(**inputs)


def is_sharded(network: Any) -> bool:
    """Return whether the weights of a network are divided among processes."""
    return hasattr(network, "run_sharded_body")


def is_shard(value: Tensor) -> bool:
    """Return whether a parameter is divided among processes."""
    return hasattr(value, "full_tensor")  # a DTensor, whose class a run of one process must not import


def layers_of(network: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return name and modules of the layers of a network: the list of modules with most of its parameters."""
    lists = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda named: sum(value.numel() for value in named[1].parameters()))


def reading_shards(empty: nn.Module, sharding: Sharding) -> dict[str, Any]:
    """Return the arguments of transformers' `from_pretrained` with which each process reads only its shards.

    Args:
        empty: the network on the meta device; not every family declares which modules are its layers.
        sharding: how to divide the weights.
    """
    from transformers.distributed.configuration_utils import DistributedConfig

    plan = {f"{layers_of(empty)[0]}.*": "free_full_weight"}
    config = DistributedConfig(fsdp_size=sharding.shards, dp_replicate_size=sharding.replicas, fsdp_plan=plan)
    return {"distributed_config": config}


def shard(network: Any, sharding: Sharding, *, device: str) -> None:
    """Divide the weights of a network among the processes, in place, layer by layer.

    For networks that are not read as they are by transformers: each process holds all weights for a moment.

    Args:
        network: a transformers model.
        sharding: how to divide them.
        device: cpu or cuda.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    sizes = (sharding.replicas, sharding.shards)
    # By this name PEFT knows that adapters have the size of the whole weight.
    mesh = init_device_mesh(device.partition(":")[0], sizes, mesh_dim_names=("replica", "fsdp"))
    mesh = mesh if sharding.replicas > 1 else mesh["fsdp"]
    for layer in layers_of(network)[1]:
        fully_shard(layer, mesh=mesh)
    fully_shard(network, mesh=mesh, reshard_after_forward=False)  # the head reads its weight after the body has run
    prepare_sharded(network)


def prepare_sharded(network: Any) -> None:
    """Make a sharded network add up gradients, and give it the method that `run_body` calls.

    FSDP2 averages gradients; losses here are sums. Another divisor needs an operation that gloo lacks and that
    NCCL gets wrong in bfloat16 (pytorch issue 190747); a sum needs none.
    """
    from torch.distributed.fsdp import register_fsdp_forward_method

    for module in _sharded_modules(network):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)

    def run(self: Any, **inputs: Any) -> Any:
        out = self.base_model(**inputs)
        if out.last_hidden_state._base is not None:  # FSDP puts its hooks on the states, and a view may lose them
            out.last_hidden_state = out.last_hidden_state.clone()
        return out

    network._tp_size = None  # for which PEFT would gather all weights to save an adapter
    network.config.__dict__.pop("distributed_config", None)  # it would be written to the config.json of the tuned model
    network.run_sharded_body = MethodType(run, network)
    register_fsdp_forward_method(network, "run_sharded_body")


def reshard(network: Any) -> None:
    """Drop gathered weights, so that the parameters of a network are its shards; nothing if it has none.

    A pass without a gradient leaves the weights of the output layer gathered. They would hide a change of the shards.
    """
    if is_sharded(network):
        for module in _sharded_modules(network):
            module.reshard()


def whole_weights(network: Any) -> dict[str, Tensor]:
    """Return all weights of a sharded network in the memory of the first process; all processes have to call this."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found: dict[str, Any] = get_model_state_dict(network, options=options)
    for name, source in (getattr(network, "all_tied_weights_keys", None) or {}).items() if found else ():
        found[name] = found[source]  # one tensor again, which is written once
    return found


def _whole(value: Any) -> Any:
    return value.full_tensor() if is_shard(value) else value


def _sharded_modules(network: nn.Module) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [module for module in network.modules() if isinstance(module, FSDPModule)]


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scale gradients so that their common norm is at most `limit`, and return the norm before.

    Args:
        parameters: plain and sharded ones; `torch.nn.utils.clip_grad_norm_` refuses a mix of both.
        limit: the largest norm.
    """
    learned = [value for value in parameters if value.grad is not None]
    groups = [[value for value in learned if is_shard(value) is sharded] for sharded in (False, True)]
    if groups[1] and torch.are_deterministic_algorithms_enabled():
        # Norms of parts add up to other last bits. Those of whole gradients, one at a time, are those of one process.
        norms = [torch._foreach_norm([_whole(value.grad)])[0] for value in learned]
    else:
        norms = [nn.utils.get_total_norm([value.grad for value in group]) for group in groups if group]  # type: ignore[misc]
    whole = [_whole(norm) for norm in norms]
    total = whole[0] if len(whole) == 1 else nn.utils.get_total_norm(whole)  # of none: 0
    for group in filter(None, groups):
        nn.utils.clip_grads_with_norm_(group, limit, total)
    return float(total)
