"""Serving of GGUF files: llama.cpp generates from token ids that Tunesmith encodes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import torch

from tunesmith.data.files import quoted
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import CheckpointError, ModelError
from tunesmith.inference.defaults import sampling_of
from tunesmith.inference.export.dtypes import MIXTURE_NAMES, SMALLEST
from tunesmith.inference.export.formats import GGUF
from tunesmith.inference.export.gguf_writer import TELLING
from tunesmith.inference.identify import MANIFEST_FILE, read_manifest
from tunesmith.inference.llamacpp import LlamaCpp
from tunesmith.inference.serving.backends.external import ExternalModel, lines_of, refused
from tunesmith.inference.serving.live_answer import CompletionChunk, End, ScoredToken
from tunesmith.inference.serving.request import GenerationRequest
from tunesmith.models.generation.generate import before_stop
from tunesmith.models.generation.json_grammar import Grammar
from tunesmith.models.generation.thoughts import ThoughtSplitter
from tunesmith.models.loading.gguf_reader import read_words
from tunesmith.models.loading.load import read_tokenizer
from tunesmith.objectives import Instruct

# Context length unless the run needs more; each slot reserves memory for it.
POSITIONS = 2048
MIN_ANSWER_TOKENS = 512  # tokens of an answer
# Export folders of a run: f16, then the types that were tested against the tuned model, then the finest first.
EXPORTS = tuple(f"gguf-{name}" for name in ("f16", SMALLEST, *MIXTURE_NAMES))
ENDS: dict[str, End] = {"eos": "stop", "word": "stop", "limit": "length"}
# The settings of `Sampling`, in its order, and none of llama.cpp's own.
SAMPLERS = ["temperature", "top_p"]


class GgufBackend:
    """llama.cpp servers over files, by model name; raises CheckpointError and ModelError."""

    title = "llama.cpp"

    def __init__(self, places: Mapping[str, Path], *, slots: int) -> None:
        self.models: dict[str, ExternalModel] = {}
        self._servers: dict[str, LlamaCpp] = {}
        self._grammars: dict[str, Grammar] = {}
        for name, place in places.items():
            file = find_file(place)
            known = _known(name, file)
            threads = torch.get_num_threads()
            server = LlamaCpp(file, threads=threads, positions=known.positions, slots=slots)
            _check(server, known, where=str(place))
            self.models[name] = known
            self._servers[name] = server
        # One connection per request: closing it stops the generation, and none outlives the event loop of the server.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx2.AsyncClient(timeout=None, trust_env=False, limits=limits)

    async def draw(
        self, model: ExternalModel, ids: list[int], request: GenerationRequest
    ) -> AsyncGenerator[CompletionChunk, None]:
        """Generate a completion in chunks; raise AskError if llama.cpp rejects the request."""
        server = self._servers[model.name]
        url = f"{server.address}/completion"
        if request.schema is not None:  # checked here, because llama.cpp ignores the parts that it does not support
            await asyncio.to_thread(self._grammar(model).follow, request.schema)
        async with self._client.stream("POST", url, json=wanted(ids, request), headers=server.headers) as response:
            if response.status_code != 200:
                raise refused(self.title, response.status_code, await response.aread(), request)
            if not request.in_pieces:
                yield _whole(json.loads(await response.aread()), model, request)
                return
            async for line in lines_of(response.aiter_text()):
                mark, _, content = line.partition(": ")
                if mark not in ("data", "error") or content == "[DONE]":
                    continue
                chunk = json.loads(content)
                if mark == "error" or "error" in chunk:
                    raise RuntimeError(f"llama.cpp: {content[:500]}")
                yield _piece(chunk, model, request.best)

    def _grammar(self, model: ExternalModel) -> Grammar:
        if model.name not in self._grammars:
            self._grammars[model.name] = Grammar(model.template, words=len(model.template.tokenizer))
        return self._grammars[model.name]

    def close(self) -> None:
        """Stop all servers, by releasing the last reference to them."""
        self._servers.clear()


def find_file(place: Path) -> Path:
    """Return the file itself, or the first of EXPORTS that a run has; raise CheckpointError."""
    if place.suffix.lower() == ".gguf":
        if place.is_file():
            return place
        raise CheckpointError(f"{place}: no such file; `tunesmith export RUN --format gguf` writes one")
    for folder in (place, *(place / "export" / name for name in EXPORTS)):
        if (folder / GGUF).is_file():
            return folder / GGUF
    raise CheckpointError(
        f"{place}: no GGUF file of it; write one with `tunesmith export {quoted(place)} --format gguf`"
    )


def wanted(ids: list[int], request: GenerationRequest) -> dict[str, Any]:
    """Return the request body of llama.cpp for a prompt."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "prompt": ids,
        "stream": request.in_pieces,
        "return_tokens": True,
        "n_predict": sampling.max_new_tokens,
        "samplers": SAMPLERS,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed % (2**32 - 1),  # 2**32 - 1 and negative values select a random seed in llama.cpp
        "stop": list(sampling.stop),
    }
    if request.schema is not None:
        body["json_schema"] = {**request.schema, "x-guidance": {"whitespace_flexible": False}}  # as in `Grammar`
    if request.best >= 0:
        body["n_probs"] = max(1, request.best)  # 0 would disable log-probabilities
    return body


