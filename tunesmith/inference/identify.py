"""Models by name, before one is loaded: runs with their manifests, adapters, base models. No torch."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tunesmith.config import AnyObjective, AnyTechnique, ModelName
from tunesmith.data.files import is_there, read_page
from tunesmith.data.remote import remote_url
from tunesmith.errors import CheckpointError, ModelError
from tunesmith.models.loading.base_from_run import RUN_FILE, base_place, resolved
from tunesmith.models.loading.bundled_models import BUNDLED_MODELS
from tunesmith.models.loading.checkpoint import MODEL_FILE, verify_model
from tunesmith.models.loading.hub import is_hub_id
from tunesmith.models.loading.locate import locate
from tunesmith.models.loading.weight_files import INDEX, SINGLE, read_json
from tunesmith.plugins import missing

MANIFEST_FILE = MODEL_FILE
CONFIG = "adapter_config.json"
HEAD = "head.safetensors"  # of a model that answers through one
PACKED = "base_in_memory.json"  # next to an exported adapter that was trained over a 4-bit base


class ModelManifest(BaseModel):
    """The manifest of a model folder, used to open it and to detect a wrong base or a changed chat template."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    base: ModelName
    fingerprint: str
    family: str
    objective: AnyObjective
    technique: AnyTechnique
    template_hash: str
    limit: int
    temperature: float = 1.0
    threshold: float | None = None
    temperatures: dict[str, float] = {}  # of the tasks of a model of several
    thresholds: dict[str, float] = {}
    encoders: dict[str, str] = {}  # task -> fingerprint of the model that finds its candidates by vectors
    # Packages that offer its objective, technique or metric, with their versions; older versions read it without.
    plugins: dict[str, str] = {}

    def text(self) -> str:
        """Return the manifest as JSON."""
        return self.model_dump_json(
            indent=1, exclude={key for key in ("plugins", "encoders") if not getattr(self, key)}
        )


def read_manifest(folder: Path) -> ModelManifest:
    """Read the manifest of a model folder, after checking all its files; relative paths of models are resolved.

    Raises:
        CheckpointError: there is no manifest, it is invalid, or a file is missing or has changed.
    """
    if (folder / MANIFEST_FILE).exists():
        verify_model(folder)
    recorded = None
    with suppress(ModelError):  # a damaged manifest is reported below
        recorded = read_json(folder / MANIFEST_FILE, where=str(folder)).get("plugins")
    if fix := missing(recorded):
        raise CheckpointError(f"{folder}: was made with an extension that is not installed; {fix}")
    try:
        about = read_page(folder / MANIFEST_FILE, ModelManifest)
    except OSError:
        raise CheckpointError(
            f"{folder}: {MANIFEST_FILE} is missing, so the run is not finished; finish it with `tunesmith tune`"
        ) from None
    objective = about.objective.with_models(lambda name: resolved(name, folder))
    return about.model_copy(update={"base": base_place(about.base, folder), "objective": objective})


def find_model(run: str | Path, *, offline: bool = False) -> Path:
    """Return the model folder of a run: in its folder, or downloaded if it is on the Hub or behind a URL.

    Args:
        run: run folder, model folder, Hub id or URL.
        offline: do not access the network.

    Raises:
        CheckpointError: there is no finished run.
        ModelError: the Hub has no such run, or cannot be reached.
    """
    name, run = str(run), Path(run)
    if not name:  # a path of nothing is the current folder
        raise CheckpointError("run: the name is empty; give the folder of a run")
    if not run.exists() and is_elsewhere(run):
        run = locate(remote_url(name) or run.as_posix(), offline=offline)
        if not (run / MANIFEST_FILE).exists():
            raise CheckpointError(f"{name}: a model, not a run of Tunesmith; ask it with `tunesmith serve {name}`")
    for folder in (run / "model", run):
        if (folder / MANIFEST_FILE).exists():
            return folder
    if str(run) in BUNDLED_MODELS or (run / "config.json").exists():
        raise CheckpointError(
            f"{run}: a base model, not a run; tune it first with `tunesmith tune ROWS --model {run}`, "
            f"or answer with it untrained: `tunesmith serve {run}`"
        )
    if not run.exists():
        raise CheckpointError(f"{run}: no such folder; `tunesmith runs` lists what is here")
    raise CheckpointError(f"{run}: no finished model in it; finish it with `tunesmith tune`")


def run_of(model: Path) -> Path:
    """Return the run folder of a path that may name the model folder in it."""
    place = model.resolve()
    return place.parent if place.name == "model" and (place.parent / RUN_FILE).exists() else model


def is_elsewhere(name: Path) -> bool:
    """Return whether a name can only be a URL, or a Hub id: not a misspelt path in a folder that is here."""
    owner = name.parent.as_posix()
    return bool(remote_url(name)) or (owner not in (".", "runs") and not is_there(owner) and is_hub_id(name.as_posix()))


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model located by its name, not loaded yet."""

    name: str
    kind: Literal["run", "adapter", "model"]
    folder: Path | None  # None for a GGUF file
    base: str = ""  # the base of a run or adapter
    quantize: str = ""  # quantization of a model or of the base of an adapter, as in `LoadOptions`


def identify(name: str | Path, *, offline: bool = False) -> ModelSource:
    """Locate a model and determine its kind by its files.

    Args:
        name: folder, Hub id, alias or GGUF file.
        offline: do not access the network.

    Raises:
        CheckpointError: a run is broken or not finished.
        ModelError: there is no such model.
    """
    name, path = remote_url(name) or str(name), Path(name).expanduser()
    if name and any((path / page).exists() for page in (f"model/{MANIFEST_FILE}", MANIFEST_FILE, "run.json")):
        folder = find_model(path)
        return ModelSource(name, "run", folder, read_manifest(folder).base)
    if name.lower().endswith(".gguf"):
        return ModelSource(name, "model", None)
    folder = locate(name, offline=offline)
    if (folder / MANIFEST_FILE).exists():
        return ModelSource(name, "run", folder, read_manifest(folder).base)
    # Some trainers write the config.json of the base next to an adapter, so only weights identify a model.
    if (folder / CONFIG).exists() and not any((folder / file).exists() for file in (SINGLE, INDEX)):
        base = read_json(folder / CONFIG, where=name).get("base_model_name_or_path")
        bits = read_json(folder / PACKED, where=name).get("quantize") if (folder / PACKED).exists() else ""
        return ModelSource(name, "adapter", folder, str(base or ""), str(bits or ""))
    return ModelSource(name, "model", folder)
