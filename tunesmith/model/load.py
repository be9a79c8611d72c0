"""Base models: from an alias, a Hub id, a folder or a GGUF file to a network that can be trusted."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from tunesmith.data.files import is_there
from tunesmith.data.tokenizer import choose_pad, homeless
from tunesmith.errors import ModelError, TunesmithError, briefly
from tunesmith.model import four_bit, run_base, weights
from tunesmith.model.device import DTYPES
from tunesmith.model.families import family_of
from tunesmith.model.gguf_file import read_gguf
from tunesmith.model.quiet import quiet
from tunesmith.model.shipped import SHIPPED, fetch, nearest
from tunesmith.model.virtual import takes_past

HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
# The hub's HTTP library has changed its name before; its root error is what the hub's own error is made from.
HTTP_ERROR: type[BaseException] = HfHubHTTPError.__mro__[1]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How weights are to lie in memory; `quantize` is empty or nf4."""

    dtype: str = "float32"
    device: str = "cpu"
    quantize: str = ""


AS_THEY_ARE = LoadOptions()


@dataclass(slots=True)
class Base:
    """A model before anything is tuned; `folder` is None when the weights came out of a GGUF file."""

    name: str
    folder: Path | None
    network: Any
    tokenizer: PreTrainedTokenizerBase
    family: str
    fingerprint: str


def load_base(name: str, *, options: LoadOptions = AS_THEY_ARE, offline: bool = False) -> Base:
    """The model that an alias, Hub id, folder or GGUF file names, in evaluation mode."""
    _check_options(options)
    if options.quantize and (why := not_in_4_bits(name, offline=offline)):
        raise ModelError(why)
    with quiet():
        base = (
            _from_gguf(name, options)
            if name.lower().endswith(".gguf")
            else _from_place(name, locate(name, offline=offline), options, offline=offline)
        )
        weights.check_finite(base.network, where=name)
        rows = base.network.get_input_embeddings().num_embeddings
        if token := homeless(base.tokenizer, rows=rows):
            cure = "call resize_token_embeddings(len(tokenizer)) on it and save it again, or take the template out"
            raise ModelError(f"{name}: its chats are written with {token!r}, for which it has no embedding; {cure}")
        choose_pad(base.tokenizer, rows=rows)
        _learn_the_end(base.network, base.tokenizer)
        base.network.eval()
        if base.family == "decoder":
            _ready_to_answer(base.network, where=name)
    return base


def locate(name: str, *, offline: bool = False) -> Path:
    """The folder that a name stands for: a shipped model, a folder that is there or a run's, a copy from the Hub."""
    if name in SHIPPED:
        return fetch(name, offline=offline)
    path = Path(name).expanduser()
    if name and is_there(path) and path.is_dir():
        return run_base.model_folder(path)
    if name and is_there(path) and path.is_file():
        cure = weights.CONVERT if path.suffix in weights.PICKLES else "name the folder it lies in"
        raise ModelError(f"{name}: a single file; {cure}")
    alias = nearest(name)
    if "/" not in name and alias:
        raise ModelError(f"{name}: no such model; did you mean {alias}?")
    if not HUB_ID.fullmatch(name):
        raise ModelError(f"{name or 'model'}: no such folder; use a folder, a Hub id or {_always_there()}")
    return _from_hub(name, offline=offline)


def _check_options(options: LoadOptions) -> None:
    """Nothing for options that can work here; raises ModelError otherwise."""
    if options.dtype not in DTYPES:
        raise ModelError(f"dtype: {options.dtype!r} is not one of {', '.join(DTYPES)}; use one of them")
    if options.quantize not in ("", "nf4"):
        raise ModelError(f"quantize: {options.quantize!r} is not known; use nf4, or leave it out")


