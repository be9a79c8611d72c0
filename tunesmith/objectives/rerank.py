"""Reranking: a cross-encoder reads a query together with a passage and scores how well the passage answers it.

Letters: E examples, S pairs of an example (the passage, then negatives), B pairs of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from tunesmith.data.examples.types import Example, Query
from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.errors import RecipeError
from tunesmith.objectives.base import Learner, Loss, Produces, Retriever
from tunesmith.objectives.passages import MOST_NEGATIVES, PassageObjective, stated

if TYPE_CHECKING:
    from torch import Tensor

    from tunesmith.models.batch import Batch
    from tunesmith.models.policy import Policy
    from tunesmith.models.relevance_head import RelevanceHead


class Rerank(PassageObjective, Learner):
    """Score how well a passage answers a query, and rank what a search has found by the score.

    Reads rows with a query and a passage that answers it, with passages that do not if there are any; more are mined
    by the search, which finds the candidates of every query: BM25, vectors, or both. The network reads query and
    passage as one text, and the classification head of its family scores it (Nogueira and Cho 2019, arXiv 1901.04085).
    The loss is the binary cross-entropy of each pair. The head starts at zero, so that at first all pairs are alike;
    that of a base model which is a cross-encoder itself is kept.
    """

    produces: ClassVar[Produces] = "ranking"
    families: ClassVar[tuple[str, ...]] = ("encoder",)
    results: ClassVar[str] = "scores"
    column_keys: ClassVar[tuple[str, ...]] = ("query", "passage", "negative", "relevance", "evidence")
    grades: ClassVar[frozenset[str]] = PassageObjective.grades | {"label", "labels", "score", "similarity"}
    model_keys: ClassVar[tuple[str, ...]] = ("encoder",)
    route: ClassVar[str] = "v1/rerank"
    hub_task: ClassVar[str] = "text-ranking"
    needs_head: ClassVar[bool] = True
    saved_whole: ClassVar[bool] = True
    exported: ClassVar[str] = "scores"
    export_form: ClassVar[str] = "score pairs"
    unsuited: ClassVar[str] = "query and passage are read together, each word with those before and after it"
    python_use: ClassVar[str] = 'print({model}.rank("{text}", ["a passage", "another passage"]))'

    kind: Literal["rerank"] = "rerank"
    hard_negatives: int = Field(
        5, ge=0, le=MOST_NEGATIVES, description="passages per query, found by the search, as negatives"
    )
    search: Literal["auto", "fused", "words", "vectors"] = Field(
        "auto", description="finds the candidates; words: BM25, auto: if it is installed; vectors; fused: both, by rank"
    )
    encoder: str = Field(
        "minilm-l6", description="only for search: vectors and fused; embedding model, or a run of embed"
    )
    candidates: int = Field(50, ge=2, le=100, description="passages per query that are ranked")
    metric: Literal["ndcg"] = Field("ndcg", description="headline score")
    _scorer: Path | None = PrivateAttr(None)  # folder of a base model that is a cross-encoder

    @property
    def retriever(self) -> Retriever:
        """Return the search that finds the candidates."""
        search = self.search if self.search != "auto" else "words" if find_spec("bm25s") else "vectors"
        return Retriever(search, self.encoder, self.candidates)

    @property
    def test_readings(self) -> float:
        """Return the candidates of a query for each pair of a training row."""
        return self.candidates / (1 + self.negatives)

    def for_base(self, folder: Path | None, family: str) -> Rerank:
        """Return the objective with the head of the base model, if that is a cross-encoder."""
        from tunesmith.models.relevance_head import is_cross_encoder

        found = self.model_copy()
        found._scorer = folder if is_cross_encoder(folder, stated(folder, "config.json", dict)) else None
        return found

    def bind(self, examples: Sequence[Example], family: str) -> Rerank:
        """Return the objective with the negatives of a row, the search and the passages.

        Raises:
            RecipeError: a row has no negatives, and none are mined.
        """
        rows = [example for example in examples if isinstance(example, Query)]
        most = max(len(row.negatives) for row in rows)
        without = sum(not row.negatives for row in rows)
        if without and not self.hard_negatives:
            raise RecipeError(
                f"objective.hard_negatives: {without} of {len(rows)} rows have no negatives, so some must be mined; "
                "set it to 5"
            )
        negatives = min(MOST_NEGATIVES, most + self.hard_negatives)
        return self.model_copy(update={"search": self.retriever.search, "negatives": negatives}).for_rows(rows)

    @property
    def needs_negatives(self) -> bool:
        """Return True: all pairs of a row without negatives are right, and a model that says so learns nothing."""
        return True

    def with_mined(self) -> Rerank:
        """Return the objective, which has counted the mined negatives already."""
        return self

    def sides(self, sequences: int) -> list[str]:
        """Return the names of the pairs of a row."""
        return ["query and passage", *["query and negative"] * (sequences - 1)]

    def pair(self, query: str, passage: str, template: Template, *, limit: int) -> tuple[Tokens, bool]:
        """Encode a query with a passage, as sentence-transformers does: the longer one is cut first."""
        texts = (query.strip(), passage.strip())
        found = template.tokenizer(*texts, verbose=False)
        if shortened := len(found["input_ids"]) > limit:
            found = template.tokenizer(*texts, truncation="longest_first", max_length=limit)
        ids, types = found["input_ids"], found.get("token_type_ids") or []
        return Tokens(ids, [False] * len(ids), second=types.index(1) if 1 in types else 0), shortened

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """Encode the query with its passage and with each negative; a row with fewer repeats its own.

        Without any the passage stands for them, until they are mined; rows for which none are found are left out.
        """
        assert isinstance(example, Query)
        negatives = example.negatives[: self.negatives]
        texts = [negatives[i % len(negatives)] if negatives else example.passage for i in range(self.negatives)]
        pairs = [self.pair(example.text, text, template, limit=limit) for text in (example.passage, *texts)]
        tokens, shortened = zip(*pairs, strict=True)
        label = (1.0, *[0.0 if negatives else 1.0] * len(texts))
        return Encoded(tuple(tokens), example.where, label=label, shortened=any(shortened))

    def head(self, policy: Policy) -> RelevanceHead:
        """Return the classification head of the family, as the base model has it, or alike for all pairs.

        It then starts at the share of passages that answer a query, or the first steps would learn only that.
        """
        from tunesmith.models.relevance_head import RelevanceHead

        return RelevanceHead(policy.network, self._scorer, share=1 / (1 + self.negatives))

    def untuned_head(self, policy: Policy) -> RelevanceHead | None:
        """Return the head of a base model that is a cross-encoder."""
        return self.head(policy) if self._scorer else None

    def whole(self, policy: Policy) -> Any:
        """Return the classifier of transformers that sentence-transformers opens as a CrossEncoder."""
        from tunesmith.models.relevance_head import RelevanceHead, cross_encoder

        assert isinstance(policy.head, RelevanceHead)
        return cross_encoder(policy.network, policy.head)

    def states(self, batch: Batch, policy: Policy) -> Tensor:
        """Compute the vector of every text, [B, D], of length 1: the mean of its states."""
        from torch.nn.functional import normalize

        return normalize(policy.pooled(batch), dim=1)

    def units(self, batch: Batch) -> int:
        """Return the number of pairs."""
        return batch.rows

    def scores(self, batch: Batch, policy: Policy) -> Tensor:
        """Compute the logit of every pair, [B]."""
        assert policy.head is not None
        real = batch.row_index >= 0
        rows = policy.states(batch).index_select(0, batch.row_index.clamp(min=0).flatten())
        logits: Tensor = policy.head(rows.view(*real.shape, -1), real)
        return logits

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Compute the binary cross-entropy, summed over pairs."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        assert batch.labels is not None
        logits = self.scores(batch, policy)
        return Loss(binary_cross_entropy_with_logits(logits, batch.labels.flatten(), reduction="sum"), batch.rows)
