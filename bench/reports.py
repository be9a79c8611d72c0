"""`make reports`: every example tuned and scored, its page copied to docs/reports, its line in their list made anew.

A run that is finished in runs/NAME is not made again; its page is. `python -m bench.reports mail` makes one,
and what follows the names goes to `tunesmith tune`: `python -m bench.reports mail --set schedule.epochs=1`.
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
# Shuffled answers and a head alone beside every score; a run with them takes twice as long.
WITH_CONTROLS = ("--set", "controls=true")


def main(words: Sequence[str]) -> None:
    """Make the reports of the examples named, of all if none is, and write their lines in docs/reports/README.md."""
    names = [word for word in words if word in EXAMPLES]
    options = list(words[len(names) :]) or list(WITH_CONTROLS)
    for name in names or EXAMPLES:
        run(name, options)
    page = PAGES / "README.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    for name in names or EXAMPLES:
        before = [place for place, one in enumerate(lines) if one.startswith(f"- [{name}.html]")]
        place = before[0] if before else len(lines)
        made = f" `tunesmith tune examples/{name}.yaml {' '.join(options)}`"
        lines[place : place + 1] = [line(name, ROOT / "runs" / name) + made]
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
    """One run in a few lines of Markdown."""
    report = read_report(folder)
    task, kept = report.task, report.retention
    told = f"- [{name}.html]({name}.html): {code(report.model)}, {report.objective} by {report.technique}, "
    told += f"{count(report.data.train)} training rows, {count(task.n)} test rows. {metric_name(task.metric)} "
    told += f"{figure(task.base)} to {figure(task.tuned)} ({bounds(task.ci95, sign=True)}, {p_value(task.p_value)}): "
    told += f"**{text(report.verdict.split(':')[0])}**."
    if kept is not None:
        told += f" General text {signed(kept.general_nll_tuned - kept.general_nll_base)} nats per token, "
        told += f"probe {share(kept.probe_base)} to {share(kept.probe_tuned)}."
    if report.style is not None and report.style.auc_tuned is not None:
        aucs = f"{figure(report.style.auc_base)} to {figure(report.style.auc_tuned)}"
        told += f" Told from people's answers with AUC {aucs}."
    return told + as_they_come(folder)


def as_they_come(folder: Path) -> str:
    """A note on a head that would be balanced today and was not; else nothing."""
    made = load_recipe(folder / "recipe.yaml")[0].objective
    balances = isinstance(made, Classify) and not made.multi and (made.output, made.metric) == ("linear", "macro_f1")
    if not balances or made.shares:
        return ""
    return " Its head learned the labels as they come (today: `objective.balance: false`)."


if __name__ == "__main__":
    main(sys.argv[1:])
