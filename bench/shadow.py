"""`python -m bench.shadow [simulate | real [RUN]]`: when a tuned model replaces a paid one, how soon a fall is noticed.

`simulate` needs no model. `real` tunes the bundled encoder on 399 review rows and serves it in the shadow of a stand-in
that gives the label of the raters for the other rows.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np

from tests.paid_stub import paid_stub
from tunesmith.inference.serving.shadow.decision import GRID, PATIENCE, Comparison, State
from tunesmith.metrics.sequential import BETS, add_to_capital, log_evidence

MARGIN, ROWS, SEEDS, CONTROL = 0.05, 5000, 500, 0.05
REVIEWS = Path(__file__).parents[1] / "tunesmith" / "shipped_data" / "reviews.jsonl"
MOVIES = Path("/work/shared/data/a2_vader_movie/a2_vader_movie.jsonl")


def first_share(agreement: np.ndarray, rng: np.random.Generator) -> float:
    """Requests until the first share, infinite if there is none in ROWS; agreement by band, all as frequent."""
    band = rng.integers(len(GRID), size=ROWS)
    agreed = rng.random(ROWS) < agreement[band]
    ones = np.cumsum((band[:, None] == np.arange(len(GRID))) & agreed[:, None], axis=0)
    zeros = np.cumsum((band[:, None] == np.arange(len(GRID))) & ~agreed[:, None], axis=0)
    counts = np.stack([zeros, ones], axis=-1)[:, ::-1].cumsum(axis=1)  # [ROWS, bands, 2], from the highest band down
    passed = (log_evidence(counts, 1 - MARGIN) >= State(margin=MARGIN).needed()).any(axis=1)
    return float(passed.argmax() + 1) if passed.any() else np.inf


def until_noticed(agreement: float, rng: np.random.Generator, most: int = 200_000) -> float:
    """Requests until a fall is noticed, of which CONTROL are compared."""
    capital = np.zeros(len(BETS))
    requests = 0
    while requests < most:
        requests += int(rng.geometric(CONTROL))
        capital = add_to_capital(capital, float(rng.random() < agreement), 1 - MARGIN)
        if capital.mean() >= PATIENCE:
            return requests
    return np.inf


def simulate() -> None:
    """Print the tables of the simulation."""
    print(f"margin {MARGIN:.0%}, {SEEDS} seeds, {ROWS} requests each, agreement equal in all bands of confidence\n")
    print("| true agreement | ever a share | median requests until it | 90 % have it after |\n|---|---|---|---|")
    for share in (0.90, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 1.0):
        rng = np.random.default_rng(int(share * 1000))
        needed = np.array([first_share(np.full(len(GRID), share), rng) for _ in range(SEEDS)])
        low, high = np.quantile(needed, [0.5, 0.9], method="inverted_cdf")
        ever = np.isfinite(needed).mean()
        print(f"| {share:.0%} | {ever:.1%} | {low:.0f} | {high:.0f} |".replace("inf", "-"))
    rng = np.random.default_rng(7)
    graded = np.array([0.6, 0.7, 0.8, 0.88, 0.95, 0.98, 0.995])
    needed = np.array([first_share(graded, rng) for _ in range(SEEDS)])
    print(
        f"\nagreement by band {graded.tolist()}: a share in {np.isfinite(needed).mean():.1%}, "
        f"median {np.median(needed):.0f} requests"
    )
    print(f"\n{CONTROL:.0%} of the requests are compared after the share\n")
    print("| agreement after the share | noticed | median requests until it | 90 % after |\n|---|---|---|---|")
    for share in (0.99, 0.97, 0.95, 0.92, 0.90, 0.80, 0.70, 0.50, 0.0):
        needed = np.array([until_noticed(share, rng) for _ in range(100)])
        low, high = np.quantile(needed, [0.5, 0.9], method="inverted_cdf")
        print(f"| {share:.0%} | {np.isfinite(needed).mean():.0%} | {low:.0f} | {high:.0f} |".replace("inf", "-"))
    worse = [whole(seed) for seed in range(60)]
    print(f"\nwhole life through `State`, 60 seeds, 3000 requests at 94 %: {np.mean(worse):.1%} ever had a share")


def whole(seed: int) -> bool:
    """Whether a model at 94 % ever gets a share, with the code of the server."""
    rng, state = np.random.default_rng(seed), State(margin=MARGIN)
    for i in range(3000):
        state.compare(Comparison(float(rng.random()), float(rng.random() < 0.94), state.attempt), at=i)
        if event := state.due():
            state.apply(event)
    return bool(state.events)


def real(run: Path | None = None) -> None:
    """Tune, or take a run of these rows; serve it in the shadow, and print what happened."""
    rows = [json.loads(line) for line in REVIEWS.read_text(encoding="utf-8").splitlines()]
    train, rows = rows[:399], rows[399:]
    np.random.default_rng(0).shuffle(rows)
    movies = [json.loads(line) for line in MOVIES.read_text(encoding="utf-8").splitlines()]
    movies = [row for row in movies if row["label"] in ("positive", "negative")]
    labels = {row["text"]: row["label"] for row in movies + rows}
    with tempfile.TemporaryDirectory() as name, paid_stub(lambda text: labels[text], seconds=0.1) as paid:
        folder = Path(name)
        if run is None:
            run = folder / "run"
            (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train), encoding="utf-8")
            settings = ("objective.kind=classify", "model=minilm-l6", "data.test=0.3", "data.validation=0.1")
            recipe = [f"--set={key}" for key in (*settings, "data.group=group", "schedule.epochs=2")]
            tune = [sys.executable, "-m", "tunesmith", "tune", "train.jsonl", *recipe, "--out", str(run), "--offline"]
            subprocess.run(tune, cwd=folder, check=True, stdout=sys.stderr)
        shadow = [
            "--shadow",
            f"{paid.url}#gpt",
            "--shadow-price",
            "0.4",
            "1.6",
            "--shadow-margin",
            "0.1",
            "--shadow-control",
            "0.2",
        ]
        serve = [
            sys.executable,
            "-m",
            "tunesmith",
            "serve",
            f"run={run.resolve()}",
            "--port",
            "0",
            "--json",
            "--offline",
            *shadow,
        ]
        tokens = ["--admin-token-file", "admin.token", "--shadow-folder", "shadow"]
        with subprocess.Popen([*serve, *tokens], cwd=folder, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            url = ""
            while not url:
                url = (re.findall(r'"url": "([^"]+)"', process.stdout.readline()) or [""])[0]
            key = (folder / "admin.token").read_text().strip()
            swapped = "reviews again, a third of the labels changed"
            stages = (("reviews", rows), ("movies", movies[:1500]), (swapped, rows))
            with httpx2.Client(timeout=60) as client:
                for stage, traffic in stages:
                    if stage == swapped:
                        swap = {"positive": "negative", "negative": "positive"}
                        labels.update({row["text"]: swap[row["label"]] for row in traffic[::3]})
                    report(stage, traffic, client, url=url, key=key)
            process.terminate()


def report(stage: str, traffic: list[dict[str, str]], client: httpx2.Client, *, url: str, key: str) -> None:
    """Send the rows of a stage and print the state of the shadow."""
    began = time.time()

    def ask(row: dict[str, str]) -> tuple[bool, bool]:
        body = {"model": "gpt", "messages": [{"role": "user", "content": row["text"]}]}
        answer = client.post(f"{url}/chat/completions", json=body).json()
        return answer["model"] == "run", answer["choices"][0]["message"]["content"] == row["label"]

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, traffic))
    mine, right = sum(own for own, _ in answers), sum(own and same for own, same in answers)
    time.sleep(3)
    page = client.get(f"{url.removesuffix('v1')}admin/shadow", headers={"Authorization": f"Bearer {key}"}).json()
    print(f"\n## {stage}: {len(traffic)} requests in {time.time() - began:.0f} s")
    print(
        f"answered by the tuned model {mine} ({mine / len(traffic):.1%}), "
        f"of them as the raters {right / max(1, mine):.1%}"
    )
    for name in ("threshold", "attempt", "requests", "control", "cost_spent", "cost_saved", "seconds", "seconds_saved"):
        print(f"{name}: {page[name]}")
    for row in [*page["shadow"], *page["events"]]:
        print(row)
    print("share over time:", [round(period[2] / period[1], 2) for period in page["periods"]])


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.argv[1:2] != ["real"]:
        simulate()
    if sys.argv[1:2] != ["simulate"]:
        real(*map(Path, sys.argv[2:3]))
