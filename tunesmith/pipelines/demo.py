"""The main job on rows that travel with the package: an encoder and a decoder learn to judge reviews."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from tunesmith.config import Data, Machine, Recipe, Schedule
from tunesmith.events import StageStarted
from tunesmith.inference.local_model import Classified
from tunesmith.inference.saved_model import load
from tunesmith.objectives import Classify
from tunesmith.pipelines.tune.tune import Run, tune_recipe
from tunesmith.techniques import Full, Lora
from tunesmith.training.callbacks import Callbacks

# Written for this page; none stands in the rows.
QUESTIONS = (
    "the hinge snapped after two days and nobody answers my mails.",
    "it charges in half an hour and still looks like new.",
    "i wanted to like it, but the screen flickers as soon as it gets warm.",
)
# Enough for the decoder to learn the task in a few minutes on two cores.
DECODER_ROWS = 600
# By validation loss on these rows: 0.29 at this rate, 0.36 at three times as much.
ENCODER_RATE = 6e-5
# The same figures wherever it runs: no dtype picked by how busy the machine happens to be.
MACHINE = Machine(dtype="float32")


@dataclass(frozen=True, slots=True)
class Demo:
    """Both runs, and what the tuned decoder says to questions of our own."""

    encoder: Run
    decoder: Run
    answers: tuple[tuple[str, Classified], ...]


def demo(out: Path, *, callbacks: Callbacks, offline: bool = False) -> Demo:
    """Both models tuned into folders under `out` and asked; goes on where an earlier call was stopped."""
    rows = str(files("tunesmith") / "shipped_data" / "reviews.jsonl")
    runs = []
    for name, recipe in recipes(rows).items():
        callbacks.on_event(StageStarted(f"{name}: {recipe.technique.kind} tuning on shipped reviews"))
        runs.append(tune_recipe(recipe, out=out / name, callbacks=callbacks, offline=offline))
    encoder, decoder = runs
    callbacks.on_event(StageStarted("asking the tuned decoder"))
    found = load(decoder.folder, offline=offline).classify(QUESTIONS)
    return Demo(encoder, decoder, tuple(zip(QUESTIONS, found, strict=True)))


def recipes(rows: str) -> dict[str, Recipe]:
    """Run folder name -> recipe, for these rows."""
    objective = Classify(
        text="text", label="label", instruction="Is this review positive or negative?", metric="accuracy"
    )
    return {
        "demo-minilm-l6": Recipe(
            model="minilm-l6",
            data=Data(train=rows, group="group"),
            objective=objective,
            technique=Full(),
            schedule=Schedule(epochs=2, learning_rate=ENCODER_RATE),
            machine=MACHINE,
        ),
        "demo-smollm2-135m": Recipe(
            model="smollm2-135m",
            data=Data(train=rows, validation=0.05, group="group", rows=DECODER_ROWS),
            objective=objective,
            technique=Lora(),
            schedule=Schedule(epochs=1, eval_steps=13),
            machine=MACHINE,
        ),
    }
