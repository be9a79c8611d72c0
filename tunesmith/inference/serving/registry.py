"""Registry of served models: each base is loaded once, and the runs over it share its weights."""

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

from tunesmith.config import AnyObjective
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.errors import ModelError
from tunesmith.inference.defaults import BASE_CHAT, always_thinks
from tunesmith.inference.identify import ModelManifest, ModelSource, identify, read_manifest
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.saved_model import load_over_base, read_base
from tunesmith.inference.serving.request import UnknownModel
from tunesmith.models.attention.network_cache import RowState
from tunesmith.models.attention.shared_prefix import Past
from tunesmith.models.families import positions_of
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.generation.slot_kv_cache import fits
from tunesmith.models.kernels import skinny_linear as thin
from tunesmith.models.kernels.fused_lora import drop_peft_wrappers
from tunesmith.models.kernels.multi_lora import share_parameters
from tunesmith.models.loading.device import configure_device
from tunesmith.models.loading.load import Base, load_base
from tunesmith.models.loading.locate import LoadOptions
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import SINGLE_TASK
from tunesmith.techniques import Full

# Greatest prompt length in tokens of a base model whose configuration has no limit.
BASE_LIMIT = 4096
# The files of a tokenizer and its chat template.
WORDS = ("*token*.json", "vocab*", "merges.txt", "chat_template*", "*.model", "spiece*")


@dataclass(slots=True, eq=False)
class SharedBase:
    """A loaded base and the runs over it; the dictionary is replaced, not modified, when runs change."""

    base: Base
    runs: dict[int, ServedModel] = field(default_factory=dict)
    slots: bool = True  # rows share a slot cache and run together; otherwise each has a cache of the network's own kind
    continues: bool = True  # several tokens at once may follow those of a row

    @classmethod
    def of(cls, base: Base) -> SharedBase:
        """Measure once what the rows of a base may do together; a load while they run changes nothing of it."""
        if base.family != "decoder":
            return cls(base)
        policy = Policy.over(share_parameters(base.network), family=base.family)
        policy.train(False)
        return cls(base, slots=fits(policy.network), continues=policy.rules.continues)


@dataclass(slots=True, eq=False)
class ServedModel:
    """A served model."""

    name: str
    version: int  # index, from 1, among the folders registered under the name
    number: int  # unique id of this load
    model: LocalModel
    shared_base: SharedBase
    past: Past | RowState = ()  # keys and values of virtual tokens, or the state after them
    tasks: tuple[ServedModel, ...] = ()  # of a multitask model, with the same number

    @property
    def objective(self) -> AnyObjective:
        """The objective it was tuned with."""
        return self.model.objective

    @property
    def limit(self) -> int:
        """Greatest prompt length in tokens."""
        return self.model.limit

    @property
    def sampling(self) -> Sampling:
        """Default sampling options."""
        return self.model.sampling

    def sampling_for(self, thinking: bool | None) -> Sampling:
        """Return the default sampling options of a mode."""
        return self.model.sampling_for(thinking)

    def thinking_mode(self, thinking: bool | None) -> bool | None:
        """Return the mode of a prompt for a requested one; raise RecipeError if the model does not have it."""
        return self.model.thinking_mode(thinking)

    @property
    def template(self) -> Template:
        """The tokenizer and chat template."""
        return self.model.template

    @property
    def virtual(self) -> int:
        """Number of virtual tokens."""
        return self.model.policy.virtual_tokens


