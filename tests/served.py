"""Runs of tiny models in folders, and a server over them in this process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from tests.bases import base, folder, labelled, policy, scrambled
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.inference.export.formats import merged, write_adapter, write_file, write_merged
from tunesmith.inference.identify import ModelManifest, read_manifest
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.saved_model import load, save_model
from tunesmith.inference.serving.backends.external import ExternalEngine, Program
from tunesmith.inference.serving.backends.gguf import GgufBackend
from tunesmith.inference.serving.engine import Engine
from tunesmith.inference.serving.protocol import Limits
from tunesmith.inference.serving.registry import ModelRegistry
from tunesmith.inference.serving.traffic_split import Splits
from tunesmith.models.loading.checkpoint import write_folder
from tunesmith.objectives import Classify, Instruct
from tunesmith.techniques.base import Technique

WRITES = Instruct(max_new_tokens=12)
Found = TypeVar("Found")
LABELS = Classify(output="words")
HEAD = Classify(output="linear")


def save_run(
    out: Path, technique: Technique, objective: Any = WRITES, *, kind: str = "llama", seed: int = 1, lively: float = 0.3
) -> Path:
    """A run folder whose model answers in its own way."""
    found = base(kind)
    if isinstance(objective, Classify):
        objective = objective.bind(labelled(4), found.family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = policy(kind, technique)
    chance = torch.Generator().manual_seed(seed)
    made.head = objective.head(made)
    with torch.no_grad():
        for _, value in made.trainable():
            value.add_(torch.randn(value.shape, generator=chance), alpha=lively)
    form = Template(found.tokenizer, chat=found.family == "decoder")
    about = ModelManifest(
        base=str(folder(kind)),
        fingerprint=found.fingerprint,
        family=found.family,
        objective=objective,
        technique=technique,
        template_hash=form.hash,
        limit=128,
        temperature=1.7,
    )
    model = LocalModel(made, form, objective, 128, temperature=1.7)
    write_folder(out / "model", lambda half: save_model(half, model, about))
    return out


def export_run(run: Path, *, dtype: str = "f16") -> Path:
    """The run in all three formats of other programs, where `tunesmith export` puts them; the folder of them."""
    folder, out = run / "model", run / "export"
    write_folder(out / "adapter", lambda half: write_adapter(load(folder), folder, half))
    model = merged(folder, read_manifest(folder), offline=True)
    write_folder(out / "merged", lambda half: write_merged(model, folder, half))
    write_folder(out / f"gguf-{dtype}", lambda half: write_file(model, half, dtype=dtype, name=run.name))
    return out


def engine_over(
    sources: Mapping[str, Sequence[Path]], *, limits: Limits | None = None, dtype: str = "auto"
) -> tuple[Engine, list[str]]:
    """An engine with every name loaded, and the list that bugs are told to."""
    shelf = ModelRegistry(sources, dtype=dtype, offline=True)
    for name in sources:
        shelf.load(name)
    bugs: list[str] = []
    return Engine(shelf, limits=limits or Limits(), failed=bugs.append), bugs


@dataclass
class Served:
    """A server that runs: its engine, where it is, and what went wrong in the engine."""

    engine: Any
    url: str
    port: int
    bugs: list[str]


@contextmanager
def served(
    sources: Mapping[str, Sequence[Path]],
    *,
    limits: Limits | None = None,
    splits: Mapping[str, Mapping[str, float]] | None = None,
    token: str = "",
) -> Iterator[Served]:
    """The server over runs on a free port of loopback, ended with the context."""
    engine, bugs = engine_over(sources, limits=limits)
    with listening(engine, bugs, {name: places[0] for name, places in sources.items()}, splits, token) as found:
        yield found


@contextmanager
def served_files(places: Mapping[str, Path], *, limits: Limits | None = None, token: str = "") -> Iterator[Served]:
    """The server over GGUF files."""
    limits = limits or Limits(rows=4)
    with served_outside(GgufBackend(places, slots=limits.rows), limits=limits, token=token) as found:
        yield found


@contextmanager
def served_outside(program: Program, *, limits: Limits, token: str = "") -> Iterator[Served]:
    """The server over another program."""
    bugs: list[str] = []
    with listening(ExternalEngine(program, limits=limits, failed=bugs.append), bugs, {}, {}, token) as found:
        yield found


@contextmanager
def listening(
    engine: Any,
    bugs: list[str],
    rooms: Mapping[str, Path],
    splits: Mapping[str, Mapping[str, float]] | None,
    token: str,
    shadow: Any = None,
) -> Iterator[Served]:
    """A server over an engine; each room keeps the thumbs of its model."""
    from tunesmith.annotation.thumbs import FILE, Thumbs
    from tunesmith.web.openai.app import POLICY, Api
    from tunesmith.web.openai.metrics import Metrics
    from tunesmith.web.server import server

    thumbs = Thumbs(lambda name: rooms[name.partition("/")[0]] / FILE)
    app = Api(engine, splits=Splits(splits or {}), metrics=Metrics(), thumbs=thumbs, shadow=shadow).app()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        running = server(app, token=token, policy=POLICY, drain=30)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            yield Served(engine, f"http://127.0.0.1:{port}", port, bugs)
        finally:
            running.should_exit = True
            thread.join(60)
            engine.close(5)
            thumbs.close()
    assert not thread.is_alive()


__all__ = ["HEAD", "LABELS", "WRITES", "Served", "engine_over", "export_run", "save_run", "scrambled", "served"]


def await_here(coroutine: Coroutine[Any, Any, Found]) -> Found:
    """Run a coroutine in a thread: in the test's own one, the driver of the browser has a running loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
