"""Code of the model card: how to use the tuned model with and without Tunesmith."""

from __future__ import annotations

import json
from pathlib import Path

from tunesmith.models.loading.locate import MULTIMODAL_CLASSES
from tunesmith.objectives import objective_class
from tunesmith.report.formatting import clean
from tunesmith.report.run_data import RunData
from tunesmith.report.schema import Report

TEXT = "your text"
MASK = "[MASK]"
MAX_LABEL_TOKENS = 16
MAX_ANSWER_TOKENS = 256  # of objectives that state no limit


def ask_line(report: Report, folder: Path, *, place: str = ".", text: str = TEXT) -> str:
    """Return the command that queries the tuned model.

    Args:
        report: report of the run.
        folder: the run folder, read for the mask token.
        place: the folder as written in the command.
        text: the prompt.

    Returns:
        `tunesmith ask`, for several tasks with the first that generates an answer; `tunesmith evaluate` if the model
        only scores pairs.
    """
    tasks = [("", report.objective)]
    if report.multitask is not None:
        tasks = [(part.name, part.objective) for part in report.multitask.tasks]
    answering = (task for task in tasks if objective_class(task[1]).produces != "score")
    name, kind = next(answering, tasks[0])
    produces = objective_class(kind).produces
    option = f" --task {name}" if name else ""
    if produces == "score":
        return f"tunesmith evaluate {place} --data PAIRS{option}"
    mask = f" {mask_of(folder)}" if produces == "likelihood" and report.family == "encoder" else ""
    return f'tunesmith ask {place} "{text}{mask}"{option}'


def python_lines(run: RunData) -> list[str]:
    """Return the lines of Python that use the tuned model through Tunesmith."""
    place = run.published.repo if run.published else "."
    lines = ["import tunesmith", "", f'model = tunesmith.load("{place}")']
    for name, objective in run.recipe.objective.task_objectives.items():
        model = f'model.at("{name}")' if name else "model"
        if objective.produces == "labels" and not name:
            lines += [f'result = model.classify(["{TEXT}"])[0]', "print(result.label, result.probabilities)"]
        elif objective.produces == "likelihood" and run.report.family == "encoder":
            words = "# the most likely words at the mask token"
            lines.append(f'print({model}.fill(["{TEXT} {mask_of(run.folder)}"])[0])  {words}')
        else:
            lines.append(objective.python_use.format(model=model, text=TEXT))
    return lines


def mask_of(run: Path) -> str:
    """Return the mask token of the saved tokenizer, by default BERT's."""
    path = run / "model" / "tokenizer_config.json"
    token = json.loads(path.read_text(encoding="utf-8")).get("mask_token") if path.is_file() else None
    return str(token.get("content", MASK) if isinstance(token, dict) else token or MASK)


def transformers_lines(run: RunData, *, base: str) -> list[str]:
    """Return the lines of Python that use the tuned model through transformers and PEFT.

    There are none if the answers would differ, or if they need a head of Tunesmith.
    """
    objective = run.recipe.objective
    headed = run.recipe.parts or objective.has_head
    # With virtual tokens, `generate` of PEFT 0.21 gives other tokens than PEFT's own forward pass.
    if run.report.family != "decoder" or headed or run.recipe.technique.virtual_tokens():
        return []
    options = ""
    if run.report.technique != "full":
        options = ", repetition_penalty=1.0"
        path = run.folder / "model" / "generation_config.json"
        if path.is_file():  # written if the base's own settings lack the tokens that end a turn
            options += f", eos_token_id={json.loads(path.read_text(encoding='utf-8'))['eos_token_id']}"
    limit = MAX_LABEL_TOKENS if objective.produces == "labels" else objective.max_new_tokens or MAX_ANSWER_TOKENS
    if run.report.thinking is not None and objective.thinks:
        limit = run.report.thinking.max_new_tokens
    return [
        *_loading(run, base),
        *_inputs(run),
        f"answer = model.generate(**inputs, do_sample=False{options}, max_new_tokens={limit})",
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]


def _loading(run: RunData, base: str) -> list[str]:
    """Return imports, tokenizer and model; the base is quantized if the adapter was trained on quantized weights."""
    place = run.published.repo if run.published else "model"
    tokenizer = f'tokenizer = AutoTokenizer.from_pretrained("{place}")'
    auto = _auto_class(run.folder / "model")
    if run.report.technique == "full":
        model = f'model = {auto}.from_pretrained("{place}")'
        return [f"from transformers import {auto}, AutoTokenizer", "", tokenizer, model]
    config: list[str] = []
    names = ""
    options = ""
    if run.recipe.technique.load_options().quantize:
        names = ", BitsAndBytesConfig"
        options = ", quantization_config=four_bits, dtype=torch.float32"
        config = [
            "four_bits = BitsAndBytesConfig(",
            '    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,',
            "    bnb_4bit_compute_dtype=torch.float32,",
            ")",
        ]
    return [
        *(["import torch"] if config else []),
        "from peft import PeftModel",
        f"from transformers import {auto}, AutoTokenizer{names}",
        "",
        tokenizer,
        *config,
        f'base = {auto}.from_pretrained("{base}"{options})  # the base it was tuned on',
        f'model = PeftModel.from_pretrained(base, "{place}")',
    ]


def _auto_class(folder: Path) -> str:
    """Return the automatic class of transformers that opens the base of an adapter, or the whole model, in a folder."""
    names: list[str] = []
    if (folder / "adapter_config.json").is_file():
        mapping = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("auto_mapping") or {}
        names = [str(mapping.get("base_model_class"))]
    elif (folder / "config.json").is_file():
        names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    multimodal = any(name.endswith(MULTIMODAL_CLASSES) for name in names)
    return "AutoModelForMultimodalLM" if multimodal else "AutoModelForCausalLM"


def _inputs(run: RunData) -> list[str]:
    """Return the lines that encode a prompt as in training: a chat, or the beginning of a document."""
    objective = run.recipe.objective
    if objective.produces == "likelihood":
        return [f'inputs = tokenizer("{TEXT}", return_tensors="pt")']
    switch = _switch(run)
    prompt = f"{objective.instruction}\n\n{TEXT}" if objective.instruction else TEXT
    if objective.produces == "labels":
        prompt = objective.user_message(TEXT).content
    return [
        f'messages = [{{"role": "user", "content": {clean(prompt)!r}}}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"' + "," * bool(switch),
        *([f"    {switch}={objective.thinks},"] if switch else []),
        ")",
    ]


def _switch(run: RunData) -> str:
    """Return the variable by which the saved chat template switches thinking; empty if it has none."""
    ledger = run.report.thinking
    if ledger is not None and ledger.switch in ("enable_thinking", "thinking"):
        return ledger.switch
    path = run.folder / "model" / "chat_template.jinja"
    known = path.is_file() and "enable_thinking" in path.read_text(encoding="utf-8")
    return "enable_thinking" if known else ""
