"""Properties of large networks, measured once for each shape."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache, wraps
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data.files import write_whole
from tunesmith.data.user_cache import cache_dir
from tunesmith.errors import TunesmithError
from tunesmith.models.world import current_world

if TYPE_CHECKING:  # the format of reports reads `versions`, and must not wait for torch
    import torch

LARGE = 16_000_000  # parameters of a network whose weights take time to read
LIBRARIES = ("tunesmith", "torch", "transformers", "peft")


def once_per_shape(measure: Callable[..., bool]) -> Callable[..., bool]:
    """Let a property of a large network be measured once for its shape, instead of whenever a model is opened.

    That it holds is kept in the user's cache, for this code and processor; that it does not is measured again. The
    shape is the configuration, the classes of the layers, and every parameter's name, size and dtype. Several processes
    always measure, together.
    """

    @wraps(measure)
    def kept(network: Any, **options: Any) -> bool:
        if sum(value.numel() for value in network.parameters()) < LARGE or current_world().size > 1:
            return measure(network, **options)
        shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in network.named_parameters()]
        layers = sorted({str(type(module)) for module in network.modules()})
        config = sorted(network.config.to_dict().items())  # keys of parts of it may be of several types
        computed = [config, network.config._attn_implementation, bits_of(network.device)]
        text = repr([versions(), code_digest(), measure.__name__, options, *computed, shapes, layers])
        key = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        file = cache_dir() / "shapes" / key[:16]
        with suppress(OSError):
            if file.read_bytes() == key.encode():
                return True
        if holds := measure(network, **options):
            with suppress(OSError, TunesmithError):
                file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(file, key)
        return holds

    return kept


def versions() -> dict[str, str]:
    """Return the versions of the libraries that measurements depend on."""
    return {name: version(name) for name in LIBRARIES}


@cache
def code_digest() -> str:
    """Return a digest of this package, which in a clone changes without a new version."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def bits_of(device: torch.device) -> list[object]:
    """Return what the last bits of a result depend on besides the model."""
    import torch

    from tunesmith.models.kernels.float32_products import precision

    if device.type == "cuda":
        return [torch.cuda.get_device_name(device), torch.version.cuda, precision()]
    return [device.type, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), precision()]
