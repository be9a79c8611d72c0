"""Every command with `--json`, run in one folder of tiny models, rows and runs; paths stay relative."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.golden.runs import REWARD, answers, pages, pairs, reviews, write_jsonl
from tests.tiny import tiny_decoder, tiny_encoder
from tunesmith.cli import main

PLAIN = "--offline --set machine.threads=1 --set machine.device=cpu --set machine.dtype=float32"
EAGER = "--set schedule.learning_rate=0.02 --set schedule.probe=false --set schedule.save_steps=0"
FULL = f"--model bert --technique full {PLAIN} {EAGER}"
LORA = f"--model llama --set technique.rank=4 {PLAIN} {EAGER}"
FAQ = "# Pumps\n\n## How long is the guarantee?\n\nThe guarantee is 24 months.\n\n## Who repairs it?\n\nThe dealer.\n"
TABLE = "<table><tr><th>part</th><th>price</th></tr><tr><td>seal</td><td>3</td></tr></table>"
AXOLOTL = "base_model: llama\nadapter: lora\nlora_r: 8\nflash_attention: true\nsequence_len: 128\n"
LOOP = {
    "model": "llama",
    "data": {"train": "answers.jsonl"},
    "objective": {"kind": "preference", "max_new_tokens": 5},
    "schedule": {"epochs": 1, "batch_rows": 8, "learning_rate": 0.01, "probe": False},
    "machine": {"device": "cpu", "dtype": "float32", "threads": 1},
    "loop": {"rounds": 1, "prompts": 12, "held_out": 5, "judge": "rules:short", "final_judge": "rules:few"},
}
FEW = "\n\ndef few(attempt):\n    return -sum(map(ord, attempt.text))\n"
ASKED_ONCE = {"where": "a:1", "messages": [{"role": "user", "content": "hm"}], "tuned": {"text": "yes"}, "base": None}
CHALLENGE = {
    "name": "decoder", "base": "llama", "rendered": "", "tokens": 4, "seconds": 1.0, "prompts": [ASKED_ONCE] * 2,
}  # fmt: skip
WITH_SCHEMA = "audit collect compare evaluate export need plan rebase replay rlhf tune verify votes"

# Name of the frozen file -> the words of the command, in the order in which they run.
COMMANDS: dict[str, str] = {
    **{f"schema-{name}": f"{name} --schema" for name in WITH_SCHEMA.split()},
    "init": f"init reviews.jsonl --out drafted.yaml --model llama {PLAIN} --json",
    "init-from": "init reviews.jsonl --from axolotl.yaml --objective classify --out carried.yaml --offline --json",
    "collect-domain": "collect manual --out domain.jsonl --json",
    "collect-instruct": "collect manual/faq.md --as instruct --out instruct.jsonl --json",
    "collect-rag": "collect manual --as rag --size 200 --out rag.jsonl --json",
    "collect-table": "collect manual/parts.html --as table --out table.jsonl --json",
    "audit-clean": "audit reviews.jsonl --json --offline",
    "audit-faulty": "audit faulty.jsonl --against faulty-test.jsonl --fix fixed.jsonl --json --offline",
    "label-export": "label partly.jsonl --export labelled.jsonl --json",
    "plan-quick": f"plan reviews.jsonl --quick {FULL} --json",
    "plan-timed": f"plan answers.jsonl {LORA} --json",
    "tune-dry-run": f"tune reviews.jsonl {LORA} --dry-run --json",
    "tune-encoder": f"tune reviews.jsonl {FULL} --out encoder --json",
    "tune-decoder": f"tune answers.jsonl {LORA} --set objective.instruction=Which? --set objective.max_new_tokens=8 "
    "--out decoder --json",
    "tune-already-finished": f"tune reviews.jsonl {FULL} --out encoder --json",
    "tune-broken-gate": f"tune reviews.jsonl {FULL} --out broken --set gates.min_delta=2 --json",
    "tune-multitask": "tune multitask.yaml --out together --offline --json",
    "evaluate-base": "evaluate encoder --data reviews-test.jsonl --against base --json --offline",
    "evaluate-alone": "evaluate decoder --data answers.jsonl --rows 10 --answers said.jsonl --json --offline",
    "evaluate-domain": "evaluate llama --data pages.jsonl --objective domain --json --offline",
    "ask-label": "ask encoder good --json --offline",
    "ask-text": "ask decoder number --json --offline",
    "ask-task": "ask together good --task mood --json --offline",
    "chat": "chat decoder --temperature 0 --json --offline",
    "votes-import": "votes import votes.db judged.jsonl --json",
    "votes-summary": "votes summary votes.db --json",
    "votes-export": "votes export votes.db preferred.jsonl --json",
    "export-merged": "export decoder --format merged --json --offline",
    "export-adapter": "export decoder --format adapter --json --offline",
    "export-gguf": "export decoder --format gguf --json --offline",
    "verify": "verify challenge.json --at decoder --json --offline",
    "verify-chat": "verify decoder --chat --json --offline",
    "runs": "runs . --json",
    "runs-diff": "runs diff encoder broken --json",
    "models": "models --json --offline",
    "doctor": "doctor --json --offline",
    "need": f"learning-curve many.jsonl {FULL} --rows 100 --target 0.9 --out curve --json",
    "compare": f"compare reviews.jsonl {LORA} --set data.audit=note --out compared --json "
    "--set arms=[prompt,few-shot,tf-idf,tuned]",
    "ask-comparison": "ask compared good --arm tf-idf --json --offline",
    "compare-documents": f"compare facts.jsonl {LORA} --set documents.source=facts-documents.jsonl --out looked-up "
    "--set documents.encoder=bert --set documents.origin=doc --set objective.kind=instruct "
    "--set compare.changed_facts=2 --set objective.max_new_tokens=8 --set data.audit=note --json "
    "--set arms=[prompt,rag,tuned,tuned+rag,raft,closed-book,no-context,oracle-context]",
    "ask-documents": "ask looked-up Where? --arm rag --json --offline",
    "audit-with-model": "audit faulty.jsonl --model bert --json --offline",
    "collect-written": "collect manual/text.txt manual/faq.md --as instruct --write questions --writer llama "
    "--per-passage 2 --max-new-tokens 12 --out written.jsonl --json --offline",
    "evaluate-models": "evaluate encoder --data reviews-test.jsonl --against broken --json --offline",
    "evaluate-adapter": "evaluate decoder/export/adapter --base llama --data answers.jsonl --rows 10 --json --offline",
    "init-domain": "init pages.jsonl --out field.yaml --model llama --offline --json",
    "votes-thumbs": "votes export votes.db thumbs.jsonl --format thumbs --json",
    "rlhf-rl": "rlhf rl.yaml --out rl-loop --json --offline",
    "rlhf-dry-run": "rlhf loop.yaml --out loop --dry-run --json --offline",
    "rlhf": "rlhf loop.yaml --out loop --json --offline",
    "label": "label partly.jsonl --labels good,bad --port 0 --json --out url.json",
    "feedback": "feedback decoder --against base --rows 4 --temperature 0 --port 0 --json --offline --out url.json",
    "serve": "serve encoder decoder --port 0 --json --offline --out url.json",
    "error-recipe": "tune reviews.jsonl --set schedule.epoch=3 --json --offline",
    "error-data": "tune missing.jsonl --json --offline",
    "error-usage": "votes exprt votes.db --json",
}
RUN_FOLDERS = ("encoder", "decoder", "together")
TYPED = {"chat": "number 1\n/system be brief\nnumber 2\n/quit\n"}
ANA = {"rater": "Ana", "tab": "tab-aaaa"}
# What is asked of the servers: path, body (None asks by GET); KEY stands for the key of the item shown last.
ASKED: dict[str, Sequence[tuple[str, Any]]] = {
    "label": (
        ("/api/next", ANA),
        ("/api/vote", {**ANA, "item": "KEY", "label": "good", "seconds": 1.5}),
        ("/api/skip", {**ANA, "item": "KEY"}),
        ("/api/undo", ANA),
        ("/api/vote", {**ANA, "item": "KEY", "label": ""}),
        ("/api/release", ANA),
        ("/export.jsonl", None),
    ),
    "feedback": (
        ("/api/next", ANA),
        ("/api/vote", {**ANA, "item": "KEY", "choice": "left", "seconds": 1.5}),
        ("/api/skip", {**ANA, "item": "KEY"}),
        ("/api/undo", ANA),
        ("/api/release", ANA),
    ),
    "serve": (
        ("/health", None),
        ("/v1/models", None),
        ("/v1/models/decoder", None),
        ("/classify", {"model": "encoder", "input": ["good 1", "bad 2"]}),
        (
            "/v1/chat/completions",
            {"model": "decoder", "messages": [{"role": "user", "content": "number 1"}], "temperature": 0},
        ),
        ("/v1/completions", {"model": "decoder", "prompt": "it is", "max_tokens": 4, "temperature": 0}),
        ("/v1/embeddings", {"model": "encoder", "input": "good"}),
        ("/feedback", {"id": "none", "good": True}),
        ("/v1/completions", {"model": "nobody", "prompt": "x"}),
        ("/nowhere", None),
    ),
}


def furnish(folder: Path) -> None:
    """Write the tiny models, rows and recipes that the commands name."""
    tiny_decoder(folder / "llama")
    tiny_encoder(folder / "bert")
    write_jsonl(folder / "reviews.jsonl", reviews(60))
    write_jsonl(folder / "many.jsonl", reviews(140))
    write_jsonl(folder / "reviews-test.jsonl", [{**row, "text": f"so {row['text']}"} for row in reviews(12)])
    write_jsonl(folder / "answers.jsonl", answers(40))
    write_jsonl(folder / "pages.jsonl", pages(12))
    write_jsonl(folder / "judged.jsonl", [{**row, "raters": [f"R{i % 2}"]} for i, row in enumerate(pairs(12))])
    write_jsonl(
        folder / "partly.jsonl", [{"text": f"text {i}", **({"label": "good"} if i < 3 else {})} for i in range(12)]
    )
    faulty = [*reviews(24), *reviews(4), {"text": "good 0", "label": "negative"}, {"text": "", "label": "positive"}]
    faulty += [{"text": "mail me at ana.lopez@example.org or call +49 30 901820", "label": "positve"}]
    write_jsonl(folder / "faulty.jsonl", faulty)
    write_jsonl(folder / "faulty-test.jsonl", reviews(6))
    (folder / "rules.py").write_text(REWARD + FEW, encoding="utf-8")
    (folder / "loop.yaml").write_text(json.dumps(LOOP), encoding="utf-8")
    tasks = {
        "mood": {"objective": "classify", "data": {"train": "reviews.jsonl"}},
        "count": {"objective": {"kind": "instruct", "max_new_tokens": 6}, "data": {"train": "answers.jsonl"}},
    }
    schedule = {"epochs": 1, "batch_rows": 16, "learning_rate": 0.02, "probe": False}
    recipe = {"objective": {"kind": "multitask", "tasks": tasks}, "schedule": schedule}
    (folder / "multitask.yaml").write_text(json.dumps(LOOP | {"data": {}, "loop": {}} | recipe), encoding="utf-8")
    write_jsonl(folder / "facts.jsonl", [fact(i) for i in range(40)])
    write_jsonl(folder / "facts-documents.jsonl", [{"doc_id": f"d{i}", "text": page(i)} for i in range(40)])
    rl = {"kind": "rl", "reward": "votes", "group": 4, "max_new_tokens": 5}
    (folder / "rl.yaml").write_text(json.dumps(LOOP | {"objective": rl}), encoding="utf-8")
    (folder / "axolotl.yaml").write_text(AXOLOTL, encoding="utf-8")
    (folder / "challenge.json").write_text(json.dumps(CHALLENGE), encoding="utf-8")
    manual = folder / "manual"
    manual.mkdir()
    (manual / "faq.md").write_text(FAQ, encoding="utf-8")
    (manual / "text.txt").write_text("Pumps move water from here to there, day and night. " * 12, encoding="utf-8")
    (manual / "parts.html").write_text(f"<html><body><h1>Parts</h1>{TABLE}</body></html>", encoding="utf-8")
    (manual / "bad.pdf").write_bytes(b"%PDF-1.7 and nothing more")


def fact(number: int) -> dict[str, Any]:
    """Return a question whose answer stands in a document."""
    return {"prompt": f"Where is house {number}?", "answer": f"in street {number * 7 % 40}", "doc": f"d{number}"}


def page(number: int) -> str:
    """Return the document that answers the question of the same number."""
    return f"House {number} is a house of stone. House {number} stands in street {number * 7 % 40}. It has a red door."


def run_all(folder: Path) -> dict[str, Any]:
    """Run every command in `folder`, which is the working folder, and return what each gave by its name."""
    furnish(folder)
    found = {name: _run(name) for name in COMMANDS}
    return found | {f"files-{run}": _files(folder / run) for run in RUN_FOLDERS}


def _run(name: str) -> dict[str, Any]:
    out, answered = io.StringIO(), list[Any]()
    client = threading.Thread(target=_ask, args=(name, answered))
    Path("url.json").unlink(missing_ok=True)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # one that comes late ends no test
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()), _typed(TYPED.get(name, "")):
        if name in ASKED:
            client.start()
        try:
            code: Any = main(COMMANDS[name].split())
        except (Exception, SystemExit):  # the other commands are compared all the same
            code = traceback.format_exc()
    if name in ASKED:
        client.join()
    signal.signal(signal.SIGINT, before)
    documents = _documents(out.getvalue())
    return {"code": code, "documents": documents, **({"answers": answered} if answered else {})}


def _documents(text: str) -> list[Any]:
    """Return the JSON documents that stand in a text one after the other, and what is none as it stands."""
    found, text = list[Any](), text.strip()
    while text:
        try:
            document, end = json.JSONDecoder().raw_decode(text)
        except ValueError:
            return [*found, text]
        found.append(document)
        text = text[end:].strip()
    return found


@contextlib.contextmanager
def _typed(text: str) -> Iterator[None]:
    before, sys.stdin = sys.stdin, io.StringIO(text)
    try:
        yield
    finally:
        sys.stdin = before


def _ask(name: str, answered: list[Any]) -> None:
    """Ask the server that is about to start in this process, then end it as Ctrl-C would."""
    until = time.monotonic() + 60
    while not Path("url.json").exists() or not Path("url.json").stat().st_size:
        if time.monotonic() > until:
            answered.append("no server")
            return
        time.sleep(0.05)
    place = json.loads(Path("url.json").read_text(encoding="utf-8"))["url"].split("/", 3)
    key = ""
    for path, body in ASKED[name]:
        text = None if body is None else json.dumps(body).replace('"KEY"', json.dumps(key)).encode()
        headers = {"content-type": "application/json", "x-tunesmith": "1"}
        request = urllib.request.Request(f"http://{place[2]}{path}", data=text, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, said = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, said = error.code, error.read().decode()
        try:
            document = json.loads(said)
            key = (document.get("item") or {}).get("key", key)
        except ValueError:
            document = said.splitlines()
        answered.append({"path": path, "status": status, "body": document})
    os.kill(os.getpid(), signal.SIGINT)


def _files(run: Path) -> dict[str, Any]:
    """Return the names of a run folder's files and what stands in those that other programs read."""
    names = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    lines = (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "names": [name for name in names if not name.startswith("checkpoints/")],
        "recipe.yaml": yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8")),
        "run.json": json.loads((run / "run.json").read_text(encoding="utf-8")),
        "predictions.jsonl": [json.loads(line) for line in lines],
    }
