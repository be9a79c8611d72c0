"""Every command on its main path, on a simulated Windows; `windows.py` lists what is simulated, and how."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.golden.commands import ASKED, FULL, LORA
from tests.systems.session import Ended, Requests, Session

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SHORT = "--set objective.max_new_tokens=5 --set schedule.epochs=1"
QUICK = FULL + " --set schedule.epochs=1"
SAVING = f"tune answers.jsonl {LORA.replace('save_steps=0', 'save_steps=1')} {SHORT} --out decoder"
FORM = "path=reviews.jsonl"
STUDIO: Requests = (
    ("/", None),
    ("/data", None),
    ("/data/file?path=reviews.jsonl", None),
    ("/runs", None),
    ("/runs/first", None),
    ("/runs/first/delete", ""),
    ("/runs", None),
)
# In this order; a command that is killed is followed by the same one, which resumes it.
COMMANDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "init": ("init reviews.jsonl --out drafted.yaml --model llama", {}),
    "collect": ("collect manual --out rows.jsonl", {}),
    "audit": ("audit faulty.jsonl --fix fixed.jsonl --out findings.json --offline", {}),
    "plan": (f"plan reviews.jsonl --quick {QUICK} --out plan.json", {}),
    "tune a head": (f"tune reviews.jsonl {FULL} --out runs/first", {}),
    "tune, killed": (SAVING, {"kill_at": "checkpoints/.last.old"}),
    "tune, resumed": (SAVING, {}),
    "tune again": (f"{SAVING} --force", {}),
    "tune several tasks": ("tune multitask.yaml --out together --offline", {}),
    "evaluate": ("evaluate runs/first --data reviews-test.jsonl --answers said.jsonl --out result.json --offline", {}),
    "compare": (
        f"compare reviews.jsonl {LORA} --set data.audit=note --out compared --set arms=[prompt,tf-idf,tuned]",
        {},
    ),
    "learning-curve": (f"learning-curve many.jsonl {QUICK} --rows 100 --out curve", {}),
    "ask": ("ask decoder number --offline", {}),
    "chat": ("chat decoder --temperature 0 --offline", {"typed": "number 1\n/save talk.jsonl\n/quit\n"}),
    "serve": ("serve encoder=runs/first decoder --port 0 --offline --out url.json", {"requests": ASKED["serve"]}),
    "export": ("export decoder --offline", {}),
    "export gguf": ("export decoder --format gguf --offline", {}),
    "export adapter": ("export decoder --format adapter --offline", {}),
    "label": ("label partly.jsonl --labels good,bad --port 0 --out url.json", {"requests": ASKED["label"]}),
    "label export": ("label partly.jsonl --export labelled.jsonl", {}),
    "feedback": (
        "feedback decoder --against base --rows 4 --temperature 0 --port 0 --offline --out url.json",
        {"requests": ASKED["feedback"]},
    ),
    "votes import": ("votes import votes.db judged.jsonl", {}),
    "votes summary": ("votes summary votes.db", {}),
    "votes export": ("votes export votes.db preferred.jsonl", {}),
    "rlhf": ("rlhf loop.yaml --out loop --offline", {}),
    "runs": ("runs .", {}),
    "runs diff": ("runs diff decoder compared/tuned", {}),
    "models": ("models --offline", {}),
    "doctor": ("doctor --offline", {}),
    "studio": ("studio . --port 0 --out url.json", {"requests": STUDIO}),
    "no such file": ("tune missing.jsonl --offline", {}),
}
# Exit codes other than 0: killed, rows that support no estimate, other test rows, an error, Ctrl-C.
CODES = {"tune, killed": -9, "learning-curve": 1, "runs diff": 2, "no such file": 2}
CODES |= dict.fromkeys(("serve", "label", "feedback", "studio"), 130)


class Story:
    """The commands in their order, each run once, when a test first needs it or a later one."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._ended: dict[str, Ended] = {}

    def ended(self, name: str) -> Ended:
        """Return how a command ended."""
        for one, (words, options) in COMMANDS.items():
            if name in self._ended:
                break
            if one not in self._ended:
                self._ended[one] = self.session.run(*words.split(), **options)
        return self._ended[name]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """A folder on a simulated Windows."""
    session = Session(tmp_path_factory.mktemp("windows"))
    yield Story(session)
    session.close()


