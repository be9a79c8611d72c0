"""What is tried with the tiny checkpoint of every family: each cell of the table in docs/models.md is one run.

Tried("qwen3", folder).outcome("lora")  # "", or the reason of a refusal, or what failed
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tests.bases import OPENING, chats, labelled
from tests.tiny_families import FAMILIES
from tunesmith.config import check_pair, check_technique, make_recipe
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.errors import TunesmithError, briefly
from tunesmith.models.batch import collate
from tunesmith.models.certificate import CLAIMS, Certificate, Measured
from tunesmith.models.generation.generate import generate
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.loading.load import Base, load_base
from tunesmith.models.policy import Policy
from tunesmith.pipelines.certify.certify import Subject
from tunesmith.training.fit import step
from tunesmith.training.optim import TrainingPlan, make_optimizer, set_rate
from tunesmith.training.prepare import encode_all

ROWS, STEPS = 4, 3
# Rates at which a random model of width 32 learns a few rows.
RATES = {"lora": 1e-2, "full": 3e-3, "prompt": 1e-1}


class Tried:
    """One family's tiny checkpoint."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder

    @cached_property
    def kind(self) -> str:
        return str(json.loads((self.folder / "config.json").read_text(encoding="utf-8"))["model_type"])

    @cached_property
    def base(self) -> Base:
        return load_base(str(self.folder))

    @cached_property
    def template(self) -> Template:
        return Template(self.base.tokenizer, chat=self.base.family == "decoder")

    @cached_property
    def certificate(self) -> Certificate:
        return Subject(self.base).certificate(CLAIMS, known=[Measured(outcome="passed").check("loads")])

    def outcome(self, cell: str) -> str:
        """The reason why a cell is refused, or `fails: ` and what fails; empty if it works."""
        try:
            outcome = CELLS[cell](self) or ""
        except TunesmithError as error:
            outcome = str(error).removeprefix(f"{self.folder}: ").replace(str(self.folder), "it").partition(";")[0]
        except Exception as error:  # whatever a library raises
            outcome = f"fails: {briefly(error).partition('. ')[0]}"
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        kinds = {self.kind, config.get("text_config", {}).get("model_type", self.kind)}
        return re.sub(rf"(not for |: a |^)({'|'.join(kinds)})\b", r"\1this family", outcome).replace(
            ": a this", ": this"
        )

    def claims(self, *names: str) -> str:
        """The reason why claims of the certificate are refused; empty if all of them hold."""
        checks = {check.name: check for check in self.certificate.checks}
        for name in names:
            assert checks[name].outcome != "failed", f"{checks[name].claim}: {checks[name].note}"
            if checks[name].outcome != "passed":
                return checks[name].note.partition(";")[0]
        return ""

    def facts(self) -> dict[str, str]:
        """What the table says about the checkpoint besides the cells."""
        try:
            checks = [check.difference for check in self.certificate.checks if check.difference is not None]
            rows = self.certificate.rows
        except TunesmithError:
            return {"kind": self.kind, "rows": "", "difference": ""}
        return {"kind": self.kind, "rows": rows, "difference": f"{max(checks):.0e}"}

    def trained(self, objective: str, technique: str) -> Policy:
        """A few steps on a few rows, as `tune` takes them; the loss goes down."""
        raw = {"data": "rows.jsonl", "model": str(self.folder), "objective": objective, "technique": technique}
        recipe, _ = make_recipe(raw, place="test")
        base = copy.deepcopy(self.base)
        check_pair(recipe, base.family)
        check_technique(recipe, base.network, base.family)
        examples: Any = labelled(ROWS) if objective == "classify" else chats(ROWS)
        bound = recipe.objective.bind(examples, base.family)
        rows = encode_all(bound, examples, self.template, limit=256)
        torch.manual_seed(0)
        policy = recipe.technique.adapt(base.network, family=base.family, keep_reference=False, start=OPENING)
        policy.head = bound.head(policy)
        batch = collate(rows, share=policy.family == "decoder")
        optimizer = make_optimizer(policy, TrainingPlan(steps=STEPS, learning_rate=RATES[technique]))
        set_rate(optimizer, RATES[technique])
        before = {name: value.detach().clone() for name, value in policy.trainable()}
        losses = [step(policy, bound.make_learner(), [batch], optimizer=optimizer, clip=1.0)[0] for _ in range(STEPS)]
        assert losses[-1] < losses[0], losses
        still = [name for name, value in policy.trainable() if torch.equal(value, before[name])]
        assert len(still) < len(before), "nothing moved"
        policy.train(False)
        return policy


def load(tried: Tried) -> str:
    """All weights come from the files, and loss, packing, cache and prefix are those of transformers."""
    if tried.base.family == "encoder":
        return tried.claims("loads", "packed")
    return tried.claims("loads", "loss", "packed", "cache", "prefix", "stop", "learned")


def classify(tried: Tried) -> None:
    tried.trained("classify", "lora")


def instruct(tried: Tried) -> None:
    """The answer of a tuned model is generated, too."""
    policy = tried.trained("instruct", "lora")
    prompt = tried.template.prompt(chats(1)[0].messages[:1])
    (answer,) = generate(policy, [prompt], sampling=Sampling(max_new_tokens=3), template=tried.template)
    assert answer.ids or answer.finished


def lora(tried: Tried) -> str:
    return tried.claims("gradients")


def full(tried: Tried) -> None:
    tried.trained(_objective(tried), "full")


def prompt(tried: Tried) -> None:
    tried.trained(_objective(tried), "prompt")


def merge(tried: Tried) -> str:
    return tried.claims("merged")


def peft(tried: Tried) -> str:
    return tried.claims("peft")


def gguf(tried: Tried) -> str:
    return tried.claims("gguf")


def _objective(tried: Tried) -> str:
    return "instruct" if tried.base.family == "decoder" else "classify"


CELLS: dict[str, Callable[[Tried], str | None]] = {
    "load": load,
    "classify": classify,
    "instruct": instruct,
    "lora": lora,
    "full": full,
    "prompt": prompt,
    "merge": merge,
    "peft": peft,
    "gguf": gguf,
}


def tried(name: str, root: Path) -> Tried:
    """Write the checkpoint of a family below a folder."""
    return Tried(name, FAMILIES[name].write(root / name))
