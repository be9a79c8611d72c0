"""Properties of large networks, measured once for each shape."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from importlib.metadata import version
from typing import Any

from tunesmith.data.files import write_whole
from tunesmith.data.user_cache import cache_dir
from tunesmith.errors import TunesmithError
from tunesmith.models.world import current_world

LARGE = 16_000_000  # parameters of a network whose weights take time to read
LIBRARIES = ("tunesmith", "torch", "transformers", "peft")


def once_per_shape(measure: Callable[..., bool]) -> Callable[..., bool]:
    """Let a property of a large network be measured once for its shape, instead of whenever a model is opened.

    That it holds is kept in the user's cache; that it does not is measured again. The shape is the configuration, the
    classes of the layers, and every parameter's name, size and dtype. Several processes always measure, together.
    """

    @wraps(measure)
    def kept(network: Any, **options: Any) -> bool:
        if sum(value.numel() for value in network.parameters()) < LARGE or current_world().size > 1:
            return measure(network, **options)
        shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in network.named_parameters()]
        layers = sorted({str(type(module)) for module in network.modules()})
        computed = [network.config.to_dict(), network.config._attn_implementation, network.device.type, shapes, layers]
        text = json.dumps([versions(), measure.__name__, str(options), computed], sort_keys=True, default=str)
        file = cache_dir() / "shapes" / hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
        if file.exists():
            return True
        if holds := measure(network, **options):
            with suppress(OSError, TunesmithError):
                file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(file, measure.__name__)
        return holds

    return kept


def versions() -> dict[str, str]:
    """Return the versions of the libraries that measurements depend on."""
    return {name: version(name) for name in LIBRARIES}
