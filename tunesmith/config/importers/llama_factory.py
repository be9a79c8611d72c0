"""Convert the keys that only LLaMA-Factory has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.config.importers.common import Conversion, number, resolve_path
from tunesmith.config.unsupported import UNKNOWN, UNNAMED
from tunesmith.data.schema.formats import DIALOGUES, THUMBS
from tunesmith.errors import RecipeError

# Stage -> objective, preference loss -> loss here, preference key -> key here.
STAGES = {"sft": "instruct", "pt": "domain", "rm": "reward", "ppo": "rl", "dpo": "preference", "kto": "preference"}
LOSSES = {"sigmoid": "dpo", "hinge": "hinge", "ipo": "ipo", "kto_pair": "kto", "orpo": "orpo", "simpo": "simpo"}
TUNED = {"pref_beta": "beta", "simpo_gamma": "gamma", "pref_ftx": "nll"}
# By stage: column role in dataset_info.json -> key here; and the default column name of each role.
JUDGED = {"prompt": "prompt", "messages": "prompt", "chosen": "chosen", "rejected": "rejected"}
COLUMNS = {
    "sft": {"prompt": "prompt", "response": "answer", "messages": "messages", "tools": "tools"},
    "pt": {"prompt": "text"},
    "rm": JUDGED,
    "dpo": JUDGED,
    "kto": {"prompt": "prompt", "response": "answer", "kto_tag": "label"},
    "ppo": {"prompt": "prompt", "response": "answer"},
}
USUAL = {"prompt": "instruction", "query": "input", "response": "output", "history": "history", "system": "system"} | {
    name: name for name in ("tools", "chosen", "rejected", "kto_tag")
}

# Roles that are detected under any of these column names.
FOUND = {"messages": DIALOGUES, "kto_tag": THUMBS}
# Keys of dataset_info.json that are read or detected from the rows, and why others are not.
READ = {"file_name", "hf_hub_url", "ms_hub_url", "split", "columns", "formatting", "ranking"}
UNREAD = {
    "num_samples": "use data.rows",
    "subset": "subsets are not supported: save the subset as a file",
    "tags": "roles and texts are detected by their usual names; check them with tune --dry-run",
}


def factory(work: Conversion) -> None:
    """Convert the keys that only LLaMA-Factory has."""
    stage = str(work.take("stage") or "sft")
    work.put("objective", "kind", STAGES.get(stage, stage), f"stage: {stage}")
    if stage == "sft" and (think := work.take("enable_thinking")) is not None:
        # Without it, LLaMA-Factory removes the thoughts of rows; with it, they are learned.
        work.put("objective", "thinking", "auto" if think else "drop", f"enable_thinking: {think}")
    if stage == "ppo":
        work.put("objective", "algorithm", "ppo", "stage: ppo")
        work.dropped["reward"] = UNNAMED
    if stage in ("dpo", "kto"):
        loss = str(work.take("pref_loss") or "sigmoid")
        work.put("objective", "loss", LOSSES.get(loss, loss) if stage == "dpo" else "kto", "pref_loss")
        for name in [name for name in TUNED if name in work.raw]:
            work.put("objective", TUNED[name], work.take(name), name)
    first, held = (_first(work, name) for name in ("dataset", "eval_dataset"))
    if first and "train" not in work.ours["data"]:
        file, columns = _in_dataset_info(work, first)
        work.put("data", "train", file, f"dataset: {first}")
        work.ours["objective"] |= _named(work, columns, stage)
    if held:
        work.put("data", "validation", _in_dataset_info(work, held)[0], f"eval_dataset: {held}")
    work.put("technique", "kind", work.take("finetuning_type") or "lora", "finetuning_type")
    if (bits := work.take("quantization_bit")) is not None:
        if number(bits) == 4:
            work.put("technique", "kind", "qlora", "quantization_bit: 4")
        else:
            work.dropped["quantization_bit"] = f"{bits}: only 4-bit quantization is supported"


def _first(work: Conversion, name: str) -> str:
    """Return the first data set under a key; the others are listed as not converted."""
    value = work.take(name) or ""
    listed = [str(item).strip() for item in (value if isinstance(value, list) else str(value).split(","))]
    work.dropped |= {f"{name}: {other}": "only one file is supported: concatenate them" for other in listed[1:]}
    return listed[0] if listed else ""


def _in_dataset_info(work: Conversion, name: str) -> tuple[str, Mapping[str, str]]:
    """Return the file of a data set named in dataset_info.json, and its column names."""
    folder = str(work.raw.get("dataset_dir", "data"))
    for place in (work.folder / folder, Path(folder), work.folder):
        entry = _listing(place / "dataset_info.json").get(name, {})
        file, hub = entry.get("file_name"), entry.get("hf_hub_url")
        if not (file or hub):
            continue
        work.dropped |= {f"{name}: {key}": UNREAD.get(key, UNKNOWN) for key in sorted(set(entry) - READ)}
        split = f":{entry['split']}" if entry.get("split") else ""
        return str(place / file) if file else f"{hub}{split}", entry.get("columns") or {}
    path = resolve_path(work, name)
    if Path(path).exists() or "/" in name:
        return path, {}
    raise RecipeError(
        f"{work.place}: dataset {name!r} is not listed in any dataset_info.json near it; "
        f"name the data file: `tunesmith init ROWS --from {work.place}`"
    )


def _listing(page: Path) -> Mapping[str, Any]:
    """Return the data sets of a dataset_info.json; empty if the file is missing."""
    if not page.is_file():
        return {}
    try:
        listed = json.loads(page.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"{page}: invalid JSON ({error}); fix it, or name the data file") from None
    entries = listed if isinstance(listed, dict) else {}
    return {name: entry for name, entry in entries.items() if isinstance(entry, dict)}


def _named(work: Conversion, columns: Mapping[str, str], stage: str) -> dict[str, str]:
    """Translate column roles; a role without a key is detected by its usual name, or listed as not converted."""
    ours = COLUMNS.get(stage, {})
    named = {ours[part]: column for part, column in columns.items() if part in ours}
    if {"query", "history", *({"messages"} - set(ours))} & set(columns):  # not read if columns are named
        ours, named = {}, {}
    for part, column in columns.items():
        if part not in ours and column != USUAL.get(part) and column not in FOUND.get(part, ()):
            fix = f"rename the column to {USUAL[part]}, so that it is detected" if part in USUAL else UNKNOWN
            work.dropped[f"columns.{part}: {column}"] = fix
    return named
