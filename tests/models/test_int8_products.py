"""Products with frozen weights in 8-bit integers: near to the exact ones, and given up where the loss would change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.bases import base, folder
from tunesmith.config import Recipe
from tunesmith.config.checks import check_pair
from tunesmith.errors import RecipeError
from tunesmith.events import Event, Note
from tunesmith.models.kernels import fused_lora
from tunesmith.models.kernels.fused_lora import FusedLora, install_int8
from tunesmith.models.kernels.int8_products import Int8Weight
from tunesmith.pipelines.tune.tune import tune_recipe
from tunesmith.techniques import Lora
from tunesmith.training.callbacks import Callbacks, Interrupted
from tunesmith.training.overfit_check import INT8_CHANGE


def test_products_and_gradients_of_one_hot_rows_are_exact_to_half_a_step() -> None:
    weight = torch.tensor([[1.0, -0.5], [0.25, 2.0], [0.0, 0.0]])
    rounded = Int8Weight.of(weight, torch.tensor([1.0, 1.0]))
    assert rounded.values.dtype == torch.int8
    # By hand: c = sqrt(1 / (1, 2)), W c = [[1, -0.354], [0.25, 1.414]], steps of 1/127 and 1.414/127.
    assert torch.allclose(rounded.smooth, torch.tensor([1.0, 0.5**0.5]))
    assert rounded.values.tolist() == [[127, -45], [22, 127], [0, 0]]
    found = rounded.product(torch.eye(2)[None])
    assert found.shape == (1, 2, 3)
    assert torch.allclose(found[0].T, weight, atol=2.0 / 127)
    assert torch.allclose(rounded.of_gradient(torch.eye(3)), weight, atol=2.0 / 127)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outliers_in_a_column_of_the_states_do_not_drown_the_others(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 96)
    x[:, 5] *= 100
    weight = torch.randn(48, 96)
    weight[:, 5] /= 100
    exact = x @ weight.T
    smooth = Int8Weight.of(weight, x.abs().amax(0)).product(x.to(dtype))
    plain = Int8Weight.of(weight, weight.abs().amax(0)).product(x.to(dtype))  # c is 1
    assert smooth.dtype == dtype
    assert (smooth - exact).norm() < 0.02 * exact.norm() < 0.5 * (plain - exact).norm()


def adapted() -> Any:
    policy = Lora(rank=2).adapt(base("llama").network, family="decoder", keep_reference=False)
    policy.train(False)
    return policy


def test_layers_keep_their_weights_where_the_loss_would_change_too_much() -> None:
    policy = adapted()
    layers = [module for module in policy.network.modules() if isinstance(module, FusedLora)]
    ids = torch.arange(3, 27).reshape(2, 12)

    def loss() -> float:
        return float(policy.network(ids, labels=ids).loss.detach())

    refused = install_int8(policy.network, loss, bound=0.0)
    assert refused is not None
    exact, rounded = refused.exact, refused.rounded
    assert exact != rounded
    assert (refused.share, refused.used) == (1, False)
    assert refused.change == (rounded - exact) / exact
    assert all(layer.int8 is None for layer in layers)
    assert loss() == exact
    assert install_int8(policy.network, loss, bound=INT8_CHANGE) == replace(refused, used=True)
    assert all(layer.int8 is not None for layer in layers)
    assert loss() == rounded
    with torch.no_grad():  # answers and validation
        assert loss() == exact


def test_a_layer_whose_products_would_change_too_much_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = adapted()
    layers = [module for module in policy.network.modules() if isinstance(module, FusedLora)]
    monkeypatch.setattr(fused_lora, "MAX_ERROR", 0.0)
    ids = torch.arange(3, 27).reshape(2, 12)
    found = install_int8(policy.network, lambda: float(policy.network(ids, labels=ids).loss.detach()), bound=1.0)
    assert found is not None
    assert (found.exact, found.share) == (found.rounded, 0)
    assert all(layer.int8 is None for layer in layers)


def recipe(tmp_path: Path, **changes: Any) -> Recipe:
    file = tmp_path / "rows.csv"
    words = ("good", "bad", "fox", "dog", "lazy", "quick")
    file.write_text("text\n" + "\n".join(f"{words[n % 6]} {words[n % 5]} {words[n % 4]} {n}" for n in range(48)))
    return Recipe.model_validate(
        {
            "model": str(folder("llama")),
            "objective": {"kind": "domain"},
            "technique": {"kind": "lora", "rank": 2, "products": "int8"},
            "data": {"train": str(file), "max_tokens": 64, "audit": "note"},
            "schedule": {"epochs": 2, "batch_rows": 8, "probe": False, "save_steps": 2},
            "retention": {"questions": 0, "texts": 0},
            **changes,
        }
    )


def weights(run: Path) -> bytes:
    return (run / "model" / "adapter_model.safetensors").read_bytes()


@pytest.mark.long
def test_a_resumed_run_with_int8_has_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    notes: list[str] = []

    def on_event(event: Event) -> None:
        notes.extend([event.text] if isinstance(event, Note) else [])

    given = recipe(tmp_path)
    tune_recipe(given, out=tmp_path / "whole", callbacks=Callbacks(on_event=on_event), offline=True)
    assert [note for note in notes if "int8 for 100% of the weights changes the loss of" in note]
    left = iter(range(3))
    stop = Callbacks(on_event=on_event, should_stop=lambda: next(left, None) is None)
    with pytest.raises(Interrupted):
        tune_recipe(given, out=tmp_path / "cut", callbacks=stop, offline=True)
    tune_recipe(given, out=tmp_path / "cut", callbacks=Callbacks(on_event=on_event), offline=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    exact = recipe(tmp_path, technique={"kind": "lora", "rank": 2})
    tune_recipe(exact, out=tmp_path / "exact", callbacks=Callbacks(on_event=on_event), offline=True)
    assert weights(tmp_path / "exact") != weights(tmp_path / "whole")


@pytest.mark.parametrize("other", [{"quantize": "nf4"}, {"dora": True}, {"dropout": 0.1}])
def test_int8_is_refused_with_variants_of_lora(other: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"int8 is not supported with {next(iter(other))}; leave one of them out"):
        Lora.model_validate({"products": "int8", **other})


def test_int8_is_refused_for_losses_with_a_reference_model(tmp_path: Path) -> None:
    given = recipe(tmp_path, objective={"kind": "preference"})
    with pytest.raises(RecipeError, match=r"technique\.products: int8 .* reference model; leave it out"):
        check_pair(given, "decoder")
    check_pair(recipe(tmp_path), "decoder")
