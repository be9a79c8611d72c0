"""The commands that write, with tiny models, as the drills run them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.drills.forks import Ended, Forks
from tests.golden.commands import FULL, LORA, furnish
from tests.golden.runs import pages, reviews, write_jsonl
from tests.pipelines.tune.test_embed import questions
from tests.pipelines.tune.test_tag import orders

SHORT = "--set objective.max_new_tokens=5"
# The library for products is chosen by its speed, so that on a busy machine the last bits of two starts may differ.
SAME_PRODUCTS = "--set machine.products=default"
FULL = f"{FULL} {SAME_PRODUCTS}"
LORA = f"{LORA} {SAME_PRODUCTS} --set retention=false"
TUNED = f"tune reviews.jsonl {LORA} --out decoder"
ARMS = "--set data.audit=note --set arms=[prompt,tf-idf,tuned]"
RAG = "--set documents.source=facts-documents.jsonl --set documents.encoder=bert --set documents.origin=doc"
VOTES = ("votes", "import", "votes.db", "judged.jsonl")
ACKNOWLEDGED = "acknowledged"  # beside the box, where the disk is never full


@dataclass(frozen=True)
class Drill:
    """A command, what has to be there before it, and where work of minutes is kept.

    Args:
        words: the command line.
        before: commands that run first.
        kept: pattern of the files that hold work; what has been written is not written again by the next start.
        client: asks the server that the command starts.
        refused: error of a second start where the first one has left a file that is the user's to delete.
    """

    words: str
    before: Sequence[str] = ()
    kept: str = "nothing"
    client: str = ""
    refused: str = ""


# The scores of the base, and all training; the model is written from it again if what follows could not be.
CHECKPOINT = r"\.before\.json|checkpoints/\.last\.half/manifest"
DRILLS = {
    "tune head": Drill(f"tune reviews.jsonl {FULL} --set schedule.save_steps=3 --out run", kept=r"\.before\.json"),
    "tune lora": Drill(f"tune answers.jsonl {LORA} {SHORT} --set machine.dtype=auto --out run", kept=CHECKPOINT),
    "tune qlora": Drill(f"tune reviews.jsonl {LORA} --technique qlora --out run", kept=CHECKPOINT),
    "tune domain": Drill(
        f"tune pages.jsonl {LORA} --set data.max_tokens=48 --set replay.share=0.2 --set replay.source=self --out run",
        kept=CHECKPOINT,
    ),
    "tune preference": Drill(f"tune judged.jsonl {LORA} --set objective.max_new_tokens=5 --out run", kept=CHECKPOINT),
    "tune multitask": Drill(f"tune multitask.yaml {SAME_PRODUCTS} --out run --offline", kept=CHECKPOINT),
    "tune embed": Drill(
        f"tune questions.jsonl {FULL} --objective embed --set objective.hard_negatives=2 --set schedule.save_steps=1 "
        "--out run",
        kept=r"\.before\.json",
    ),
    "tune rerank": Drill(f"tune questions.jsonl {FULL} --objective rerank --out run", kept=r"\.before\.json"),
    "tune tag": Drill(
        f"tune orders.jsonl {FULL} --objective tag --set schedule.save_steps=2 --out run", kept=r"\.before\.json"
    ),
    "tune teacher": Drill(
        f"tune reviews.jsonl {FULL} --set teacher.model=decoder --set teacher.rows=unlabelled.jsonl --out run",
        [f"tune reviews.jsonl {LORA} --out decoder"],
        kept=r"\.before\.json|teacher(_test)?\.jsonl",  # answers, not the rows made of them,
    ),
    "rebase": Drill("rebase decoder --model bert --out run --offline", [TUNED], kept=r"\.before\.json"),
    "replay": Drill("replay decoder --out replayed.json --offline", [TUNED]),
    "verify": Drill("verify challenge.json --at decoder --out verified.json --offline", [TUNED]),
    "learning-curve": Drill(f"learning-curve many.jsonl {FULL} --rows 100 --out curve", kept=r"cells/\.\d+-\d\.json"),
    "compare": Drill(f"compare reviews.jsonl {LORA} {ARMS} --out compared", kept=r"answers/\.[^/]*json"),
    "compare documents": Drill(
        f"compare facts.jsonl {LORA} {RAG} --set objective.kind=instruct {SHORT} "
        f"{ARMS.replace('tf-idf', 'rag,tuned-retriever')} --set compare.changed_facts=2 --out compared",
        kept=r"answers/\.[^/]*json",
    ),
    "rlhf": Drill(
        f"rlhf loop.yaml {SAME_PRODUCTS} --out loop --offline", kept=r"policy/\.report|\.start\.json|replies\.json"
    ),
    "rlhf rl": Drill(
        f"rlhf rl.yaml {SAME_PRODUCTS} --out loop --offline",
        kept=r"(policy|reward)/\.report|\.start\.json|replies\.json",
    ),
    "collect": Drill("collect manual --out rows.jsonl"),
    "collect rag": Drill("collect manual --as rag --size 200 --out rows.jsonl"),
    "collect written": Drill(
        "collect manual/text.txt manual/faq.md --as instruct --write questions --writer llama --per-passage 2 "
        "--max-new-tokens 12 --out rows.jsonl --offline"
    ),
    "export merged": Drill("export decoder --offline", [TUNED]),
    "export gguf": Drill("export decoder --format gguf --out elsewhere/gguf --offline", [TUNED]),
    "export q4_k_m": Drill("export decoder --format gguf --dtype q4_k_m --offline", [TUNED]),
    "export smallest": Drill("export decoder --smallest --margin 90 --offline", [TUNED]),
    "export adapter": Drill("export decoder --format adapter --offline", [TUNED]),
    "export compressed": Drill("export decoder --format compressed-tensors --offline", [TUNED]),
    "evaluate": Drill(
        "evaluate decoder --data reviews-test.jsonl --answers said.jsonl --out result.json --offline", [TUNED]
    ),
    "audit": Drill("audit faulty.jsonl --fix fixed.jsonl --out findings.json --offline", refused="not overwritten"),
    "init": Drill(f"init reviews.jsonl --out drafted.yaml {LORA}", refused="not overwritten"),
    "plan": Drill(f"plan reviews.jsonl --quick {LORA} --out plan.json"),
    "votes import": Drill(" ".join(VOTES)),
    "votes export": Drill("votes export votes.db rows.jsonl", [" ".join(VOTES)]),
    "label": Drill(
        "label partly.jsonl --labels good,bad --port 0 --out url.json", client="tests.drills.commands:label"
    ),
    "label spans": Drill(
        "label unlabelled.jsonl --spans MOOD --port 0 --store spans.db --out url.json",
        client="tests.drills.commands:spans",
    ),
    "label export": Drill("label partly.jsonl --export labelled.jsonl"),
    "feedback": Drill(
        "feedback llama --rows 6 --prompts answers.jsonl --temperature 1 --max-new-tokens 4 --port 0 --store votes.db "
        "--offline --out url.json",
        client="tests.drills.commands:feedback",
    ),
}
# Started in processes of their own, which takes longer.
TWO_PROCESSES = {"tune on two processes": Drill(f"{DRILLS['tune lora'].words} --processes 2", kept=CHECKPOINT)}


class Lab:
    """One folder in which the commands run again and again from the same start."""

    def __init__(self, place: Path, *, whole: bool = False) -> None:
        self.place = place
        self.forks = Forks(place, whole=whole)
        self.box = self.forks.box
        furnish(self.box)
        write_jsonl(self.box / "pages.jsonl", pages(24))
        write_jsonl(self.box / "questions.jsonl", questions())
        write_jsonl(self.box / "orders.jsonl", orders())
        write_jsonl(self.box / "unlabelled.jsonl", [{"text": row["text"]} for row in reviews(80)[40:]])
        self._starts: dict[tuple[str, ...], Path] = {}
        self._keep(())

    def _keep(self, before: tuple[str, ...]) -> None:
        self._starts[before] = self.place / f"start-{len(self._starts)}"
        shutil.copytree(self.box, self._starts[before], symlinks=True)

    def begin(self, drill: Drill) -> None:
        """Empty the folder and run what comes before the command."""
        before = tuple(drill.before)
        self._restore(self._starts.get(before, self._starts[()]))
        if before not in self._starts:
            for words in before:
                ended = self.forks.run(*words.split())
                assert ended.code == 0, ended.err
            self._keep(before)

    def _restore(self, start: Path) -> None:
        for entry in self.box.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        shutil.copytree(start, self.box, dirs_exist_ok=True, symlinks=True)

    def run(self, drill: Drill, **fault: Any) -> Ended:
        """Run the command of a drill."""
        (self.box / "url.json").unlink(missing_ok=True)
        return self.forks.run(*drill.words.split(), client=drill.client, **fault)

    def result(self) -> dict[str, Any]:
        """Return what the files hold by name and JSON path, without caches, pages and locks."""
        found: dict[str, Any] = {}
        for path in sorted(self.box.rglob("*")):
            name = str(path.relative_to(self.box))
            if path.is_file() and not name.startswith("cache/") and path.suffix not in LEFT_OUT:
                found |= dict(_leaves(_content(path), name))
        return found

    def reference(self, drill: Drill, **fault: Any) -> tuple[Ended, dict[str, Any]]:
        """Run a command undisturbed from its start; return how it ended and its result."""
        self.begin(drill)
        return self.run(drill, **fault), self.result()

    def differences(self, expected: dict[str, Any], *, may_lack: bool = False) -> list[str]:
        """Return where the result differs, except in what varies from run to run.

        Args:
            expected: the result of an undisturbed start.
            may_lack: compare only the files that are there.
        """
        found = self.result()
        names = [name for name in {**({} if may_lack else expected), **found} if expected.get(name) != found.get(name)]
        return [
            f"{name}: expected {expected.get(name)!r}, found {found.get(name)!r}"
            for name in names
            if not VARIES.search(name)
        ]

    def lost_votes(self) -> list[str]:
        """Return the items of votes that the server has acknowledged and that are not in its store exactly once."""
        notes = self.place / ACKNOWLEDGED
        lines = notes.read_text("utf-8").splitlines() if notes.exists() else []
        items = [line.partition(" ")[2] for line in lines if line.startswith("200 ")]
        stored = Counter(event[2] for store in self.box.glob("*.db") for event in _content(store) if event[1] == "vote")
        return [f"vote on {item}: stored {stored[item]} times" for item in items if stored[item] != 1]


LEFT_OUT = (".html", ".md", ".lock", ".half")  # the last if even deleting is impossible
# Names of files and keys of JSON: times, sizes and what follows from them, such as the cheapest of equal arms; what a
# second start notes about itself; and the last digits of what `export` computes with the library for products that is
# fastest at that moment: the difference of a merged model, what a layer loses by rounding. The bytes of all models are
# compared.
VARIES = re.compile(
    r"seconds|per_second|reused|peak|latenc|notes|timings|forecast|journal|before\.json|cost|converted|unchanged|replaces"
    r"|comparison\.json\.verdict"
    r"|prediction\.json|plan\.json|environment|mfu|predicted|reasons|\.table\.|digests\.txt|url\.json|machine|max_difference"
    r"|layers\.\d+\.(?:divergence|kept)"
    r"|teacher\w*\.jsonl\.\d+\.crc32"  # of the line with its seconds
)


def _content(path: Path) -> Any:
    """Return the values in a file: parsed, or the digest of its bytes."""
    if path.suffix == ".db":
        with closing(sqlite3.connect(path)) as store:
            return store.execute("select rater, kind, item from events order by item, kind").fetchall()
    if path.suffix == ".json":
        return json.loads(path.read_bytes())
    if path.suffix == ".jsonl":
        # Whoever goes on with a file whose last line was cut off writes an empty line first.
        return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from _leaves(one, f"{name}.{key}")
    if not inner:
        yield name, value


def label() -> None:
    """Label rows until none is left."""
    _vote(lambda item: {"label": "good"})


def spans() -> None:
    """Mark rows until none is left."""
    _vote(lambda item: {"spans": [{"start": 0, "end": 1, "label": "MOOD"}]})


def feedback() -> None:
    """Judge pairs until none is left."""
    _vote(lambda item: {"choice": "left"})


def _vote(of: Callable[[Any], dict[str, Any]]) -> None:
    """Vote as a person at the page does, note what the server has acknowledged, and end it as Ctrl-C would."""
    while not Path("url.json").exists() or not Path("url.json").stat().st_size:
        time.sleep(0.01)
    place = "/".join(json.loads(Path("url.json").read_text("utf-8"))["url"].split("/")[:3])
    who, headers = {"rater": "Ana", "tab": "tab-aaaa"}, {"content-type": "application/json", "x-tunesmith": "1"}
    with open(Path.cwd().parent / ACKNOWLEDGED, "a", encoding="utf-8") as notes:

        def ask(path: str, body: dict[str, Any]) -> dict[str, Any]:
            request = urllib.request.Request(place + path, json.dumps(body).encode(), headers)
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.load(answer)  # type: ignore[no-any-return]
            except urllib.error.HTTPError as error:
                notes.write(f"{error.code} {error.read().decode()}\n")
                raise

        with suppress(urllib.error.HTTPError):
            while item := ask("/api/next", who).get("item"):
                ask("/api/vote", {**who, "item": item["key"], **of(item), "seconds": 1.5})
                notes.write(f"200 {item['key']}\n")
                notes.flush()
    os.kill(os.getpid(), signal.SIGINT)
