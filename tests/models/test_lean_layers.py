"""Norms and MLPs that keep less for the backward pass: the bits of transformers forwards, its gradients backwards."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.bases import folder
from tunesmith.models.kernels import lean_layers, skinny_linear
from tunesmith.models.kernels.lean_layers import LeanMLP, LeanNorm, LeanShiftedNorm, cast_once

IDS = torch.arange(3, 27).reshape(2, 12)


def network(kind: str, *, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder(kind), dtype=dtype)


def lean(base: nn.Module) -> Any:
    made = copy.deepcopy(base)
    skinny_linear.install(made)
    lean_layers.install(made)
    return made


def kept(model: Any, *, half: bool) -> tuple[Tensor, int]:
    """The loss, and the bytes that its backward pass needs beside the parameters."""
    weights = {value.untyped_storage().data_ptr() for value in model.parameters()}
    found: dict[int, tuple[int, Tensor]] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes(), value  # held, so that no address is used twice
        return value

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        loss = model(IDS, labels=IDS).loss
    return loss, sum(size for size, _ in found.values())


@pytest.mark.parametrize(
    ("kind", "norms"),
    [
        ("llama", LeanNorm),
        ("qwen3", LeanNorm),
        ("mistral", LeanNorm),
        ("gemma2", LeanShiftedNorm),
        ("gemma3", LeanShiftedNorm),
    ],
)
def test_loss_has_the_bits_of_transformers_and_gradients_are_equal_with_less_kept(kind: str, norms: type) -> None:
    base = network(kind)
    light = lean(base)
    layers = [module for module in light.modules() if "Norm" in type(module).__name__]
    assert layers
    assert all(isinstance(module, norms) for module in layers)
    assert sum(isinstance(module, LeanMLP) for module in light.modules()) == light.config.num_hidden_layers
    (loss, much), (same, less) = kept(base, half=False), kept(light, half=False)
    assert same.item() == loss.item()
    assert less < 0.9 * much
    loss.backward()
    same.backward()
    for (name, value), other in zip(base.named_parameters(), light.parameters(), strict=True):
        assert (value.grad - other.grad).abs().max() <= 2e-6 * value.grad.abs().max(), name


def test_under_autocast_states_are_cast_once_for_all_layers_that_read_them() -> None:
    base = network("llama")
    light = lean(base)
    (loss, much), (same, less) = kept(base, half=True), kept(light, half=True)
    assert same.item() == loss.item()
    assert less < 0.85 * much
    loss.backward()
    same.backward()
    for (name, value), other in zip(base.named_parameters(), light.parameters(), strict=True):
        assert (value.grad - other.grad).norm() <= 0.02 * value.grad.norm(), name  # sums of three are rounded to bf16


def test_a_cast_copy_is_made_again_when_its_tensor_has_changed() -> None:
    states = torch.ones(3)
    first = cast_once(states, torch.bfloat16)
    assert cast_once(states, torch.bfloat16) is first
    assert cast_once(states, torch.float32) is states
    states.add_(1)
    assert cast_once(states, torch.bfloat16).tolist() == [2, 2, 2]
    with torch.no_grad():  # such a copy would end the way of the gradient
        made = cast_once(states.requires_grad_(), torch.bfloat16)
    assert not made.requires_grad
    with torch.inference_mode():
        assert cast_once(torch.ones(3), torch.bfloat16).dtype == torch.bfloat16
    assert cast_once(states, torch.bfloat16).requires_grad


def test_other_layers_and_other_precisions_stay_those_of_transformers() -> None:
    base = network("gpt2")
    assert [type(module) for module in lean(base).modules() if not isinstance(module, nn.Linear)] == [
        type(module) for module in base.modules() if not isinstance(module, nn.Linear)
    ]
    half = network("llama", dtype=torch.bfloat16)
    assert torch.equal(lean(half)(IDS).logits, half(IDS).logits)
    with torch.no_grad():
        whole = network("llama")
        assert torch.equal(lean(whole)(IDS).logits, whole(IDS).logits)


def test_factors_that_do_not_learn_get_no_gradient_and_states_still_do() -> None:
    base = network("llama")
    norm = next(module for module in lean(base).modules() if isinstance(module, LeanNorm))
    norm.requires_grad_(requires_grad=False)
    states = torch.randn(2, 5, norm.weight.shape[0], requires_grad=True)
    norm(states).pow(3).sum().backward()
    assert norm.weight.grad is None
    plain = states.detach().requires_grad_()
    super(LeanNorm, norm).forward(plain).pow(3).sum().backward()
    assert states.grad is not None
    assert torch.allclose(states.grad, plain.grad, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_differences() -> None:
    torch.manual_seed(0)
    gate, up = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *parts: lean_layers._Gated.apply(*parts, nn.SiLU()), (gate, up))
    assert torch.autograd.gradcheck(lambda x, gain: lean_layers._RMSNorm.apply(x, gain, 1e-5)[0], (gate, up[0]))


def test_a_pickled_network_has_the_same_layers() -> None:
    base = lean(network("llama"))
    again = pickle.loads(pickle.dumps(base))
    assert [type(module) for module in again.modules()] == [type(module) for module in base.modules()]
    assert any(isinstance(module, LeanMLP) for module in again.modules())
    assert torch.equal(again(IDS).logits, base(IDS).logits)
