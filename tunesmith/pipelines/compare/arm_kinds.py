"""The arms of a comparison, and what is known of each before it runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmKind:
    """Properties of an arm."""

    # Time of one test row, relative to the plain prompt: includes longer prompts and settings tried on validation rows.
    row_time: float
    # Training time of one row of its run, relative to `tuned`: row length times the share of rows used.
    train_time: float = 0.0
    run: str = ""  # name of the run that answers; arms may share one
    retriever: str = ""  # name of the run whose vectors find the chunks; empty: those of an untouched encoder
    reranker: str = ""  # name of the run that ranks the chunks that were found again
    trains_on: Literal["", "rows", "documents"] = ""
    prompts_base: bool = False  # prompts the base model, or a run of it, in words; an encoder cannot answer
    needs_documents: bool = False
    diagnostic: bool = False  # never recommended
    language_model: bool = True
    remote: bool = False  # a server, whose price and internals are unknown
    recommendation: str = ""  # the verdict in words


# Diagnostic arms show where retrieval or reading fails, the effect of fewer labelled rows, and an upper bound of
# training on the documents: `closed-book` trains on the chunks with the test answers first, which are unknown in
# practice.
ARM_KINDS = {
    "prompt": ArmKind(row_time=1.5, prompts_base=True, recommendation="prompt"),
    "few-shot": ArmKind(row_time=4.0, prompts_base=True, recommendation="show examples in the prompt"),
    "rag": ArmKind(row_time=3.0, prompts_base=True, needs_documents=True, recommendation="retrieve"),
    "tuned-retriever": ArmKind(
        row_time=3.0,
        train_time=0.3,
        retriever="tuned-retriever",
        trains_on="rows",
        prompts_base=True,
        needs_documents=True,
        recommendation="tune the search",
    ),
    "tuned-retriever+rerank": ArmKind(
        row_time=4.0,
        train_time=0.6,
        retriever="tuned-retriever",
        reranker="tuned-retriever+rerank",
        trains_on="rows",
        prompts_base=True,
        needs_documents=True,
        recommendation="tune the search and rank again what it finds",
    ),
    "tf-idf": ArmKind(
        row_time=0.1,
        language_model=False,
        recommendation="TF-IDF and logistic regression are enough, no language model is needed",
    ),
    "tuned": ArmKind(row_time=2.5, train_time=1.0, run="tuned", trains_on="rows", recommendation="fine-tune"),
    "tuned-30%": ArmKind(row_time=2.5, train_time=0.3, run="tuned-30%", trains_on="rows", diagnostic=True),
    "tuned-10%": ArmKind(row_time=2.5, train_time=0.1, run="tuned-10%", trains_on="rows", diagnostic=True),
    "tuned+rag": ArmKind(
        row_time=2.0, run="tuned", trains_on="rows", needs_documents=True, recommendation="fine-tune, and retrieve"
    ),
    "raft": ArmKind(
        row_time=4.0,
        train_time=3.0,
        run="raft",
        trains_on="rows",
        needs_documents=True,
        recommendation="fine-tune with retrieved text in the rows, and retrieve",
    ),
    "tuned+tuned-retriever": ArmKind(
        row_time=2.0,
        run="tuned",
        retriever="tuned-retriever",
        trains_on="rows",
        needs_documents=True,
        recommendation="tune the search and the answers",
    ),
    "raft+tuned-retriever": ArmKind(
        row_time=4.0,
        run="raft",
        retriever="tuned-retriever",
        trains_on="rows",
        needs_documents=True,
        recommendation="tune the search, and the answers with retrieved text in the rows",
    ),
    "closed-book": ArmKind(
        row_time=2.0,
        train_time=3.0,
        run="closed-book",
        trains_on="documents",
        prompts_base=True,
        needs_documents=True,
        diagnostic=True,
    ),
    "no-context": ArmKind(row_time=1.0, prompts_base=True, diagnostic=True),
    "oracle-context": ArmKind(row_time=1.5, prompts_base=True, needs_documents=True, diagnostic=True),
}
SERVER = ArmKind(row_time=2.0, remote=True)


def kind_of(arm: str) -> ArmKind:
    """Return the properties of an arm; a name that is not listed is the address of a server."""
    return ARM_KINDS.get(arm, SERVER)


def trains_on_rows(arms: Iterable[str]) -> bool:
    """Return whether an arm trains on the rows of the recipe."""
    return any(kind_of(arm).trains_on == "rows" for arm in arms)
