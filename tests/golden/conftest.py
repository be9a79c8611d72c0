"""A cache of its own; no pictures and no timing of matrix products, which take two seconds a run and decide no number;
each page template is compiled once.

Only other libraries are patched here, so that no renaming of internal modules touches these tests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import jinja2
import matplotlib.figure
import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def _small_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_CACHE", str(tmp_path_factory.mktemp("golden-cache")))
        patch.setattr(matplotlib.figure.Figure, "savefig", _no_picture)
        patch.setattr(torch, "mm", _small_products(torch.mm))
        patch.setattr(threading.Thread, "start", _at_once(threading.Thread.start))
        patch.setattr(jinja2.Environment, "compile", _compiled_once(jinja2.Environment.compile))
        yield


def _no_picture(figure: Any, buffer: Any, **_: Any) -> None:
    buffer.write('<svg viewBox="0 0 1 1"></svg>')


def _at_once(start: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    """Rank rows to label before the next one is shown, on a busy machine too."""
    return lambda thread: thread.run() if thread.name == "label order" else start(thread)


def _small_products(product: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Skip products larger than any of a tiny model: only the timing of the machine asks for them."""

    def mm(left: torch.Tensor, right: torch.Tensor, **more: Any) -> torch.Tensor:
        return left if right.numel() > 500_000 else product(left, right, **more)

    return mm


def _compiled_once(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what the same kind of environment made of the same source."""
    known: dict[tuple[Any, ...], Any] = {}

    def compile(self: jinja2.Environment, source: Any, name: str | None = None, *more: Any, **by_name: Any) -> Any:
        key = (type(self), self.autoescape, self.trim_blocks, str(source), name, more, tuple(sorted(by_name.items())))
        if key not in known:
            known[key] = compiled(self, source, name, *more, **by_name)
        return known[key]

    return compile
