"""Whatever answers and lies in a folder, on the Hub or in a file: a run, a base, anybody's adapter."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.template import Template
from tunesmith.data.tokenizer import choose_pad
from tunesmith.errors import CheckpointError, ModelError, RecipeError, briefly
from tunesmith.inference.folder import ABOUT, find_model, load, read_about
from tunesmith.inference.local import LocalModel
from tunesmith.model.device import settle
from tunesmith.model.load import Base, LoadOptions, load_base, locate, read_tokenizer
from tunesmith.model.policy import Policy
from tunesmith.model.weights import INDEX, PICKLES, SINGLE, read_json
from tunesmith.objectives import Classify, Instruct, Reward
from tunesmith.recipe import AnyObjective

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PACKED = "base_in_memory.json"  # beside an adapter of ours that was learned over 4 bits
# PEFT's methods that put their numbers inside the base's own layers: the base network answers with them.
INSIDE = frozenset(
    {
        "ADALORA", "BOFT", "BONE", "C3A", "FOURIERFT", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA",
        "MISS", "OFT", "RANDLORA", "ROAD", "SHIRA", "VBLORA", "VERA",
    }
)  # fmt: skip
# Adapters that were trained without a head of their own: PEFT writes None where nobody said what for.
HEADLESS = (None, "CAUSAL_LM", "FEATURE_EXTRACTION")


@dataclass(frozen=True, slots=True)
class FoundModel:
    """What a name stands for; `base` is what it was tuned over, empty for a model that stands alone.

    `quantize` is how a model, or the base of an adapter, is to lie in memory, as in LoadOptions.
    """

    name: str
    kind: Literal["run", "adapter", "model"]
    folder: Path | None
    base: str = ""
    quantize: str = ""


def identify(name: str | Path, *, offline: bool = False) -> FoundModel:
    """What a folder, Hub id, alias or GGUF file holds, told by its files.

    Raises CheckpointError and ModelError.
    """
    name, path = str(name), Path(name).expanduser()
    if any((path / page).exists() for page in (f"model/{ABOUT}", ABOUT, "run.json")):
        folder = find_model(path)
        return FoundModel(name, "run", folder, read_about(folder).base)
    if name.lower().endswith(".gguf"):
        return FoundModel(name, "model", None)
    folder = locate(name, offline=offline)
    # Some trainers leave the base's config.json beside an adapter; only weights make a folder a model.
    if (folder / CONFIG).exists() and not any((folder / file).exists() for file in (SINGLE, INDEX)):
        base = read_json(folder / CONFIG, where=name).get("base_model_name_or_path")
        bits = read_json(folder / PACKED, where=name).get("quantize") if (folder / PACKED).exists() else ""
        return FoundModel(name, "adapter", folder, str(base or ""), str(bits or ""))
    return FoundModel(name, "model", folder)


def open_model(
    name: str | Path | FoundModel,
    *,
    objective: AnyObjective | None = None,
    base: str = "",
    offline: bool = False,
    limit: int = 512,
) -> LocalModel:
    """The model that a run folder, base, adapter folder or merged folder holds, ready to answer.

    A run keeps its own objective and limit; all others are asked by `objective`, without one as a chat.
    `base` stands in for the base that an adapter names. Raises CheckpointError, ModelError, RecipeError.
    """
    found = name if isinstance(name, FoundModel) else identify(name, offline=offline)
    if base and found.kind != "adapter":
        raise RecipeError(f"{found.name}: base {base}: only an adapter can be put over another base; leave it out")
    if found.kind == "run":
        return _asked(load(found.folder or found.name, offline=offline), objective, found.name)
    options = LoadOptions("float32", settle(), found.quantize)
    if found.kind == "model":
        loaded = load_base(found.name, options=options, offline=offline)
        _refuse_encoder(loaded, found.name)
        policy = Policy.over(loaded.network, family=loaded.family)
    else:
        loaded = _base_of(found, base, options, offline=offline)
        _refuse_encoder(loaded, found.name)
        policy = _attach(found, loaded)
    policy.train(False)
    for value in policy.network.parameters():
        value.requires_grad_(False)
    return LocalModel(policy, Template(loaded.tokenizer), _in_words(objective, found.name), limit)


def _asked(model: LocalModel, objective: AnyObjective | None, name: str) -> LocalModel:
    """A run that is asked by its own objective, or by one of another kind where no head stands in the way."""
    if objective is None or objective.kind == model.objective.kind:
        return model
    if model.policy.head is not None:
        raise RecipeError(
            f"{name}: it answers through a head for {model.objective.kind}, not by {objective.kind}; "
            f"leave the objective out, or tune one with objective.output: words"
        )
    model.objective = _in_words(objective, name)
    return model


def _in_words(objective: AnyObjective | None, name: str) -> AnyObjective:
    """The objective as a model without a head can follow it."""
    if isinstance(objective, Reward):
        raise RecipeError(f"{name}: scores need a head, and this model has none; give a run tuned with reward")
    if not isinstance(objective, Classify):
        return objective or Instruct()
    if objective.multi:
        raise RecipeError(
            f"{name}: rows with several labels need a head, and this model has none; "
            "tune it on such rows, or give rows with one label"
        )
    return objective.model_copy(update={"output": "words"})


def _refuse_encoder(base: Base, name: str) -> None:
    """Nothing for a decoder; raises RecipeError for an encoder that no run has given a head."""
    if base.family == "encoder":
        raise RecipeError(
            f"{name}: an encoder without a tuned head cannot answer, and a linear probe needs training rows; "
            f"`tunesmith tune ROWS --model {name}` scores the probe and the tuned model"
        )


def _base_of(found: FoundModel, base: str, options: LoadOptions, *, offline: bool) -> Base:
    """The base of an adapter that has been vetted, with the adapter's tokenizer if it brings one."""
    assert found.folder is not None
    _vet(found.folder, found.name)
    named = base or found.base
    if not named:
        raise ModelError(f"{found.name}: {CONFIG} names no base; name it with --base")
    try:
        loaded = load_base(named, options=options, offline=offline)
    except ModelError as error:
        cure = "" if base else "; or name the base with --base"
        raise ModelError(f"{found.name}: its base {error}{cure}") from error
    if (folder := found.folder).joinpath("tokenizer_config.json").exists():
        loaded.tokenizer = read_tokenizer(folder, where=found.name)
        choose_pad(loaded.tokenizer, rows=loaded.network.get_input_embeddings().num_embeddings)
    return loaded


