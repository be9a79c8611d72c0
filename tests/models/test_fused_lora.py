"""LoRA's own path against PEFT's: the same numbers and gradients, also where answers are drawn between two steps."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from tunesmith.models.kernels.fused_lora import FusedLora, fuse


class _Net(nn.Module):
    def __init__(self, bias: bool):
        super().__init__()
        self.layer = nn.Linear(24, 40, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def two(bias: bool = True) -> tuple[FusedLora, PeftLinear]:
    """The same layer with an update that is not zero, on our path and on PEFT's."""
    layers = []
    for _ in range(2):
        torch.manual_seed(0)
        network = get_peft_model(_Net(bias), LoraConfig(r=4, lora_alpha=6, target_modules=["layer"]))
        layer = network.base_model.model.layer
        nn.init.normal_(layer.lora_B["default"].weight, std=0.3)
        layers.append(layer)
    fuse(layers[0])
    return layers[0], layers[1]


def _factors(layer: FusedLora) -> dict[str, Tensor]:
    return {name: value for name, value in layer.state_dict().items() if "lora_" in name}


@pytest.mark.parametrize("tokens", [3, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_and_its_gradients_are_those_of_peft(tokens: int, bias: bool):
    ours, theirs = two(bias)
    assert type(ours) is FusedLora
    assert type(theirs) is PeftLinear
    x = torch.randn(2, tokens, 24)
    found = [layer(x) for layer in (ours, theirs)]
    assert torch.allclose(found[0], found[1], atol=1e-5)
    for out in found:
        out.square().mean().backward()
    for name in ("lora_A", "lora_B"):
        one, two_ = (getattr(layer, name)["default"].weight.grad for layer in (ours, theirs))
        assert torch.allclose(one, two_, atol=1e-6)
        assert one.abs().max() > 0
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_network_may_change_a_view_of_the_product_in_place(bias: bool):
    ours, theirs = two(bias)
    x = torch.randn(2, 3, 24)
    for layer in (ours, theirs):  # as DeBERTa does with its heads
        heads = layer(x).view(2, 3, 4, 10).permute(0, 2, 1, 3)
        heads /= 2
        heads.square().mean().backward()
    one, two_ = (layer.lora_A["default"].weight.grad for layer in (ours, theirs))
    assert torch.allclose(one, two_, atol=1e-6)


def test_answers_drawn_in_half_precision_follow_every_step_and_learning_goes_on_between():
    ours, theirs = two()
    x = torch.randn(5, 24)
    before = None
    moving = [ours.lora_A["default"].weight, ours.lora_B["default"].weight]
    optimizer = torch.optim.AdamW(moving, lr=0.1, fused=True)  # as make_optimizer's: it counts nothing that it moves
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.inference_mode():
                drawn = ours(x)
            learned = ours(x)
        wanted = theirs(x)
        assert torch.allclose(drawn.float(), wanted, atol=0.05)
        assert torch.allclose(learned.float(), wanted, atol=0.05)
        assert before is None or (drawn - before).abs().max() > 0.1
        before = drawn
        learned.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        theirs.load_state_dict({**theirs.state_dict(), **_factors(ours)})
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ours(x)
        ours.lora_B["default"].weight.zero_()  # moved by hand, and counted by torch
        assert torch.allclose(ours(x).float(), ours.base_layer(x).float(), atol=0.05)
    assert ours.cast is not None
    assert ours.wide is not None
    assert ours.cast.data_ptr() == ours.wide[2].data_ptr()
    kept = ours.cast
    ours.train(False)
    assert ours.cast is kept  # every step begins so
    ours(x)
    assert ours.cast is ours.wide is None
