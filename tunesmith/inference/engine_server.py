"""vLLM and SGLang over HTTP: requests to an engine that was started here or elsewhere, and models that it answers for.

Prompts are sent and completions received as token ids through `/v1/completions`: chat templates, thinking and tool
calls stay those of `LocalModel`, and every log-probability belongs to a known token. Adapters are handed over as
folders. Neither engine is ever imported, because its pins exclude ours.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import httpx2
import torch
from torch import Tensor
from transformers import PretrainedConfig

from tunesmith.config import AnyObjective, Recipe
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.errors import DataError, ModelError, briefly
from tunesmith.inference.engine_program import BASE, LORA_RANKS, PROGRAMS, EngineProcess, command_of
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.openai_client import Endpoint, check, client_of, exchange, request_json
from tunesmith.models.generation.generate import AnswerIds, sample, seed_of
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.loading.device import frozen_dtype
from tunesmith.models.loading.load import fingerprint_of
from tunesmith.models.loading.locate import locate
from tunesmith.models.policy import Policy
from tunesmith.models.world import current_world
from tunesmith.objectives import Rl
from tunesmith.objectives.online_rl import Sampler
from tunesmith.progress import track
from tunesmith.techniques import Lora

CONCURRENT_REQUESTS = 64


class EngineServer(AbstractContextManager["EngineServer"]):
    """An engine over one base model and adapters of it; it starts with the first model that needs it.

        with EngineServer("vllm --gpu-memory-utilization 0.5") as engine:
            model = open_model("runs/replies", engine=engine)

    Args:
        engine: `vllm` or `sglang`, the path of such a program, each with its options after it, or the address
            of a running one, whose key is in TUNESMITH_API_KEY.
        offline: do not access the network.
        rows: sequences that it generates at once.
        adapters: adapters that one batch may use; the engine reserves memory for them.

    Raises:
        RecipeError: `engine` names no engine.
        ModelError: the program is not installed.
        DataError: the address is invalid.
    """

    def __init__(
        self, engine: str, *, offline: bool = False, rows: int = CONCURRENT_REQUESTS, adapters: int = 2
    ) -> None:
        self.command = command_of(engine)
        self.offline = offline
        self.rows = rows
        self.adapters = adapters
        self.program = PROGRAMS[self.command[0] if self.command else "vllm"]
        self.endpoint = Endpoint(engine.rstrip("/").removesuffix("/v1"), key=os.environ.get("TUNESMITH_API_KEY", ""))
        if not self.command:
            check(self.endpoint, offline=offline)
        self.positions = 0  # of prompt and completion together
        self._root = ""  # folder or name of the base model
        self._model = BASE
        self._rank = 0  # greatest rank of an adapter that the process has room for, also after a restart
        self._loaded = dict[str, Path]()  # folder of each adapter by its name in the engine
        self._process: EngineProcess | None = None
        self._client: httpx2.Client | None = None

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def title(self) -> str:
        """Return the name of the program."""
        return self.program.title

    def open(self, base: Path, adapter: Path | None = None, *, rank: int = 0) -> str:
        """Start the engine over a base model, or connect to it, unless that is done, and load an adapter of a rank.

        Returns the name of the adapter in the engine, empty for the base. No name is used twice, because the engine
        keeps the states of prompts by it.
        """
        if self.command and (self._process is None or self._rank < rank):  # too little room for the adapter
            self.start(base, rank=rank)
        if self._client is None:
            self._client = client_of(self.endpoint)
            self._connect()
            for name, folder in self._loaded.items():  # those of before a restart
                self._change("load", name, folder)
        self._check_base(base)
        if adapter is None:
            return ""
        name = f"adapter-{secrets.token_hex(6)}"
        self._change("load", name, adapter)
        self._loaded[name] = adapter
        return name

    def remove(self, name: str) -> None:
        """Unload an adapter."""
        self._change("unload", name, self._loaded.pop(name))

    def request(
        self, adapter: str, ids: Sequence[int], *, sampling: Sampling, template: Template, best: int = -1
    ) -> dict[str, Any]:
        """Return the body of a request to `/v1/completions`, with `best` alternatives of each token; -1: unscored."""
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(ids),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # Neutral values: the generation_config.json of a model may name others.
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "seed": sampling.seed % 2**62,
            "stop": list(sampling.stop),
            "stop_token_ids": sorted(template.stop_ids),
            "skip_special_tokens": False,
            "return_token_ids": True,
        }
        if adapter:
            body[self.program.adapter_key] = adapter
        return body | ({"logprobs": best, "return_tokens_as_token_ids": True} if best >= 0 else {})

    def sample(
        self,
        adapter: str,
        prompts: Sequence[list[int]],
        *,
        sampling: Sampling,
        template: Template,
        limits: Sequence[int] = (),
        count: int = 1,
        scored: bool = False,
    ) -> list[list[AnswerIds]]:
        """Return `count` completions of each prompt; `limits` are most tokens of each, 0 for an empty one."""

        def complete(i: int) -> list[AnswerIds]:
            longest = limits[i] if limits else sampling.max_new_tokens
            if longest < 1:
                return [AnswerIds([], False)] * count
            body = self.request(adapter, prompts[i], sampling=sampling, template=template, best=0 if scored else -1)
            # A completion depends on its prompt only, not on the others. vLLM adds its index to the seed.
            body |= {"max_tokens": longest, "n": count, "seed": seed_of(sampling.seed, prompts[i])}
            return [answer_ids(choice, template) for choice in self._choices(body)]

        return self._each(complete, len(prompts), "generating")

    def option_scores(
        self, adapter: str, prompts: Sequence[list[int]], options: Sequence[list[int]], *, template: Template
    ) -> Tensor:
        """Return the log-probability [B, O] of each of O options after each of B prompts, in nats.

        Every token of an option is asked for by itself, as the only one that may follow. One request for the
        log-probabilities of a prompt would do, but it ends vLLM 0.32 on a CPU when adapters are enabled.
        """
        if self.title != "vLLM":
            raise ModelError(f"{self.title}: labels are scored by vLLM or torch; use --engine vllm, or leave it out")
        starts = [[(*option[: end + 1],) for end in range(len(option))] for option in options]
        wanted = [(i, start) for i in range(len(prompts)) for start in sorted({start for of in starts for start in of})]
        sampling = Sampling(max_new_tokens=1)

        def score(k: int) -> float:
            i, (*before, token) = wanted[k]
            body = self.request(adapter, [*prompts[i], *before], sampling=sampling, template=template, best=0)
            (choice,) = self._choices(body | {"allowed_token_ids": [token], "stop_token_ids": []})
            return float(choice["logprobs"]["token_logprobs"][0])

        scores = dict(zip(wanted, self._each(score, len(wanted), "scoring options"), strict=True))
        return torch.tensor(
            [[math.fsum(scores[i, start] for start in of) for of in starts] for i in range(len(prompts))]
        )

    def close(self) -> None:
        """Stop a process that was started here; one that was running before is left alone."""
        if self._client is not None:
            self._client.close()
        if self._process is not None:
            self._process.stop()
        self._client = self._process = None

    def start(self, base: Path, *, rank: int = 0) -> tuple[str, str]:
        """Start the program again with room for adapters of a rank, and return its address and key once it answers."""
        self.close()
        self._rank = max(self._rank, rank)
        options = f"{self.program.options} --dtype {frozen_dtype('cuda' if torch.cuda.is_available() else 'cpu')}"
        if self._rank:
            self._rank = next((rank for rank in LORA_RANKS if rank >= self._rank), self._rank)
            options = f"{options} {self.program.lora_options}"
        values = {"base": base, "rows": self.rows, "rank": self._rank}
        values |= {"adapters": self.adapters, "places": self.adapters + 1}
        key = secrets.token_urlsafe(24)
        self._process = EngineProcess(self.command, options, values, key=key, offline=self.offline)
        self.endpoint = Endpoint(self._process.url, key=key)
        return self._process.url, key

    def _connect(self) -> None:
        """Ask for the base model of the engine."""
        assert self._client is not None
        listed = request_json(self._client, self.endpoint, "v1/models", None).get("data")
        models = [model for model in listed if isinstance(model, dict)] if isinstance(listed, list) else []
        base = next((model for model in models if not model.get("parent")), {})
        if base.get("owned_by") not in PROGRAMS:
            raise DataError(f"{self.endpoint.url}: neither vLLM nor SGLang; check the address")
        self.program = PROGRAMS[base["owned_by"]]
        self._model, self._root = str(base["id"]), str(base.get("root") or base["id"])
        self.positions = int(base.get("max_model_len") or 0)

    def _check_base(self, base: Path) -> None:
        """Raise ModelError if the engine serves another base than the one in a folder."""
        try:
            there = self._root != str(base) and fingerprint_of(locate(self._root, offline=True), where=self._root)
            same = not there or there == fingerprint_of(base, where=str(base))
        except ModelError:
            same = not self.command  # on another machine, whose files are not here
        if not same:
            fix = f"start another for {base}"
            raise ModelError(f"{self.title}: its base is {self._root}, and one engine has one base; {fix}")
        self._root = str(base)

    def _change(self, what: str, name: str, folder: Path) -> None:
        """Load or unload an adapter."""
        assert self._client is not None
        body = {"lora_name": name, **({"lora_path": str(folder.absolute())} if what == "load" else {})}
        try:
            path = f"{self.program.routes}{what}_lora_adapter"
            status, _, text = exchange(self._client, self.endpoint, path, body)
        except httpx2.HTTPError as error:
            raise DataError(f"{self.endpoint.url}: the engine does not answer ({briefly(error)}); start it") from None
        if status != 200:
            fix = "check its log"
            if not self.command:
                variable = " and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" if self.title == "vLLM" else ""
                fix = f"start it with --enable-lora{variable}, where it sees the folder"
            problem = f"cannot {what} the adapter {folder} ({status} {briefly(text)})"
            raise ModelError(f"{self.title}: {problem}; {fix}")

    def _choices(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        assert self._client is not None
        choices = request_json(self._client, self.endpoint, "v1/completions", body).get("choices")
        if not isinstance(choices, list) or not choices:
            raise DataError(f"{self.endpoint.url}: response without choices; check the log of the engine")
        return sorted(choices, key=lambda choice: int(choice["index"]))

    def _each(self, work: Callable[[int], Any], count: int, what: str) -> list[Any]:
        """Return the results of requests that run at the same time, in order; after an error, no other one begins."""
        pool = ThreadPoolExecutor(CONCURRENT_REQUESTS)
        try:
            results = pool.map(work, range(count))
            return list(track(results, f"{what} in {self.title}", unit="prompts", total=count))
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def rollout_sampler(recipe: Recipe) -> Iterator[Sampler]:
    """Yield what samples completions in training: this process, or an engine, which is stopped at the end.

    An engine receives the adapter as a folder before it samples, and returns the log-probability of every token.
    """
    objective, technique = recipe.objective, recipe.technique
    if not isinstance(objective, Rl) or not objective.engine:
        yield sample
        return
    assert isinstance(technique, Lora), "checked with the recipe"
    base, world, kind = locate(recipe.model, offline=True), current_world(), command_of(objective.engine)[:1]
    # The weights of the loss compare log-probabilities at the temperature of sampling, as SGLang reports them anyway.
    option = " --logprobs-mode processed_logprobs" if kind == ["vllm"] else ""

    def sample_in_engine(
        policy: Policy, prompts: Sequence[list[int]], *, count: int, sampling: Sampling, template: Template
    ) -> list[list[AnswerIds]]:
        with TemporaryDirectory(prefix="tunesmith-adapter-") as folder:
            technique.save(policy, Path(folder))
            adapter = engine.open(base, Path(folder), rank=technique.rank)
            try:
                return engine.sample(adapter, prompts, sampling=sampling, template=template, count=count, scored=True)
            finally:
                engine.remove(adapter)

    # The base is here already; an address was checked when the run began.
    with EngineServer(f"{objective.engine}{option}", offline=bool(kind), adapters=world.size) as engine:
        if kind and world.size > 1:  # the first process starts it for all
            url, key = world.lead(lambda: engine.start(base, rank=technique.rank))
            engine.command, engine.endpoint = [], Endpoint(url, key=key)
        yield sample_in_engine


def answer_ids(choice: Mapping[str, Any], template: Template) -> AnswerIds:
    """Return the token ids of a completion, with log-probabilities if the response has them."""
    ids = choice.get("token_ids")
    if not isinstance(ids, list):
        raise DataError("engine: the response has no token ids; use vLLM 0.10.2 or newer, or SGLang 0.5.6 or newer")
    logprobs = tuple(((choice.get("logprobs") or {}).get("token_logprobs")) or ())
    if logprobs and len(logprobs) != len(ids):
        raise DataError(f"engine: {len(logprobs)} log-probabilities of {len(ids)} tokens; check its version")
    stopped = bool(ids) and ids[-1] in template.stop_ids
    finished = choice.get("finish_reason") == "stop"
    return AnswerIds(ids[:-1] if stopped else ids, finished, tuple(ids[-1:]) if stopped else (), logprobs)


@dataclass(slots=True, repr=False)
class EngineModel(LocalModel):
    """A model whose completions and option scores an engine computes; there are no weights in this process."""

    engine: EngineServer | None = None
    adapter: str = ""  # its name in the engine; empty for the base

    @classmethod
    def of(
        cls, engine: EngineServer, adapter: str, template: Template, *, objective: AnyObjective, limit: int
    ) -> EngineModel:
        """Return a model of an engine; only the context length of its network is known here."""
        network = SimpleNamespace(config=PretrainedConfig.from_dict({"max_position_embeddings": engine.positions}))
        policy = Policy(network, "decoder", None, nullcontext)
        return cls(policy, template, objective, limit, engine=engine, adapter=adapter)

    def _generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[AnswerIds]:
        assert self.engine is not None
        limits = [self.longest(prompt, sampling) for prompt in prompts]
        found = self.engine.sample(self.adapter, prompts, sampling=sampling, template=self.template, limits=limits)
        return [answer for (answer,) in found]

    def _option_scores(self, prompts: Sequence[list[int]], options: Sequence[list[int]]) -> Tensor:
        assert self.engine is not None
        return self.engine.option_scores(self.adapter, prompts, options, template=self.template)
