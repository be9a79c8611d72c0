"""The questions of the race, and the runs that are served: smollm2-135m under LoRA whose numbers are small noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECOND_OF = {"1": 8, "8": 32, "32": 64}  # clients -> questions
INSTRUCTION = "Summarise this package description in one short line:"
MOOD = "Is this review positive or negative? Answer with one word."
CHARACTERS, TOKENS, LABELLED = 500, 24, 64
GUESS = 8  # tokens that a generated label may take: answers such as "The review is positive."
BASE = "smollm2-135m"


def questions(count: int, skip: int = 0) -> list[str]:
    """So many questions that nobody asked before."""
    rows = [json.loads(line) for line in (ROOT / "examples" / "synopsis.jsonl").open(encoding="utf-8")]
    return [f"{INSTRUCTION}\n\n{row['document'][:CHARACTERS]}" for row in rows[skip : skip + count]]


def make_run(out: Path, *, seed: int, labels: bool = False) -> Path:
    """A run whose adapter is small noise."""
    import torch

    from tunesmith.data.tokenization.chat_template import Template
    from tunesmith.inference.identify import ModelManifest
    from tunesmith.inference.local_model import LocalModel
    from tunesmith.inference.saved_model import save_model
    from tunesmith.models.loading.checkpoint import write_folder
    from tunesmith.models.loading.load import load_base
    from tunesmith.objectives import Classify, Instruct
    from tunesmith.techniques import Lora

    if (out / "model").exists():
        return out
    base, technique = load_base(BASE), Lora(rank=16)
    objective: Any = Instruct(max_new_tokens=TOKENS, instruction=INSTRUCTION)
    if labels:
        objective = Classify(labels=("negative", "positive"), output="words", instruction=MOOD)
    policy = technique.adapt(base.network, family=base.family, keep_reference=False)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, value in policy.trainable():
            value.add_(torch.randn(value.shape, generator=chance), alpha=1e-3)
    template = Template(base.tokenizer)
    about = ModelManifest(
        base=BASE,
        fingerprint=base.fingerprint,
        family=base.family,
        objective=objective,
        technique=technique,
        template_hash=template.hash,
        limit=512,
    )
    model = LocalModel(policy, template, objective, 512)
    write_folder(out / "model", lambda half: save_model(half, model, about))
    return out


def merged_run(keep: Path) -> Path:
    """The same run for transformers and for llama.cpp."""
    from tunesmith.inference.export.formats import merged, write_file, write_merged
    from tunesmith.inference.identify import read_manifest

    out, run = keep / "merged", make_run(keep / "run0", seed=0)
    if not out.exists():
        model = merged(run / "model", read_manifest(run / "model"), offline=True)
        (keep / "gguf").mkdir(exist_ok=True)
        write_file(model, keep / "gguf", dtype="f16", name="bench")
        write_merged(model, run / "model", out)
    return out
