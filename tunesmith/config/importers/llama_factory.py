"""What only LLaMA-Factory says its own way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.config.importers.common import Conversion, found, number
from tunesmith.config.unsupported import UNKNOWN, UNNAMED
from tunesmith.data.schema.formats import DIALOGUES, THUMBS
from tunesmith.errors import RecipeError

# Its stage -> objective, its loss -> ours, and its keys for preferences.
STAGES = {"sft": "instruct", "pt": "domain", "rm": "reward", "ppo": "rl", "dpo": "preference", "kto": "preference"}
LOSSES = {"sigmoid": "dpo", "hinge": "hinge", "ipo": "ipo", "kto_pair": "kto", "orpo": "orpo", "simpo": "simpo"}
TUNED = {"pref_beta": "beta", "simpo_gamma": "gamma", "pref_ftx": "nll"}
# Of a data set of its own: the word for a column -> our key, by stage, and how such a column is usually called.
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

# Parts that are found by any of these names.
FOUND = {"messages": DIALOGUES, "kto_tag": THUMBS}


# Keys of a data set in dataset_info.json that are read or found out from the rows, and why others are not.
READ = {"file_name", "hf_hub_url", "ms_hub_url", "split", "columns", "formatting", "ranking"}
UNREAD = {
    "num_samples": "set data.rows",
    "subset": "a data set of several is not read: save the one as a file",
    "tags": "roles and texts are found by their usual names, look at tune --dry-run",
}


def factory(work: Conversion) -> None:
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
    first, held = (_first(work, name) for name in ("dataset", "eval_dataset"))
    if first and "train" not in work.ours["data"]:
        file, columns = _listed(work, first)
        work.put("data", "train", file, f"dataset: {first}")
        work.ours["objective"] |= _named(work, columns, stage)
    if held:
        work.put("data", "validation", _listed(work, held)[0], f"eval_dataset: {held}")
    work.put("technique", "kind", work.take("finetuning_type") or "lora", "finetuning_type")
    if (bits := work.take("quantization_bit")) is not None:
        if number(bits) == 4:
            work.put("technique", "kind", "qlora", "quantization_bit: 4")
        else:
            work.dropped["quantization_bit"] = f"{bits}: weights are read as they are, or in 4 bits"


def _first(work: Conversion, name: str) -> str:
    """The first of the data sets under a name; the others are told as left out."""
    given = work.take(name) or ""
    listed = [str(one).strip() for one in (given if isinstance(given, list) else str(given).split(","))]
    work.dropped |= {f"{name}: {other}": "one file: join the rows into it" for other in listed[1:]}
    return listed[0] if listed else ""


def _listed(work: Conversion, name: str) -> tuple[str, Mapping[str, str]]:
    """The file of a data set by its name in dataset_info.json, and the columns that are named there."""
    folder = str(work.raw.get("dataset_dir", "data"))
    for place in (work.folder / folder, Path(folder), work.folder):
        entry = _listing(place / "dataset_info.json").get(name, {})
        file, hub = entry.get("file_name"), entry.get("hf_hub_url")
        if not (file or hub):
            continue
        work.dropped |= {f"{name}: {key}": UNREAD.get(key, UNKNOWN) for key in sorted(set(entry) - READ)}
        split = f":{entry['split']}" if entry.get("split") else ""
        return str(place / file) if file else f"{hub}{split}", entry.get("columns") or {}
    path = found(work, name)
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


def _named(work: Conversion, columns: Mapping[str, str], stage: str) -> dict[str, str]:
    """Their words for columns in ours. What has none in ours is found by its usual name, or told as left out."""
    ours = COLUMNS.get(stage, {})
    named = {ours[part]: column for part, column in columns.items() if part in ours}
    if {"query", "history", *({"messages"} - set(ours))} & set(columns):  # not read beside columns that are named
        ours, named = {}, {}
    for part, column in columns.items():
        if part not in ours and column != USUAL.get(part) and column not in FOUND.get(part, ()):
            cure = f"name the column {USUAL[part]}, by which it is found" if part in USUAL else UNKNOWN
            work.dropped[f"columns.{part}: {column}"] = cure
    return named
