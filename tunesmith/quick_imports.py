"""Imports of torch, transformers and PEFT in two thirds of the time; measured in `bench/NOTES.md`.

The garbage collector waits until they are over: it would search a million new objects a dozen times and find nothing.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

# Packages with more than 10,000 objects, or that import those.
LARGE = frozenset({"accelerate", "peft", "scipy", "sklearn", "torch", "transformers", "tunesmith"})


def compile_later(stack: ExitStack) -> None:
    """Until the stack is closed, let `torch.compile` compile with the first call: it imports the whole compiler."""
    import torch

    now = torch.compile
    stack.callback(setattr, torch, "compile", now)

    def later(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
        if function is None:  # @torch.compile(dynamic=True)
            return partial(later, **options)
        compiled = cache(lambda: now(function, **options))
        return lambda *args, **kwargs: compiled()(*args, **kwargs)

    torch.compile = later  # type: ignore[assignment]


class QuickFinder:
    """Finds modules where Python does; the large ones are executed without garbage collection."""

    own = False  # the process is the command line's: then whatever exists after an import is never garbage

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of a module that is executed in another way, else None."""
        compiles = name == "bitsandbytes"  # which PEFT imports for every adapter, in 4 bits or not
        if not compiles and not (gc.isenabled() and name.partition(".")[0] in LARGE):
            return None
        spec = PathFinder.find_spec(name, path, target)
        # Another loader, such as that of a zip file, may be shared by all modules that it executes.
        if spec is None or not isinstance(spec.loader, SourceFileLoader | ExtensionFileLoader):
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            with ExitStack() as stack:
                if gc.isenabled():
                    gc.disable()
                    stack.callback(gc.enable)
                    if self.own:
                        stack.callback(gc.freeze)
                if compiles:
                    compile_later(stack)
                execute(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


FINDER = QuickFinder()
sys.meta_path.insert(0, FINDER)