def _known(name: str, file: Path) -> ExternalModel:
    """Describe a file, by the manifest of the run it was exported from or by its own metadata."""
    words, trained = read_words(file, where=str(file))
    most = trained or POSITIONS
    run = file.absolute().parent / ".." / ".." / "model"
    if file.absolute().parent.name in EXPORTS and (run / MANIFEST_FILE).exists():
        about, template = read_manifest(run), Template(read_tokenizer(run, where=name))
        longest = sampling_of(about.objective, thinking=template.thinks).max_new_tokens
        positions = min(most, max(POSITIONS, about.limit + max(MIN_ANSWER_TOKENS, longest)))
        return ExternalModel(name, template, about.objective, about.limit, positions)
    positions = min(most, POSITIONS)
    return ExternalModel(name, Template(words), Instruct(), positions // 2, positions)


def _check(server: LlamaCpp, known: ExternalModel, *, where: str) -> None:
    """Raise ModelError if llama.cpp tokenizes a test chat differently."""
    ids = known.template.prompt([Message("user", TELLING)])
    # Generate first: a llama.cpp server that is released before its loop has started never stops.
    server.answers([ids[: known.positions // 2]], longest=1)
    text = known.template.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if server.ids(str(text)) != ids:
        raise ModelError(
            f"{where}: llama.cpp tokenizes text differently from the tokenizer in the file, so answers would differ; "
            "serve the run that it was exported from"
        )


def _piece(chunk: Mapping[str, Any], model: ExternalModel, best: int) -> CompletionChunk:
    """Convert a chunk of llama.cpp; the end token is not part of the completion."""
    stops = model.template.stop_ids
    scored = tuple(
        ScoredToken(item["id"], item["logprob"], tuple((t["id"], t["logprob"]) for t in item["top_logprobs"][:best]))
        for item in chunk.get("completion_probabilities", ())
        if item["id"] not in stops
    )
    if not chunk["stop"]:
        return CompletionChunk(chunk["content"], scored)
    count = chunk["tokens_predicted"] - (chunk["stop_type"] == "eos")
    return CompletionChunk(chunk["content"], scored, ENDS.get(chunk["stop_type"], "length"), new_tokens=count)


def _whole(response: Mapping[str, Any], model: ExternalModel, request: GenerationRequest) -> CompletionChunk:
    """Convert a whole response, decoded again from ids: llama.cpp drops an incomplete character at the end."""
    piece = _piece(response, model, request.best)
    ids = [token for token in response["tokens"] if token not in model.template.stop_ids]
    text = model.template.decode(ids) if request.text is not None else ThoughtSplitter(model.template).decode(ids)
    return replace(piece, text=before_stop(text, request.sampling.stop))
