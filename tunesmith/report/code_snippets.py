"""Code for the model card: the tuned model from Python, with Tunesmith and without it."""

from __future__ import annotations

import json
from pathlib import Path

from tunesmith.config import AnyObjective
from tunesmith.objectives import Classify, Domain, Multitask, Reward
from tunesmith.report.formatting import clean
from tunesmith.report.run_data import RunFacts
from tunesmith.report.schema import Report

TEXT, MASK = "your text", "[MASK]"


def ask_line(report: Report, folder: Path, *, place: str = ".", text: str = TEXT) -> str:
    """The command that asks the model in `place`, of several tasks the first that answers; a reward scores pairs."""
    many = report.multitask
    tasks = [(part.name, part.objective) for part in many.tasks] if many else [("", report.objective)]
    name, objective = next((one for one in tasks if one[1] != "reward"), tasks[0])
    task = f" --task {name}" if name else ""
    if objective == "reward":
        return f"tunesmith evaluate {place} --data PAIRS{task}"
    mask = f" {mask_of(folder)}" if objective == "domain" and report.family == "encoder" else ""
    return f'tunesmith ask {place} "{text}{mask}"{task}'


def python_lines(facts: RunFacts) -> list[str]:
    """The tuned model through Tunesmith."""
    loaded = ["import tunesmith", "", 'model = tunesmith.load(".")']
    objective = facts.recipe.objective
    if isinstance(objective, Classify):
        return [*loaded, f'found = model.classify(["{TEXT}"])[0]', "print(found.label, found.probabilities)"]
    if isinstance(objective, Multitask):
        return [
            *loaded,
            *(_used(facts, part.objective, f'model.at("{name}")') for name, part in objective.tasks.items()),
        ]
    return [*loaded, _used(facts, objective, "model")]


def mask_of(run: Path) -> str:
    """The tokenizer's own word for a place to fill, as it lies beside the model; BERT's where none does."""
    page = run / "model" / "tokenizer_config.json"
    written = json.loads(page.read_text(encoding="utf-8")).get("mask_token") if page.is_file() else None
    return str(written.get("content", MASK) if isinstance(written, dict) else written or MASK)


def _used(facts: RunFacts, objective: AnyObjective, model: str) -> str:
    """The line that uses a model for what it was tuned to."""
    if isinstance(objective, Classify):
        return f'print({model}.classify(["{TEXT}"])[0])'
    if isinstance(objective, Domain) and facts.report.family == "encoder":
        return f'print({model}.fill(["{TEXT} {mask_of(facts.folder)}"])[0])  # the likeliest words at the mask token'
    if isinstance(objective, Reward):
        return f'print({model}.reward("{TEXT}", "an answer to it"))'
    return f'print({model}.generate(["{TEXT}"])[0])'


def transformers_lines(facts: RunFacts, *, base: str) -> list[str]:
    """The tuned model through transformers and PEFT; none where they would answer otherwise, or by a head of ours."""
    objective = facts.recipe.objective
    headed = isinstance(objective, Multitask | Reward) or (
        isinstance(objective, Classify) and objective.output != "words"
    )
    # PEFT 0.21's `generate` draws other tokens than its own forward behind virtual ones.
    if facts.report.family != "decoder" or headed or facts.recipe.technique.virtual_tokens():
        return []
    how = "" if facts.report.technique == "full" else f", repetition_penalty=1.0{_ends(facts.folder)}"
    return [
        *_loading(facts, base),
        *_asking(facts),
        f"answer = model.generate(**asked, do_sample=False{how}, max_new_tokens={_longest(facts)})",
        'print(tokenizer.decode(answer[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]


def _ends(run: Path) -> str:
    """Where turns end, if the base's own settings do not say so."""
    page = run / "model" / "generation_config.json"
    return f", eos_token_id={json.loads(page.read_text(encoding='utf-8'))['eos_token_id']}" if page.is_file() else ""


def _loading(facts: RunFacts, base: str) -> list[str]:
    """Imports, tokenizer and model; a base that lay in 4 bits while the adapter was learned lies so again."""
    tokenizer = 'tokenizer = AutoTokenizer.from_pretrained("model")'
    if facts.report.technique == "full":
        model = 'model = AutoModelForCausalLM.from_pretrained("model")'
        return ["from transformers import AutoModelForCausalLM, AutoTokenizer", "", tokenizer, model]
    bits, more, options = [], "", ""
    if facts.recipe.technique.load_options().quantize:
        more, options = ", BitsAndBytesConfig", ", quantization_config=four_bits, dtype=torch.float32"
        bits = [
            "four_bits = BitsAndBytesConfig(",
            '    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,',
            "    bnb_4bit_compute_dtype=torch.float32,",
            ")",
        ]
    return [
        *(["import torch"] if bits else []),
        "from peft import PeftModel",
        f"from transformers import AutoModelForCausalLM, AutoTokenizer{more}",
        "",
        tokenizer,
        *bits,
        f'base = AutoModelForCausalLM.from_pretrained("{base}"{options})  # the base it was tuned on',
        'model = PeftModel.from_pretrained(base, "model")',
    ]


def _asking(facts: RunFacts) -> list[str]:
    """How the model is asked: as a chat, or with the beginning of a text."""
    if isinstance(facts.recipe.objective, Domain):
        return [f'asked = tokenizer("{TEXT}", return_tensors="pt")']
    page = facts.folder / "model" / "chat_template.jinja"
    thinks = page.is_file() and "enable_thinking" in page.read_text(encoding="utf-8")
    return [
        f'messages = [{{"role": "user", "content": {_question(facts)!r}}}]',
        "asked = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"' + "," * thinks,
        *(["    enable_thinking=False,"] if thinks else []),
        ")",
    ]


def _question(facts: RunFacts) -> str:
    """What the model is asked about a text, as it was in training."""
    objective = facts.recipe.objective
    if isinstance(objective, Classify):
        return clean(objective.messages(TEXT)[-1].content)
    return clean(f"{objective.instruction}\n\n{TEXT}" if objective.instruction else TEXT)


def _longest(facts: RunFacts) -> int:
    """Tokens that the longest answer may need."""
    objective = facts.recipe.objective
    if isinstance(objective, Classify):
        return 16
    return objective.max_new_tokens or 256
