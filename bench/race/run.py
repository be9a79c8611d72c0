"""A race run to its end: the job, one process per round and side in turn, and what each side's result is worth."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.peers.job import Job
from bench.race.jobs import RACES, ROOT, Race, write_job
from bench.race.judge import judge
from tunesmith.models.loading.device import choose_machine

WORK = ROOT / "bench" / ".race"
OURS = ("tunesmith", "apart", "int8")
MODULES = {
    "trl": "trl_side",
    "trl_best": "trl_side",
    "plain": "plain",
    "head": "plain",
    "litgpt": "litgpt_side",
    "llamafactory": "llamafactory_side",
}
OWN = ("litgpt", "llamafactory")  # sides with an environment of their own
# A race starts anew when one of these has changed since it began.
CODE = ("tunesmith/models", "tunesmith/objectives", "tunesmith/techniques", "tunesmith/training", "bench/peers")


@dataclass(frozen=True)
class Terms:
    """How a race is run."""

    dtype: str
    rounds: int
    steps: int  # 0: the race's own number
    small: bool = False  # two rows a step and eight held-out ones: whether everything runs; its figures mean nothing


def peers_python(side: str = "") -> Path:
    """The Python of a peer's environment, made and filled first if it is not there as its requirements say."""
    name, wanted = (side, f"{side}.txt") if side in OWN else ("peers", "requirements.txt")
    place, listed = ROOT / "bench" / f".venv-{name}", ROOT / "bench" / "peers" / wanted
    python, stamp = place / "bin" / "python", place / "requirements.txt"
    if not (stamp.exists() and stamp.read_bytes() == listed.read_bytes()):
        print(f"making {place.relative_to(ROOT)}: a download of some hundred MB, once", flush=True)
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-r", str(listed)], check=True)
        shutil.copy(listed, stamp)
    return python


def run(race: Race, terms: Terms, *, again: bool = False) -> Path:
    """The folder of a finished race. One that was broken off goes on, unless `again` or its code has changed."""
    folder = WORK / f"{race.name}-{terms.dtype}{'-small' * terms.small}"
    if terms.small:
        race = replace(race, changes=(*race.changes, "schedule.batch_rows=2"), held=8)
    steps = terms.steps or race.steps
    mark = _mark(race, steps)
    stamp = folder / "mark"
    if again or not stamp.exists() or stamp.read_text(encoding="ascii") != mark:
        shutil.rmtree(folder, ignore_errors=True)
        write_job(race, folder, dtype=terms.dtype, steps=steps)
        stamp.write_text(mark, encoding="ascii")
    for number in range(1, terms.rounds + 1):
        _round(race, folder, number)
    _judge(race, folder, folder / f"round-{terms.rounds}")
    return folder


def _round(race: Race, folder: Path, number: int) -> None:
    """Every side once, one after the other; a side that has its result already is not run again."""
    here = folder / f"round-{number}"
    here.mkdir(exist_ok=True)
    if not (here / "machine.json").exists():
        machine = choose_machine(dtype=Job.read(folder).dtype)
        known = {"gemm_gflops": dict(machine.gemm_gflops), "threads": machine.threads}
        (here / "machine.json").write_text(json.dumps(known), encoding="utf-8")
    for side in race.sides:
        out = here / side
        if (out / "result.json").exists():
            continue
        out.mkdir(exist_ok=True)
        module = "bench.race.ours" if side in OURS else f"bench.peers.{MODULES[side]}"
        python = sys.executable if side in OURS else peers_python(side)
        command = [str(python), "-m", module, str(folder), side, str(out)]
        with (out / "log.txt").open("w", encoding="utf-8") as log:
            env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
            ended = subprocess.run(command, cwd=ROOT, env=env, stdout=log, stderr=log, check=False).returncode
        if ended:
            sys.exit(f"{race.name}, {side}: ended with {ended}; its words are in {out / 'log.txt'}")
        shutil.rmtree(folder / f"round-{number - 1}" / side / "tuned", ignore_errors=True)  # only the last is judged
        found = json.loads((out / "result.json").read_text(encoding="utf-8"))
        rate = found["tokens"] / sum(found["seconds"])
        print(f"{race.name} round {number} {side}: {rate:.0f} tokens/s, {found['memory_mb']:.0f} MB", flush=True)


def _judge(race: Race, folder: Path, last: Path) -> None:
    """judged.json: held-out loss of the start and of what every side made in its last round."""
    path, job = folder / "judged.json", Job.read(folder)
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for side in ("start", *race.sides):
        tuned = None if side == "start" else last / side / "tuned"
        if known.get(side, {}).get("of") != str(tuned):
            known[side] = {**judge(job, side, tuned), "of": str(tuned)}
            path.write_text(json.dumps(known, indent=1), encoding="utf-8")
            print(f"{race.name} {side}: held-out loss {known[side]['loss']:.5f}", flush=True)


def _mark(race: Race, steps: int) -> str:
    """A digest of what a race depends on."""
    digest = hashlib.sha256(f"{race} {steps}".encode())
    for name in CODE:
        for path in sorted((ROOT / name).rglob("*.py")):
            digest.update(path.read_bytes())
    digest.update((ROOT / "bench" / "race" / "ours.py").read_bytes())
    return digest.hexdigest()


def finished() -> list[tuple[Race, Path]]:
    """All races that have been judged, in the order of the page."""
    found = [(race, WORK / f"{race.name}-{dtype}") for dtype in ("float32", "bfloat16") for race in RACES.values()]
    return [(race, folder) for race, folder in found if (folder / "judged.json").exists()]
