"""Events for the page of a run while it trains: points of the curves, warnings, memory, time left, log."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from tunesmith.web.studio.jobs import ERRORS, LOG_BYTES, Job

TICK = 0.4  # seconds between two looks at the files
MOST_POINTS = 4000  # of one event: a longer journal is thinned
# Curve -> key of a journal record.
CURVES = {
    "train": "loss",
    "validation": "validation_loss",
    "rate": "tokens_per_second",
    "reward": "reward",
    "validation_reward": "validation_reward",
}
# Key of a journal record -> the warning that it stands for, with the values of the record.
ALARMS = {
    "alarm": "{alarm}",
    "tokens_at_once": "memory ran out; from here on at most {tokens_at_once} tokens are computed at once",
    "recompute": "memory ran out; from here on activations are computed again instead of kept, which is slower",
    "outside_gate": "a gate of the recipe is violated; the model of this step is not kept",
}
# Lines of the log, as `cli/progress` writes them.
STAGE = re.compile(r"^\[(\d+)/(\d+)\] (.+)$", re.MULTILINE)
LEFT = re.compile(r"^whole run: about (.+) left, (.+ to .+) in 9 of 10 runs$", re.MULTILINE)
Record = dict[str, Any]


def points(records: Sequence[Record], most: int = MOST_POINTS) -> dict[str, list[Any]]:
    """Return steps, and the value of each curve at each of them or None.

    Of more than `most` steps, those with a validation are kept, and of all others the highest and the lowest training
    loss of some steps in a row, so that every peak is still there.
    """
    rows: dict[int, dict[str, float]] = {}
    for record in records:
        values = {curve: record.get(key) for curve, key in CURVES.items()}
        found = {curve: v for curve, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
        rows.setdefault(record["step"], {}).update(found)
    steps = sorted(step for step in rows if rows[step])
    if len(steps) > most:
        kept = {step for step in steps if "validation" in rows[step]} | {steps[-1]}
        size = math.ceil(2 * len(steps) / most)
        for start in range(0, len(steps), size):
            part = sorted(steps[start : start + size], key=lambda step: rows[step].get("train", 0.0))
            kept |= {part[0], part[-1]}
        steps = sorted(kept)
    curves = [curve for curve in CURVES if any(curve in rows[step] for step in steps)]
    return {"step": steps, **{curve: [rows[step].get(curve) for step in steps] for curve in curves}}


def alarms(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the warnings among journal records, each with its step."""
    texts = [(record, text) for record in records for key, text in ALARMS.items() if key in record]
    return [{"step": record["step"], "text": text.format(**record)} for record, text in texts]


class Follower:
    """Reads what a run has written since the last look, or since the event with this `id`.

    Without a job, the run was started elsewhere.
    """

    def __init__(self, folder: Path, job: Job | None, last: str = "") -> None:
        self.folder, self.job = folder, job
        try:
            self.file, self.at, self.log_at = map(int, last.split("-"))
        except ValueError:
            self.file, self.at, self.log_at = 0, 0, -1
        self.ended = self._predicted = False

    def look(self) -> Record | None:
        """Return the next event; None if nothing has changed."""
        is_new = self.log_at < 0
        state = self.job.state() if self.job else None
        # Before the files are read, so that nothing is missing from the last event.
        self.ended = state.name not in ("waiting", "running") if state else (self.folder / "report.json").exists()
        log = self._new_log()
        records, restarted = self._new_records()
        if not (records or log or is_new or self.ended):
            return None
        event: Record = {
            "restarted": restarted,
            "points": points(records),
            "alarms": alarms(records),
            "state": state.name if state else "",
            "log": log,
            "memory": memory_of(state.runner[0]) if state and not self.ended else 0,
        }
        if last := next((record for record in reversed(records) if "steps" in record), None):
            left = last.get("seconds", 0.0) / max(1, last["step"]) * (last["steps"] - last["step"])
            event["last"] = {**last, "left": left}
        for name, line in (("stage", STAGE), ("whole_left", LEFT)):
            if found := line.findall(log):
                event[name] = found[-1]
        if not self._predicted and (prediction := read_if_there(self.folder / "prediction.json")):
            event["predicted"], self._predicted = prediction["memory"], True
        return event

    def _new_records(self) -> tuple[list[Record], bool]:
        """Return new records, and whether they are from the beginning because a resumed run replaced the journal."""
        path, file, at = self.folder / "journal.jsonl", self.file, self.at
        self.file = path.stat().st_ino if path.exists() else 0
        records, self.at = new_records(path, at if file == self.file else 0)
        return records, 0 < file != self.file or self.at < at

    def _new_log(self) -> str:
        """Return new lines of the log; of a new page the end of what is there."""
        if self.job is None:
            self.log_at = 0
            return ""
        path = self.job.folder / ERRORS
        if self.log_at < 0:
            self.log_at = max(0, path.stat().st_size - LOG_BYTES) if path.exists() else 0
        block, self.log_at = _new_lines(path, self.log_at)
        return block.decode("utf-8", "replace")


async def follow(follower: Follower, request: Any) -> AsyncIterator[str]:
    """Yield server-sent events until the run has ended. A page that connects again sends the `id` of the last one."""
    while not await request.is_disconnected():
        if event := await asyncio.to_thread(follower.look):
            yield f"id: {follower.file}-{follower.at}-{follower.log_at}\ndata: {json.dumps(event)}\n\n"
        if follower.ended:
            yield "event: end\ndata: {}\n\n"
            return
        await asyncio.sleep(TICK)


def memory_of(runner: int) -> int:
    """Return the resident bytes of the largest process that a runner has started; memory is predicted per process."""
    import psutil

    try:
        return max(
            (process.memory_info().rss for process in psutil.Process(runner).children(recursive=True)), default=0
        )
    except psutil.Error:
        return 0


def new_records(path: Path, start: int) -> tuple[list[Record], int]:
    """Return the whole lines of a journal from a byte on, and the byte after them; from 0 if it is shorter."""
    block, end = _new_lines(path, start)
    records = []
    for line in block.splitlines():
        try:
            record = json.loads(line, parse_constant=lambda _: None)  # browsers read no NaN
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records, end


def _new_lines(path: Path, start: int) -> tuple[bytes, int]:
    """Return the whole lines of a file from a byte on, and the byte after them; from 0 if the file is shorter."""
    if not path.exists():
        return b"", 0
    with path.open("rb") as file:
        start = start if start <= file.seek(0, 2) else 0
        file.seek(start)
        block = file.read()
    block = block[: block.rfind(b"\n") + 1]
    return block, start + len(block)


def read_if_there(path: Path) -> Any:
    """Return the content of a JSON file of a run; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
