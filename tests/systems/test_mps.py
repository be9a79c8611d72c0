"""Apple's GPU, by a stand-in: tensors on the CPU that claim to be on `mps`, and refuse float64.

It shows that nothing asks the device for what it lacks. Whether its results are right can only be seen on one, and no
such device has run this yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

import tunesmith
from tests.golden.runs import answers, reviews, write_jsonl
from tunesmith.models.loading import load
from tunesmith.models.loading.device import choose_dtype, configure_device, frozen_dtype, keep_randomness, wait_for
from tunesmith.models.loading.locate import LoadOptions

MPS, CPU = torch.device("mps"), torch.device("cpu")
HOME = (torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.item, torch.Tensor.numpy)


class AppleGpu(TorchFunctionMode):
    """Marks tensors that are made on `mps` or computed from such, and refuses float64 ones."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        named: Mapping[str, Any] = kwargs or {}
        given = tree_flatten((args, named))[0]
        here = any(isinstance(value, torch.Tensor) and hasattr(value, "_on_mps") for value in given)
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return MPS if here else func(*args)
        if func is torch.device:
            return func(*args, **named)
        to_here = any(_is_device(value, "mps") for value in given)
        to_cpu = func in HOME or any(_is_device(value, "cpu") for value in given)
        out = func(*tree_map(_at_home, args), **tree_map(_at_home, named))
        if to_cpu and isinstance(out, torch.Tensor):
            out = out.detach().clone() if here and not out.requires_grad else out.clone() if here else out
        elif here or to_here:
            self.calls += 1
            tree_map(self._mark, out)
        return out

    def _mark(self, value: Any) -> None:
        if isinstance(value, torch.nn.Module):
            for part in (*value.parameters(), *value.buffers()):
                self._mark(part)
        elif isinstance(value, torch.Tensor):
            if value.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework does not support it")
            value._on_mps = True  # type: ignore[attr-defined]


def _is_device(value: Any, kind: str) -> bool:
    return isinstance(value, str | torch.device) and str(value).partition(":")[0] == kind


def _at_home(value: Any) -> Any:
    return CPU if _is_device(value, "mps") else value


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[AppleGpu]:
    """The stand-in, as the device that `mps` names."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: None)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda device="mps": torch.get_rng_state())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state, device="mps": torch.set_rng_state(state))
    move, read = torch.nn.Module.to, load._from_folder
    mode = AppleGpu()

    def from_folder(name: str, folder: Path, options: LoadOptions) -> load.Base:
        base = read(name, folder, replace(options, device="cpu"))  # safetensors writes to the device by itself
        if options.device == "mps":
            mode._mark(base.network)
        return base

    monkeypatch.setattr(load, "_from_folder", from_folder)

    def to(module: torch.nn.Module, *args: Any, **options: Any) -> torch.nn.Module:
        moved = move(module, *tree_map(_at_home, args), **tree_map(_at_home, options))
        if any(_is_device(value, "mps") for value in (*args, *options.values())):
            mode._mark(moved)
        return moved

    monkeypatch.setattr(torch.nn.Module, "to", to)
    with mode:
        yield mode


def test_the_stand_in_refuses_float64(gpu: AppleGpu) -> None:
    value = torch.ones(2, device="mps")
    assert value.device == (value + 1).device == MPS
    assert value.cpu().double().device == CPU
    wide = torch.zeros(1, dtype=torch.float64)
    for action in (value.double, lambda: value.to(torch.float64), lambda: wide.to("mps")):
        with pytest.raises(TypeError, match="float64"):
            action()


def test_half_precision_is_used_where_the_device_multiplies_it(gpu: AppleGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_dtype("mps", {})[0] == frozen_dtype("mps") == "bfloat16"
    assert "not tested" in choose_dtype("mps", {})[1]
    monkeypatch.setattr(torch, "mm", _refuse)  # macOS 13
    assert choose_dtype("mps", {})[0] == frozen_dtype("mps") == "float32"


def _refuse(*tensors: Any) -> None:
    raise TypeError("BFloat16 is not supported on MPS")


def test_the_device_is_used_only_where_it_is_named(gpu: AppleGpu) -> None:
    assert configure_device("mps") == "mps"
    assert configure_device("auto") == "cpu"


def test_clocks_wait_and_random_numbers_return(gpu: AppleGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[bool] = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append(True))
    wait_for(MPS)
    wait_for(CPU)
    assert waited == [True]
    for device in (MPS, CPU):
        with keep_randomness(device):
            first = torch.rand(3)
        assert torch.equal(torch.rand(3), first)


SETTINGS = {
    "machine": {"device": "mps", "dtype": "bfloat16", "threads": 1},
    "schedule": {"learning_rate": 0.02, "epochs": 1, "probe": False},
    "retention": False,
}


@pytest.mark.long
@pytest.mark.parametrize("technique", ["lora", "full", "p-tuning"])
def test_a_run_asks_the_device_for_nothing_it_lacks(
    gpu: AppleGpu, technique: str, tiny_llama: Path, tmp_path: Path
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", reviews(30) if technique == "full" else answers(30))
    run = tunesmith.tune(
        rows, model=str(tiny_llama), technique=technique, settings=SETTINGS, out=tmp_path / "run", offline=True
    )
    assert run.report.environment
    assert gpu.calls > 1000
    model = tunesmith.load(run.folder, device="mps", offline=True)
    assert model.policy.device == MPS
    assert (model.classify("good") if technique == "full" else model.generate("number 1")) is not None
