"""Convert the keys that only axolotl has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.config.importers.common import Conversion, resolve_path
from tunesmith.config.unsupported import UNKNOWN, UNNAMED, why_left_out
from tunesmith.errors import RecipeError

PREFERENCES = ("dpo", "ipo", "kto", "orpo", "simpo")
# Keys of the `trl` section, of all preference runs, and of some losses -> keys here.
REINFORCED = {"beta": "beta", "num_generations": "group", "max_completion_length": "max_new_tokens"}
TUNED = {"rl_beta": "beta", "dpo_beta": "beta"}
TUNED_BY = {"simpo": {"simpo_gamma": "gamma"}, "orpo": {"orpo_alpha": "beta"}}
# Keys of a data set that locate its rows.
PLACE = {"path", "data_files", "split", "ds_type"}
ALPACA, CHATS, DOCUMENTS = ("alpaca",), ("sharegpt", "chat_template"), ("completion", "pretrain")

# Reason for keys that describe the format of rows.
DETECTED = "the row format is detected; check it with tune --dry-run"


def axolotl(work: Conversion) -> None:
    """Convert the keys that only axolotl has."""
    _axolotl_rl(work, work.take("rl"))
    streamed = [{**entry, "type": entry.get("type") or "pretrain"} for entry in _sets(work, "pretraining_dataset")]
    if sets := [*_sets(work, "datasets"), *streamed]:
        _axolotl_data(work, sets)
    elif "kind" not in work.ours["objective"]:
        work.put("objective", "kind", "instruct", "no datasets")
    if held := _sets(work, "test_datasets"):
        work.put("data", "validation", _one_file(work, "test_datasets", held), "test_datasets")
    adapter = work.take("adapter")
    work.put("technique", "kind", adapter or "full", "adapter" if adapter else "no adapter")
    if work.take("lora_target_linear"):
        work.put("technique", "targets", "all-linear", "lora_target_linear")
        work.take("lora_target_modules")
    for name in ("dora", "rslora"):
        if work.take(f"peft_use_{name}"):
            work.put("technique", name, True, f"peft_use_{name}")
    if work.take("load_in_4bit") and work.ours["technique"]["kind"] != "qlora":
        work.dropped["load_in_4bit"] = "only with adapter: qlora"


def _sets(work: Conversion, name: str) -> list[Mapping[str, Any]]:
    """Return the data sets under a key; a string is a data set with only a path."""
    given = work.take(name) or []
    entries = given if isinstance(given, list) else [given]
    sets = [{"path": entry} if isinstance(entry, str) else entry for entry in entries]
    if invalid := [entry for entry in sets if not isinstance(entry, Mapping)]:
        raise RecipeError(f"{work.place}: {name}: expected a path or a mapping with a path, got {invalid[0]!r}; fix it")
    return sets


def _axolotl_rl(work: Conversion, rl: Any) -> None:
    """Convert the objective of a preference or RL run."""
    if rl in PREFERENCES:
        work.put("objective", "kind", "preference", f"rl: {rl}")
        work.put("objective", "loss", rl, f"rl: {rl}")
    elif rl:
        work.put("objective", "kind", "rl" if rl == "grpo" else rl, f"rl: {rl}")
        _reinforced(work, work.take("trl"))
    elif work.raw.get("reward_model") is True and work.take("reward_model"):
        work.put("objective", "kind", "reward", "reward_model: true")
    judged = {**(TUNED if rl else {}), **TUNED_BY.get(str(rl), {})}
    for name in [name for name in judged if name in work.raw]:
        work.put("objective", judged[name], work.take(name), name)


def _reinforced(work: Conversion, trl: Any) -> None:
    """Convert the options that axolotl passes to TRL; the reward has to be named by the user."""
    given = dict(trl) if isinstance(trl, Mapping) else {}
    for name in [name for name in REINFORCED if given.get(name) is not None]:
        work.put("objective", REINFORCED[name], given.pop(name), f"trl.{name}")
    work.dropped |= {f"trl.{name}": why_left_out(name) or UNKNOWN for name in given}
    work.dropped["reward"] = UNNAMED


def _one_file(work: Conversion, name: str, sets: Sequence[Mapping[str, Any]]) -> str:
    """Return the first file of the data sets; the others are listed as not converted."""
    listed: list[str] = []
    for entry in sets:
        files = entry.get("data_files") or entry.get("path") or ""
        split = str(entry.get("split") or "")
        if "[" in split:
            work.dropped[f"{name}: split"] = f"slices of a split ({split}) are not supported: use data.rows"
        of = "" if not split or "[" in split or split == "train" else f":{split}"
        listed += [f"{resolve_path(work, str(file))}{of}" for file in (files if isinstance(files, list) else [files])]
    work.dropped |= {f"{name}: {file}": "only one file is supported: concatenate them" for file in listed[1:]}
    return listed[0]


def _axolotl_data(work: Conversion, sets: Sequence[Mapping[str, Any]]) -> None:
    """Convert the training file, and the objective from its type."""
    path, entry = _one_file(work, "datasets", sets), sets[0]
    if "train" not in work.ours["data"]:
        work.put("data", "train", path, "datasets: path")
    if "text_column" in entry:  # of a pretraining_dataset
        entry = {"field": entry["text_column"], **{name: entry[name] for name in entry if name != "text_column"}}
    kind, base = entry.get("type"), str(entry.get("type") or "").partition(".")[0]
    judged = "kind" in work.ours["objective"]
    named = ["field_messages"] if base in CHATS else ["field"] if base in DOCUMENTS else []
    read = PLACE if judged else {*PLACE, "type", *named}
    for name in sorted(set(entry) - read):
        work.dropped[f"datasets: {name}"] = f"{entry[name]}: {DETECTED}"
    if judged:
        return
    if isinstance(kind, Mapping):
        parts = {"prompt": kind.get("field_instruction"), "answer": kind.get("field_output")}
        usable = all(parts.values()) and not kind.get("field_input")
        unread = sorted(set(kind) - ({"field_instruction", "field_output", "field_input"} if usable else set()))
        work.dropped |= {f"datasets: type: {name}": f"{kind[name]}: {DETECTED}" for name in unread}
        work.put("objective", "kind", "instruct", "datasets: type")
        if usable:
            work.ours["objective"] |= parts
        return
    work.put("objective", "kind", "domain" if base in DOCUMENTS else "instruct", f"datasets: type: {kind}")
    if base in CHATS and entry.get("field_messages"):
        work.put("objective", "messages", entry["field_messages"], "datasets: field_messages")
    if base in DOCUMENTS and entry.get("field"):
        work.put("objective", "text", entry["field"], "datasets: field")
    if base not in (*ALPACA, *CHATS, *DOCUMENTS):
        work.dropped["datasets: type"] = f"{kind}: {DETECTED}"
