"""Serving with vLLM or SGLang: our API, names, splits and ratings before an engine that answers over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import httpx2

from tunesmith.inference.engine_server import EngineModel, EngineServer
from tunesmith.inference.identify import CONFIG, ModelSource, identify
from tunesmith.inference.open_model import open_model
from tunesmith.inference.serving.backends.external import ExternalModel, lines_of, refused
from tunesmith.inference.serving.live_answer import CompletionChunk, End, ScoredToken
from tunesmith.inference.serving.request import AskError, GenerationRequest
from tunesmith.models.generation.generate import before_stop, decided
from tunesmith.models.generation.thoughts import ThoughtSplitter
from tunesmith.objectives.base import SINGLE_TASK

ENDS: dict[str, End] = {"stop": "stop", "length": "length"}
TOKEN = "token_id:"  # before the id of a token in log-probabilities


class EngineBackend:
    """Runs and models over one base in an engine, by model name.

    Args:
        paths: run, adapter or model folder of each name.
        engine: the engine; closed with this object.
        offline: do not access the network.

    Raises:
        ModelError: the engine does not start, or does not support one of them.
    """

    def __init__(self, paths: Mapping[str, Path], engine: EngineServer, *, offline: bool = False) -> None:
        self.models: dict[str, ExternalModel] = {}
        self._engine = engine
        self._adapters: dict[str, str] = {}
        sources = {name: identify(path, offline=offline) for name, path in paths.items()}
        adapted = [name for name, source in sources.items() if source.folder and (source.folder / CONFIG).exists()]
        # Adapters first: an engine that is started over a base alone would start again for them.
        for name in [*adapted, *(name for name in sources if name not in adapted)]:
            self._add(name, sources[name], offline=offline)
        for base in {sources[name].base for name in adapted}:  # it answers too, as with torch
            if Path(base).name not in self.models:
                self._add(Path(base).name, identify(base, offline=offline), offline=offline)
        self.title = engine.title
        # One connection per request: closing it stops the generation, and none outlives the event loop of the server.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx2.AsyncClient(timeout=None, trust_env=False, limits=limits)

    def _add(self, name: str, source: ModelSource, *, offline: bool) -> None:
        """Open a model and each of its tasks in the engine."""
        model = open_model(source, engine=self._engine, offline=offline, limit=0)
        assert isinstance(model, EngineModel)
        tasks = [task for task in model.objective.task_objectives if task != SINGLE_TASK]
        positions = self._engine.positions
        for known, part in {name: model, **{f"{name}/{task}": model.at(task) for task in tasks}}.items():
            limit = part.limit or positions // 2
            self.models[known] = ExternalModel(
                known, part.template, part.objective, limit, positions, thinks=part.thinks
            )
            self._adapters[known] = model.adapter

    async def draw(
        self, model: ExternalModel, ids: list[int], request: GenerationRequest
    ) -> AsyncGenerator[CompletionChunk, None]:
        """Generate a completion in chunks; raise AskError if the engine rejects the request."""
        adapter = self._adapters[model.name]
        body = self._engine.request(
            adapter, ids, sampling=request.sampling, template=model.template, best=request.best
        ) | {"stream": request.in_pieces}
        if request.schema is not None:
            named = {"name": "answer", "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        decode = model.template.decode if request.text is not None else ThoughtSplitter(model.template).decode
        stops, tokens, sent = request.sampling.stop, list[int](), ""
        async for choice in self._choices(body, request):
            scored = _scored(choice, request.best, model)
            tokens += [token for token in choice["token_ids"] if token not in model.template.stop_ids]
            text = decode(tokens)
            if reason := choice.get("finish_reason"):
                if reason not in ENDS:
                    raise RuntimeError(f"{self.title} ended a completion with {reason}")
                rest = before_stop(text, stops)[len(sent) :]
                yield CompletionChunk(rest, scored, ENDS[reason], new_tokens=len(tokens))
                return
            final = sent if text.endswith("\ufffd") else decided(before_stop(text, stops), stops)
            yield CompletionChunk(final[len(sent) :], scored)
            sent = max(sent, final, key=len)

    async def _choices(
        self, body: Mapping[str, Any], request: GenerationRequest
    ) -> AsyncGenerator[Mapping[str, Any], None]:
        """Yield the parts of one completion; raise AskError if the engine rejects the request."""
        endpoint = self._engine.endpoint
        headers = {"authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
        url = f"{endpoint.url}/v1/completions"
        async with self._client.stream("POST", url, json=body, headers=headers) as response:
            if response.status_code != 200:
                raise refused(self.title, response.status_code, await response.aread(), request)
            if not request.in_pieces:
                yield json.loads(await response.aread())["choices"][0]
                return
            async for line in lines_of(response.aiter_text()):
                mark, _, content = line.partition(": ")
                if mark != "data" or content == "[DONE]":
                    continue
                chunk = json.loads(content)
                if "error" in chunk:
                    raise RuntimeError(f"{self.title}: {content[:500]}")
                for choice in chunk["choices"]:
                    yield choice

    def close(self) -> None:
        """Stop the engine, if it was started here."""
        self._engine.close()


def _scored(choice: Mapping[str, Any], best: int, model: ExternalModel) -> tuple[ScoredToken, ...]:
    """Return the log-probabilities of the tokens in a part of a completion, without those of its end."""
    if best < 0 or not choice["token_ids"]:  # SGLang may report the end apart from the last token
        return ()
    found = choice["logprobs"]
    tops: list[Mapping[str, float]] = (found.get("top_logprobs") if best else None) or [{}] * len(choice["token_ids"])
    if any(not text.startswith(TOKEN) for top in tops for text in top):
        raise AskError("top_logprobs: this engine does not report ids of tokens; leave it out")
    ranked = [
        sorted(((int(text[len(TOKEN) :]), value) for text, value in top.items()), key=lambda t: -t[1]) for top in tops
    ]
    return tuple(
        ScoredToken(token, value, tuple(top[:best]))
        for token, value, top in zip(choice["token_ids"], found["token_logprobs"], ranked, strict=True)
        if token not in model.template.stop_ids
    )
