"""`python -m bench.distil FOLDER [base | tuned [ROWS]]`: the 135M decoder teaches the 22M encoder to label reviews.

200 rows have gold labels, 2,000 have none, the others are test rows; all of a product are in one part. The teacher is
the decoder as it is (`base`), or tuned on the same gold rows (`tuned`). It is asked the first ROWS of the rows without
labels, by default all of them.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import tunesmith

REVIEWS = Path(tunesmith.__file__).parent / "shipped_data" / "reviews.jsonl"
GOLD, UNLABELLED = 200, 2000
SETTINGS = {
    "data.validation": 0.2,
    "data.group": "group",
    "objective.kind": "classify",
    "retention": False,
    "verdict": "all",
    "challenge": False,
    "schedule.probe": False,
}


def parts(folder: Path, asked: int) -> dict[str, str]:
    """Write the files of the parts, and return their paths."""
    groups: dict[str, list[dict[str, str]]] = {}
    for line in REVIEWS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        groups.setdefault(row["group"], []).append(row)
    order = sorted(groups)
    random.Random(0).shuffle(order)
    found: dict[str, list[dict[str, str]]] = {"gold": [], "unlabelled": [], "test": []}
    for name in order:
        few = len(found["gold"]) < GOLD
        part = "gold" if few else "unlabelled" if len(found["unlabelled"]) < UNLABELLED else "test"
        found[part] += groups[name]
    found["few"] = found["test"][:30]  # of the teacher's own report
    del found["unlabelled"][asked:]
    for row in found["unlabelled"]:
        del row["label"]
    paths = {}
    for part, rows in found.items():
        path = folder / f"{part}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        paths[part] = str(path)
        print(part, len(rows), flush=True)
    return paths


def main(folder: Path, teacher: str = "tuned", asked: str = "9999") -> None:
    """Tune the teacher if it is to be, and the student; print the comparison."""
    folder.mkdir(parents=True, exist_ok=True)
    files = parts(folder, int(asked))
    name = "smollm2-135m"
    settings = {**SETTINGS, "data.test": files["test"]}
    if teacher == "tuned":
        more = {"objective.instruction": "Is this review positive or negative?", "schedule.epochs": 3, "ledger": False}
        more |= {"data.test": files["few"]}
        run = tunesmith.tune(files["gold"], model=name, out=folder / "teacher", settings={**settings, **more})
        print(run.report.task.sentence, flush=True)
        name = str(run.folder)
    more = {"teacher.model": name, "teacher.rows": files["unlabelled"], "schedule.epochs": 3}
    run = tunesmith.tune(files["gold"], model="minilm-l6", out=folder / teacher, settings={**settings, **more})
    found = run.report.distillation
    assert found is not None
    for row in found.rows():
        print(" | ".join(row))
    print(found.sentence)
    print(f"{found.kept} of {found.asked} labels kept; {found.model_dump(include={'accuracy', 'threshold'})}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
