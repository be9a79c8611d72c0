"""GGUF files behind the server: llama.cpp draws, after ids that our template made of the question."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import torch

from tunesmith.data.examples import Message
from tunesmith.data.template import Template
from tunesmith.errors import CheckpointError, ModelError
from tunesmith.inference.ask import Ask, AskError
from tunesmith.inference.export import GGUF
from tunesmith.inference.folder import ABOUT, read_about
from tunesmith.inference.llamacpp import LlamaCpp
from tunesmith.inference.outside import Known
from tunesmith.inference.row import End, Piece, ScoredToken
from tunesmith.model.generate import before_stop
from tunesmith.model.gguf_file import read_words
from tunesmith.model.gguf_write import TELLING
from tunesmith.model.grammar import Grammar
from tunesmith.model.load import read_tokenizer
from tunesmith.objectives import Instruct

# Positions of a question with its answer where the run asks for no more: each slot keeps memory for so many.
POSITIONS = 2048
LONGEST = 512
# The finest first.
EXPORTS = ("gguf-f16", "gguf-q8_0", "gguf-q4_0")
ENDS: dict[str, End] = {"eos": "stop", "word": "stop", "limit": "length"}
# The settings of `Sampling`, in its order, and none of llama.cpp's own.
SAMPLERS = ["temperature", "top_p"]


class Files:
    """llama.cpp over files, each under its name. Raises CheckpointError and ModelError."""

    title = "llama.cpp"

    def __init__(self, places: Mapping[str, Path], *, slots: int) -> None:
        self.models: dict[str, Known] = {}
        self._servers: dict[str, LlamaCpp] = {}
        self._grammars: dict[str, Grammar] = {}
        for name, place in places.items():
            file = find_file(place)
            known = _known(name, file)
            threads = torch.get_num_threads()
            server = LlamaCpp(file, threads=threads, positions=known.positions, slots=slots)
            _check(server, known, where=str(place))
            self.models[name], self._servers[name] = known, server
        # A connection each, so that one that is closed ends its answer and none outlives the server's loop.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx.AsyncClient(timeout=None, trust_env=False, limits=limits)

    async def draw(self, model: Known, ids: list[int], ask: Ask) -> AsyncGenerator[Piece, None]:
        """An answer in pieces. Raises AskError for what llama.cpp refuses."""
        server = self._servers[model.name]
        place = f"{server.address}/completion"
        if ask.schema is not None:  # by our own reader of schemas first: llama.cpp ignores what it cannot hold to
            await asyncio.to_thread(self._grammar(model).follow, ask.schema)
        async with self._client.stream("POST", place, json=wanted(ids, ask), headers=server.headers) as answer:
            if answer.status_code != 200:
                raise _refused(answer.status_code, await answer.aread(), ask)
            if not ask.in_pieces:
                yield _whole(json.loads(await answer.aread()), model, ask)
                return
            async for line in _lines(answer):
                mark, _, said = line.partition(": ")
                if mark not in ("data", "error") or said == "[DONE]":
                    continue
                told = json.loads(said)
                if mark == "error" or "error" in told:
                    raise RuntimeError(f"llama.cpp: {said[:500]}")
                yield _piece(told, model, ask.best)

    def _grammar(self, model: Known) -> Grammar:
        if model.name not in self._grammars:
            self._grammars[model.name] = Grammar(model.template, words=len(model.template.tokenizer))
        return self._grammars[model.name]

    def close(self) -> None:
        """Let go of all servers, which ends them."""
        self._servers.clear()


async def _lines(answer: httpx.Response) -> AsyncGenerator[str, None]:
    """What comes, line by line; httpx cuts at U+2028 and its like too, which stand in texts as they are."""
    rest = ""
    async for part in answer.aiter_text():
        *lines, rest = (rest + part).split("\n")
        for line in lines:
            yield line.rstrip("\r")


def find_file(place: Path) -> Path:
    """The file itself, or the finest export of a run. Raises CheckpointError."""
    if place.suffix.lower() == ".gguf":
        if place.is_file():
            return place
        raise CheckpointError(f"{place}: no such file; `tunesmith export RUN --format gguf` writes one")
    for folder in (place, *(place / "export" / name for name in EXPORTS)):
        if (folder / GGUF).is_file():
            return folder / GGUF
    raise CheckpointError(f"{place}: no GGUF file of it; write one with `tunesmith export {place} --format gguf`")


def wanted(ids: list[int], ask: Ask) -> dict[str, Any]:
    """The question as llama.cpp takes it."""
    sampling = ask.sampling
    asked: dict[str, Any] = {
        "prompt": ids,
        "stream": ask.in_pieces,
        "return_tokens": True,
        "n_predict": sampling.max_new_tokens,
        "samplers": SAMPLERS,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed % (2**32 - 1),  # that number, and what is negative, stand for any seed there
        "stop": list(sampling.stop),
    }
    if ask.schema is not None:
        asked["json_schema"] = {**ask.schema, "x-guidance": {"whitespace_flexible": False}}  # as `Grammar` has it
    if ask.best >= 0:
        asked["n_probs"] = max(1, ask.best)  # 0 would be no scores at all
    return asked


def _known(name: str, file: Path) -> Known:
    """What is known of a file: from the run that it was exported from, or else from itself."""
    words, trained = read_words(file, where=str(file))
    most = trained or POSITIONS
    run = file.absolute().parent / ".." / ".." / "model"
    if file.absolute().parent.name in EXPORTS and (run / ABOUT).exists():
        about = read_about(run)
        positions = min(most, max(POSITIONS, about.limit + max(LONGEST, about.objective.max_new_tokens)))
        return Known(name, Template(read_tokenizer(run, where=name)), about.objective, about.limit, positions)
    positions = min(most, POSITIONS)
    return Known(name, Template(words), Instruct(), positions // 2, positions)


def _check(server: LlamaCpp, known: Known, *, where: str) -> None:
    """Nothing where llama.cpp cuts a telling chat into the ids that we give it. Raises ModelError."""
    ids = known.template.prompt([Message("user", TELLING)])
    # An answer first: a llama.cpp that is let go before its loop began never ends.
    server.answers([ids[: known.positions // 2]], longest=1)
    text = known.template.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if server.ids(str(text)) != ids:
        raise ModelError(
            f"{where}: llama.cpp cuts text into other tokens than were read from the file, so answers would differ; "
            "serve the run that it was exported from"
        )


def _piece(told: Mapping[str, Any], model: Known, best: int) -> Piece:
    """A part of llama.cpp's answer; the end of the turn is no part of it."""
    stops = model.template.stop_ids
    scored = tuple(
        ScoredToken(one["id"], one["logprob"], tuple((top["id"], top["logprob"]) for top in one["top_logprobs"][:best]))
        for one in told.get("completion_probabilities", ())
        if one["id"] not in stops
    )
    if not told["stop"]:
        return Piece(told["content"], scored)
    count = told["tokens_predicted"] - (told["stop_type"] == "eos")
    return Piece(told["content"], scored, ENDS.get(told["stop_type"], "length"), new_tokens=count)


def _whole(told: Mapping[str, Any], model: Known, ask: Ask) -> Piece:
    """An answer in one, in our own letters: llama.cpp leaves out a character that is not whole at the end."""
    piece = _piece(told, model, ask.best)
    ids = [token for token in told["tokens"] if token not in model.template.stop_ids]
    return replace(piece, text=before_stop(model.template.decode(ids), ask.sampling.stop))


def _refused(status: int, body: bytes, ask: Ask) -> Exception:
    """What llama.cpp said no with: the asker's mistake, or a bug."""
    try:
        said = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = body.decode(errors="replace")
    if 400 <= status < 500:
        place = "messages" if ask.schema is None else "response_format"
        return AskError(f"{place}: llama.cpp refuses it ({' '.join(said.split())[:200]}); ask otherwise")
    return RuntimeError(f"llama.cpp answered {status}: {said[:500]}")
