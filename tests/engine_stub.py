"""A server that speaks the part of vLLM's or SGLang's protocol that Tunesmith uses, over a tiny model in this process.

Its routes, fields, statuses and messages are those of vLLM 0.32.0, recorded from `vllm serve` on SmolLM2 (see "vLLM and
SGLang over HTTP" in bench/NOTES.md), or with `owner="sglang"` those in SGLang's source: tokens as text, the end of a
stream apart, errors that are not nested, adapters by `lora_path`. It generates with transformers and PEFT, without any
code of Tunesmith.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.models.loading.suppress_output import quiet

POSITIONS = 1024


@dataclass
class Stub:
    """The state of the server: its base, its adapters, what it was asked, and how its log-probabilities are off."""

    base: Path
    owner: str = "vllm"
    key: str = ""
    off: float = 0.0  # added to every log-probability, nats
    url: str = ""
    loads: bool = True
    adapters: dict[str, Any] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def network(self, adapter: str) -> Any:
        if adapter not in self.adapters:
            with quiet():
                made = AutoModelForCausalLM.from_pretrained(self.base)
                self.adapters[adapter] = made.eval()
        return self.adapters[adapter]

    def load(self, name: str, path: str) -> tuple[int, Any]:
        if not self.loads:
            return 404, {"detail": "Not Found"}
        if not Path(path, "adapter_model.safetensors").exists():
            return self.refusal(404, f"Loading lora {name} failed: No adapter found for {path}")
        with quiet():
            made = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(self.base), path)
        self.adapters[name] = made.eval()
        self.folders.append(path)
        if self.owner == "sglang":
            return 200, {"success": True, "error_message": "", "loaded_adapters": {name: path}}
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, name: str) -> tuple[int, Any]:
        if self.adapters.pop(name, None) is None:
            return self.refusal(404, f"The lora adapter '{name}' cannot be found.")
        return 200, f"Success: LoRA adapter '{name}' removed successfully."

    def refusal(self, status: int, message: str) -> tuple[int, Any]:
        """A status and the page of an error."""
        page = {"message": message, "type": "BadRequestError", "param": None, "code": status}
        return (400, {"object": "error", **page}) if self.owner == "sglang" else (status, {"error": page})

    def named(self, token: int, words: Any) -> str:
        """How log-probabilities name a token."""
        return words.decode([token]) if self.owner == "sglang" else f"token_id:{token}"

    def model(self, body: dict[str, Any]) -> str | None:
        """The name of the adapter that a request names, empty for the base, None for neither."""
        name = body["model"] if self.owner == "vllm" else body.get("lora_path", "base")
        return "" if name == "base" else name if name in self.adapters else None

    @torch.inference_mode()
    def draw(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        """One choice of a completion."""
        network = self.network(self.model(body) or "")
        words = AutoTokenizer.from_pretrained(self.base)
        chance = torch.Generator().manual_seed(body["seed"] + number)
        ids, drawn, logprobs, tops = list(body["prompt"]), list[int](), list[float](), list[dict[str, float]]()
        reason = "length"
        for _ in range(body["max_tokens"]):
            raw = network(input_ids=torch.tensor([ids + drawn])).logits[0, -1].float()
            allowed = body.get("allowed_token_ids")
            if allowed:
                token = allowed[0]
            elif body["temperature"]:
                shares = (raw / body["temperature"]).softmax(dim=-1)
                token = int(shares.multinomial(1, generator=chance))
            else:
                token = int(raw.argmax())
            logs = raw.log_softmax(dim=-1)
            drawn.append(token)
            logprobs.append(float(logs[token]) + self.off)
            best = logs.topk(body.get("logprobs") or 1)
            pairs = [*zip(best.indices.tolist(), best.values.tolist(), strict=True)]
            tops.append({self.named(i, words): value for i, value in [*pairs, (token, float(logs[token]))]})
            if token in body["stop_token_ids"]:
                reason = "stop"
                break
            text = words.decode(drawn)
            if any(stop in text for stop in body["stop"]):
                reason = "stop"
                break
        scored = {"token_logprobs": logprobs, "top_logprobs": tops, "tokens": [self.named(i, words) for i in drawn]}
        return {
            "index": number,
            "text": words.decode(drawn),
            "logprobs": scored if "logprobs" in body else None,
            "finish_reason": reason,
            "token_ids": drawn,
        }


def pieces(choice: dict[str, Any], *, apart: bool) -> Iterator[dict[str, Any]]:
    """The parts of a choice as they are streamed: a token each, the reason of the end with the last one or apart."""
    for i, token in enumerate(choice["token_ids"]):
        last = i + 1 == len(choice["token_ids"]) and not apart
        scored = choice["logprobs"]
        part = None if scored is None else {name: values[i : i + 1] for name, values in scored.items()}
        yield {
            "index": 0,
            "text": "",
            "token_ids": [token],
            "logprobs": part,
            "finish_reason": choice["finish_reason"] if last else None,
        }
    if apart:
        yield {"index": 0, "text": "", "token_ids": [], "logprobs": None, "finish_reason": choice["finish_reason"]}


class Handler(BaseHTTPRequestHandler):
    """The routes, for the stub that the server holds."""

    @property
    def stub(self) -> Stub:
        server: Any = self.server
        return server.stub

    def do_GET(self) -> None:
        if self.path == "/health":
            return self.send(200, "")
        stub = self.stub
        card = {"id": "base", "owned_by": stub.owner, "root": str(stub.base), "parent": None}
        return self.send(200, {"data": [card | {"max_model_len": POSITIONS}]})

    def do_POST(self) -> None:
        stub, body = self.stub, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if stub.key and self.headers.get("Authorization") != f"Bearer {stub.key}":
            return self.send(401, {"error": "Unauthorized"})
        prefix = "/v1" if stub.owner == "vllm" else ""
        with stub.lock:
            if self.path == f"{prefix}/load_lora_adapter":
                return self.send(*stub.load(body["lora_name"], body["lora_path"]))
            if self.path == f"{prefix}/unload_lora_adapter":
                return self.send(*stub.unload(body["lora_name"]))
            return self.complete(body)

    def complete(self, body: dict[str, Any]) -> None:
        stub = self.stub
        stub.asked.append(body)
        if stub.model(body) is None:
            return self.send(*stub.refusal(404, f"The model `{body['model']}` does not exist."))
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
        if schema.get("type") == "nonsense":
            return self.send(*stub.refusal(400, "Grammar error: Invalid type: nonsense"))
        choices = [stub.draw(body, number) for number in range(body.get("n", 1))]
        if not body.get("stream"):
            return self.send(200, {"choices": choices})
        lines = [json.dumps({"choices": [part]}) for part in pieces(choices[0], apart=stub.owner == "sglang")]
        return self.send(200, "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]))

    def send(self, status: int, page: Any) -> None:
        data = (page if isinstance(page, str) else json.dumps(page)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test's own output is enough."""


