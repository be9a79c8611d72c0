"""A full or read-only disk at every write of a command: what is expected of it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.drills.commands import ACKNOWLEDGED, DRILLS, Lab
from tests.drills.forks import Ended

ERROR = re.compile(r"^error: .+: .+; .+", re.M)
# The random names of temporary files; and digits, too, which differ from point to point of the same kind of write.
RANDOM = re.compile(r"(?<=\.)\d+(?=\.half)|\.tmp\w{6}|[0-9a-f]{16,}|tmp\w{8}")
DIGITS = re.compile(rf"{RANDOM.pattern}|\d+")


@dataclass(frozen=True)
class Fault:
    """A disk that is full or read-only from a point on, or at this point alone."""

    error: int
    once: bool = False

    def __str__(self) -> str:
        return errno.errorcode[self.error] + (" once" if self.once else "")


FAULTS = (Fault(errno.ENOSPC), Fault(errno.EROFS), Fault(errno.ENOSPC, once=True))


def _unfinished(point: str) -> tuple[str, str]:
    """Return the folder that a point writes into, and the one that it would rename: neither is complete before it."""
    folder, _, name = point.partition(" ")[2].rpartition("/")
    return folder, f"{folder}/.{name}.half"


class Attack:
    """A command and its undisturbed result."""

    def __init__(self, lab: Lab, name: str, fault: Fault) -> None:
        self.lab, self.drill, self.fault = lab, DRILLS[name], fault
        self.clean, self.expected = lab.reference(self.drill, error=fault.error)
        self.points = self.clean.points

    def places(self) -> list[int]:
        """Return the numbers of the points to try: the first and the last write of each file by its kind."""
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for number, point in enumerate(self.points, 1):
            site = DIGITS.sub("N", f"{point.split()[0]} {point.rpartition('/')[2]}")
            first.setdefault(site, number)
            last[site] = number
        return sorted({*first.values(), *last.values()})

    def problems(self, at: int) -> Iterator[str]:
        """Run the command with the fault, then without, and yield what is not as it should be."""
        lab, notes = self.lab, self.lab.place / ACKNOWLEDGED
        notes.unlink(missing_ok=True)
        lab.begin(self.drill)
        ended = lab.run(self.drill, at=at, error=self.fault.error, once=self.fault.once)
        yield from self._wrong_end(ended)
        answers = notes.read_text("utf-8").splitlines() if notes.exists() else []
        yield from (f"answer {line}" for line in answers if not line.startswith(("200", "503")))
        again = lab.run(self.drill)
        if again.code != self.clean.code and self.drill.refused and self.drill.refused in again.err:
            yield from lab.differences(self.expected, may_lack=True)[:3]
            return
        if again.code != self.clean.code:
            yield f"the second start ended with {again.code}: {again.err[-300:]}"
            return
        yield from lab.differences(self.expected)[:3]
        yield from lab.lost_votes()
        wanted = re.compile(self.drill.kept)
        kept = {point for point in self.points[: at - 1] if wanted.search(point) and not point.startswith("mkdir")}
        # What comes next is not repeated, and neither is a file that was being written: five points up to its rename.
        ahead = {RANDOM.sub("N", point) for point in self.points[max(0, at - 5) :]}
        begun = {folder for point in self.points[at - 1 :] for folder in _unfinished(point)}
        kept = {
            point for point in kept if point.rpartition("/")[0].partition(" ")[2] not in begun or ".half/" not in point
        }
        done = {RANDOM.sub("N", point) for point in kept} - ahead
        repeated = done & {RANDOM.sub("N", point) for point in again.points}
        yield from (f"done again: {point}" for point in sorted(repeated))

    def _wrong_end(self, ended: Ended) -> Iterator[str]:
        if "Traceback" in ended.err or ended.code == 70 or ended.code < 0:
            yield f"code {ended.code}: {ended.err[-700:]}"
        elif ended.code != self.clean.code:
            lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
            if ended.code != 2 or len(lines) != 1 or not ERROR.search(lines[0]):
                yield f"code {ended.code}, error lines {lines}"
