"""Rendered cluster files: they parse, fit the schemas of their tools, and no text of the user leaves its place."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tunesmith.errors import OptionError
from tunesmith.pipelines.plan.render import GRACE, Cluster, render

SCHEMAS = Path(__file__).with_name("schemas")
HOSTILE = (
    "plain.yaml",
    "two words.yaml",
    "it's.yaml",
    'say "hi".yaml',
    "$(touch broken).yaml",
    "`touch broken`.yaml",
    "$HOME ${HOME} $$(HOME).yaml",
    "a; touch broken; #.yaml",
    "line\n#SBATCH --partition=broken\ntouch broken\n.yaml",
    "- {kind: broken}: *x !!python/object.yaml",
    "--out=broken",
    "ünï 🙂.yaml",
    "back\\slash\\",
)
# Stands in for every program of the script: prints its arguments one per line, each as JSON.
ECHO = """#!{python}
import json, os, sys
with open(os.environ["SEEN"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
if "hostnames" in sys.argv:
    print("first\\nsecond")
"""


def path(name: str) -> str:
    return f"./{name}" if name.startswith("-") else name


def schema(name: str) -> Any:
    return json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))


def job(text: str) -> Any:
    document = yaml.safe_load(text)
    jsonschema.validate(document, schema("jobset"))
    return document


def task(text: str) -> Any:
    document, parts = yaml.safe_load(text), schema("sky")
    jsonschema.validate(document, parts["task"])
    jsonschema.validate(document["resources"], parts["resources"])
    for mount in document["file_mounts"].values():
        jsonschema.validate(mount, parts["storage"])
    return document


def ran(script: str, folder: Path) -> list[list[str]]:
    """Run a script whose programs only note their arguments, and return these."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("srun", "torchrun", "scontrol", "python"):
        (tools / name).write_text(ECHO.format(python=shutil.which("python3")), encoding="utf-8")
        (tools / name).chmod(0o755)
    seen = folder / "seen"
    seen.unlink(missing_ok=True)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "SEEN": str(seen), "HOME": "/nowhere"}
    environment |= {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "7", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    subprocess.run(["bash", "-c", script], cwd=folder, env=environment, check=True, capture_output=True, timeout=30)
    return [json.loads(line) for line in seen.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("machines", [1, 4])
def test_a_slurm_script_parses_asks_for_the_machines_and_is_queued_again(machines: int):
    text = render("recipe.yaml", [], Cluster("slurm", machines=machines, gpus=8))
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    head = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert f"#SBATCH --nodes={machines}" in head
    assert {"#SBATCH --gpus-per-node=8", "#SBATCH --requeue", f"#SBATCH --signal=B:USR1@{GRACE}"} <= set(head)


def test_the_signal_before_the_time_limit_saves_and_queues_the_job_again(tmp_path: Path):
    script = render("recipe.yaml", [], Cluster("slurm"))
    # The step ends only when it is asked to; the signal arrives while the script waits for it.
    script = script.replace("srun torchrun", "sleep 20 & ignored=$!; (sleep 0.5; kill -USR1 $$) & srun torchrun", 1)
    script = script.replace("run=$!", "run=$ignored", 1)
    assert ["scontrol", "requeue", "7"] in ran(script, tmp_path)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_stays_one_word_of_the_slurm_script(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    store = f"/shared/{name}"
    text = render(name, [f"model={name}"], Cluster("slurm", machines=2, gpus=4, store=store))
    head = text.partition("set -euo pipefail")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    names = ["job-name", "nodes", "ntasks-per-node", "gpus-per-node", "requeue", "open-mode", "signal"]
    options = [line.partition("=")[0] for line in head.splitlines() if line.startswith("#SBATCH")]
    assert options == [f"#SBATCH --{name}" for name in names]
    words = next(words for words in ran(text, tmp_path) if words[0] == "srun")
    assert words[1:7] == [
        "torchrun", "--nnodes=2", "--nproc-per-node=4", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=7",
    ]  # fmt: skip
    assert words[7:14] == [
        "--rdzv-endpoint=first:29500",
        "-m",
        "tunesmith",
        "tune",
        path(name),
        f"--set=model={name}",
        "--out",
    ]
    assert words[14].startswith(f"{store}/")
    assert len(words) == 15
    assert not list(tmp_path.glob("broken*"))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_stays_one_word_of_the_job_set(name: str):
    document = job(render(name, [f"model={name}"], Cluster("jobset", machines=2, gpus=4, image="team/tunesmith:1")))
    (replicated,) = document["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    assert (spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (2, 2, 0)
    (container,) = spec["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    words = container["command"]
    # Kubernetes replaces $(NAME) and reads $$ as one dollar sign.
    assert all(word.replace("$$", "").count("$") == 0 for word in words)
    assert [word.replace("$$", "$") for word in words][-4:] == ["tunesmith", "tune", path(name), f"--set=model={name}"]
    label = document["metadata"]["name"]
    assert label.strip("abcdefghijklmnopqrstuvwxyz0123456789-") == ""
    assert f"--rdzv-endpoint={label}-machines-0-0.{label}:29500" in words


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_stays_one_word_of_the_sky_task(name: str, tmp_path: Path):
    document = task(render(name, [f"model={name}"], Cluster("sky", machines=2, gpus=4, gpu="a100")))
    assert document["num_nodes"] == 2
    assert document["resources"]["accelerators"] == {"A100-80GB": 4}
    words = next(words for words in ran(document["run"], tmp_path) if words[0] == "torchrun")
    assert words[6:12] == [
        "--rdzv-endpoint=10.0.0.1:29500",
        "-m",
        "tunesmith",
        "tune",
        path(name),
        f"--set=model={name}",
    ]
    assert words[12:] == ["--out", f"/runs/{document['name']}"]
    assert not list(tmp_path.glob("broken*"))


def test_a_bucket_is_named_or_addressed_and_an_image_replaces_the_installation():
    by_name = task(render("r.yaml", [], Cluster("sky", gpu="h100", store="team-runs")))
    assert by_name["file_mounts"]["/runs"] == {"name": "team-runs", "mode": "MOUNT"}
    assert "tunesmith" in by_name["setup"]
    by_address = task(
        render("r.yaml", [], Cluster("sky", gpu="h100", store="s3://team/runs", image="team/tunesmith:1"))
    )
    assert by_address["file_mounts"]["/runs"] == {"source": "s3://team/runs", "mode": "MOUNT"}
    assert by_address["resources"]["image_id"] == "docker:team/tunesmith:1"
    assert "setup" not in by_address


def test_an_unknown_key_would_be_refused_by_the_schema():
    document = job(render("r.yaml", [], Cluster("jobset", image="i")))
    document["spec"]["replicatedJobs"][0]["template"]["spec"]["paralelism"] = 3
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema("jobset"))


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (Cluster("pbs"), "--render pbs: unknown; choose from slurm, jobset, sky"),
        (Cluster("slurm", machines=0), "--machines: expected an integer >= 1, got 0"),
        (Cluster("jobset"), "--image: missing"),
        (Cluster("jobset", image="i", store="a b"), "--store a b: expected the name of a volume claim"),
        (Cluster("sky"), "--gpu: missing"),
    ],
)
def test_what_is_missing_is_named(cluster: Cluster, message: str):
    with pytest.raises(OptionError) as caught:
        render("recipe.yaml", [], cluster)
    assert str(caught.value).startswith(message)


def test_words_are_those_of_the_shell():
    text = render("a b.yaml", [], Cluster("sky", gpu="h100"))
    line = yaml.safe_load(text)["run"].splitlines()[1]
    assert shlex.split(line)[-3:] == ["a b.yaml", "--out", "/runs/a-b"]