DEMO = """
from tunesmith.cli.main import main
from tunesmith.config import Data, Machine, Schedule
from tunesmith.pipelines import demo
whole = demo.recipes
def small(rows):
    changes = {"data": Data(train="reviews.jsonl", rows=30, validation=0.1), "machine": Machine(threads=1)}
    changes["schedule"] = Schedule(epochs=1, learning_rate=0.01, probe=False)
    found = zip(("bert", "llama"), whole(rows).items())
    return {name: one.model_copy(update=changes | {"model": model}) for model, (name, one) in found}
demo.recipes = small
assert main(["demo", "--out", "demos", "--offline"]) == 0
"""
PUSH = """
from pathlib import Path
import pytest
from tests.hub_stand_in import stand_in, use
from tunesmith.cli.main import main
with stand_in() as hub, pytest.MonkeyPatch.context() as patch:
    hub.folder("me/base", Path("bert"))
    use(patch, hub, Path("hub-cache"))
    words = ["push", "runs/first", "me/run", "--base", "me/base", "--report"]
    assert main(words) == 0 and ("model", "me/run") not in hub.repos
    assert main([*words, "--yes"]) == 0
    assert {"model.safetensors", "report/report.json"} <= set(hub.model("me/run").files())
    assert main(["ask", "me/run", "good"]) == 0
"""
MCP = """
import asyncio, tempfile
from pathlib import Path
from mcp import Client
from tunesmith.cli.mcp.folders import Folders
from tunesmith.cli.mcp.server import make_server
from tunesmith.cli.mcp.session import Session
async def story(scratch):
    here = Path.cwd()
    session = Session(Folders(here, here / "runs", ("llama",)), minutes=3, scratch=scratch)
    async with Client(make_server(session)) as client:
        async def call(tool, refused=False, **words):
            result = await client.call_tool(tool, words)
            assert result.is_error == refused, result.content
            return result.structured_content
        assert (await call("inspect", source="reviews.jsonl"))["untrusted_columns"] == ["text", "label"]
        assert (await call("audit", source="faulty.jsonl"))["untrusted_audit"]["verdict"] == "blocked"
        for name in ("C:\\\\rows.csv", "..\\\\secret.csv", "\\\\\\\\host\\\\rows.csv"):
            await call("audit", refused=True, source=name)
        assert [run["run"] for run in (await call("runs"))["runs"]] == ["first"]
        assert {"base", "tuned"} <= {*(await call("report", run="first"))["scores"]}
        assert (await call("ask", run="first", text="good"))["untrusted_answer"]["label"]
with tempfile.TemporaryDirectory() as scratch:
    asyncio.run(story(Path(scratch).resolve()))
"""
# A print to a pipe that its reader has closed, as Windows reports it.
CLOSED = """
import errno, io, sys
from tunesmith.cli.main import main
class Closed(io.RawIOBase):
    def writable(self):
        return True
    def fileno(self):
        return 1
    def write(self, data):
        raise OSError(errno.EINVAL, "Invalid argument")
real, sys.stdout = sys.stdout, io.TextIOWrapper(io.BufferedWriter(Closed()))
kept = sys.stdout
assert main(["models", "--offline"]) == 128 + 13
sys.stdout = real
"""


# First, since the studio of the story deletes the run.
@pytest.mark.parametrize("code", [DEMO, PUSH, MCP, CLOSED], ids=["demo", "push", "mcp", "closed pipe"])
@pytest.mark.long
def test_a_story_works_on_windows(code: str, story: Story) -> None:
    story.ended("tune a head")
    one = story.session.run("-c", code)
    assert one.code == 0, one.err
    assert "Traceback" not in one.err
    # The client of the Hub tries whether links are possible.
    assert [line for line in one.refused if not line.endswith((".lock", "dummy_file_dst"))] == []


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_works_on_windows(name: str, story: Story) -> None:
    one = story.ended(name)
    assert one.code == CODES.get(name, 0), f"{one.out}\n{one.err}\n{one.refused}"
    assert "Traceback" not in one.err
    assert "\\u" not in one.out + one.err, "a character that the console lacks"
    # Windows deletes the file of a lock when the lock is released.
    assert [line for line in one.refused if not line.endswith(".lock")] == []
    unserved = [answer for answer in one.answers if isinstance(answer, str) and answer[:3] in ("500", "Tra")]
    assert unserved == []


