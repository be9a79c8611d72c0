"""Opening of models by folder, Hub id, alias or file: runs, base models and third-party adapters."""

from __future__ import annotations

from pathlib import Path

from tunesmith.config import AnyObjective
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.data.tokenization.tokenizer import choose_pad
from tunesmith.errors import ModelError, RecipeError
from tunesmith.inference.defaults import BASE_CHAT, always_thinks
from tunesmith.inference.engine_program import engine_refusal
from tunesmith.inference.engine_server import EngineModel, EngineServer
from tunesmith.inference.identify import CONFIG, ModelSource, identify, read_manifest
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.saved_model import check_base, load, read_template
from tunesmith.models.loading.adapter_files import INSIDE, WEIGHTS, open_adapter, shapes_of, vet_adapter
from tunesmith.models.loading.checkpoint import verify_model
from tunesmith.models.loading.device import configure_device
from tunesmith.models.loading.load import Base, fingerprint_of, load_base, read_tokenizer
from tunesmith.models.loading.locate import LoadOptions, locate
from tunesmith.models.loading.text_part import adapter_tree, share_head
from tunesmith.models.loading.weight_files import read_json
from tunesmith.models.policy import Policy

# Task types of adapters without a head; PEFT writes None if no task type was given.
HEADLESS = (None, "CAUSAL_LM", "FEATURE_EXTRACTION")
_OTHER_BASE = "name the base it was trained on with --base"


def open_model(
    name: str | Path | ModelSource,
    *,
    objective: AnyObjective | None = None,
    base: str = "",
    offline: bool = False,
    limit: int = 512,
    engine: EngineServer | None = None,
) -> LocalModel:
    """Load a run, base model, adapter or merged model.

    Args:
        name: see `identify`.
        objective: how prompts are built for a model that is not a run; by default as a chat.
        base: replaces the base named by an adapter.
        offline: do not access the network.
        limit: greatest prompt length in tokens, for a model that is not a run.
        engine: computes the answers, instead of torch in this process.

    Raises:
        CheckpointError: files are damaged.
        ModelError: the model cannot be loaded.
        RecipeError: the objective or base does not match the model.
    """
    found = name if isinstance(name, ModelSource) else identify(name, offline=offline)
    if base and found.kind != "adapter":
        raise RecipeError(f"{found.name}: base {base}: only an adapter can be put over another base; leave it out")
    chosen = BASE_CHAT if found.kind == "run" else _in_words(objective, found.name)
    opened = None
    if engine is not None:
        opened = _in_engine(engine, found, chosen, base=base, offline=offline, limit=limit)
    if found.kind == "run":
        model = opened or load(found.folder or found.name, offline=offline)
        if objective is not None and objective.kind != model.objective.kind:
            if model.policy.head is not None:
                raise RecipeError(
                    f"{found.name}: it answers through a head for {model.objective.kind}, not by {objective.kind}; "
                    f"leave the objective out, or tune one with objective.output: words"
                )
            model.objective = _in_words(objective, found.name)
        return model
    if opened is not None:
        opened.thinks = always_thinks(opened.template) if objective is None else None
        return opened
    options = LoadOptions("auto", configure_device(), found.quantize)
    if found.kind == "model":
        loaded = load_base(found.name, options=options, offline=offline)
        policy = Policy.over(loaded.network, family=loaded.family)
        if chosen.answers_untuned:
            chosen = chosen.for_base(loaded.folder, loaded.family)
            policy.head = chosen.untuned_head(policy)
        else:
            _refuse_encoder(loaded, found.name)
    else:
        loaded = _base_of(found, base, options, offline=offline)
        _refuse_encoder(loaded, found.name)
        policy = _attach(found, loaded)
    policy.train(False)
    for value in policy.network.parameters():
        value.requires_grad_(False)
    template = Template(loaded.tokenizer, chat=loaded.family == "decoder")
    # As a part of an evaluation it thinks as its objective says, by itself as it would without tuning.
    thinks = always_thinks(template) if objective is None else None
    return LocalModel(policy, template, chosen, limit, thinks=thinks)


