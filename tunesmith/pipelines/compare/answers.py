"""Answers of the arms, and the choices that are kept in the folder of a comparison."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from tunesmith.pipelines.compare.budget import BudgetedRows
from tunesmith.pipelines.compare.report import Task


class BatchAnswers(BaseModel):
    """Answers to a batch of prompts."""

    model_config = ConfigDict(frozen=True)

    given: list[str] = []  # one text per row
    finished: list[bool] = []  # False: cut at the greatest length
    prompt_tokens: list[int] = []
    seconds: float = 0.0  # of the whole batch

    def __add__(self, more: BatchAnswers) -> BatchAnswers:
        return BatchAnswers(
            given=self.given + more.given,
            finished=self.finished + more.finished,
            prompt_tokens=self.prompt_tokens + more.prompt_tokens,
            seconds=self.seconds + more.seconds,
        )


class ArmAnswers(BatchAnswers):
    """Answers of an arm to all test rows, with their cost."""

    name: str
    detail: str  # settings chosen on validation rows
    cites: list[str] = []  # id of the chunk that each answer rests on, or an empty string
    latencies: list[float] = []  # seconds of rows that were answered one at a time
    build_seconds: float = 0.0
    labelled_rows: int = 0
    run: str = ""  # folder of the run that answered
    retriever: str = ""  # folder of the run whose vectors found the chunks
    reranker: str = ""  # folder of the run that ranked them again
    written: int = 0  # questions that a model wrote, among those that tuned the retriever
    shown: int = 0  # greatest number of passages in a prompt
    form: str = ""  # template that joins passages and question
    task: Task | None = None  # their score; None in comparisons of earlier versions


class ArmSetting(BaseModel):
    """A setting of an arm that is chosen on validation rows; an arm uses only the fields that it chooses."""

    model_config = ConfigDict(frozen=True)

    wording: str = ""  # prompt template; empty for the one of the recipe
    shots: int = 0  # examples in the prompt
    shown: int = 0  # passages in the prompt
    form: str = ""  # template that joins passages and question
    search: str = ""  # fused or vectors, of a tuned retriever

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        """Read the lists of earlier versions."""
        match value:
            case [str(wording)]:
                return {"wording": wording}
            case [int(shots)]:
                return {"shots": shots}
            case [int(shown), str(form)]:
                return {"shown": shown, "form": form}
        return value


class Choices(BaseModel):
    """Choices and timings of a comparison, kept so that a resumed one repeats none of them."""

    model_config = ConfigDict(frozen=True)

    settings: dict[str, ArmSetting] = {}  # by arm
    budget: BudgetedRows | None = None
    index_seconds: float | None = None  # to read, split and index the documents
    writing_seconds: dict[str, float] = {}  # of writing texts about the documents, by purpose

    @model_validator(mode="before")
    @classmethod
    def _from_flat(cls, value: Any) -> Any:
        """Read the format of earlier versions: one mapping of lists, with timings and the budget among the arms."""
        if not isinstance(value, dict) or not any(isinstance(entry, list) for entry in value.values()):
            return value
        read: dict[str, Any] = {"settings": {}}
        for name, entry in value.items():
            if name.startswith("budget "):
                read["budget"] = {"test": entry[0], "train": entry[1], "note": entry[2], "seconds": 0.0}
            elif name == "seconds to index":
                read["index_seconds"] = float(entry[0])
            elif name == "seconds to paraphrase":
                read["writing_seconds"] = {"taught": float(entry[0])}
            else:
                read["settings"][name] = entry
        return read
