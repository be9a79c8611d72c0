"""Base models by name: where their files are, and what their config.json says before torch is imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data.files import is_there, quoted
from tunesmith.data.remote import fetched_folder, remote_url
from tunesmith.errors import ModelError, suggestion
from tunesmith.models.loading import base_from_run as run_base
from tunesmith.models.loading.bundled_models import BUNDLED_MODELS, fetch, folder_of, is_whole, nearest
from tunesmith.models.loading.checkpoint import MODEL_FILE, READ_BY_LIBRARIES
from tunesmith.models.loading.hub import HUB_ID, from_hub
from tunesmith.models.loading.weight_files import ADAPTER, CONVERT, PICKLES, read_json

if TYPE_CHECKING:
    from tunesmith.models.sharded import Sharding

# Only files of the top folder: subfolders have other formats (onnx/, original/), which can be gigabytes.
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
# Model types whose tokens attend in both directions, and that need only ids and a mask to return a state per token.
ENCODERS = frozenset(
    {
        "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie",
        "eurobert", "megatron-bert", "mobilebert", "modernbert", "mpnet", "nomic_bert", "rembert", "roberta",
        "roberta-prelayernorm", "roformer", "squeezebert", "xlm-roberta", "xlm-roberta-xl",
    }
)  # fmt: skip
# Ends of the names of transformers' classes that generate text from text alone.
GENERATIVE_CLASSES = ("ForCausalLM", "LMHeadModel")
# End of the names of those that generate from images or sound as well, if their configuration has a text part.
MULTIMODAL_CLASSES = ("ForConditionalGeneration",)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Dtype, device and quantization of loaded weights."""

    dtype: str = "float32"  # a key of DTYPES; auto: bfloat16 on a GPU that has it, float32 elsewhere
    device: str = "cpu"
    quantize: str = ""  # empty or nf4
    sharding: Sharding | None = None  # None: every process has all weights


AS_THEY_ARE = LoadOptions()


def locate(name: str, *, offline: bool = False, files: Sequence[str] = HUB_FILES) -> Path:
    """Return the folder of a model, after downloading it if needed.

    Args:
        name: alias, Hub id (`owner/name`, or `owner/name@commit`), folder, run folder, or URL of a folder.
        offline: use only local files.
        files: patterns of the files to download from the Hub.

    Raises:
        ModelError: if there is not any such model.
    """
    if name in BUNDLED_MODELS:
        return fetch(name, offline=offline)
    path = Path(name).expanduser()
    if name and is_there(path) and path.is_dir():
        return run_base.model_folder(path)
    if name and is_there(path) and path.is_file():
        fix = CONVERT if path.suffix in PICKLES else "name the folder that contains it"
        raise ModelError(f"{name}: a single file; {fix}")
    if url := remote_url(name):
        return fetched_folder(url, suffixes=READ_BY_LIBRARIES, offline=offline)
    check_hub_id(name)
    return from_hub(name, offline=offline, files=files, otherwise=f"use {_aliases()}")


def check_hub_id(name: str) -> None:
    """Raise ModelError for a name that is neither here nor can be one of the Hub, with the nearest alias."""
    if name.startswith("runs/"):
        siblings = [str(path) for path in Path(name).parent.glob("*") if path.is_dir()]
        fix = suggestion(name, siblings) or "`tunesmith runs` lists what is here"
        raise ModelError(f"{name}: no such folder; {fix}")
    alias = nearest(name)
    if "/" not in name and alias:
        raise ModelError(f"{name}: no such model; did you mean {alias}?")
    if not HUB_ID.fullmatch(name):
        raise ModelError(f"{name or 'model'}: no such folder; use a folder, a Hub id or {_aliases()}")


def not_in_4_bits(name: str, *, offline: bool = False) -> str:
    """Return why a model cannot be loaded in 4 bits here, with the fix; empty if it can.

    Args:
        name: alias, Hub id, folder, run folder or GGUF file.
        offline: use only local files.

    Raises:
        ModelError: as `locate` does.
    """
    if reason := no_bitsandbytes():
        return reason
    if name.lower().endswith(".gguf"):
        return f"{name}: a GGUF file is not quantized a second time; leave `quantize` out"
    if run_base.begins_from(locate(name, offline=offline), where=name)[0]:
        return f"{name}: a run's adapter is merged in memory, which 4-bit weights do not support; leave `quantize` out"
    return ""


def no_bitsandbytes(key: str = "quantize: nf4") -> str:
    """Return the message for a missing bitsandbytes; empty if it is installed.

    Args:
        key: key and value of the recipe that need it.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return f"{key} needs bitsandbytes, which is missing; pip install {quoted('tunesmith[quantize]')}"
    return ""


def _aliases() -> str:
    """Return the bundled models, for the end of a message."""
    return f"a bundled model ({', '.join(BUNDLED_MODELS)})"


def local_family(name: str) -> str:
    """Return `decoder` or `encoder` for a model whose config.json is here; empty if it has to be loaded.

    Args:
        name: alias, Hub id, folder, run folder or GGUF file.

    Raises:
        ModelError: there cannot be such a model, or no objective supports it.
    """
    if name.lower().endswith(".gguf"):
        if not Path(name).expanduser().is_file():
            raise ModelError(f"{name}: no such file; check the path")
        return ""
    path = Path(name).expanduser()
    if name in BUNDLED_MODELS:
        folder = folder_of(name)
        if not is_whole(folder):
            return ""
    elif name and is_there(path):
        folder = locate(name)
    else:
        check_hub_id(name)
        return ""
    if (folder / MODEL_FILE).exists():
        return str(read_json(folder / MODEL_FILE, where=name).get("family", ""))
    if not (folder / "config.json").exists() and (folder / "adapter_config.json").is_file():
        raise ModelError(f"{name}: {ADAPTER}")
    config = read_json(folder / "config.json", where=name)
    kind = str(config.get("model_type") or "")
    if config.get("is_encoder_decoder"):
        raise ModelError(encoder_decoder(kind, where=name))
    if kind in ENCODERS and not config.get("is_decoder"):
        return "encoder"
    return "decoder" if _generates(config) else ""


def _generates(config: Mapping[str, Any]) -> bool:
    """Return whether the class named in a configuration is a decoder, or has a text part that is one."""
    names = [str(name) for name in config.get("architectures") or []]
    text = config.get("text_config")
    if isinstance(text, dict) and not text.get("is_encoder_decoder") and text.get("model_type") not in ENCODERS:
        return any(name.endswith(GENERATIVE_CLASSES + MULTIMODAL_CLASSES) for name in names)
    return any(name.endswith(GENERATIVE_CLASSES) for name in names)


def encoder_decoder(kind: str, *, where: str) -> str:
    """Return the message for an encoder-decoder of a model type."""
    return (
        f"{where}: {kind} is an encoder-decoder, which no objective supports; "
        "choose a decoder (Llama, Qwen, Gemma, GPT) or an encoder (BERT)"
    )
