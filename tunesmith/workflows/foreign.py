"""Another trainer's configuration as a recipe: what has a counterpart is carried over, the rest is named with why."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tunesmith.aliases import ACCUMULATION, ALIASES, PER_PASS, translate
from tunesmith.errors import RecipeError
from tunesmith.recipe import make_recipe
from tunesmith.recipe.left_out import UNKNOWN, UNNAMED, why_left_out
from tunesmith.techniques import SHORTHANDS
from tunesmith.workflows.draft import Draft

# LLaMA-Factory's stage, axolotl's rl -> objective.
STAGES = {"sft": "instruct", "pt": "domain", "rm": "reward", "ppo": "rl", "dpo": "preference", "kto": "preference"}
LOSSES = {"sigmoid": "dpo", "hinge": "hinge", "ipo": "ipo", "kto_pair": "kto", "orpo": "orpo", "simpo": "simpo"}
PREFERENCES = ("dpo", "ipo", "kto", "orpo", "simpo")
# Their key -> ours, for preferences and for reinforcement; and of a data set, where its rows are.
TUNED = {"pref_beta": "beta", "simpo_gamma": "gamma", "pref_ftx": "nll"}
REINFORCED = {"beta": "beta", "num_generations": "group", "max_completion_length": "max_new_tokens"}
PLACE = {"path", "data_files", "split", "ds_type"}
ALPACA, CHATS, DOCUMENTS = ("alpaca",), ("sharegpt", "chat_template"), ("completion", "pretraining")


@dataclass(slots=True)
class Conversion:
    """A foreign configuration on its way: what is still to be read, what it became, what was left out."""

    raw: dict[str, Any]
    folder: Path
    place: str
    ours: dict[str, Any] = field(default_factory=lambda: {"data": {}, "objective": {}, "technique": {}})
    dropped: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def take(self, name: str) -> Any:
        """The value under a name, which is then done with; None where there is none."""
        return self.raw.pop(name, None)

    def put(self, section: str, key: str, value: Any, was: str) -> None:
        """Set one of our keys."""
        self.ours[section][key] = value
        self.reasons[f"{section}.{key}"] = f"was {was}"


def convert(path: Path, *, data: str = "", changes: Sequence[str] = ()) -> Draft:
    """The recipe that an axolotl or LLaMA-Factory file amounts to; `data` stands in for its data set.

    Raises RecipeError for a file that is neither, and for what cannot be done here.
    """
    raw = _read(path)
    tool = next((tool for tool, (marks, _) in TOOLS.items() if marks & set(raw)), None)
    if tool is None:
        cure = "give a file with base_model and datasets, or with model_name_or_path and dataset"
        raise RecipeError(f"{path}: neither of {' and '.join(TOOLS)}; {cure}")
    work = Conversion({key: value for key, value in raw.items() if value is not None}, path.parent, str(path))
    if data:
        work.put("data", "train", data, "given on the command line")
    TOOLS[tool][1](work)
    _common(work)
    known = {*ALIASES, "seed", *([ACCUMULATION] if set(PER_PASS) & set(work.raw) else [])}
    kept = {name: work.raw[name] for name in work.raw if name in known}
    for name in sorted(set(work.raw) - set(kept)):
        work.dropped[name] = why_left_out(name) or UNKNOWN
    values, notes = translate({**work.ours, **kept})
    for note in notes:
        name, _, became = note.partition(" -> ")
        work.reasons[became.partition(":")[0]] = f"was {name}"
    recipe, _ = make_recipe(values, place=str(path), changes=changes)
    return Draft(recipe, work.reasons, work.dropped)


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML ({' '.join(str(error).split())}); mend that line") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: found {type(raw).__name__}, not a mapping of keys; is this the right file?")
    return raw


def _axolotl(work: Conversion) -> None:
    """What only axolotl says its own way."""
    _axolotl_rl(work, work.take("rl"))
    sets = _sets(work, "datasets")
    if sets:
        _axolotl_data(work, sets[0])
    for other in sets[1:]:
        work.dropped[f"datasets: {other.get('path')}"] = "one training file: join the rows into it"
    held = _sets(work, "test_datasets")
    if held:
        work.put("data", "validation", _found(work, str(held[0].get("path", ""))), "test_datasets")
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
    """The data sets under a name; a path alone stands for one that has nothing but a path."""
    given = work.take(name) or []
    entries = given if isinstance(given, list) else [given]
    found = [{"path": entry} if isinstance(entry, str) else entry for entry in entries]
    if strange := [entry for entry in found if not isinstance(entry, Mapping)]:
        raise RecipeError(f"{work.place}: {name}: found {strange[0]!r}; give a path, or a mapping with one")
    return found


def _axolotl_rl(work: Conversion, rl: Any) -> None:
    """The objective of a run on preferences or by reinforcement."""
    if rl in PREFERENCES:
        work.put("objective", "kind", "preference", f"rl: {rl}")
        work.put("objective", "loss", rl, f"rl: {rl}")
    elif rl:
        work.put("objective", "kind", "rl", f"rl: {rl}")
        _reinforced(work, work.take("trl"))
    elif work.raw.get("reward_model") is True and work.take("reward_model"):
        work.put("objective", "kind", "reward", "reward_model: true")
    for name in [name for name in ("rl_beta", "dpo_beta") if rl and name in work.raw]:
        work.put("objective", "beta", work.take(name), name)


def _reinforced(work: Conversion, trl: Any) -> None:
    """What axolotl hands to TRL, and that the reward is to be named."""
    given = dict(trl) if isinstance(trl, Mapping) else {}
    for name in [name for name in REINFORCED if given.get(name) is not None]:
        work.put("objective", REINFORCED[name], given.pop(name), f"trl.{name}")
    work.dropped |= {f"trl.{name}": why_left_out(name) or UNKNOWN for name in given}
    work.dropped["reward"] = UNNAMED


def _axolotl_data(work: Conversion, entry: Mapping[str, Any]) -> None:
    """The training file and what its type says about the objective."""
    files = entry.get("data_files") or entry.get("path") or ""
    path = _found(work, str(files[0] if isinstance(files, list) else files))
    split = str(entry.get("split") or "")
    if split and "[" not in split and split != "train":
        path = f"{path}:{split}"
    elif "[" in split:
        work.dropped["datasets: split"] = f"a slice of a split ({split}): use data.rows"
    if "train" not in work.ours["data"]:
        work.put("data", "train", path, "datasets: path")
    kind, base = entry.get("type"), str(entry.get("type") or "").partition(".")[0]
    judged = "kind" in work.ours["objective"]
    read = PLACE if judged else {*PLACE, "type", *(["field_messages"] if base in CHATS else [])}
    for name in sorted(set(entry) - read):
        work.dropped[f"datasets: {name}"] = f"{entry[name]}: the form of the rows is detected, look at tune --dry-run"
    if judged:
        return
    if isinstance(kind, Mapping):
        parts = {"prompt": kind.get("field_instruction"), "answer": kind.get("field_output")}
        work.put("objective", "kind", "instruct", "datasets: type")
        if all(parts.values()) and not kind.get("field_input"):
            work.ours["objective"] |= parts
        return
    work.put("objective", "kind", "domain" if base in DOCUMENTS else "instruct", f"datasets: type: {kind}")
    if base in CHATS and entry.get("field_messages"):
        work.put("objective", "messages", entry["field_messages"], "datasets: field_messages")
    if base not in (*ALPACA, *CHATS, *DOCUMENTS):
        work.dropped["datasets: type"] = f"{kind}: the form of the rows is detected, look at tune --dry-run"


def _factory(work: Conversion) -> None:
    """What only LLaMA-Factory says its own way."""
    stage = str(work.take("stage") or "sft")
    work.put("objective", "kind", STAGES.get(stage, stage), f"stage: {stage}")
    if stage == "ppo":
        work.put("objective", "algorithm", "ppo", "stage: ppo")
        work.dropped["reward"] = UNNAMED
    if stage in ("dpo", "kto"):
        loss = work.take("pref_loss")
        work.put("objective", "loss", LOSSES.get(str(loss), "dpo") if stage == "dpo" else "kto", "pref_loss")
        for name in [name for name in TUNED if name in work.raw]:
            work.put("objective", TUNED[name], work.take(name), name)
    names = str(work.take("dataset") or "").split(",")
    if (first := names[0].strip()) and "train" not in work.ours["data"]:
        file, columns = _listed(work, first)
        work.put("data", "train", file, f"dataset: {first}")
        if stage == "sft":
            work.ours["objective"] |= _named(columns)
    for other in names[1:]:
        work.dropped[f"dataset: {other.strip()}"] = "one training file: join the rows into it"
    held = str(work.take("eval_dataset") or "").split(",")[0].strip()
    if held:
        work.put("data", "validation", _listed(work, held)[0], f"eval_dataset: {held}")
    work.put("technique", "kind", work.take("finetuning_type") or "lora", "finetuning_type")
    if (bits := work.take("quantization_bit")) is not None:
        if _number(bits) == 4:
            work.put("technique", "kind", "qlora", "quantization_bit: 4")
        else:
            work.dropped["quantization_bit"] = f"{bits}: weights are read as they are, or in 4 bits"


def _listed(work: Conversion, name: str) -> tuple[str, Mapping[str, str]]:
    """The file of a data set by its name in dataset_info.json, and the columns that are named there."""
    folder = str(work.raw.get("dataset_dir", "data"))
    for place in (work.folder / folder, Path(folder), work.folder):
        entry = _listing(place / "dataset_info.json").get(name, {})
        if file := entry.get("file_name"):
            return str(place / file), entry.get("columns", {})
        if hub := entry.get("hf_hub_url"):
            return str(hub), entry.get("columns", {})
    path = _found(work, name)
    if Path(path).exists() or "/" in name:
        return path, {}
    raise RecipeError(
        f"{work.place}: dataset {name!r} stands in no dataset_info.json near it; "
        f"give the rows themselves: tunesmith init ROWS --from {work.place}"
    )


def _listing(page: Path) -> Mapping[str, Any]:
    """The data sets of a dataset_info.json; none where there is no such file."""
    if not page.is_file():
        return {}
    try:
        listed = json.loads(page.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"{page}: not JSON ({error}); mend it, or give the rows themselves") from None
    entries = listed if isinstance(listed, dict) else {}
    return {name: entry for name, entry in entries.items() if isinstance(entry, dict)}


def _named(columns: Mapping[str, str]) -> dict[str, str]:
    """Their words for columns in ours, where ours can say it all; else the columns are detected."""
    if set(columns) == {"prompt", "response"}:
        return {"prompt": columns["prompt"], "answer": columns["response"]}
    return {"messages": columns["messages"]} if set(columns) == {"messages"} else {}


def _common(work: Conversion) -> None:
    """What both say alike and we say otherwise."""
    technique = work.ours["technique"]
    if technique["kind"] == "qlora" and "qlora" not in SHORTHANDS:
        work.put("technique", "kind", "lora", "qlora")
        work.dropped["qlora"] = "the base is read in full precision"
    if technique["kind"] == "full":
        for name in [
            key for key in work.raw if key.startswith("lora_") or ALIASES.get(key, "").startswith("technique.")
        ]:
            work.dropped[name] = "only for LoRA, and every number moves here"
            work.take(name)
        work.ours["technique"] = {"kind": "full"}
    targets = work.raw.get("lora_target")
    if isinstance(targets, str) and targets != "all":
        work.raw["lora_target"] = [name.strip() for name in targets.split(",")]
    _validation(work)
    for name in ("save_steps", "eval_steps"):
        if name in work.raw and (not isinstance(work.raw[name], int) or work.raw[name] < 1):
            work.dropped[name] = f"{work.take(name)}: counted in steps, by default by the length of the run"


def _validation(work: Conversion) -> None:
    """How much is held out while learning: a share is carried over."""
    for name in ("val_size", "val_set_size"):
        share = _number(work.raw.get(name, 0))
        if share is None:
            work.dropped[name] = f"{work.take(name)}: the validation part is a share or a file"
        elif share >= 1:
            work.dropped[name] = f"{work.take(name)} rows: the validation part is a share or a file"
        elif name in work.raw and isinstance(work.ours["data"].get("validation"), str):
            work.dropped[name] = "a validation file is given"
            work.take(name)


def _number(value: Any) -> float | None:
    """The number that a value says; None where it is a word or a list."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _found(work: Conversion, path: str) -> str:
    """The path from where we stand, if it counts from the file's own folder."""
    beside = work.folder / path
    return str(beside) if path and beside.exists() and not Path(path).is_absolute() else path


# Tool -> keys that only its files have, and what reads them.
TOOLS: dict[str, tuple[set[str], Callable[[Conversion], None]]] = {
    "axolotl": ({"base_model", "datasets", "micro_batch_size", "sequence_len"}, _axolotl),
    "LLaMA-Factory": ({"model_name_or_path", "finetuning_type", "stage", "cutoff_len", "dataset_dir"}, _factory),
}
