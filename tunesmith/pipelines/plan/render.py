"""Files that start a run on a cluster: a Slurm script, a Kubernetes JobSet or a SkyPilot task.

Each starts `torchrun` on every machine with the command `tunesmith tune`. A run resumes by the same command, so what a
preemption or a lost machine interrupts continues when the cluster starts it again. Text of the user is quoted by the
rules of the format, and of the shell where one reads it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tunesmith.errors import OptionError
from tunesmith.pipelines.plan.gpus import PER_MACHINE, check_counts

PORT = 29500
RESTARTS = 3  # of a worker that fails, on the same machines
RECOVERIES = 10  # of the whole run, on other machines
GRACE = 300  # seconds before the time limit in which a run stops and saves
MOUNT = "/runs"  # where a container sees the shared store
STORE = "tunesmith-runs"
# SkyPilot's names of GPUs that have others here.
SKY_GPUS = {"a100": "A100-80GB"}
NAME_LENGTH = 40


@dataclass(frozen=True, slots=True)
class Cluster:
    """The machines of a run."""

    kind: str  # slurm, jobset or sky
    machines: int = 1
    gpus: int = PER_MACHINE
    gpu: str = ""  # name of the GPU; SkyPilot looks for it
    image: str = ""  # container image with Tunesmith; a JobSet needs one
    store: str = ""  # what all machines see: a folder, a volume claim, or a bucket

    def torchrun(self, run_id: str = "") -> list[str]:
        """Return the words before the endpoint and the command."""
        sizes = [f"--nnodes={self.machines}", f"--nproc-per-node={self.gpus}", f"--max-restarts={RESTARTS}"]
        return ["torchrun", *sizes, "--rdzv-backend=c10d", *([f"--rdzv-id={run_id}"] if run_id else [])]


def render(source: str, changes: Sequence[str], cluster: Cluster) -> str:
    """Return the file that starts a run.

    Args:
        source: recipe or data file, as the machines see it.
        changes: `key=value` changes of the recipe.
        cluster: the machines.

    Raises:
        OptionError: an option is missing or does not fit the kind.
    """
    kinds = {"slurm": _slurm, "jobset": _jobset, "sky": _sky}
    if cluster.kind not in kinds:
        raise OptionError(f"--render {cluster.kind}: unknown; choose from {', '.join(kinds)}")
    check_counts([cluster.gpus], cluster.machines)
    path = f"./{source}" if source.startswith("-") else source  # no option of the command
    tune = ["-m", "tunesmith", "tune", path, *(f"--set={change}" for change in changes)]
    name = re.sub(r"[^a-z0-9]+", "-", Path(source).stem.lower()).strip("-")[:NAME_LENGTH].strip("-") or "run"
    page = kinds[cluster.kind](name, tune, cluster)
    return page if isinstance(page, str) else yaml.safe_dump(page, sort_keys=False, allow_unicode=False, width=1000)


def _slurm(name: str, tune: Sequence[str], cluster: Cluster) -> str:
    """Return a batch script: Slurm queues it again after a preemption, and it does so itself before its time limit."""
    if cluster.store:
        tune = [*tune, "--out", f"{cluster.store}/{name}"]
    return f"""#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={cluster.machines}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={cluster.gpus}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@{GRACE}
# Add what your cluster needs: #SBATCH --partition, --account, --time. The environment must be active on every machine.
set -euo pipefail
cd -- {shlex.quote(str(Path.cwd()))}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun {shlex.join(cluster.torchrun())} --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:{PORT}" \\
  {shlex.join(tune)} &
run=$!
# Before the time limit: stop after the current step, save, and continue in a new job.
again() {{
  kill -TERM "$run"
  wait "$run" || true
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}}
trap again USR1
wait "$run"
"""


def _jobset(name: str, tune: Sequence[str], cluster: Cluster) -> dict[str, Any]:
    """Return a JobSet with one pod per machine; the claim has the recipe, the rows and the run folder."""
    if not cluster.image:
        raise OptionError("--image: missing; a JobSet runs in a container, name an image with tunesmith")
    if cluster.store and not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", cluster.store):
        raise OptionError(f"--store {cluster.store}: expected the name of a volume claim: a-z, 0-9, - and .")
    endpoint = f"--rdzv-endpoint={name}-machines-0-0.{name}:{PORT}"
    words = [*cluster.torchrun(name), endpoint, *tune]
    container = {
        "name": "tune",
        "image": cluster.image,
        # No shell reads these words; Kubernetes itself replaces $(NAME), and $$ stands for a dollar sign.
        "command": [word.replace("$", "$$") for word in words],
        "workingDir": MOUNT,
        "resources": {"limits": {"nvidia.com/gpu": cluster.gpus}},
        "volumeMounts": [{"name": "runs", "mountPath": MOUNT}, {"name": "memory", "mountPath": "/dev/shm"}],
    }
    claim = {"name": "runs", "persistentVolumeClaim": {"claimName": cluster.store or STORE}}
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "containers": [container],
        "volumes": [claim, {"name": "memory", "emptyDir": {"medium": "Memory"}}],
    }
    job = {
        "parallelism": cluster.machines,
        "completions": cluster.machines,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # a lost pod ends the job, and the JobSet starts all of them again
        "template": {"spec": pod},
    }
    machines = {"name": "machines", "replicas": 1, "template": {"spec": job}}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name},
        "spec": {"failurePolicy": {"maxRestarts": RECOVERIES}, "replicatedJobs": [machines]},
    }


def _sky(name: str, tune: Sequence[str], cluster: Cluster) -> dict[str, Any]:
    """Return a task for `sky jobs launch`: the working folder is sent along, the run folder is in a bucket."""
    if not cluster.gpu:
        raise OptionError("--gpu: missing; SkyPilot looks for a GPU by its name, for example --gpu h100")
    store = cluster.store or STORE
    bucket = {"source": store} if "://" in store else {"name": store}
    words = shlex.join([*tune, "--out", f"{MOUNT}/{name}"])
    start = (
        'head=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)\n'
        f'{shlex.join(cluster.torchrun(name))} --rdzv-endpoint="$head:{PORT}" {words}\n'
    )
    gpu = SKY_GPUS.get(cluster.gpu, cluster.gpu.upper())
    return {
        "name": name,
        "num_nodes": cluster.machines,
        "resources": {
            "accelerators": {gpu: cluster.gpus},
            **({"image_id": f"docker:{cluster.image}"} if cluster.image else {}),
            "job_recovery": {"max_restarts_on_errors": RESTARTS},
        },
        "workdir": ".",
        "file_mounts": {MOUNT: {**bucket, "mode": "MOUNT"}},
        **({} if cluster.image else {"setup": "python -m pip install tunesmith\n"}),
        "run": start,
    }
