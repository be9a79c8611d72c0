"""`python -m bench.serve WAY... --keep FOLDER`: answers a second and waiting time at 1, 8 and 32 clients.

WAY is ours, mixed, plain, transformers, llamacpp, labels or adapters (memory); `page` writes bench/SERVE.md from what
lies in the folder.
The model is smollm2-135m under a LoRA of rank 16 whose numbers are random and small: speed does not depend on what was
learned. The questions are descriptions of examples/synopsis.jsonl under the instruction of its recipe, each once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.adapters import TITLE, adapters, section

ROOT = Path(__file__).resolve().parent.parent
SECOND_OF = {"1": 8, "8": 32, "32": 64}  # clients -> questions
INSTRUCTION = "Summarise this package description in one short line:"
MOOD = "Is this review positive or negative? Answer with one word."
CHARACTERS, TOKENS, LABELLED = 500, 24, 64
GUESS = 8  # tokens that a generated label may take: answers such as "The review is positive."
BASE = "smollm2-135m"
NAMES = {
    "ours": "`tunesmith serve`, one LoRA",
    "mixed": "`tunesmith serve`, 8 LoRA in one batch",
    "transformers": "`transformers serve`, merged",
    "batching": "`transformers serve --continuous-batching`, merged",
    "llamacpp": "llama.cpp's server (xllamacpp), GGUF f16",
}


def questions(count: int, skip: int = 0) -> list[str]:
    """So many questions that nobody asked before."""
    rows = [json.loads(line) for line in (ROOT / "examples" / "synopsis.jsonl").open(encoding="utf-8")]
    return [f"{INSTRUCTION}\n\n{row['document'][:CHARACTERS]}" for row in rows[skip : skip + count]]


def make_run(out: Path, *, seed: int, labels: bool = False) -> Path:
    """A run over the shipped decoder whose adapter is small noise."""
    import torch

    from tunesmith.data.template import Template
    from tunesmith.inference.folder import About, save_model
    from tunesmith.inference.local import LocalModel
    from tunesmith.model.checkpoint import write_folder
    from tunesmith.model.load import load_base
    from tunesmith.objectives import Classify, Instruct
    from tunesmith.techniques import Lora

    if (out / "model").exists():
        return out
    base, technique = load_base(BASE), Lora(rank=16)
    objective: Any = Instruct(max_new_tokens=TOKENS, instruction=INSTRUCTION)
    if labels:
        objective = Classify(labels=("negative", "positive"), output="words", instruction=MOOD)
    policy = technique.adapt(base.network, family=base.family, keep_reference=False)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, value in policy.trainable():
            value.add_(torch.randn(value.shape, generator=chance), alpha=1e-3)
    template = Template(base.tokenizer)
    about = About(
        base=BASE,
        fingerprint=base.fingerprint,
        family=base.family,
        objective=objective,
        technique=technique,
        template_hash=template.hash,
        limit=512,
    )
    model = LocalModel(policy, template, objective, 512)
    write_folder(out / "model", lambda half: save_model(half, model, about))
    return out


def merged_run(keep: Path) -> Path:
    """The same run for transformers and for llama.cpp."""
    from tunesmith.inference.export import merged, write_file, write_merged
    from tunesmith.inference.folder import read_about

    out, run = keep / "merged", make_run(keep / "run0", seed=0)
    if not out.exists():
        model = merged(run / "model", read_about(run / "model"), offline=True)
        (keep / "gguf").mkdir(exist_ok=True)
        write_file(model, keep / "gguf", numbers="f16", name="bench")
        write_merged(model, run / "model", out)
    return out


# ------------------------------------------------------------------ servers and clients


@contextmanager
def started(command: list[str], port: int, ready: str) -> Iterator[str]:
    """A server in a process of its own, and its address."""
    url = f"http://127.0.0.1:{port}"
    import httpx

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        until = time.monotonic() + 180
        while True:
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                raise SystemExit(
                    f"{command[:4]} did not start:\n{(process.stderr.read() if process.stderr else '')[-2000:]}"
                )
            try:
                if httpx.get(f"{url}{ready}", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


async def asked(url: str, texts: list[str], *, clients: int, names: list[str]) -> tuple[list[float], float, int]:
    """Seconds of each answer, seconds of all, tokens of all; each client asks again when it was answered."""
    import httpx

    left, times, tokens = list(enumerate(texts)), [], 0
    limits = httpx.Limits(max_connections=clients)

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal tokens
        while left:
            number, text = left.pop()
            body = {
                "model": names[number % len(names)],
                "messages": [{"role": "user", "content": text}],
                "max_tokens": TOKENS,
                "temperature": 0,
            }
            began = time.perf_counter()
            answer = await http.post(f"{url}/v1/chat/completions", json=body)
            answer.raise_for_status()
            times.append(time.perf_counter() - began)
            tokens += answer.json()["usage"]["completion_tokens"]

    async with httpx.AsyncClient(timeout=600, limits=limits) as http:
        began = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(clients)))
        return times, time.perf_counter() - began, tokens


def race(url: str, names: list[str]) -> dict[str, Any]:
    """All numbers of clients, one after another, each with questions of its own."""
    found, skip = {}, 200
    asyncio.run(asked(url, questions(2, 0), clients=1, names=names[:1]))  # warm
    for clients, count in SECOND_OF.items():
        texts = questions(count, skip)
        skip += count
        times, seconds, tokens = asyncio.run(asked(url, texts, clients=int(clients), names=names))
        times.sort()
        found[clients] = {
            "answers": count / seconds,
            "p50": times[len(times) // 2],
            "p95": times[min(len(times) - 1, int(0.95 * len(times)))],
            "tokens": tokens,
        }
        print(clients, found[clients], flush=True)
    return found


def ours(keep: Path, *, runs: int = 1) -> dict[str, Any]:
    names = [f"run{number}" for number in range(runs)]
    folders = [str(make_run(keep / name, seed=number)) for number, name in enumerate(names)]
    port = free_port()
    command = [sys.executable, "-m", "tunesmith", "serve", *folders, "--port", str(port), "--offline"]
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
    import httpx
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
    with started(command, port, "/health") as url, httpx.Client(timeout=600) as http:
        http.post(f"{url}/classify", json={"model": "mood", "input": texts[LABELLED:]}).raise_for_status()
        began = time.perf_counter()
        http.post(f"{url}/classify", json={"model": "mood", "input": texts[:LABELLED]}).raise_for_status()
        found["together"] = LABELLED / (time.perf_counter() - began)
        began = time.perf_counter()
        for text in texts[:16]:
            http.post(f"{url}/classify", json={"model": "mood", "input": text}).raise_for_status()
        found["one by one"] = 16 / (time.perf_counter() - began)
    return found


WAYS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "plain": plain,
    "ours": ours,
    "mixed": lambda keep: ours(keep, runs=8),
    "transformers": transformers,
    "batching": lambda keep: transformers(keep, "--continuous-batching"),
    "llamacpp": llamacpp,
    "labels": labels,
    "adapters": lambda keep: adapters(keep, make_run(keep / "run0", seed=0)),
}


# ------------------------------------------------------------------ the page


def page(found: dict[str, dict[str, Any]]) -> str:
    """The whole report."""
    lines = [
        "# Answers a second, alone and together",
        "",
        "Made by `python -m bench.serve`. smollm2-135m in float32 (llama.cpp: f16) under a LoRA of rank 16; one-line",
        f"summaries of package descriptions, at most {CHARACTERS} characters of each under one instruction, at most",
        f"{TOKENS} tokens an answer, greedy, every question once. Each client asks again when it was answered:",
        f"{', '.join(f'{count} questions at {clients}' for clients, count in SECOND_OF.items())}.",
        "",
        f"Machine: {machine()}.",
        "",
        "| way | clients | answers/s | times plain | p50 s | p95 s |",
        "|---|---|---|---|---|---|",
    ]
    one = found["plain"]["1"]
    lines.append(
        f"| plain `generate`, one by one | 1 | {one['answers']:.2f} | 1.0 | {one['p50']:.2f} | {one['p95']:.2f} |"
    )
    for way, name in NAMES.items():
        for clients, told in found.get(way, {}).items():
            times = told["answers"] / one["answers"]
            lines.append(
                f"| {name} | {clients} | {told['answers']:.2f} | {times:.1f} | {told['p50']:.2f} | {told['p95']:.2f} |"
            )
    lines += ["", *verdict(found, one["answers"])]
    if "labels" in found:
        lines += ["", *of_labels(found["labels"])]
    return "\n".join([*lines, ""])


def write_page(found: dict[str, dict[str, Any]]) -> None:
    """The page of what was measured; a part that was not measured again stays as it stands there."""
    file = ROOT / "bench" / "SERVE.md"
    race, mark, memory = file.read_text(encoding="utf-8").partition(TITLE)
    memory = mark + memory
    if "plain" in found and "ours" in found:
        race = f"{page(found)}\n"
    if "adapters" in found:
        memory = "\n".join([*section(found["adapters"]), ""])
    file.write_text(f"{race.rstrip()}\n\n{memory}".rstrip() + "\n", encoding="utf-8")


def verdict(found: dict[str, dict[str, Any]], plain_rate: float) -> list[str]:
    """The floor, and the best for one client and for many."""
    best = {
        clients: max(
            (way for way in NAMES if clients in found.get(way, {})), key=lambda w: found[w][clients]["answers"]
        )
        for clients in SECOND_OF
        if any(clients in found.get(way, {}) for way in NAMES)
    }
    told = [f"Best at {clients} clients: {NAMES[way]}." for clients, way in best.items()]
    times = found["ours"]["32"]["answers"] / plain_rate
    held = "held" if times >= 3 else "missed"
    return [f"Floor of 3 times plain `generate` one by one, at 32 clients: {times:.1f} times, {held}.", "", *told]


def of_labels(found: dict[str, float]) -> list[str]:
    """Labels by scores against labels that are written."""
    lines = [
        f"Labels of shipped reviews ({MOOD!r}):",
        "",
        "| way | texts/s | times |",
        "|---|---|---|",
    ]
    ways = {
        "generate": f"plain `generate`, one by one, at most {GUESS} tokens",
        "one by one": "`/classify` by scores, a text a request, one client",
        "together": f"`/classify` by scores, {LABELLED} texts a request",
    }
    lines += [f"| {name} | {found[way]:.2f} | {found[way] / found['generate']:.1f} |" for way, name in ways.items()]
    times = found["together"] / found["generate"]
    return [
        *lines,
        "",
        f"Floor of 5 times generating the label: {times:.1f} times, {'held' if times >= 5 else 'missed'}.",
    ]


def machine() -> str:
    """Processor, and the versions that were raced."""
    names = ("torch", "transformers", "peft", "xllamacpp", "fastapi", "uvicorn")
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    chip = model[1] if model else platform.machine()
    return f"{os.cpu_count()} cores of {chip}; " + ", ".join(f"{name} {version(name)}" for name in names)


def main() -> None:
    """Race what is named, and write the page when it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ways", nargs="+", choices=[*WAYS, "page"])
    parser.add_argument("--keep", type=Path, default=Path("serve-bench"))
    args = parser.parse_args()
    args.keep.mkdir(parents=True, exist_ok=True)
    for way in args.ways:
        if way == "page":
            found = {
                one: json.loads((args.keep / f"{one}.json").read_text())
                for one in WAYS
                if (args.keep / f"{one}.json").exists()
            }
            write_page(found)
            continue
        told = WAYS[way](args.keep)
        print(way, json.dumps(told), flush=True)
        (args.keep / f"{way}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
