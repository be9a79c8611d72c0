"""A question of one's own to an arm of a comparison that is done: the verdict put to use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tunesmith.config.aliases import OLD_ARMS
from tunesmith.data.examples.types import Chat, Example, LabelledText
from tunesmith.data.files import read_page
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import RecipeError
from tunesmith.inference.local_model import LocalModel
from tunesmith.objectives import Classify, Instruct
from tunesmith.pipelines.compare.arms import ClassifierArm, arm_for
from tunesmith.pipelines.compare.compare import PAGE, reopened
from tunesmith.pipelines.compare.context import ComparisonContext
from tunesmith.pipelines.compare.prompting import ask_model
from tunesmith.pipelines.compare.report import Comparison
from tunesmith.retrieval.prompts import cited, shown_in
from tunesmith.training.callbacks import Callbacks


@dataclass(frozen=True, slots=True)
class ArmQuestion:
    """A text, the arm that is to answer it (empty: the one of the verdict), and the key of a server."""

    text: str
    arm: str = ""
    key: str = ""


class ArmReply(BaseModel):
    """What an arm answers, the chunks that it was shown, the best first, and the one that holds the answer."""

    model_config = ConfigDict(frozen=True)

    arm: str
    answer: str
    shown: list[str] = []
    cites: str = ""
    prompt_tokens: int = 0


def compared(folder: Path) -> bool:
    """Whether a folder is that of a comparison which came to its end."""
    return (folder / PAGE).is_file()


def ask_arm(folder: Path, question: ArmQuestion, *, callbacks: Callbacks, offline: bool = False) -> ArmReply:
    """The answer of an arm of a comparison.

    Documents are looked into as they are now. Raises RecipeError for an arm that was not compared, and the errors of
    all doors.
    """
    page = read_page(folder / PAGE, Comparison)
    known = [one.name for one in page.arms if one.name != "oracle-context"]  # it is told the right chunk
    name = question.arm or page.verdict.arm
    name = name if name in known else OLD_ARMS.get(name, name)
    if name not in known:
        raise RecipeError(f"--arm {name}: not in {folder}; name one of {', '.join(known)}")
    contest = reopened(folder, callbacks=callbacks, key=question.key, offline=offline)
    way = arm_for(contest, OLD_ARMS.get(name, name), _tuned(contest, name))
    row = _row(contest.objective, question.text)
    if isinstance(way, ClassifierArm):
        return ArmReply(arm=name, answer=way.label([row])[0])
    batch = way.ask([row])
    said = ask_model(way.model, batch, contest.objective)
    count = int(way.known.get("shown", 0))
    hits = shown_in(batch[0], contest.retrieval().hits([row])[0][:count]) if count else []
    return ArmReply(
        arm=name,
        answer=said.given[0],
        shown=[hit.chunk.id for hit in hits],
        cites=cited(said.given[0], hits),
        prompt_tokens=said.prompt_tokens[0],
    )


def _tuned(context: ComparisonContext, name: str) -> LocalModel | None:
    """The model that was tuned for the arm, None where none was."""
    kept = context.kept(name)
    return context.tuned(kept.run) if kept and kept.run else None


def _row(objective: Classify | Instruct, text: str) -> Example:
    """The text as a row that has no answer yet."""
    if isinstance(objective, Classify):
        return LabelledText("question", text, ("",))
    asked = "\n\n".join(filter(None, (objective.instruction, text)))
    return Chat("question", (Message("user", asked), Message("assistant", "")))