BY_LIBRARIES = ("config.json", "generation_config.json", "tokenizer_config.json", "adapter_config.json", "README.md")


@pytest.mark.long
def test_files_are_the_same_bytes_as_on_other_systems(story: Story) -> None:
    story.ended("studio")
    box = story.session.box
    names = ("drafted.yaml", "rows.jsonl", "fixed.jsonl", "result.json", "labelled.jsonl", "preferred.jsonl")
    kinds = (".json", ".jsonl", ".yaml", ".txt", ".md", ".html")
    runs = [path for path in box.rglob("*") if path.suffix in kinds and set(path.parts) & {"runs", "decoder", "loop"}]
    ours = [box / name for name in names] + [path for path in runs if path.name not in BY_LIBRARIES]
    assert len(ours) > 40
    assert [str(path) for path in ours if b"\r\n" in path.read_bytes()] == []


def test_manifests_name_files_with_slashes(story: Story) -> None:
    story.ended("export")
    manifests = [json.loads(path.read_text("utf-8")) for path in story.session.box.rglob("manifest.json")]
    assert manifests
    assert not [name for manifest in manifests for name in manifest if "\\" in name]


REFUSED = """
import os, signal, sys
from pathlib import Path
import pytest
assert sys.platform == "win32" and os.name == "nt" and signal.SIGBREAK
for name in ("resource", "fcntl", "pwd"):
    with pytest.raises(ImportError):
        exec(f"import {name}")
for module, name in ((os, "fork"), (os, "killpg"), (os, "sched_getaffinity"), (signal, "SIGKILL")):
    assert not hasattr(module, name)
folder, file, other = Path("some"), Path("some/file"), Path("some/other")
folder.mkdir()
file.write_text("a\\n", encoding="utf-8")
assert file.read_bytes() == b"a\\r\\n"
other.touch()
refused = [lambda: os.open(folder, os.O_RDONLY), lambda: folder.open("rb"), lambda: file.rename(other)]
refused += [lambda name=name: Path("some", name).touch() for name in ("a:b", "nul.txt", "end.", "FILE", 200 * "a")]
with file.open("rb") as held:
    refused += [file.unlink, lambda: file.replace(other), lambda: folder.rename("new")]
    for action in refused:
        with pytest.raises(OSError):
            action()
    with pytest.raises(OSError):
        os.fsync(held.fileno())
with pytest.raises(EncodingWarning):
    file.read_text()
from safetensors.torch import load_file, save_file
import torch
save_file({"a": torch.ones(9)}, file)
mapped = load_file(file)
with pytest.raises(PermissionError):
    file.unlink()
del mapped
file.unlink()
with pytest.raises(UnicodeEncodeError):
    print("\\N{RIGHTWARDS ARROW}", flush=True)
"""


BREAK = """
import os, signal
from tunesmith.cli.signals import Interruption, caught
with caught() as signals:
    signals.patient = True
    os.kill(os.getpid(), signal.SIGBREAK)
    assert signals.stop()
    try:
        os.kill(os.getpid(), signal.SIGBREAK)
    except Interruption as stopped:
        assert stopped.exit_code == 130
    else:
        raise AssertionError
"""


def test_tools_for_agents_are_served_on_the_pipes_of_windows(story: Story) -> None:
    one = story.session.run("mcp", "--data", ".", typed='{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
    assert one.code == 0, one.err
    assert json.loads(one.out)["id"] == 1


def test_the_first_ctrl_break_saves_and_the_second_stops(story: Story) -> None:
    one = story.session.run("-c", BREAK)
    assert one.code == 0, one.err


def test_the_simulation_refuses_what_windows_refuses(story: Story) -> None:
    one = story.session.run("-c", REFUSED)
    assert one.code == 0, one.err
