"""Kill every command that writes at random moments, start it again, and compare the end with an undisturbed one.

    python -m bench.kill_drills --kills 100           # all commands in turn
    python -m bench.kill_drills --kills 4 rlhf label  # only these

Each kill is a SIGKILL to all processes of a command, in one case of four to the first of them alone: in the middle of a
write that is drawn from all writes of the command, in one case of four (always for two processes) at any moment. A
chain begins in an empty folder and is killed up to four times; then the command runs to its end. Tiny random models;
`--processes 2` and `dtype: auto` are among the commands.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.drills.commands import ACKNOWLEDGED, DRILLS, TWO_PROCESSES, Lab
from tests.drills.forks import Ended

LONGEST_CHAIN = 4


class Chain:
    """A command, its undisturbed result, and what became of its kills."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab, self.drill, self.counts = lab, {**DRILLS, **TWO_PROCESSES}[name], Counter[str]()
        self.clean, self.expected = lab.reference(self.drill, error=0)
        self.timed = name in TWO_PROCESSES

    def attack(self, kills: int, chance: random.Random) -> list[str]:
        """Kill the command at most so many times, run it to its end, and return what is wrong."""
        notes = self.lab.place / ACKNOWLEDGED
        notes.unlink(missing_ok=True)
        self.lab.begin(self.drill)
        moments, left = list[str](), len(self.clean.points)
        for _ in range(kills):
            alone = chance.random() < 0.25
            if self.timed or chance.random() < 0.25:
                moment = chance.uniform(0.02, self.clean.seconds)
                ended = self.lab.run(self.drill, kill=moment, alone=alone)
            else:
                ended = self.lab.run(self.drill, at=chance.randint(1, max(1, left // 2)), error=0, once=alone)
            if ended.code != -signal.SIGKILL:
                break
            left = max(1, left - len(ended.points))
            moments.append(ended.points[-1] if ended.points else "nothing")
        self.counts["kills"] += len(moments)
        ended = self.lab.run(self.drill)
        if ended.code != self.clean.code and self.drill.refused and self.drill.refused in ended.err:
            # It was killed after its file was whole, which only the user may delete.
            found = self.lab.differences(self.expected, may_lack=True)[:3]
            self.counts["different" if found else "whole"] += len(moments)
        else:
            found = list(self._problems(ended))
            self.counts["different" if found else "equal"] += len(moments)
        return [f"killed at {', '.join(moments)}: {text}" for text in found]

    def _problems(self, ended: Ended) -> Iterator[str]:
        if ended.code != self.clean.code:
            yield f"ended with {ended.code}: {ended.err[-400:]}"
        yield from self.lab.differences(self.expected)[:3]
        yield from self.lab.lost_votes()


def drill(lab: Lab, names: Sequence[str], kills: int, seed: int) -> tuple[dict[str, Counter[str]], list[str]]:
    """Kill each command in turn until there were enough kills; return the counts by command, and what is wrong."""
    chance, chains, problems = random.Random(seed), dict[str, Chain](), list[str]()
    done = number = 0
    while done < kills:
        name = names[number % len(names)]
        number += 1
        chain = chains[name] = chains.get(name) or Chain(lab, name)
        before = chain.counts["kills"]
        found = chain.attack(min(kills - done, LONGEST_CHAIN), chance)
        problems += [f"{name}: {text}" for text in found]
        done += chain.counts["kills"] - before
        print(f"{done} of {kills}: {name}{''.join(chr(10) + '  ' + text for text in found)}", flush=True)
    return {name: chain.counts for name, chain in chains.items()}, problems


def main() -> int:
    """Drill, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.kill_drills", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="COMMAND", help="names of drills (default: all)")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="tunesmith-drills-"))
    lab = Lab(place, whole=True)
    try:
        counts, problems = drill(lab, args.names or [*DRILLS, *TWO_PROCESSES], args.kills, args.seed)
    finally:
        lab.forks.close()
        shutil.rmtree(place)
    print("\n| command | kills | resumed equal | whole already, not overwritten |\n|---|---|---|---|")
    for name, count in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        print(f"| {name} | {count['kills']} | {count['equal']} | {count['whole']} |")
    return int(bool(problems))


if __name__ == "__main__":
    raise SystemExit(main())
