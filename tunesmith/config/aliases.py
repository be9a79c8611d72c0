"""Option names of other trainers and earlier versions, and their names here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.errors import RecipeError, suggestion

# Name in PEFT, TRL, transformers, axolotl or LLaMA-Factory, top-level or nested -> dotted key. All are accepted.
ALIASES: dict[str, str] = {
    "base_model": "model",
    "model_name_or_path": "model",
    "model_id": "model",
    "dataset": "data.train",
    "train_file": "data.train",
    "train_data": "data.train",
    "validation_file": "data.validation",
    "val_size": "data.validation",
    "val_set_size": "data.validation",
    "test_file": "data.test",
    "max_samples": "data.rows",
    "cutoff_len": "data.max_tokens",
    "max_length": "data.max_tokens",
    "max_seq_length": "data.max_tokens",
    "sequence_len": "data.max_tokens",
    "block_size": "data.max_tokens",
    "num_train_epochs": "schedule.epochs",
    "num_epochs": "schedule.epochs",
    "epochs": "schedule.epochs",
    "learning_rate": "schedule.learning_rate",
    "lr": "schedule.learning_rate",
    "warmup_ratio": "schedule.warmup",
    "weight_decay": "schedule.weight_decay",
    "max_grad_norm": "schedule.clip",
    "batch_size": "schedule.batch_rows",
    "per_device_train_batch_size": "schedule.batch_rows",
    "micro_batch_size": "schedule.batch_rows",
    "save_steps": "schedule.save_steps",
    "eval_steps": "schedule.eval_steps",
    "lora_r": "technique.rank",
    "lora_rank": "technique.rank",
    "lora_alpha": "technique.alpha",
    "lora_dropout": "technique.dropout",
    "lora_target_modules": "technique.targets",
    "target_modules": "technique.targets",
    "lora_target": "technique.targets",
    "reward": "objective.reward",
    "num_generations": "objective.group",
    "max_completion_length": "objective.max_new_tokens",
    "num_virtual_tokens": "technique.tokens",
    "prompt_tuning_init": "technique.init",
    "encoder_hidden_size": "technique.width",
    "encoder_reparameterization_type": "technique.encoder",
    "feedforward_modules": "technique.feedforward",
    "use_dora": "technique.dora",
    "use_rslora": "technique.rslora",
    "finetuning_type": "technique.kind",
    "adapter": "technique.kind",
    "tuner_type": "technique.kind",
    "peft_type": "technique.kind",
}
# These count rows per forward pass, `schedule.batch_rows` counts rows per optimizer step.
PER_PASS, ACCUMULATION = ("per_device_train_batch_size", "micro_batch_size"), "gradient_accumulation_steps"
OF_A_STEP = "schedule.batch_rows is the number of rows per optimizer step"
# Names that are unambiguous only inside their section.
INSIDE = {"r": "technique.rank", "asks": "compare.model", "facts": "compare.changed_facts"}
SECTIONS = ("objective", "technique", "schedule", "data", "compare")
# Keys and arms that had another name in earlier versions.
OLD_KEYS = {"compare.asks": "compare.model", "compare.facts": "compare.changed_facts"}
OLD_ARMS = {"taught": "closed-book"}
# Values that have another name here.
VALUES: dict[str, dict[Any, Any]] = {
    "technique.targets": {"all": "all-linear"},
    "technique.init": {"TEXT": "text", "RANDOM": "random"},
    "technique.encoder": {"MLP": "mlp", "LSTM": "lstm"},
    "technique.kind": {
        "LORA": "lora",
        "IA3": "ia3",
        "PROMPT_TUNING": "prompt",
        "PREFIX_TUNING": "prefix",
        "P_TUNING": "p-tuning",
        "prompt_tuning": "prompt",
        "prefix_tuning": "prefix",
        "p_tuning": "p-tuning",
    },
}


# Training methods by which other trainers name a run, and the objective that learns by them.
METHODS = {
    "sft": "instruct",
    "pt": "domain",
    "rm": "reward",
    **{loss: f"{{kind: preference, loss: {loss}}}" for loss in ("dpo", "ipo", "kto", "orpo", "simpo")},
    **{algorithm: f"{{kind: rl, algorithm: {algorithm}}}" for algorithm in ("grpo", "ppo")},
}


def unknown_kind(kind: str, known: Sequence[str]) -> str:
    """Return the message for a kind that does not exist, with the objective that it means or the nearest kind.

    Args:
        kind: as written in the recipe.
        known: the kinds that exist.
    """
    if objective := METHODS.get(kind.lower()):
        return f"unknown kind {kind!r}; use objective: {objective}"
    hint = suggestion(kind.lower(), known)
    return f"unknown kind {kind!r}{', ' * bool(hint)}{hint}; known: {', '.join(known)}"


def translate(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Translate the names and values of a recipe, and return a note for each change."""
    values = {key: dict(value) if isinstance(value, Mapping) else value for key, value in raw.items()}
    notes: list[str] = []
    accumulation = values.pop(ACCUMULATION, None)
    multiplied = [name for name in PER_PASS if isinstance(values.get(name), int)]
    if accumulation is not None and not (multiplied and isinstance(accumulation, int)):
        notes.append(f"{ACCUMULATION} is ignored: {OF_A_STEP}")
    # The kind of the technique first, because an option of LoRA alone would select LoRA.
    for name in sorted((key for key in values if key in ALIASES), key=lambda key: ALIASES[key] != "technique.kind"):
        value = values.pop(name)
        key = ALIASES[name]
        if name in PER_PASS and isinstance(value, int) and isinstance(accumulation, int):
            value, name = value * accumulation, f"{name} x {ACCUMULATION}"
        value = VALUES.get(key, {}).get(value, value) if isinstance(value, str) else value
        _place(values, key, value, name=name)
        notes.append(f"{name} -> {key}: {value}")
    return values, notes + translate_sections(values)


