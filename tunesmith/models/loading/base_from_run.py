"""Base models from finished runs: the adapter is merged into the weights, and another run starts from the result."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from tunesmith.data.files import is_there, sha256_of_file
from tunesmith.errors import ModelError
from tunesmith.models.loading.bundled_models import BUNDLED_MODELS
from tunesmith.models.loading.checkpoint import MODEL_FILE, names_file, verify_model
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.loading.weight_files import read_json

RUN_FILE = "run.json"  # every run folder has it from the first second
ADAPTER_FILE = "adapter_model.safetensors"
# Techniques whose adapters can be merged into the base's weights.
MERGEABLE = ("lora", "ia3")


def model_folder(path: Path) -> Path:
    """Return the model folder inside a run folder, or any other folder unchanged.

    Args:
        path: a run folder or a model folder.

    Raises:
        ModelError: if the run is not finished.
    """
    if (path / "model" / MODEL_FILE).exists():
        return path / "model"
    if (path / RUN_FILE).exists() and not (path / "config.json").exists():
        raise ModelError(f"{path}: no finished model in it; finish it with `tunesmith tune`")
    if names_file(path, MODEL_FILE) and not (path / MODEL_FILE).exists():
        raise ModelError(f"{path}: {MODEL_FILE} is missing; restore it, or run again")
    return path


def base_place(name: str, folder: Path) -> str:
    """Return the base of a saved model as a name or path that is valid in the current directory.

    Args:
        name: the base as the run recorded it. A relative path is relative to the directory in which the run was
            started, usually one of the run folder's parents.
        folder: the saved model's folder.
    """
    if name in BUNDLED_MODELS or is_there(Path(name).expanduser()):
        return name
    # A name below the home of another user is found if the run is there too.
    relative = name.removeprefix("~/").replace("\\", "/")  # as it may be recorded on Windows
    candidates = (parent / relative for parent in folder.resolve().parents)
    return next((str(path) for path in candidates if path.is_dir() or path.is_file()), name)


def relative_to(folder: Path, name: str) -> str:
    """Return the path of a model relative to a folder, so that both can be moved together; other names unchanged.

    Args:
        folder: the folder whose file has the path.
        name: alias, Hub id or path.
    """
    path = Path(name).expanduser()
    if name in BUNDLED_MODELS or not is_there(path):
        return name
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # on another drive of Windows
        return path.name


def resolved(name: str, folder: Path) -> str:
    """Return a path that `relative_to` has made as one that is valid in the current directory."""
    if not name.startswith("../"):
        return base_place(name, folder)  # of a run that recorded it as the base
    near = os.path.normpath(folder / name)
    return near if is_there(near) else str((folder.resolve() / name).resolve())  # the folder was reached by a link


def begins_from(folder: Path, *, where: str) -> tuple[str, str]:
    """Return the base that the adapter of a run has to be merged into, and the base's quantization in training.

    Args:
        folder: a model folder.
        where: its name, for messages.

    Returns:
        Name of the base, and `nf4` or an empty string; both empty for a folder with complete weights.

    Raises:
        ModelError: if another run cannot start from this one.
    """
    if not (folder / MODEL_FILE).exists():
        return "", ""
    verify_model(folder)
    manifest = read_json(folder / MODEL_FILE, where=where)
    parts = [manifest.get(key) for key in ("technique", "objective")]
    technique, objective = (str(part.get("kind")) if isinstance(part, dict) else "" for part in parts)
    # A masked-LM head is dropped: what an encoder learned about a domain is in its body.
    if (folder / "head.safetensors").exists() and objective != "domain":
        raise ModelError(
            f"{where}: tuned for {objective} with its own head, which other runs cannot start from; "
            f"start from a run of domain or instruct, or from its base ({manifest.get('base')})"
        )
    if technique != "full" and technique not in MERGEABLE:
        raise ModelError(
            f"{where}: {technique} trains virtual tokens, which cannot be merged into weights; "
            f"start from a run of {', '.join(MERGEABLE)} or full"
        )
    if technique == "full":
        return "", ""
    return base_place(str(manifest.get("base")), folder), str(manifest["technique"].get("quantize", ""))


def merged(network: Any, folder: Path, *, fingerprint: str, where: str) -> tuple[Any, str]:
    """Return the network with the run's adapter merged in, and the fingerprint of the result.

    `fingerprint` is that of the network. Raises ModelError if the run was tuned on another base.
    """
    from tunesmith.models.loading.adapter_files import open_adapter
    from tunesmith.models.loading.text_part import adapter_tree, merge_adapter

    expected = read_json(folder / MODEL_FILE, where=where).get("fingerprint")
    if fingerprint != expected:
        raise ModelError(
            f"{where}: tuned over another base ({expected}, found {fingerprint}); give the base it was tuned on"
        )
    with quiet():
        whole = merge_adapter(network, open_adapter(adapter_tree(network), folder, where=where))
    # An adapter trained over the result must not name the original base as its own.
    whole.name_or_path = adapter_tree(whole).name_or_path = ""
    return whole, hashlib.sha256(f"{fingerprint}{sha256_of_file(folder / ADAPTER_FILE)}".encode()).hexdigest()[:16]
