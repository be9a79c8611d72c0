"""Runs that are served together: each base read once, and every run's numbers over it under a name."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import RLock
from typing import Any
from weakref import WeakValueDictionary

import torch

from tunesmith.data.template import Template
from tunesmith.errors import ModelError
from tunesmith.inference.ask import UnknownModel
from tunesmith.inference.folder import About, find_model, over, read_about, read_base
from tunesmith.inference.local import LocalModel
from tunesmith.model import thin
from tunesmith.model.fork import Past
from tunesmith.model.four_bit import experts
from tunesmith.model.load import Base
from tunesmith.model.lowrank import shed
from tunesmith.model.mixed import same_numbers
from tunesmith.model.policy import Policy
from tunesmith.model.sampling import Sampling
from tunesmith.model.slab import fits
from tunesmith.objectives import Instruct, Multitask
from tunesmith.recipe import AnyObjective
from tunesmith.techniques import Full

# The files of a tokenizer and its chat template.
WORDS = ("*token*.json", "vocab*", "merges.txt", "chat_template*", "*.model", "spiece*")


@dataclass(slots=True, eq=False)
class Ground:
    """A base as it is in memory, and the runs over it; the dict is made anew when one comes or goes."""

    base: Base
    runs: dict[int, ServedModel] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class ServedModel:
    """A model under its name; `version` counts the folders given for the name, `past` stands before every row.

    `tasks` are those of a model of several, each as that task asks it, under the same number.
    """

    name: str
    version: int
    number: int
    model: LocalModel
    ground: Ground
    past: Past = ()
    tasks: tuple[ServedModel, ...] = ()

    @property
    def objective(self) -> AnyObjective:
        """What it was tuned to do."""
        return self.model.objective

    @property
    def limit(self) -> int:
        """The longest question in tokens."""
        return self.model.limit

    @property
    def sampling(self) -> Sampling:
        """How it answers where nobody says how."""
        return self.model.sampling

    @property
    def template(self) -> Template:
        """How a question becomes ids."""
        return self.model.template

    @property
    def virtual(self) -> int:
        """Columns that virtual tokens take."""
        return self.past[0][0].shape[2] if self.past else 0


class Shelf:
    """What is served: names, the folders that each may stand for, oldest first, and which one it stands for now.

    Threads may ask and load at once. Only these folders are ever read: a request names a name, never a place.
    """

    def __init__(self, sources: Mapping[str, Sequence[Path]], *, device: str = "auto", offline: bool = False) -> None:
        self.sources = {name: tuple(folders) for name, folders in sources.items()}
        self._device, self._offline = device, offline
        self._numbers, self._lock = itertools.count(1), RLock()
        self._grounds: dict[tuple[str, str], Ground] = {}
        self._runs: dict[str, ServedModel] = {}
        self._bases: dict[str, ServedModel] = {}
        self._templates: WeakValueDictionary[str, Template] = WeakValueDictionary()
        self.changed: Callable[[], None] = lambda: None  # told when a run came or went

    def load(self, name: str, *, version: int = 0) -> ServedModel:
        """The run of that name from now on, read anew; the newest version unless one is named."""
        if name not in self.sources:
            raise UnknownModel(f"model: {name!r} was not registered when the server started; {self._known()}")
        folders = self.sources[name]
        version = version or len(folders)
        if not 1 <= version <= len(folders):
            raise UnknownModel(f"model: {name!r} has no version {version}; it has 1 to {len(folders)}")
        with self._lock:
            run = self._read(name, folders[version - 1], version)
            self._replace(name, run)
        return run

    def unload(self, name: str) -> None:
        """Nobody is answered under that name from now on; what it answers now it ends."""
        with self._lock:
            if name not in self._runs:
                raise UnknownModel(f"model: {name!r} is not loaded; {self._known()}")
            self._replace(name, None)

    def roll_back(self, name: str) -> ServedModel:
        """The version before the one that is served."""
        version = self._one(self._runs, name).version
        if version == 1:
            raise UnknownModel(f"model: {name!r} is at its first version; give a newer one to go back from")
        return self.load(name, version=version - 1)

    def get(self, name: str) -> ServedModel:
        """The run of that name, or the base."""
        return self._one({run.name: run for run in self.runs()}, name)

    def runs(self) -> list[ServedModel]:
        """Everything that answers, runs with their tasks first, then bases."""
        bases = [run for name, run in self._bases.items() if name not in self._runs]
        return [*(one for run in self._runs.values() for one in (run, *run.tasks)), *bases]

    def grounds(self) -> list[Ground]:
        """The bases in memory."""
        return list(self._grounds.values())

    def _one(self, runs: Mapping[str, ServedModel], name: str) -> ServedModel:
        if name not in runs:
            raise UnknownModel(f"model: {name[:100]!r} is not served here; {self._known()}")
        return runs[name]

    def _known(self) -> str:
        return f"there are {', '.join(run.name for run in self.runs())}" if self.runs() else "none is loaded"

    def _read(self, name: str, place: Path, version: int) -> ServedModel:
        folder = find_model(place)
        about = read_about(folder)
        if isinstance(about.technique, Full):
            # Its weights are its own, so nothing is shared, and the base it was tuned over need not stay.
            base = read_base(about, device=self._device, offline=self._offline)
            model = over(base, folder, about)
            ground = Ground(replace(base, network=model.policy.network))
        else:
            ground = self._ground(about)
            if experts(ground.base.network) and not about.technique.virtual_tokens():
                cure = "merge it, or ask it with `tunesmith ask`"
                raise ModelError(f"{name}: adapters of a mixture of experts cannot answer beside others; {cure}")
            model = over(replace(ground.base, network=same_numbers(ground.base.network)), folder, about)
            shed(model.policy.network)
            model.policy.adapter = None  # it keeps what was shed, and is for saving
        model.template = self._same_words(folder, model.template)
        return self._run(name, version, model, ground)

    def _same_words(self, folder: Path, template: Template) -> Template:
        """The template of another run with the very same tokenizer files: a tokenizer takes as much as an adapter."""
        digest = hashlib.sha256()
        for path in sorted(path for pattern in WORDS for path in folder.glob(pattern)):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return self._templates.setdefault(f"{template.chats} {digest.hexdigest()}", template)

    def _run(self, name: str, version: int, model: LocalModel, ground: Ground) -> ServedModel:
        run = ServedModel(name, version, next(self._numbers), model, ground)
        if model.policy.family != "decoder":
            return _with_tasks(run)
        if not fits(model.policy.network):
            kind = model.policy.network.config.model_type
            raise ModelError(f"{name}: a {kind} keeps more of a row than keys and values; ask it with `tunesmith ask`")
        if model.policy.virtual is not None:
            with torch.inference_mode():
                run.past = model.policy.virtual.past(model.policy.network)
        return _with_tasks(run)

    def _ground(self, about: About) -> Ground:
        """The base in memory, read if it is not there."""
        key = (about.fingerprint, about.technique.load_options().quantize)
        if key not in self._grounds:
            base = read_base(about, device=self._device, offline=self._offline)
            base.network.requires_grad_(False)
            thin.install(base.network)  # as in each run over it: what all have alike is computed once for all
            self._grounds = {**self._grounds, key: Ground(base)}  # anew: other threads go through the dict as it was
        return self._grounds[key]

    def _name_base(self, run: ServedModel) -> None:
        """Let the base under a run answer by its folder's name; in 4 bits, or where another base is called so, with
        what tells them apart."""
        key = next((key for key, ground in self._grounds.items() if ground is run.ground), None)
        named = any(base.ground is run.ground for base in self._bases.values())
        if key is None or named or run.ground.base.family != "decoder":
            return
        fingerprint, quantized = key
        name = "-".join(filter(None, [Path(run.ground.base.name).name, quantized]))
        name = name if name not in self._bases else f"{name}-{fingerprint[:8]}"
        self._bases = {**self._bases, name: self._run(name, 1, _plain(run.ground.base, run.limit), run.ground)}

    def _replace(self, name: str, run: ServedModel | None) -> None:
        """Put a run in the place of another of its name, or of none; a base that nobody uses any more goes."""
        old = self._runs.get(name)
        kept = {other: held for other, held in self._runs.items() if other != name}
        self._runs = {**kept, name: run} if run is not None else kept
        if run is not None:
            run.ground.runs = {**run.ground.runs, run.number: run}
        if old is not None:
            old.ground.runs = {number: other for number, other in old.ground.runs.items() if other is not old}
        self._grounds = {key: ground for key, ground in self._grounds.items() if ground.runs}
        self._bases = {name: base for name, base in self._bases.items() if base.ground in self._grounds.values()}
        if run is not None:
            self._name_base(run)
        self.changed()


def _with_tasks(run: ServedModel) -> ServedModel:
    """The run with each of its tasks as a model of its own: RUN/TASK."""
    if isinstance(run.objective, Multitask):
        names = list(run.objective.tasks)
        run.tasks = tuple(replace(run, name=f"{run.name}/{name}", model=run.model.at(name)) for name in names)
    return run


def _plain(base: Base, limit: int) -> LocalModel:
    """The base itself as a model that answers chats."""
    network: Any = same_numbers(base.network)
    policy = Policy.over(network, family=base.family)
    policy.train(False)
    return LocalModel(policy, Template(base.tokenizer), Instruct(), limit)
