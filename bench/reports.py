"""Tune and score every example, copy its page to docs/reports, and update its line in the list there (`make reports`).

A finished run in runs/NAME is reused; its page is written again. `python -m bench.reports mail` makes one report.
Options after the names are passed to `tunesmith tune`: `python -m bench.reports mail --set schedule.epochs=1`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tunesmith.config import load_recipe
from tunesmith.objectives import Classify
from tunesmith.report.formatting import bounds, count, figure, metric_name, p_value, share, signed
from tunesmith.report.html import write_reports
from tunesmith.report.model_card import code, text
from tunesmith.report.schema import read_report

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "reports"
EXAMPLES = ("reviews", "synopsis", "mail")
# Shuffled labels and a frozen head as controls; a run with them takes twice as long.
WITH_CONTROLS = ("--set", "controls=true")


def main(words: Sequence[str]) -> None:
    """Make the reports of the named examples (default: all), and write their lines in docs/reports/README.md."""
    names = [word for word in words if word in EXAMPLES]
    options = list(words[len(names) :]) or list(WITH_CONTROLS)
    for name in names or EXAMPLES:
        run(name, options)
    page = PAGES / "README.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    for name in names or EXAMPLES:
        old = [index for index, entry in enumerate(lines) if entry.startswith(f"- [{name}.html]")]
        index = old[0] if old else len(lines)
        command = f" `tunesmith tune examples/{name}.yaml {' '.join(options)}`"
        lines[index : index + 1] = [line(name, ROOT / "runs" / name) + command]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def run(name: str, options: Sequence[str]) -> None:
    """Tune one example in runs/NAME, or find it finished there, and copy its page. Exits where tuning fails."""
    words = ["tune", f"examples/{name}.yaml", "--out", f"runs/{name}", *options]
    command = [sys.executable, "-m", "tunesmith", *words]
    print(f"== {name}: tunesmith {' '.join(words)}", flush=True)
    ended = subprocess.run(command, cwd=ROOT, check=False).returncode
    if ended:
        sys.exit(ended)
    folder = ROOT / "runs" / name
    write_reports(folder)
    (PAGES / f"{name}.html").write_text((folder / "report.html").read_text(encoding="utf-8"), encoding="utf-8")


def line(name: str, folder: Path) -> str:
    """Summarise one run in a line of Markdown."""
    report = read_report(folder)
    task, kept = report.task, report.retention
    entry = f"- [{name}.html]({name}.html): {code(report.model)}, {report.objective} by {report.technique}, "
    entry += f"{count(report.data.train)} training rows, {count(task.n)} test rows. {metric_name(task.metric)} "
    entry += f"{figure(task.base)} to {figure(task.tuned)} ({bounds(task.ci95, sign=True)}, {p_value(task.p_value)}): "
    entry += f"**{text(report.verdict.split(':')[0])}**."
    if kept is not None:
        entry += f" General text {signed(kept.general_nll_tuned - kept.general_nll_base)} nats per token, "
        entry += f"probe {share(kept.probe_base)} to {share(kept.probe_tuned)}."
    if report.style is not None and report.style.auc_tuned is not None:
        aucs = f"{figure(report.style.auc_base)} to {figure(report.style.auc_tuned)}"
        entry += f" AUC against reference answers {aucs}."
    return entry + balance_note(folder)


def balance_note(folder: Path) -> str:
    """Return a note on a head that was not balanced but would be today, or an empty string."""
    made = load_recipe(folder / "recipe.yaml")[0].objective
    balances = isinstance(made, Classify) and not made.multi and (made.output, made.metric) == ("linear", "macro_f1")
    if not balances or made.shares:
        return ""
    return " Its head was not balanced (today: `objective.balance: false`)."


if __name__ == "__main__":
    main(sys.argv[1:])
