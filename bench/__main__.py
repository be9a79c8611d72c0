"""`make bench`: Tunesmith against TRL, transformers + PEFT and classification heads; writes bench/RESULTS.md.

`python -m bench reviews` runs one race; `--dtype bfloat16` runs it in bf16. A race that was broken
off goes on where it stopped; `--again` starts a finished one anew. Measure on an idle machine.
"""

from __future__ import annotations

import argparse

from bench.race.jobs import RACES, ROOT, USUAL
from bench.race.page import section, write_page
from bench.race.run import Terms, finished, run


def main() -> None:
    """Run the races that are named and write the page of all that are finished."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("races", nargs="*", metavar="RACE", help=f"{', '.join(RACES)}; none: {', '.join(USUAL)}")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="timed steps per process; 0: the race's own number")
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    parser.add_argument("--small", action="store_true", help="two rows a step: does it run? prints, writes no page")
    parser.add_argument("--page", action="store_true", help="only write the page of what is finished")
    asked = parser.parse_args()
    if unknown := set(asked.races) - set(RACES):
        parser.error(f"no race {min(unknown)}; there are {', '.join(RACES)}")
    for name in () if asked.page else asked.races or USUAL:
        folder = run(RACES[name], Terms(asked.dtype, asked.rounds, asked.steps, asked.small), again=asked.again)
        print("\n".join(section(RACES[name], folder)))
    if not asked.small and (known := finished()):
        write_page(ROOT / "bench" / "RESULTS.md", known, "make bench")


if __name__ == "__main__":
    main()