def translate_change(change: str) -> tuple[str, list[str]]:
    """Translate the name and value of a `key=value` change, and return a note if they changed."""
    name, sign, value = change.partition("=")
    key = OLD_KEYS.get(name) or ALIASES.get(name, name)
    ours = VALUES.get(key, {}).get(value.strip("\"'"), value)
    return f"{key}{sign}{ours}", [f"{name} -> {key}: {ours}"] if (key, ours) != (name, value) else []


def changed_keys(changes: Sequence[str]) -> set[str]:
    """Return the translated dotted keys that `key=value` changes set."""
    return {translate_change(change)[0].partition("=")[0] for change in changes}


def translate_sections(values: dict[str, Any]) -> list[str]:
    """Translate names inside the sections in place, and return a note for each."""
    return [note for section in SECTIONS for note in _inside(values, section)] + _arms(values)


def _arms(values: dict[str, Any]) -> list[str]:
    """Replace former names of arms in place, and return a note for each."""
    arms = [values["arms"]] if isinstance(values.get("arms"), str) else values.get("arms")
    if not isinstance(arms, list) or not any(arm in OLD_ARMS for arm in arms if isinstance(arm, str)):
        return []
    values["arms"] = [OLD_ARMS.get(arm, arm) if isinstance(arm, str) else arm for arm in arms]
    return [f"arms: {arm} -> {OLD_ARMS[arm]}" for arm in arms if isinstance(arm, str) and arm in OLD_ARMS]


def _inside(values: dict[str, Any], section: str) -> list[str]:
    """Translate names inside a section in place, as in `technique: {lora_r: 8}`."""
    inner = values.get(section)
    if not isinstance(inner, dict):
        return []
    notes, theirs = [], ALIASES | INSIDE
    for name in [key for key in inner if theirs.get(key, "").startswith(f"{section}.")]:
        key = theirs[name].partition(".")[2]
        if key == name:
            continue
        value = inner.pop(name)
        _once(inner, key, value, names=(name, theirs[name]))
        inner[key] = VALUES.get(theirs[name], {}).get(value, value) if isinstance(value, str) else value
        notes.append(f"{section}.{name} -> {section}.{key}: {inner[key]}")
    return notes


def _place(values: dict[str, Any], dotted: str, value: Any, *, name: str) -> None:
    """Set a dotted key; `technique: lora` becomes a mapping. Raises RecipeError for a conflicting value."""
    section, _, key = dotted.partition(".")
    if not key:
        _once(values, section, value, names=(name, dotted))
        values[section] = value
        return
    inner = values.get(section)
    if isinstance(inner, str) and section in ("technique", "objective", "data"):
        inner = {"train" if section == "data" else "kind": inner}
    if key != "kind" and section == "technique" and inner is None:
        inner = {"kind": "lora"}
    if inner is not None and not isinstance(inner, Mapping):
        raise RecipeError(f"{section}: expected a mapping of keys, got {inner!r}; write {name} in it as {key}")
    _once(inner or {}, key, value, names=(name, dotted))
    values[section] = {**(inner or {}), key: value}


def _once(values: Mapping[str, Any], key: str, value: Any, *, names: tuple[str, str]) -> None:
    """Raise RecipeError if the key has another value: one of the two spellings would be ignored silently."""
    if values.get(key, value) != value:
        raise RecipeError(f"{names[0]} and {names[1]} are the same setting with different values; remove one")
