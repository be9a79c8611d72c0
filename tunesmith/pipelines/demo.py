"""`tunesmith demo`: tune an encoder and a decoder on bundled reviews, and classify three sentences."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from tunesmith.config import Data, Machine, Recipe, Schedule
from tunesmith.display import Display, Displayed
from tunesmith.events import StageStarted
from tunesmith.inference.saved_model import load
from tunesmith.inference.scoring import Classified
from tunesmith.objectives import Classify
from tunesmith.pipelines.tune.tune import Run, tune_recipe
from tunesmith.techniques import Full, Lora
from tunesmith.training.callbacks import Callbacks

# Written for this demo; none is in the rows.
QUESTIONS = (
    "the hinge snapped after two days and nobody answers my mails.",
    "it charges in half an hour and still looks like new.",
    "i wanted to like it, but the screen flickers as soon as it gets warm.",
)
# The decoder learns the task in a few minutes on two cores.
DECODER_ROWS = 600
# Validation loss on these rows: 0.29 at this learning rate, 0.36 at three times this rate.
ENCODER_RATE = 6e-5
# A fixed dtype, so that results do not depend on the load of the machine, by which `auto` chooses.
MACHINE = Machine(dtype="float32")


@dataclass(frozen=True, slots=True, repr=False)
class Demo(Displayed):
    """Both runs, and the classification of three new sentences by the tuned decoder."""

    encoder: Run
    decoder: Run
    answers: tuple[tuple[str, Classified], ...]  # sentence and labels

    def display(self) -> Display:
        """Show the headline of both runs and the classified sentences."""
        runs = [run.display().title for run in (self.encoder, self.decoder)]
        answers = [(answer.label, f"{answer.confidence:.2f}", text) for text, answer in self.answers]
        return Display("Demo", runs, ("label", "confidence", "text"), answers)


def demo(out: Path, *, callbacks: Callbacks, offline: bool = False) -> Demo:
    """Tune both models and classify three sentences; resumes an interrupted demo.

    Args:
        out: parent of the run folders.
        callbacks: receive progress, and may stop a run.
        offline: do not access the network.
    """
    rows = str(files("tunesmith") / "shipped_data" / "reviews.jsonl")
    runs = []
    for number, (name, recipe) in enumerate(recipes(rows).items(), 1):
        callbacks.on_event(
            StageStarted(f"run {number} of 2: {name}: {recipe.technique.kind} tuning on bundled reviews")
        )
        runs.append(tune_recipe(recipe, out=out / name, callbacks=callbacks, offline=offline))
    encoder, decoder = runs
    callbacks.on_event(StageStarted("classifying with the tuned decoder"))
    classified = load(decoder.folder, offline=offline).classify(QUESTIONS)
    return Demo(encoder, decoder, tuple(zip(QUESTIONS, classified, strict=True)))


def recipes(rows: str) -> dict[str, Recipe]:
    """Return the recipes for a file of rows, by the name of the run folder."""
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
