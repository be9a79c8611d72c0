"""The ways that race: our server, transformers, llama.cpp, plain generation, and labels."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench.serve.clients import free_port, race, started
from bench.serve.made import GUESS, LABELLED, MOOD, ROOT, TOKENS, make_run, merged_run, questions


def ours(keep: Path, *, runs: int = 1) -> dict[str, Any]:
    names = [f"run{number}" for number in range(runs)]
    return served(names, [make_run(keep / name, seed=number) for number, name in enumerate(names)])


def half(keep: Path) -> dict[str, Any]:
    """In bfloat16, so with as many bits per weight as llama.cpp in f16."""
    return served(["run0"], [make_run(keep / "run0", seed=0)], "--dtype", "bfloat16")


def gguf(keep: Path) -> dict[str, Any]:
    """The file of llama.cpp's way, by the engine of that library within our server."""
    merged_run(keep)
    return served(["model"], [keep / "gguf" / "model.gguf"], "--rows", "32")


def served(names: list[str], folders: list[Path], *more: str) -> dict[str, Any]:
    port = free_port()
    command = [sys.executable, "-m", "tunesmith", "serve", *map(str, folders), "--port", str(port), "--offline", *more]
    with started(command, port, "/health") as url:
        return race(url, names)


def transformers(keep: Path, *more: str) -> dict[str, Any]:
    folder, port = merged_run(keep), free_port()
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", str(folder), "--port", str(port), "--host", "127.0.0.1", "--device", "cpu", *more]
    with started(command, port, "/health") as url:
        return race(url, [str(folder)])


def llamacpp(keep: Path) -> dict[str, Any]:
    """As many slots as there are clients, the same room for each."""
    import xllamacpp

    merged_run(keep)
    wanted = xllamacpp.CommonParams()
    wanted.model.path = str(keep / "gguf" / "model.gguf")
    wanted.n_parallel, wanted.n_ctx = 32, 32 * 512
    wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = os.cpu_count() or 1
    wanted.warmup, wanted.ui, wanted.verbosity = True, False, 0
    server = xllamacpp.Server(wanted)
    return race(str(server.listening_address), ["bench"])


def plain(keep: Path) -> dict[str, Any]:
    """`generate` of transformers on the merged model, one question after another."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = merged_run(keep)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    times, tokens = [], 0
    for text in questions(2, 0) + questions(16, 200):
        began = time.perf_counter()
        tokens += _generated(model, tokenizer, text, TOKENS)[1]
        times.append(time.perf_counter() - began)
    times = sorted(times[2:])
    return {"1": {"answers": len(times) / sum(times), "p50": times[8], "p95": times[15], "tokens": tokens}}


def _generated(model: Any, tokenizer: Any, text: str, longest: int) -> tuple[str, int]:
    messages = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    end = tokenizer.eos_token_id
    out = model.generate(**ids, max_new_tokens=longest, do_sample=False, pad_token_id=end)[
        0, ids["input_ids"].shape[1] :
    ]
    return tokenizer.decode(out, skip_special_tokens=True), len(out)


def labels(keep: Path) -> dict[str, Any]:
    """Texts a second: labels by the scores of their words through the server, and labels that are generated."""
    import httpx2
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = merged_run(keep)
    run = make_run(keep / "mood", seed=0, labels=True)
    lines = (ROOT / "tunesmith" / "shipped_data" / "reviews.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines[: LABELLED + 8]]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    _generated(model, tokenizer, f"{MOOD}\n\n{texts[-1]}", GUESS)
    began = time.perf_counter()
    for text in texts[:16]:
        _generated(model, tokenizer, f"{MOOD}\n\n{text}", GUESS)
    written = 16 / (time.perf_counter() - began)
    port, found = free_port(), {"generate": written}
    command = [sys.executable, "-m", "tunesmith", "serve", str(run), "--port", str(port), "--offline"]
    with started(command, port, "/health") as url, httpx2.Client(timeout=600) as http:
        http.post(f"{url}/classify", json={"model": "mood", "input": texts[LABELLED:]}).raise_for_status()
        began = time.perf_counter()
        http.post(f"{url}/classify", json={"model": "mood", "input": texts[:LABELLED]}).raise_for_status()
        found["together"] = LABELLED / (time.perf_counter() - began)
        began = time.perf_counter()
        for text in texts[:16]:
            http.post(f"{url}/classify", json={"model": "mood", "input": text}).raise_for_status()
        found["one by one"] = 16 / (time.perf_counter() - began)
    return found
