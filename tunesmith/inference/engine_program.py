"""vLLM and SGLang as programs: what they can answer for, where they are, how they start and stop. No torch."""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tunesmith.config import Recipe
from tunesmith.data.files import split_command
from tunesmith.errors import ModelError, RecipeError, briefly
from tunesmith.inference.identify import CONFIG, HEAD, ModelSource, identify, read_manifest
from tunesmith.inference.openai_client import Endpoint, check
from tunesmith.models.loading.base_from_run import begins_from, model_folder
from tunesmith.models.loading.locate import local_family, locate
from tunesmith.models.loading.weight_files import read_json
from tunesmith.models.world import current_world
from tunesmith.objectives import Rl
from tunesmith.progress import measuring
from tunesmith.techniques import Lora

BASE = "base"  # name of the base model in an engine that is started here
LORA_RANKS = (64, 128, 256, 320, 512)  # that vLLM accepts; the least is for adapters that are loaded later
STOP_SECONDS = 15.0  # until a process that does not end is killed
# Variables of this process that would change what the engine imports or how its torch works, or make it one of ours.
OWN_VARIABLES = re.compile(
    "PYTHONPATH|VIRTUAL_ENV|PYTORCH_.*|CUBLAS_.*|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_.*|TORCHELASTIC_.*"
)


@dataclass(frozen=True, slots=True)
class Program:
    """Everything that differs between the programs. Names in braces are filled in."""

    title: str
    routes: str  # before the names of the routes that load and unload adapters
    adapter_key: str  # field of a request that names the adapter
    options: str
    lora_options: str


PROGRAMS = {
    # Without white space in JSON, as in our own generation.
    "vllm": Program(
        "vLLM",
        "v1/",
        "model",
        "serve {base} --max-num-seqs {rows} --generation-config vllm --structured-outputs-config.backend guidance "
        "--structured-outputs-config.disable_any_whitespace true",
        "--enable-lora --max-loras {adapters} --max-lora-rank {rank}",
    ),
    # One more place for rows without an adapter. SGLang reads its key from no variable, so it is in a file.
    "sglang": Program(
        "SGLang",
        "",
        "lora_path",
        "serve --model-path {base} --max-running-requests {rows} --sampling-defaults openai --config {secret} "
        "--grammar-backend llguidance --constrained-json-disable-any-whitespace",
        "--enable-lora --lora-target-modules all --max-loras-per-batch {places} --max-lora-rank {rank}",
    ),
}


def kind_of(engine: str) -> str:
    """Return the key in `PROGRAMS` of an engine, empty for an address; raise RecipeError if it names none."""
    if engine.startswith(("http://", "https://")):
        return ""
    words: list[str] = []
    with suppress(ValueError):  # a quotation mark alone
        words = split_command(engine)
    kind = Path(words[0]).name.removesuffix(".exe") if words else ""
    if kind not in PROGRAMS:
        expected = "vllm, sglang, the path of one of them, or the address of a running one"
        raise RecipeError(f"engine: expected {expected}, got {engine!r}; write http://127.0.0.1:8000 for an address")
    return kind


def command_of(engine: str) -> list[str]:
    """Return how an engine is started: its kind, its executable, options of the user; empty for an address.

    Raises RecipeError if it names no engine, ModelError if the program is not installed.
    """
    if not (kind := kind_of(engine)):
        return []
    program, *options = split_command(engine)
    variable = f"TUNESMITH_{kind.upper()}"
    named = Path(program if program != kind else os.environ.get(variable) or kind).expanduser()
    found = shutil.which(str(named / "bin" / kind if named.is_dir() else named))
    if found is None:
        install = f"python -m venv ENV && ENV/bin/pip install {kind}"
        raise ModelError(
            f"engine: no program {str(named)!r}; install it in a separate environment ({install}) and set "
            f"{variable}=ENV, or give --engine ENV/bin/{kind}"
        )
    return [kind, found, *options]


def check_engine(engine: str, *models: str | Path, offline: bool) -> None:
    """Raise TunesmithError if a model is not there, an engine cannot answer for it, or the engine is not installed.

    Args:
        engine: as `EngineServer` takes it; empty for none.
        models: see `identify`.
        offline: do not access the network.
    """
    sources = [identify(model, offline=offline) for model in models]
    if not engine:
        return
    kind = kind_of(engine)
    for source in sources:
        if reason := engine_refusal(source, PROGRAMS[kind].title if kind else "an engine"):
            raise ModelError(reason)
    command_of(engine)


