"""Checks of a recipe against the model: unsupported combinations are rejected with the nearest supported one."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from packaging.version import Version

from tunesmith.config.recipe import SELF, Recipe
from tunesmith.errors import RecipeError
from tunesmith.models.loading.locate import local_family, no_bitsandbytes
from tunesmith.objectives import Classify
from tunesmith.techniques import Lora
from tunesmith.techniques.peft_base import reaches

# With 2.10, FSDP ends in an error after the first steps; versions between were not tried.
SHARDING_TORCH = "2.13"
UNSHARDED = "set machine.shard: none, with which every process has all weights"


def check_model(recipe: Recipe) -> None:
    """Check the model of a recipe by its name and its config.json alone, and what its family rules out.

    Raises:
        ModelError: there cannot be such a model, or no objective supports it.
        RecipeError: the recipe does not suit the family, or needs a library that is not installed.
    """
    if recipe.technique.load_options().quantize and (reason := no_bitsandbytes()):
        raise RecipeError(f"technique.{reason}")
    if recipe.schedule.optimizer == "adamw-8bit" and (reason := no_bitsandbytes("optimizer: adamw-8bit")):
        raise RecipeError(f"schedule.{reason}")
    if family := local_family(recipe.model):
        check_pair(recipe, family)
        check_gates(recipe, family)
        check_replay(recipe, family)


def check_pair(recipe: Recipe, family: str) -> None:
    """Raise RecipeError if this objective cannot work with this model family or technique."""
    for name, part in recipe.parts.items():
        try:
            check_pair(part, family)
        except RecipeError as error:
            raise RecipeError(f"objective.tasks.{name}: {error}") from None
    if recipe.schedule.batch_rows < len(recipe.parts):
        raise RecipeError(
            f"schedule.batch_rows: expected at least one row per task, got {recipe.schedule.batch_rows}; "
            f"use {len(recipe.parts)} or more"
        )
    if family not in recipe.objective.families:
        needed = " or ".join(recipe.objective.families)
        nearest = "model: smollm2-135m, or objective: classify" if family == "encoder" else "model: minilm-l6"
        raise RecipeError(
            f"objective {recipe.objective.kind}: needs a{'n' * (needed[0] == 'e')} {needed}, "
            f"{recipe.model} is a{'n' * (family[0] == 'e')} {family}; nearest that works: {nearest}"
        )
    int8 = isinstance(recipe.technique, Lora) and recipe.technique.products
    if int8 and (recipe.objective.samples_completions or recipe.objective.reference != "none"):
        raise RecipeError(
            f"technique.products: int8 would change what objective {recipe.objective.kind} compares with its reference "
            "model; leave it out"
        )
    if recipe.controls and (why := recipe.objective.no_controls):
        raise RecipeError(f"controls: {why}; nearest that works: controls: false")
    if recipe.canaries and (family == "encoder" or recipe.objective.kind not in ("domain", "instruct")):
        raise RecipeError("canaries: only a decoder tuned by instruct or domain writes whole rows; use canaries: 0")
    if isinstance(recipe.objective, Classify):
        _check_labels(recipe.objective, family)
    _check_teacher(recipe)


def _check_teacher(recipe: Recipe) -> None:
    """Raise RecipeError for a teacher that is not supported for this recipe."""
    teacher, objective = recipe.teacher, recipe.objective
    if not teacher.model:
        if teacher.rows:
            raise RecipeError(f"teacher.model is missing: name the model that answers {teacher.rows}")
        return
    if recipe.parts or not objective.has_reference_answers or objective.label_mode == "multi":
        kind = "rows with several labels" if objective.label_mode == "multi" else objective.kind
        raise RecipeError(
            f"teacher: not supported for {kind}; nearest that works: objective classify with one label, or instruct"
        )
    if not teacher.rows and teacher.loss == "answers":
        raise RecipeError("teacher.rows is missing: name a file of rows without answers, which the teacher answers")
    if teacher.loss != "answers" and (objective.produces != "text" or "://" in teacher.model):
        why = "a server does not state them" if objective.produces == "text" else f"{objective.kind} learns labels"
        raise RecipeError(f"teacher.loss: {teacher.loss} needs the logits of all tokens, and {why}; use answers")
    if teacher.accuracy != "auto" and (objective.produces != "labels" or "://" in teacher.model):
        why = "a server states no confidence" if objective.produces == "labels" else "texts are not right or wrong"
        raise RecipeError(f"teacher.accuracy: {teacher.accuracy} chooses no answers, {why}; leave it out")
    if teacher.on_policy and teacher.loss == "answers":
        raise RecipeError("teacher.on_policy: answers of the student are scored by a divergence; set teacher.loss: jsd")


def _check_labels(objective: Classify, family: str) -> None:
    """Raise RecipeError for an unsupported combination of settings of `classify`."""
    if objective.output == "words" and (family == "encoder" or objective.multi):
        why = "an encoder does not generate text" if family == "encoder" else "rows may have several labels"
        raise RecipeError(f"objective.output: words is not supported: {why}; nearest that works: output: linear")
    if objective.multi and objective.metric == "macro_f1":
        raise RecipeError(
            "objective.metric: macro_f1 is defined for rows with one label, and these may have several; "
            "nearest that works: metric: sample_f1"
        )
    if objective.balance is True and (objective.output == "words" or objective.multi):
        raise RecipeError(
            "objective.balance: true requires a linear head and one label per row; nearest that works: "
            f"{'balance: false' if objective.multi else 'output: linear'}"
        )


def check_technique(recipe: Recipe, network: Any, family: str) -> None:
    """Raise RecipeError if this network cannot be tuned with this technique."""
    technique = recipe.technique
    if reason := technique.refusal(network, family=family):
        raise RecipeError(f"technique {technique.kind}: {reason}")
    hides = family == "encoder" and "domain" in (
        recipe.objective.kind,
        *(p.objective.kind for p in recipe.parts.values()),
    )
    if hides and isinstance(technique, Lora) and technique.targets != "all-linear":
        words = network.get_input_embeddings()
        for name, module in network.named_modules():
            if module is words and reaches(name, technique.targets):
                raise RecipeError(
                    f"technique.targets: {name} is also the output layer for masked words, so that an adapter on it "
                    "cannot be merged; remove it, or use technique: full"
                )


def sharding_refusal(recipe: Recipe, family: str, *, multimodal: bool = False) -> str:
    """Return why `recipe` is not sharded for a `family` of models or a `multimodal` one, and a fix; empty if it is."""
    technique, objectives = recipe.technique, [task.objective for task in recipe.tasks.values()]
    if recipe.teacher.loss != "answers":
        return f"teacher.loss: {recipe.teacher.loss} is not supported over sharded weights; {UNSHARDED}"
    if Version(version("torch")) < Version(SHARDING_TORCH):
        return f"dividing weights needs torch {SHARDING_TORCH}, here is {version('torch')}; upgrade, or {UNSHARDED}"
    if technique.load_options().quantize:
        return f"4-bit weights are copied to every process, never sharded; {UNSHARDED}"
    # Outside of a pass, when weights are not gathered, soft prompts read word embeddings, and DoRA norms of weights.
    kind = "dora" if isinstance(technique, Lora) and technique.dora else technique.kind
    if kind == "dora" or technique.virtual_tokens():
        return f"technique {kind} is not supported over sharded weights; use technique: lora, or {UNSHARDED}"
    if technique.kind == "full" and recipe.schedule.optimizer != "adamw":
        return f"schedule.optimizer: {recipe.schedule.optimizer} has no shards; use adamw, or {UNSHARDED}"
    # Full tuning would copy the weights for it, and processes with batches of other tasks would take fewer passes.
    if any(value.reference == "per_step" for value in objectives) and (technique.kind == "full" or recipe.parts):
        return f"a reference at every step (kto, rl) is sharded for a single task and technique: lora; {UNSHARDED}"
    if technique.kind == "full" and multimodal:
        return f"the text part of a multimodal checkpoint is not saved from shards; use technique: lora, or {UNSHARDED}"
    if family == "encoder" and any(objective.kind == "domain" for objective in objectives):
        return f"an encoder's word embeddings are also its output layer for masked words; {UNSHARDED}"
    return ""


def check_replay(recipe: Recipe, family: str) -> None:
    """Raise RecipeError if replay is not supported for this recipe."""
    if not recipe.replay.share:
        return
    if recipe.objective.kind != "domain":
        raise RecipeError(f"replay: not supported for {recipe.objective.kind}; nearest that works: objective: domain")
    if recipe.replay.source == SELF and family == "encoder":
        raise RecipeError("replay.source: an encoder does not generate text; name a file of texts")


def check_gates(recipe: Recipe, family: str) -> None:
    """Raise RecipeError for a gate on a metric that this model does not have."""
    gates = recipe.gates
    if gates.max_general_nats is not None and family == "encoder":
        raise RecipeError(
            f"gates.max_general_nats: {recipe.model} is an encoder, which has no next-token loss on general text; "
            "nearest that works: gates: {min_delta: 0.0}, or model: smollm2-135m"
        )
    if gates.thinking and family == "encoder":
        raise RecipeError(
            f"gates.{gates.thinking}: {recipe.model} is an encoder, which does not think; remove the gate"
        )


def check_thinking_gates(recipe: Recipe, *, thinks: bool) -> None:
    """Raise RecipeError for a gate on the thinking ledger if the chat template of the model does not think."""
    if recipe.gates.thinking and not thinks:
        raise RecipeError(
            f"gates.{recipe.gates.thinking}: the chat template of {recipe.model} has no thinking mode; "
            "remove the gate, or use a model that thinks, such as Qwen3"
        )
