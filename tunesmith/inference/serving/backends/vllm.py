"""Serving of runs with vLLM: LoRA as adapters of vLLM, soft prompts as prompt embeddings.

Written from the documentation of vLLM (AsyncLLM, LoRARequest, EmbedsPrompt) and tested against a stub with that
interface; it has never run on vLLM itself. The model registry loads and checks the runs as for the torch engine, so
their base is in the memory of this process in addition to that of vLLM.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import ModelError
from tunesmith.inference.export.formats import HEAD
from tunesmith.inference.identify import ModelManifest, find_model, read_manifest
from tunesmith.inference.serving.backends.external import ExternalModel
from tunesmith.inference.serving.live_answer import CompletionChunk, End
from tunesmith.inference.serving.registry import ModelRegistry, ServedModel
from tunesmith.inference.serving.request import AskError, GenerationRequest
from tunesmith.models.families import positions_of
from tunesmith.models.loading.base_from_run import begins_from, model_folder
from tunesmith.models.loading.locate import locate
from tunesmith.techniques import Full, Lora, Prompt, PTuning

MISSING = (
    "vLLM is not installed: pip install 'tunesmith[vllm]', on a machine that it supports; or leave --engine vllm out"
)
ELSE = "serve it with --engine torch"
# Other families scale their embeddings, possibly at a different point in vLLM.
SOFT = ("llama", "qwen2", "qwen3")
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
ENDS: dict[str | None, End] = {"stop": "stop", "length": "length"}


class Vllm:
    """vLLM over one base and the runs tuned over it; raises ModelError for unsupported runs."""

    title = "vLLM"

    def __init__(self, folders: Mapping[str, Path], *, rows: int, offline: bool = False) -> None:
        try:
            import vllm  # noqa: F401
        except ImportError:
            raise ModelError(MISSING) from None
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        models = {name: find_model(folder) for name, folder in folders.items()}
        abouts = {name: read_manifest(folder) for name, folder in models.items()}
        for name, about in abouts.items():
            refuse(name, models[name], about)
        registry = ModelRegistry({name: [folder] for name, folder in models.items()}, device="cpu", offline=offline)
        self._runs: dict[str, ServedModel] = {name: registry.load(name) for name in models}
        if len({id(run.shared_base) for run in self._runs.values()}) > 1:
            raise ModelError("vllm: expected runs over one base, got several bases; start one server per base")
        self._runs |= {run.name: run for run in registry.runs()}  # the base answers too
        self.models = {name: _known(run) for name, run in self._runs.items()}
        self.loras = _loras(models, abouts)
        first = next(iter(abouts))
        base = (
            models[first] if isinstance(abouts[first].technique, Full) else locate(abouts[first].base, offline=offline)
        )
        asked = engine_arguments(base, models[first], list(abouts.values()), rows=rows)
        self._engine: Any = AsyncLLM.from_engine_args(AsyncEngineArgs(**asked))

    async def draw(
        self, model: ExternalModel, ids: list[int], request: GenerationRequest
    ) -> AsyncGenerator[CompletionChunk, None]:
        """Generate a completion in chunks; raise AskError for a schema or log-probabilities."""
        if request.schema is not None or request.best >= 0:
            what = "response_format" if request.schema is not None else "logprobs"
            raise AskError(f"{what}: not given by vLLM here; leave it out, or serve the run with --engine torch")
        stops = model.template.stop_ids
        count = 0
        outputs = self._engine.generate(
            self.prompt(model.name, ids),
            sampling_parameters(model, request),
            request_id=secrets.token_hex(8),
            lora_request=self.loras.get(model.name.partition("/")[0]),  # a task uses the adapter of its run
        )
        async for output in outputs:
            completion = output.outputs[0]
            count += sum(token not in stops for token in completion.token_ids)
            if output.finished and completion.finish_reason not in ENDS:
                raise RuntimeError(f"vLLM ended a completion with {completion.finish_reason}")
            end = ENDS[completion.finish_reason] if output.finished else ""
            yield CompletionChunk(completion.text, end=end, new_tokens=count)

    def prompt(self, name: str, ids: Sequence[int]) -> dict[str, Any]:
        """Return the prompt for vLLM: ids, or embeddings [V + T, D] with V virtual and T prompt tokens."""
        policy = self._runs[name].model.policy
        if policy.virtual is None:
            return {"prompt_token_ids": list(ids)}
        with torch.inference_mode():
            words = policy.network.get_input_embeddings()(torch.tensor(ids))
            soft = policy.virtual.wrapped.get_prompt(1)[0].to(words.dtype)
            return {"prompt_embeds": torch.cat([soft, words])}

    def close(self) -> None:
        """Stop the processes of vLLM."""
        self._engine.shutdown()


def refuse(name: str, folder: Path, manifest: ModelManifest) -> None:
    """Raise ModelError if vLLM does not support a run."""
    technique = manifest.technique
    if manifest.family != "decoder":
        raise ModelError(f"{name}: an encoder writes no text; {ELSE}")
    if technique.load_options().quantize:
        raise ModelError(f"{name}: vLLM would not keep its base in the same 4 bits; {ELSE}")
    if isinstance(technique, Lora) and technique.dora:
        raise ModelError(f"{name}: vLLM has no DoRA; {ELSE}")
    if isinstance(technique, Lora) and technique.rank > RANKS[-1]:
        raise ModelError(f"{name}: vLLM takes ranks up to {RANKS[-1]}; {ELSE}")
    if not isinstance(technique, Lora | Full | Prompt | PTuning):
        raise ModelError(f"{name}: vLLM does not support the weights of {technique.kind}; {ELSE}")
    if (folder / HEAD).exists():
        raise ModelError(f"{name}: it answers through a head, which vLLM would not load; {ELSE}")
    if not isinstance(technique, Full) and begins_from(model_folder(Path(manifest.base)), where=manifest.base)[0]:
        raise ModelError(f"{name}: its base is a run, whose adapter vLLM would not merge; {ELSE}")


def engine_arguments(base: Path, words: Path, abouts: Sequence[ModelManifest], *, rows: int) -> dict[str, Any]:
    """Return the engine arguments of vLLM: base, tokenizer, and capacity for the adapters."""
    asked: dict[str, Any] = {"model": str(base), "tokenizer": str(words), "max_num_seqs": rows}
    ranks = [about.technique.rank for about in abouts if isinstance(about.technique, Lora)]
    if ranks:
        rank = next(size for size in RANKS if size >= max(ranks))
        asked |= {"enable_lora": True, "max_loras": len(ranks), "max_lora_rank": rank}
    if any(about.technique.virtual_tokens() for about in abouts):
        asked["enable_prompt_embeds"] = True
    return asked


def sampling_parameters(model: ExternalModel, request: GenerationRequest) -> Any:
    """Return the sampling parameters of vLLM, with incremental outputs."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    wanted = request.sampling
    return SamplingParams(
        max_tokens=wanted.max_new_tokens,
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        seed=wanted.seed,
        stop=list(wanted.stop),
        stop_token_ids=sorted(model.template.stop_ids),
        output_kind=RequestOutputKind.DELTA,
    )


def _known(run: ServedModel) -> ExternalModel:
    """Describe a run for the server; raise ModelError for virtual tokens over a family that scales embeddings."""
    config = run.model.policy.network.config
    if run.virtual and config.model_type not in SOFT:
        raise ModelError(f"{run.name}: virtual tokens go to vLLM over {', '.join(SOFT)} alone; {ELSE}")
    positions = positions_of(config.to_dict())
    if not positions:
        raise ModelError(f"{run.name}: the context length of the base is unknown, but vLLM requires it; {ELSE}")
    return ExternalModel(run.name, run.template, run.objective, run.limit, positions - run.virtual)


def _loras(models: Mapping[str, Path], abouts: Mapping[str, ModelManifest]) -> dict[str, Any]:
    """Return the LoRA request of each run, which vLLM expects with each prompt."""
    from vllm.lora.request import LoRARequest

    named = [name for name, about in abouts.items() if isinstance(about.technique, Lora)]
    return {name: LoRARequest(name, number, str(models[name])) for number, name in enumerate(named, start=1)}