def engine_refusal(found: ModelSource, title: str) -> str:
    """Return why an engine cannot answer for a model, with the alternative; empty if it can."""
    manifest = read_manifest(found.folder) if found.kind == "run" and found.folder else None
    adapted = found.kind == "adapter" or (manifest is not None and manifest.technique.kind != "full")
    config = read_json(found.folder / CONFIG, where=found.name) if adapted and found.folder else {}
    problem, fix = "", "leave --engine out, so that torch answers"
    if found.folder is None or found.quantize or (manifest and manifest.technique.load_options().quantize):
        problem = f"{title} would not load these weights as they are"
    elif (manifest.family if manifest else "" if adapted else local_family(found.name)) == "encoder":
        problem = f"an encoder generates no text in {title}"
    elif (found.folder / HEAD).exists():
        problem = f"answers through a head, which {title} would not load"
    elif adapted and (config.get("peft_type") != "LORA" or config.get("use_dora")):
        problem = f"{title} takes plain LoRA and whole models, not this adapter"
    elif adapted and manifest and begins_from(model_folder(Path(manifest.base)), where=manifest.base)[0]:
        problem, fix = f"its base is a run, whose adapter {title} would not merge", "give its merged export instead"
    return f"{found.name}: {problem}; {fix}" if problem else ""


def check_rollouts(recipe: Recipe, *, offline: bool) -> None:
    """Raise TunesmithError if an engine cannot sample for a recipe, is not installed, or must not be reached."""
    objective, technique = recipe.objective, recipe.technique
    if not isinstance(objective, Rl) or not objective.engine:
        return
    if not isinstance(technique, Lora) or technique.dora or technique.quantize:
        fix = "use technique: lora, without dora and quantize, or leave the engine out"
        raise RecipeError(f"objective.engine: only plain adapters are handed over to an engine; {fix}")
    starts, world = bool(command_of(objective.engine)), current_world()
    if not starts:
        check(Endpoint(objective.engine), offline=offline)
    if not starts and objective.temperature != 1:
        fix = "use 1, or let the run start it (engine: vllm)"
        raise RecipeError(f"objective.temperature: a running engine may report log-probabilities at 1; {fix}")
    if starts and world.local_size < world.size:
        fix = "start it yourself and give its address"
        raise RecipeError(f"objective.engine: an engine of this run serves processes of one machine; {fix}")
    if begins_from(locate(recipe.model, offline=offline), where=recipe.model)[0]:
        fix = "start from its merged export, or leave the engine out"
        raise RecipeError(f"objective.engine: an engine does not merge the adapter of {recipe.model}; {fix}")


class EngineProcess:
    """A process of a program on a free port of loopback, behind a random key that is not in its command line.

    `command` is what `command_of` returns, whose options override those in `options`, where names of `values` are in
    braces. Raises ModelError if the process ends before it answers.
    """

    def __init__(
        self, command: Sequence[str], options: str, values: Mapping[str, object], *, key: str, offline: bool
    ) -> None:
        kind, executable, *own_options = command
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._folder = Path(tempfile.mkdtemp(prefix="tunesmith-engine-"))  # that other users cannot read
        self._log, secret = self._folder / "log.txt", self._folder / "key.yaml"
        secret.write_text(json.dumps({"api-key": key}), encoding="utf-8")
        # Words are filled in one by one: a folder may have spaces in its name.
        words = [word.format(secret=secret, **values) for word in options.split()]
        words += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", BASE, "--load-format"]
        own = {"VLLM_API_KEY": key, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
        own |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"} | ({"HF_HUB_OFFLINE": "1"} if offline else {})
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [executable, *words, "safetensors", *own_options],
                env={name: value for name, value in os.environ.items() if not OWN_VARIABLES.fullmatch(name)} | own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C reaches it only after the running requests
            )
        atexit.register(self.stop)
        title = PROGRAMS[kind].title
        try:
            with measuring(f"starting {title}", 1, unit="engine") as meter:
                while not self._answers():
                    if self._process.poll() is not None:
                        raise ModelError(f"{title}: did not start ({self._reason()}); see {self._log}")
                    meter.update(0.0)
                    time.sleep(0.5)
        except BaseException as error:  # Ctrl-C, too
            self.stop(keep=isinstance(error, ModelError))
            raise
        finally:
            secret.unlink(missing_ok=True)

    def stop(self, *, keep: bool = False) -> None:
        """Stop the process and all that it has started; `keep` leaves its log."""
        atexit.unregister(self.stop)
        kill = getattr(os, "killpg", os.kill)  # Windows has neither groups nor SIGKILL
        for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
            with suppress(ProcessLookupError, PermissionError):
                kill(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        if not keep:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/health", trust_env=False).status_code == 200
        except httpx2.HTTPError:
            return False

    def _reason(self) -> str:
        """Return the last line of the log that names an error, or the last line."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines() or ["no message"]
        return briefly(next((line for line in reversed(lines) if "rror:" in line), lines[-1]))