def _in_engine(
    engine: EngineServer, found: ModelSource, objective: AnyObjective, *, base: str, offline: bool, limit: int
) -> EngineModel:
    """Open a model as the base of an engine or as an adapter of it. Raises ModelError if that is not supported."""
    if reason := engine_refusal(found, engine.title):
        raise ModelError(reason)
    folder = place = found.folder or Path(found.name)
    rank = 0
    if (folder / WEIGHTS).exists():
        _vet(folder, found.name)
        if not (named := base or found.base):
            raise ModelError(f"{found.name}: {CONFIG} names no base; name it with --base")
        config = read_json(folder / CONFIG, where=found.name)
        rank = max([int(config["r"]), *(config.get("rank_pattern") or {}).values()])
        place = locate(named, offline=offline)
    adapter = folder if rank else None
    if found.kind != "run":
        words = folder if (folder / "tokenizer_config.json").exists() else place
        template = Template(read_tokenizer(words, where=found.name))
        name = engine.open(place, adapter, rank=rank)
        return EngineModel.of(engine, name, template, objective=objective, limit=limit)
    verify_model(folder)
    manifest = read_manifest(folder)
    template = read_template(folder, manifest)
    if adapter:
        check_base(folder, manifest, fingerprint_of(place, where=manifest.base))
    name = engine.open(place, adapter, rank=rank)
    model = EngineModel.of(engine, name, template, objective=manifest.objective, limit=manifest.limit)
    model.temperature, model.threshold = manifest.temperature, manifest.threshold
    model.temperatures, model.thresholds = manifest.temperatures, manifest.thresholds
    return model


def _in_words(objective: AnyObjective | None, name: str) -> AnyObjective:
    """Return the objective in the form for a model without a head."""
    if objective is None:
        return BASE_CHAT
    if objective.needs_head and not objective.answers_untuned:
        what = f"{objective.results} need a head, and this model has none"
        raise RecipeError(f"{name}: {what}; give a run tuned with {objective.kind}")
    if objective.label_mode == "multi":
        raise RecipeError(
            f"{name}: rows with several labels need a head, and this model has none; "
            "tune it on such rows, or give rows with one label"
        )
    return objective.in_words()


def _refuse_encoder(base: Base, name: str) -> None:
    """Raise RecipeError for an encoder without a tuned head."""
    if base.family == "encoder":
        raise RecipeError(
            f"{name}: an encoder without a tuned head cannot answer, and a linear probe needs training rows; "
            f"`tunesmith tune ROWS --model {name}` scores the probe and the tuned model"
        )


def _base_of(found: ModelSource, base: str, options: LoadOptions, *, offline: bool) -> Base:
    """Check an adapter and load its base, with the tokenizer of the adapter if it has one."""
    assert found.folder is not None
    _vet(found.folder, found.name)
    named = base or found.base
    if not named:
        raise ModelError(f"{found.name}: {CONFIG} names no base; name it with --base")
    try:
        loaded = load_base(named, options=options, offline=offline)
    except ModelError as error:
        fix = "" if base else "; or name the base with --base"
        raise ModelError(f"{found.name}: its base {error}{fix}") from error
    if (folder := found.folder).joinpath("tokenizer_config.json").exists():
        loaded.tokenizer = read_tokenizer(folder, where=found.name)
        choose_pad(loaded.tokenizer, rows=loaded.network.get_input_embeddings().num_embeddings)
    return loaded


def _vet(folder: Path, name: str) -> None:
    """Raise ModelError if an adapter cannot be used here."""
    config = vet_adapter(folder, where=name, kinds=INSIDE)
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


def _attach(found: ModelSource, base: Base) -> Policy:
    """Add the adapter to the base; raise ModelError if they do not match."""
    assert found.folder is not None
    shapes = shapes_of(found.folder, where=found.name)
    # Trainers that add tokens store the embedding in the adapter; the base gets its size.
    tree = adapter_tree(base.network)
    embedding = tree.get_input_embeddings()
    name = next(name for name, module in tree.named_modules() if module is embedding)
    rows = {shape[0] for key, shape in shapes.items() if key.endswith(f"{name.rpartition('.')[2]}.weight")}
    if rows and max(rows) != embedding.num_embeddings:
        tree.resize_token_embeddings(max(rows), mean_resizing=False)
    wrapped = open_adapter(tree, found.folder, where=found.name, fix=_OTHER_BASE, kinds=INSIDE)
    share_head(base.network)
    policy = Policy.over(base.network, family=base.family, reference=wrapped.disable_adapter)
    policy.adapter = wrapped
    return policy