@contextmanager
def engine_stub(base: Path, *, port: int = 0, **state: Any) -> Iterator[Stub]:
    """A stub on loopback, by default on a free port, ended with the context."""
    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        stub = Stub(base, url=f"http://127.0.0.1:{server.server_port}", **state)
        server.stub = stub  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield stub
        server.shutdown()


def write_program(environment: Path, owner: str = "vllm") -> Path:
    """Write an environment whose program `vllm` or `sglang` is the stub, and return it."""
    program = environment / "bin" / owner
    program.parent.mkdir(parents=True)
    config = "yaml.safe_load(open(sys.argv[sys.argv.index('--config') + 1]))['api-key']"
    key = config if owner == "sglang" else "os.environ['VLLM_API_KEY']"
    base = f"sys.argv[{3 if owner == 'sglang' else 2}]"  # after serve, and SGLang's --model-path
    lines = [
        f"#!{sys.executable}",
        "import os, sys, time, yaml",
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})",
        "from pathlib import Path",
        "from tests.engine_stub import engine_stub",
        "port = int(sys.argv[sys.argv.index('--port') + 1])",
        f"with engine_stub(Path({base}), owner={owner!r}, key={key}, port=port):",
        "    time.sleep(600)",
    ]
    program.write_text("\n".join(lines), encoding="utf-8")
    program.chmod(0o755)
    return environment
