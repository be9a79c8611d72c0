"""Further questions to an arm of a finished comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tunesmith.config.aliases import OLD_ARMS
from tunesmith.data.examples.types import Chat, Example, LabelledText
from tunesmith.data.files import read_page
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import RecipeError
from tunesmith.pipelines.compare.answers import ArmAnswers
from tunesmith.pipelines.compare.arms import ClassifierArm, PromptArm, arm_for
from tunesmith.pipelines.compare.compare import PAGE, reopened
from tunesmith.pipelines.compare.prompting import ask_model
from tunesmith.pipelines.compare.report import Comparison
from tunesmith.retrieval.prompts import cited
from tunesmith.training.callbacks import Callbacks


@dataclass(frozen=True, slots=True)
class ArmQuestion:
    """A question to an arm."""

    text: str
    arm: str = ""  # empty: the recommended one
    key: str = ""  # of a server


class ArmReply(BaseModel):
    """The answer of an arm."""

    model_config = ConfigDict(frozen=True)

    arm: str
    answer: str
    shown: list[str] = []  # ids of the chunks in the prompt, best first
    cites: str = ""  # id of the chunk that the answer rests on
    passages: dict[str, str] = {}  # texts of the chunks in `shown`
    prompt_tokens: int = 0


def _searches(stored: ArmAnswers | None) -> dict[str, str]:
    """Return the runs that find the chunks of an arm."""
    return stored.model_dump(include={"retriever", "reranker"}) if stored else {}


def compared(folder: Path) -> bool:
    """Return whether a folder contains a finished comparison."""
    return (folder / PAGE).is_file()


def ask_arm(folder: Path, question: ArmQuestion, *, callbacks: Callbacks, offline: bool = False) -> ArmReply:
    """Answer a question by an arm of a comparison; documents are searched as they are now.

    Args:
        folder: folder of the comparison.
        question: the text and the arm.
        callbacks: receive progress events.
        offline: do not access the network.

    Raises:
        RecipeError: the comparison does not have this arm.
        TunesmithError: rows, documents or models cannot be read.
    """
    page = read_page(folder / PAGE, Comparison)
    known = [arm.name for arm in page.arms if arm.name != "oracle-context"]  # needs the correct chunk of a row
    name = question.arm or page.verdict.arm
    name = name if name in known else OLD_ARMS.get(name, name)
    if name not in known:
        raise RecipeError(f"--arm {name}: not in {folder}; name one of {', '.join(known)}")
    context = reopened(folder, callbacks=callbacks, key=question.key, offline=offline)
    stored = context.stored(name)
    tuned = context.tuned(stored.run) if stored and stored.run else None
    arm = arm_for(context, OLD_ARMS.get(name, name), tuned, **_searches(stored))
    if context.objective.produces == "labels":
        row: Example = LabelledText("question", question.text, ("",))
    else:
        row = Chat("question", (context.objective.user_message(question.text), Message("assistant", "")))
    if isinstance(arm, ClassifierArm):
        return ArmReply(arm=name, answer=arm.label([row])[0])
    assert isinstance(arm, PromptArm)
    (built,) = arm.prompts([row])
    answers = ask_model(arm.model, [built.messages], context.objective)
    return ArmReply(
        arm=name,
        answer=answers.given[0],
        shown=[hit.chunk.id for hit in built.hits],
        cites=cited(answers.given[0], built.hits),
        passages={hit.chunk.id: hit.chunk.text for hit in built.hits},
        prompt_tokens=answers.prompt_tokens[0],
    )