def _vet(folder: Path, name: str) -> None:
    """Nothing for an adapter that can be read and asked here; else ModelError with the reason."""
    config = read_json(folder / CONFIG, where=name)
    if not (folder / WEIGHTS).exists():
        pickles = sorted(path.name for path in folder.glob("adapter_model*") if path.suffix in PICKLES)
        if pickles:
            raise ModelError(
                f"{name}: {pickles[0]} is a pickle and may run code; load it where you trust it and "
                "save it again with save_pretrained(FOLDER, safe_serialization=True)"
            )
        raise ModelError(f"{name}: no {WEIGHTS} beside {CONFIG}; download it again")
    kind = str(config.get("peft_type"))
    if kind not in INSIDE:
        raise ModelError(
            f"{name}: a {kind} adapter does not lie inside the base's layers; merge it into its base, "
            f"or take one of {', '.join(sorted(INSIDE))}"
        )
    if config.get("task_type") not in HEADLESS:
        raise ModelError(
            f"{name}: made for {config['task_type']}, with a head that only its own trainer knows; "
            "tune a classifier here, or give an adapter made for CAUSAL_LM"
        )
    if config.get("alora_invocation_tokens"):
        raise ModelError(
            f"{name}: an activated LoRA, which acts from certain tokens on and would be put over the whole text here; "
            "ask it in PEFT, or give a plain LoRA"
        )
    if config.get("megatron_config"):  # PEFT would import whatever module megatron_core names
        raise ModelError(f"{name}: {CONFIG} asks for code from elsewhere (megatron_core); do not use it")


def _attach(found: FoundModel, base: Base) -> Policy:
    """The base with the adapter's numbers inside. Raises ModelError when the two do not fit."""
    from peft import PeftModel

    assert found.folder is not None
    _make_room(base, found.folder / WEIGHTS)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            wrapped: Any = PeftModel.from_pretrained(base.network, str(found.folder))
    except Exception as error:  # a foreign configuration can be wrong in any way, so can PEFT's error
        raise ModelError(f"{found.name}: does not fit {base.name} ({briefly(error)}); {_OTHER_BASE}") from error
    if any("missing adapter keys" in str(warning.message) for warning in said):
        raise ModelError(f"{found.name}: does not fit {base.name}, some of its numbers are absent; {_OTHER_BASE}")
    policy = Policy.over(base.network, family=base.family, reference=wrapped.disable_adapter)
    policy.adapter = wrapped
    return policy


def _make_room(base: Base, file: Path) -> None:
    """The base's embedding grown to the size it was trained with: trainers add tokens, and save all rows."""
    from safetensors import SafetensorError, safe_open

    embedding = base.network.get_input_embeddings()
    name = next(name for name, module in base.network.named_modules() if module is embedding)
    try:
        with safe_open(file, framework="pt") as opened:
            shapes: Mapping[str, list[int]] = {k: opened.get_slice(k).get_shape() for k in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a whole safetensors file ({error}); download it again") from error
    rows = {shape[0] for key, shape in shapes.items() if key.endswith(f"{name.rpartition('.')[2]}.weight")}
    if rows and max(rows) != embedding.num_embeddings:
        base.network.resize_token_embeddings(max(rows), mean_resizing=False)


_OTHER_BASE = "name the base it was trained on with --base"