class ModelRegistry:
    """The served models: names, their registered folders (oldest first), and the version in use.

    Thread-safe. Only registered folders are read: a request contains a name, never a path.

    Args:
        sources: folders of each name, oldest first.
        device: auto, cpu or cuda.
        dtype: auto, float32 or bfloat16, in which weights are kept and answers computed.
        offline: do not download base models.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Path]],
        *,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        self.sources = {name: tuple(folders) for name, folders in sources.items()}
        self._device = device
        self._dtype = dtype
        self._offline = offline
        self._numbers = itertools.count(1)
        self._lock = RLock()
        self._grounds: dict[tuple[str, str], SharedBase] = {}
        self._runs: dict[str, ServedModel] = {}
        self._bases: dict[str, ServedModel] = {}
        self._templates: WeakValueDictionary[str, Template] = WeakValueDictionary()
        self.changed: Callable[[], None] = lambda: None  # called when a run is loaded or unloaded

    def load(self, name: str, *, version: int = 0) -> ServedModel:
        """Load or reload a run, by default its newest version. Raises UnknownModel if it is not registered."""
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
        """Reject further requests to a run; running ones are finished."""
        with self._lock:
            if name not in self._runs:
                raise UnknownModel(f"model: {name!r} is not loaded; {self._known()}")
            self._replace(name, None)

    def roll_back(self, name: str) -> ServedModel:
        """Switch to the previous version of a run."""
        version = self._one(self._runs, name).version
        if version == 1:
            raise UnknownModel(f"model: {name!r} is at its first version; load a newer one first")
        return self.load(name, version=version - 1)

    def get(self, name: str) -> ServedModel:
        """Return a run, a task or a base by name; raise UnknownModel."""
        return self._one({run.name: run for run in self.runs()}, name)

    def runs(self) -> list[ServedModel]:
        """Return all models: runs with their tasks first, then bases."""
        bases = [run for name, run in self._bases.items() if name not in self._runs]
        return [*(model for run in self._runs.values() for model in (run, *run.tasks)), *bases]

    def shared_bases(self) -> list[SharedBase]:
        """Return the loaded bases."""
        return list(self._grounds.values())

    def _one(self, runs: Mapping[str, ServedModel], name: str) -> ServedModel:
        if name not in runs:
            raise UnknownModel(f"model: {name[:100]!r} is not served here; {self._known()}")
        return runs[name]

    def _known(self) -> str:
        return f"there are {', '.join(run.name for run in self.runs())}" if self.runs() else "none is loaded"

    def _read(self, name: str, place: Path, version: int) -> ServedModel:
        source = identify(place, offline=self._offline)
        if source.kind == "model":
            return self._read_base(name, source, version)
        folder = source.folder or place
        about = read_manifest(folder)
        if isinstance(about.technique, Full):
            # Full tuning changes all weights, so nothing is shared and the base is not needed.
            base = read_base(about, device=self._device, dtype=self._dtype, offline=self._offline)
            model = load_over_base(base, folder, about)
            ground = SharedBase.of(replace(base, network=model.policy.network))
        else:
            ground = self._ground(about)
            model = load_over_base(replace(ground.base, network=share_parameters(ground.base.network)), folder, about)
            drop_peft_wrappers(model.policy.network)
            model.policy.adapter = None  # it references the dropped wrappers and is only needed for saving
        model.template = self._same_words(folder, model.template)
        return self._run(name, version, model, ground)

    def _read_base(self, name: str, source: ModelSource, version: int) -> ServedModel:
        """Load a base model, or take the loaded one that runs share, as a model for chats."""
        options = LoadOptions(self._dtype, configure_device(self._device), source.quantize)
        base = load_base(source.name, options=options, offline=self._offline)
        if base.family != "decoder":
            raise ModelError(f"{name}: an encoder without a tuned head cannot answer; serve a decoder or a run")
        key = (base.fingerprint, source.quantize)
        if key not in self._grounds:
            base.network.requires_grad_(False)
            thin.install(base.network)
            self._grounds = {**self._grounds, key: SharedBase.of(base)}
        ground = self._grounds[key]
        limit = positions_of(ground.base.network.config.to_dict()) or BASE_LIMIT
        return self._run(name, version, _plain(ground.base, limit), ground)

    def _same_words(self, folder: Path, template: Template) -> Template:
        """Share the template of runs with identical tokenizer files; a tokenizer takes as much memory as an adapter."""
        digest = hashlib.sha256()
        for path in sorted(path for pattern in WORDS for path in folder.glob(pattern)):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return self._templates.setdefault(f"{template.chats} {digest.hexdigest()}", template)

    def _run(self, name: str, version: int, model: LocalModel, shared_base: SharedBase) -> ServedModel:
        run = ServedModel(name, version, next(self._numbers), model, shared_base)
        if model.policy.family != "decoder":
            return _with_tasks(run)
        policy = model.policy
        if policy.virtual is not None:
            with torch.inference_mode():
                run.past = policy.virtual.past(policy.network) if shared_base.slots else _state_of_virtual(policy)
        return _with_tasks(run)

    def _ground(self, manifest: ModelManifest) -> SharedBase:
        """Return the loaded base of a run; load it if necessary."""
        key = (manifest.fingerprint, manifest.technique.load_options().quantize)
        if key not in self._grounds:
            base = read_base(manifest, device=self._device, dtype=self._dtype, offline=self._offline)
            base.network.requires_grad_(False)
            thin.install(base.network)  # as in each run over it, so that shared layers are computed once for all
            self._grounds = {
                **self._grounds,
                key: SharedBase.of(base),
            }  # replaced, because other threads iterate over it
        return self._grounds[key]

    def _name_base(self, run: ServedModel) -> None:
        """Serve the base of a run under its folder name, with a suffix if it is quantized or the name is taken."""
        key = next((key for key, ground in self._grounds.items() if ground is run.shared_base), None)
        has_name = any(base.shared_base is run.shared_base for base in self._bases.values())
        if key is None or has_name or run.shared_base.base.family != "decoder":
            return
        fingerprint, quantized = key
        name = "-".join(filter(None, [Path(run.shared_base.base.name).name, quantized]))
        name = name if name not in self._bases else f"{name}-{fingerprint[:8]}"
        self._bases = {
            **self._bases,
            name: self._run(name, 1, _plain(run.shared_base.base, run.limit), run.shared_base),
        }

    def _replace(self, name: str, run: ServedModel | None) -> None:
        """Replace or remove the run of a name, and release bases without runs."""
        old = self._runs.get(name)
        others = {other: loaded for other, loaded in self._runs.items() if other != name}
        self._runs = {**others, name: run} if run is not None else others
        if run is not None:
            run.shared_base.runs = {**run.shared_base.runs, run.number: run}
        if old is not None:
            old.shared_base.runs = {number: other for number, other in old.shared_base.runs.items() if other is not old}
        self._grounds = {key: ground for key, ground in self._grounds.items() if ground.runs}
        self._bases = {name: base for name, base in self._bases.items() if base.shared_base in self._grounds.values()}
        if run is not None:
            self._name_base(run)
        self.changed()


def _state_of_virtual(policy: Policy) -> RowState:
    """Return the state of a network after its virtual tokens."""
    cache = policy.prefill(torch.empty(0, dtype=torch.int64, device=policy.device), rows=1)
    assert cache is not None, "virtual tokens have run"
    return RowState(cache)


def _with_tasks(run: ServedModel) -> ServedModel:
    """Add each task of a multitask run as a model RUN/TASK."""
    if SINGLE_TASK not in (names := run.objective.task_objectives):
        run.tasks = tuple(replace(run, name=f"{run.name}/{name}", model=run.model.at(name)) for name in names)
    return run


def _plain(base: Base, limit: int) -> LocalModel:
    """Return the base itself as a model for chats."""
    network: Any = share_parameters(base.network)
    policy = Policy.over(network, family=base.family)
    policy.train(False)
    template = Template(base.tokenizer)
    return LocalModel(policy, template, BASE_CHAT, limit, thinks=always_thinks(template))
