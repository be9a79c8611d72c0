"""`python -m bench.gpu NAME`: one benchmark on this machine's GPU; `--tiny` runs it on a CPU with a random model.

`--write FOLDER` only writes the jobs, for a side in another environment (bench/gpu/README.md). Not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from bench.gpu import processes, serving
from bench.gpu.job import BENCHMARKS, Job
from bench.gpu.ours import SIDES, Figures
from bench.gpu.ours import run as run_ours


def jobs_of(name: str, *, tiny: str = "", models: Sequence[str] = ()) -> list[Job]:
    """The jobs of a benchmark; for a tiny model only the first, as all differ in size alone."""
    jobs = BENCHMARKS[name]
    if tiny:
        return [jobs[0].tiny(tiny)]
    return [replace(job, model=model) for model in models for job in jobs[:1]] if models else list(jobs)


def figures(job: Job, *, url: str, cards: Sequence[int]) -> list[Figures]:
    """The figures of a job, one set per variant."""
    if job.kind == "serve":
        return serving.measure(job, url=url)
    if job.name == "scale":
        return processes.measure(job, cards)
    found = [run_ours(job)]
    if job.name == "lora":
        found.append({"variant": "recompute", **run_ours(replace(job, recompute=True))})
    if job.name == "short":
        found.append({"variant": "nothing shared", **run_ours(replace(job, shared=0, prompt=job.shared + job.prompt))})
    return found


def main(words: Sequence[str] | None = None) -> list[Figures]:
    """Run one benchmark, print its figures and append them to a file."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--model", action="append", default=[], help="another model than the benchmark's own")
    parser.add_argument("--url", default="", help="serve: a running server with OpenAI's API; default: starts our own")
    parser.add_argument("--cards", type=int, nargs="+", default=[1, 2, 4, 8], help="scale: numbers of processes")
    parser.add_argument("--write", type=Path, help="write the jobs into this folder and stop")
    parser.add_argument("--out", type=Path, default=Path("gpu-bench.jsonl"))
    args = parser.parse_args(words)
    found: list[Figures] = []
    with tempfile.TemporaryDirectory() as place:
        tiny = ""
        if args.tiny:
            from tests.tiny import tiny_decoder

            tiny = str(tiny_decoder(Path(place) / "llama"))
        for number, job in enumerate(jobs_of(args.name, tiny=tiny, models=args.model)):
            if args.write:
                print(job.write(args.write / f"{job.name}-{number}"))
                continue
            card = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
            for one in figures(job, url=args.url, cards=[1, 2] if args.tiny else args.cards):
                found.append({"benchmark": job.name, "side": "tunesmith", "card": card, "job": asdict(job), **one})
                with args.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found[-1]) + "\n")
                print(json.dumps({key: value for key, value in found[-1].items() if key != "job"}), flush=True)
    return found


assert set(SIDES) | {"serve"} == {job.kind for jobs in BENCHMARKS.values() for job in jobs}

if __name__ == "__main__":
    main()
