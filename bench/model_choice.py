"""Gains of tuned models over the best cheap classifier: the constants of `tunesmith/pipelines/plan/gains.py`.

    python -m bench.model_choice measure    # fill in missing TF-IDF and probe scores, on the rows of the recorded runs
    python -m bench.model_choice derive     # print the constants

`cheap` of a run is the higher of TF-IDF with logistic regression and a linear probe on the frozen encoder, on its test
rows; its gain is (tuned - cheap) / (1 - cheap). `expected` is the mean over the data sets, each the mean of its runs;
the bounds are the least and the most of all runs.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

MEASURED = Path(__file__).parent / "model_choice" / "cheap.json"


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A finished run of this project. A cheap score of None is in `cheap.json` or was not measured."""

    data: str
    family: str
    tuned: float
    tfidf: float | None
    probe: float | None
    source: str


GRID = "docs/reference/grid.md, mean of three seeds"
RUNS = (
    RecordedRun("reviews, 160 rows", "encoder", 0.814, 0.677, 0.773, GRID),
    RecordedRun("reviews, 600 rows", "encoder", 0.866, 0.761, 0.784, "docs/decisions/0015, seed 0"),
    RecordedRun("reviews, 1,862 rows", "encoder", 0.874, 0.792, 0.787, "docs/tutorial.md"),
    RecordedRun("movies, 600 rows", "encoder", 0.784, None, 0.748, "bench/RECOMMEND.md"),
    RecordedRun("sections, 900 rows", "encoder", 0.768, None, 0.771, "bench/RECOMMEND.md"),
    RecordedRun("mail, 1,676 rows, macro F1", "encoder", 0.533, 0.498, None, "docs/reference/measured.md"),
    RecordedRun("mail, 1,676 rows, macro F1", "encoder", 0.499, 0.577, 0.453, "docs/reports/mail.html"),
    RecordedRun("reviews, 160 rows", "decoder", 0.895, 0.677, 0.773, GRID),
    RecordedRun("reviews, 600 rows", "decoder", 0.908, 0.761, 0.784, "docs/reference/grid-600.md, three seeds"),
    RecordedRun("reviews, 1,862 rows", "decoder", 0.900, 0.792, 0.787, "docs/reports/reviews.html"),
    RecordedRun("movies, 160 rows", "decoder", 0.853, None, None, "bench/RECOMMEND.md (films)"),
    RecordedRun("chapters, 800 rows, macro F1", "decoder", 0.818, 0.840, None, "docs/reference/measured.md"),
)
# Recipes of the runs whose cheap scores were not recorded.
RECIPES = {
    "movies, 600 rows": "bench/recommend/movies.yaml",
    "sections, 900 rows": "bench/recommend/sections.yaml",
    "movies, 160 rows": "bench/recommend/films.yaml",
}


def main() -> None:
    """Run the step that the command line names."""
    steps = {"measure": measure, "derive": derive}
    if len(sys.argv) != 2 or sys.argv[1] not in steps:
        raise SystemExit(__doc__)
    steps[sys.argv[1]]()


def measure() -> None:
    """Score TF-IDF and the probe on the splits of the recorded runs."""
    from tunesmith.config import load_recipe
    from tunesmith.data.examples.types import LabelledText
    from tunesmith.metrics.baselines import linear_probe, tfidf_classifier
    from tunesmith.models.loading.load import load_base
    from tunesmith.models.sentence_embeddings import sentence_vectors
    from tunesmith.training.prepare import prepare

    found = {}
    base = load_base("minilm-l6", offline=True)
    for name, path in RECIPES.items():
        recipe, _ = load_recipe(Path(path), changes=["model=minilm-l6"])
        split = prepare(recipe, on_event=lambda event: None, offline=True).loaded.split
        train, test = ([row for row in part if isinstance(row, LabelledText)] for part in (split.train, split.test))
        wanted = [row.labels[0] for row in test]
        tfidf = tfidf_classifier([(row.text, row.labels[0]) for row in train], [row.text for row in test])
        vectors = [sentence_vectors(base, [row.text for row in part], recipe.data.max_tokens) for part in (train, test)]
        probe = linear_probe(vectors[0], [row.labels[0] for row in train], vectors[1])
        found[name] = {
            "train_rows": len(train),
            "test_rows": len(test),
            "tfidf": mean(float(a == b) for a, b in zip(tfidf, wanted, strict=True)),
            "probe": mean(float(a == b) for a, b in zip(probe, wanted, strict=True)),
        }
        print(name, found[name], flush=True)
    MEASURED.write_text(json.dumps(found, indent=1) + "\n")


def derive() -> None:
    """Print each gain, and the constants of each family."""
    cheap = json.loads(MEASURED.read_text())
    gains: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in RUNS:
        also = cheap.get(run.data, {})
        scores = [score for score in (run.tfidf, run.probe, also.get("tfidf"), also.get("probe")) if score is not None]
        gain = (run.tuned - max(scores)) / (1 - max(scores))
        gains[run.family][run.data.partition(",")[0]].append(gain)
        figures = f"cheap {max(scores):.3f}  tuned {run.tuned:.3f}  gain {gain:+.2f}"
        print(f"{run.family:8} {run.data:30} {figures}  {run.source}")
    for family, sets in gains.items():
        runs = [gain for part in sets.values() for gain in part]
        expected = mean(map(mean, sets.values()))
        print(f'"{family}": Gain({min(runs):.2f}, {expected:.2f}, {max(runs):.2f}, {len(runs)}, {len(sets)})')


if __name__ == "__main__":
    main()