def not_in_4_bits(name: str, *, offline: bool = False) -> str:
    """Why a model cannot lie in 4 bits here, with the cure; empty where it can. Raises ModelError, as `locate` does."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return "quantize: nf4 needs bitsandbytes, which is missing; pip install 'tunesmith[quantize]'"
    if name.lower().endswith(".gguf"):
        return f"{name}: a GGUF file is not quantized a second time; leave `quantize` out"
    if run_base.begins_from(locate(name, offline=offline), where=name)[0]:
        return f"{name}: a run's adapter is merged in memory, where nothing is kept in 4 bits; leave `quantize` out"
    return ""


def _always_there() -> str:
    """The aliases, for the end of a message."""
    return f"an alias that is always there ({', '.join(SHIPPED)})"


def _from_hub(name: str, *, offline: bool) -> Path:
    """The folder of a Hub model, with configuration, tokenizer and safetensors and nothing else."""
    try:
        return Path(
            snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=["*/*"], local_files_only=offline)
        )
    except GatedRepoError as error:
        raise ModelError(f"{name}: asks for consent first; accept its terms on the Hub, then hf auth login") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{name}: the Hub has no such model; check the name, or use {_always_there()}") from error
    except (OSError, HTTP_ERROR, HFValidationError) as error:
        state = "offline" if offline else "the Hub cannot be reached"
        raise ModelError(
            f"{name}: no such folder, not in the Hub's local cache, and {state}; connect once, or use {_always_there()}"
        ) from error


def _from_place(name: str, folder: Path, options: LoadOptions, *, offline: bool) -> Base:
    """The base in a folder; of a run with an adapter, the base it was tuned over with the adapter merged in."""
    begin, bits = run_base.begins_from(folder, where=name)
    if not begin:
        return _from_folder(name, folder, options)
    base = load_base(begin, options=replace(options, quantize=bits), offline=offline)
    if bits:  # unpacked, so that the adapter lies beside the very numbers it was learned beside
        base.network = four_bit.unpacked(base.network)
    network, mark = run_base.merged(base.network, folder, found=base.fingerprint, where=name)
    return Base(name, None, network, read_tokenizer(folder, where=name), base.family, mark)


def read_tokenizer(folder: Path, *, where: str) -> Any:
    """The tokenizer that lies in a folder. Raises ModelError."""
    with _reading(where), quiet():
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _from_folder(name: str, folder: Path, options: LoadOptions) -> Base:
    """The base in a folder, which is vetted before transformers sees it."""
    if not (folder / "config.json").exists() and (folder / "adapter_config.json").is_file():
        raise ModelError(f"{name}: {weights.ADAPTER}")
    config = weights.read_json(folder / "config.json", where=name)
    family = family_of(config, where=name)
    _refuse_foreign_code(config, where=name)
    files = weights.weight_files(folder, where=name)
    kind: Any = AutoModelForCausalLM if family == "decoder" else AutoModel
    tokenizer = read_tokenizer(folder, where=name)
    with _reading(name):
        network, info = kind.from_pretrained(
            folder,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_complete refuses them, and says which
            **in_memory(options, family),
        )
        if options.quantize:
            four_bit.settle(network)
            if why := four_bit.left_whole(network):
                raise ModelError(f"{name}: {why}")
        else:
            network.to(options.device)
    weights.check_complete(info, family=family, where=name)
    mark = weights.fingerprint(network.config.to_dict(), weights.glimpses_of_files(files))
    return Base(name, folder, network, tokenizer, family, mark)


def _from_gguf(name: str, options: LoadOptions) -> Base:
    """The base in a GGUF file, unpacked."""
    file = Path(name).expanduser()
    if not file.is_file():
        raise ModelError(f"{name}: no such file; check the path")
    with _reading(name):
        network, tokenizer = read_gguf(file, where=name)
    family = family_of(network.config.to_dict(), where=name)
    mark = weights.fingerprint(network.config.to_dict(), weights.glimpses_of_network(network))
    network.to(device=options.device, dtype=DTYPES[options.dtype])
    return Base(name, None, network, tokenizer, family, mark)


def in_memory(options: LoadOptions, family: str) -> dict[str, Any]:
    """What transformers is told about dtype, place and 4 bits.

    An encoder's pooler stays whole: nobody reads it, and where a checkpoint has none it could not be packed.
    """
    dtype = DTYPES[options.dtype]
    if not options.quantize:
        return {"dtype": dtype}
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["pooler"] if family == "encoder" else None,
    )
    return {"dtype": dtype, "quantization_config": four_bits, "device_map": {"": options.device}}


def _refuse_foreign_code(config: Mapping[str, Any], *, where: str) -> None:
    """Nothing for a plain configuration; raises ModelError where it asks for kernels from somewhere else.

    Some versions of transformers fetch and run what these keys name, whatever trust_remote_code says
    (CVE-2026-4372).
    """
    for key, value in config.items():
        if isinstance(value, dict):
            _refuse_foreign_code(value, where=where)
        elif "implementation" in key and isinstance(value, str) and ("/" in value or ":" in value):
            raise ModelError(f"{where}: config.json asks for code from elsewhere ({key}); do not use this model")


def _learn_the_end(network: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """An embedding in which the end token learns: torch holds back the gradient of the padding row.

    Many chat models, SmolLM2 among them, pad with their end token.
    """
    embedding = network.get_input_embeddings()
    if embedding.padding_idx is not None and embedding.padding_idx == tokenizer.eos_token_id:
        embedding.padding_idx = None


def _ready_to_answer(network: Any, *, where: str) -> None:
    """A decoder that answers from what it is told alone. Raises ModelError for one that answers are not drawn from.

    Penalties and temperatures of its generation_config would stay in every copy that is saved, and are not measured.
    """
    if not takes_past(network):
        raise ModelError(
            f"{where}: a {network.config.model_type} does not go on from keys and values, as answers are drawn here; "
            "choose a decoder of the Llama, Qwen, Gemma or GPT-2 kind"
        )
    own = network.generation_config
    network.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """A context in which whatever the libraries raise over foreign files becomes one line for the user.

    A configuration can be wrong in any way, so can the error; only library calls belong in here.
    """
    try:
        yield
    except TunesmithError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(f"{where}: does not fit into memory; take a smaller model, or quantize: nf4") from error
    except Exception as error:  # a damaged folder can make transformers raise anything
        raise ModelError(
            f"{where}: transformers cannot read it ({briefly(error)}); check or download it again"
        ) from error
