"""Embeddings: queries are near the passages that answer them, and far from all others.

Letters: E examples of a step, S texts of an example (query, passage, negatives), B texts of a micro-batch, D size of a
vector.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from tunesmith.data.examples.parsers import labelled
from tunesmith.data.examples.types import Example, Query
from tunesmith.data.files import write_whole
from tunesmith.data.readers.row import Row
from tunesmith.data.text.words import folded
from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.objectives.base import Learner, Loss, Produces
from tunesmith.objectives.passages import MOST_NEGATIVES, PassageObjective, stated

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tunesmith.models.batch import Batch
    from tunesmith.models.policy import Policy

PROMPTS, POOLING = "config_sentence_transformers.json", "1_Pooling"
MODES = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}


class Embed(PassageObjective, Learner):
    """Bring the vector of a query near that of its passage, and away from the other passages of the step.

    Reads rows with a query and a passage that answers it, with hard negatives if there are any; texts with a label,
    where texts of one label are alike; or two texts with a score of their similarity. The loss of a query is the
    cross-entropy of its passage among all passages of the step, by `scale` times the cosine (multiple negatives
    ranking, Henderson et al. 2017, arXiv 1705.00652); equal passages, and those of equal queries or of the same label,
    are not negatives. The loss of scored pairs is CoSENT: pairs with a higher score have a higher cosine. With `sizes`
    it is summed over the first entries of each vector (Kusupati et al. 2022, arXiv 2205.13147).

    All rows of a step are compared with each other, however little memory there is: the gradient by the vectors is
    computed from vectors without gradient, and passed through one micro-batch after the other (Gao et al. 2021, arXiv
    2101.06983). The network runs without dropout, so that both passes have the same vectors.
    """

    produces: ClassVar[Produces] = "vectors"
    results: ClassVar[str] = "vectors"
    column_keys: ClassVar[tuple[str, ...]] = ("query", "passage", "negative", "relevance", "score", "label", "evidence")
    route: ClassVar[str] = "v1/embeddings"
    hub_task: ClassVar[str] = "sentence-similarity"
    reads_texts: ClassVar[bool] = True
    compares_rows: ClassVar[bool] = True
    no_export: ClassVar[str] = (
        "not for vectors; sentence-transformers opens the folder `model` of a run, of a decoder after technique: full"
    )
    unsuited: ClassVar[str] = (
        "the encoder was made for vectors and is the cheapest; --model smollm2-135m tunes the decoder"
    )
    python_use: ClassVar[str] = 'print({model}.embed("{text}"))'

    kind: Literal["embed"] = "embed"
    score: str = Field("", description="column with the similarity of both texts, for rows without answers")
    label: str = Field("", description="column with a label, instead of a passage: texts of one label are alike")
    hard_negatives: int = Field(
        0, ge=0, le=MOST_NEGATIVES, description="passages per query, mined by the base model and BM25, as negatives"
    )
    scale: float = Field(20.0, gt=0, description="factor of the cosine in the loss")
    sizes: tuple[PositiveInt, ...] = Field((), description="numbers of first entries of a vector that are trained too")
    pooling: Literal["auto", "mean", "cls", "last"] = Field("auto", description="auto: as the base model states it")
    query_prompt: str | None = Field(None, description="text before every query; empty: as the base model states it")
    passage_prompt: str | None = Field(None, description="text before every passage; as the query's")
    metric: Literal["auto", "ndcg", "spearman"] = Field("auto", description="headline score; from the rows")

    @property
    def vector_sizes(self) -> tuple[int, ...]:
        """Return the numbers of first entries of a vector that were trained to be vectors of their own."""
        return self.sizes

    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Parse rows into queries; texts with a label as in `within`."""
        columns = columns or self.columns(rows)
        if "label" not in columns:
            return super().examples(rows, group=group, columns=columns)
        texts = labelled(rows, text=columns["query"], label=columns["label"], group=group)
        return list(
            self.within([Query(t.where, t.text, "", t.group, label=" | ".join(sorted(t.labels))) for t in texts])
        )

    def within(self, part: Sequence[Example]) -> Sequence[Example]:
        """Return the rows; a text with a label gets the next text of that label as its passage.

        A text without another one of its label is left out: it teaches nothing, and nothing answers it.

        Raises:
            DataError: no label has two texts.
        """
        rows = [row for row in part if isinstance(row, Query)]
        if not any(row.label for row in rows):
            return part
        following = {row.label: row.text for row in reversed(rows)}  # the first text follows the last
        found: list[Query] = []
        for row in reversed(rows):
            if folded(row.text) != folded(following[row.label]):
                found.append(replace(row, passage=following[row.label]))
            following[row.label] = row.text
        if not found:
            what = f"none of {len(rows)} texts has another one of its label in the same part"
            raise DataError(f"{rows[0].where.rpartition(':')[0]}: {what}; embed needs two or more texts of a label")
        return found[::-1]

    def bind(self, examples: Sequence[Example], family: str) -> Embed:
        """Return the objective with the negatives of a row, the metric and the passages to search.

        Raises:
            DataError: all scores are equal.
            RecipeError: a setting is for queries with passages, and the rows have labels or scores.
        """
        rows = [example for example in examples if isinstance(example, Query)]
        scored = rows[0].score is not None
        if scored and len({row.score for row in rows}) < 2:
            file = rows[0].where.rpartition(":")[0]
            raise DataError(f"{file}: all {len(rows)} rows have the score {rows[0].score}; embed needs two or more")
        for key in ("hard_negatives", "documents"):
            if getattr(self, key) and (scored or rows[0].label):
                kind = "scores" if scored else "labels"
                raise RecipeError(f"objective.{key}: needs rows with a query and its passage, not {kind}; leave it out")
        most = min(MOST_NEGATIVES, max(len(row.negatives) for row in rows))
        bound = self.model_copy(update={"metric": "spearman" if scored else "ndcg", "negatives": 0 if scored else most})
        return bound if scored else bound.for_rows(rows)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Return the prompts of queries and passages."""
        return tuple(filter(None, (self.query_prompt, self.passage_prompt)))

    @property
    def evaluated_as(self) -> str:
        """Return the key of the evaluator: scored pairs are compared by their cosine."""
        return "similarity" if self.metric == "spearman" else self.kind

    def for_base(self, folder: Path | None, family: str) -> Embed:
        """Return the objective with the pooling and the prompts that the folder of a base model states.

        Raises:
            ModelError: it states another pooling, further layers or damaged prompts, and `pooling` is `auto`.
            RecipeError: the pooling is not for a decoder.
        """
        prompts = stated(folder, PROMPTS, dict).get("prompts") or {}
        if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
            raise ModelError(f"{folder}/{PROMPTS}: prompts must be texts by name; download the model again")
        usual = self.pooling if self.pooling != "auto" else _stated_pooling(folder) or POOLED[family]
        query, passage = (next((prompts[k] for k in names if prompts.get(k)), "") for names in PROMPT_NAMES)
        found = self.model_copy(
            update={
                "pooling": usual,
                "query_prompt": query if self.query_prompt is None else self.query_prompt,
                "passage_prompt": passage if self.passage_prompt is None else self.passage_prompt,
            }
        )
        if found.pooling == "mean" and family == "decoder":
            raise RecipeError("objective.pooling: the last token of a decoder has read all others; use last")
        return found

    def question(self, text: str, template: Template, *, limit: int, passage: bool = False) -> tuple[Tokens, bool]:
        """Encode a query, or a passage, after its prompt, as sentence-transformers does."""
        prompt = (self.passage_prompt if passage else self.query_prompt) or ""
        ids = template.document(f"{prompt}{text.strip()}").ids
        return Tokens.of(template.shortened(ids, limit)), len(ids) > limit

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """Encode query, passage and negatives; missing negatives repeat the passage, which does not count as one."""
        assert isinstance(example, Query)
        texts = [example.passage, *example.negatives[: self.negatives]]
        texts += [example.passage] * (1 + self.negatives - len(texts))
        rows = [self.question(example.text, template, limit=limit)]
        # The other text of a scored pair is of the same kind.
        rows += [self.question(text, template, limit=limit, passage=example.score is None) for text in texts]
        # A number for each label that float32 represents; two of the same number are not compared.
        number = zlib.crc32(example.label.encode(errors="replace")) >> 8 if example.label else -1
        label = float(number) if example.score is None else example.score
        tokens, shortened = zip(*rows, strict=True)
        return Encoded(tuple(tokens), example.where, label=(label,), shortened=any(shortened))

    def head(self, policy: Policy) -> nn.Module | None:
        """Return None. Raises RecipeError for a size that the vectors do not have."""
        if (most := max(self.sizes, default=0)) > policy.hidden:
            raise RecipeError(f"objective.sizes: {most} exceeds the {policy.hidden} entries of a vector; lower it")
        return None

    def units(self, batch: Batch) -> int:
        """Return the number of examples."""
        return batch.examples

    @property
    def states_key(self) -> tuple[str, ...]:
        """Return the name under which vectors of a base model are kept."""
        return ("vectors", self.pooling)

    def states(self, batch: Batch, policy: Policy) -> Tensor:
        """Compute the vector of every text, [B, D], of length 1."""
        from torch.nn.functional import normalize

        if self.pooling == "cls":
            found = policy.states(batch).index_select(0, batch.row_index[:, 0])
        elif self.pooling == "last":
            found = policy.states(batch).index_select(0, batch.last_index)
        else:
            found = policy.pooled(batch)
        return normalize(found, dim=1)

    def scores(self, batch: Batch, policy: Policy) -> Tensor:
        """Compute the cosine of the first two texts of each example, for every text, [B]."""
        vectors = self.states(batch, policy).view(batch.examples, batch.group_size, -1)
        return (vectors[:, 0] * vectors[:, 1]).sum(dim=1).repeat_interleave(batch.group_size)

    def prepare(self, batch: Batch, policy: Policy) -> Batch:
        """Return the batch with the vectors of its texts, which are computed once they are needed."""
        from tunesmith.models.batch import StepVectors

        return replace(batch, step_vectors=StepVectors(lambda: self.states(batch, policy)))

    def with_sums(self, batches: Sequence[Batch], sums: Mapping[str, float]) -> list[Batch]:
        """Return micro-batches with the gradient of the loss of the whole step by their vectors."""
        import torch

        if len(batches) < 2 or any(batch.step_vectors is None for batch in batches):
            return list(batches)
        wanted = torch.is_grad_enabled()
        parts = [batch.step_vectors.values.detach().requires_grad_(wanted) for batch in batches if batch.step_vectors]
        losses = self.losses(torch.cat(parts), batches)
        gradients = torch.autograd.grad(losses.sum(), parts) if wanted else [None] * len(parts)
        totals = losses.detach().split([batch.examples for batch in batches])
        return [
            replace(batch, step_vectors=batch.step_vectors and batch.step_vectors.compared(gradient, total.sum()))
            for batch, gradient, total in zip(batches, gradients, totals, strict=True)
        ]

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Compute the loss of the batch within its step; alone, it is the whole step.

        With a cached gradient G of the loss by the vectors V, the gradient of sum(V * G) is that of the loss.
        """
        given = batch.step_vectors
        if given is None or given.total is None:
            return Loss(self.losses(self.states(batch, policy), [batch]).sum(), batch.examples)
        if given.gradient is None:
            return Loss(given.total, batch.examples)
        carrier = (self.states(batch, policy) * given.gradient).sum()
        return Loss(carrier - carrier.detach() + given.total, batch.examples)

    def losses(self, vectors: Tensor, batches: Sequence[Batch]) -> Tensor:
        """Compute the loss of each example of a step, [E], from the vectors of its texts, [E * S, D].

        CoSENT has one value for the whole step, which every example gets.
        """
        import torch

        labels = torch.cat([batch.labels[:, 0] for batch in batches if batch.labels is not None])
        texts = vectors.view(len(labels), batches[0].group_size, -1)
        sizes = dict.fromkeys((texts.shape[-1], *self.sizes))
        if self.metric == "spearman":
            each = sum(_cosent(_first(texts, size), labels, self.scale) for size in sizes)
            return torch.as_tensor(each).expand(len(labels))
        hidden = _no_negatives(batches, labels)
        return torch.stack([_ranking(_first(texts, size), hidden, self.scale) for size in sizes]).sum(dim=0)

    def save_files(self, folder: Path, *, limit: int, hidden: int) -> None:
        """Write what sentence-transformers needs to open a model folder: its modules, pooling and prompts."""
        kind = "sentence_transformers."
        modules = [
            {"idx": 0, "name": "0", "path": "", "type": f"{kind}models.Transformer"},
            {"idx": 1, "name": "1", "path": POOLING, "type": f"{kind}models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{kind}models.Normalize"},
        ]
        pooling = {"word_embedding_dimension": hidden, "include_prompt": True}
        pooling |= {f"pooling_mode_{name}": name == MODES[self.pooling] for name in POOLINGS}
        prompts = {"query": self.query_prompt, "document": self.passage_prompt}
        try:
            made = {"sentence_transformers": version("sentence-transformers")}
        except PackageNotFoundError:
            made = {}
        pages: dict[str, Any] = {
            "modules.json": modules,
            f"{POOLING}/config.json": pooling,
            "sentence_bert_config.json": {"max_seq_length": limit, "do_lower_case": False},
            PROMPTS: {"__version__": made, "prompts": prompts, "similarity_fn_name": "cosine"},
        }
        (folder / POOLING).mkdir()
        for name, page in pages.items():
            write_whole(folder / name, json.dumps(page, indent=2, ensure_ascii=False) + "\n")


POOLINGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
POOLED = {"encoder": "mean", "decoder": "last"}  # by bases that state nothing
STATED = {"mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls", "lasttoken": "last"}
PROMPT_NAMES = (("query", "Query"), ("document", "passage", "corpus", "Document"))


def _stated_pooling(folder: Path | None) -> str:
    """Return the pooling that a folder states; empty if none. Raises ModelError if it is not one of ours."""
    fix = "set objective.pooling to train without it, or use another model"
    for module in stated(folder, "modules.json", list):
        kind = str(module.get("type")).rpartition(".")[2] if isinstance(module, dict) else "damaged"
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise ModelError(f"{folder}/modules.json: the layer {kind} is not trained by embed; {fix}")
    page = stated(folder, f"{POOLING}/config.json", dict)
    modes = [key[13:] for key, on in page.items() if key.startswith("pooling_mode_") and on]
    named = "+".join(modes) or str(page.get("pooling_mode") or "")
    if named and named not in STATED:
        raise ModelError(f"{folder}/{POOLING}: embed does not pool by {named}; {fix}")
    return STATED.get(named, "")


def _first(texts: Tensor, size: int) -> Tensor:
    """Return the first entries of vectors [E, S, D], of length 1."""
    from torch.nn.functional import normalize

    return texts if size == texts.shape[-1] else normalize(texts[..., :size], dim=-1)


def _ranking(texts: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """Compute the cross-entropy [E] of the passage of each query among all passages and negatives of [E, S, D]."""
    import torch
    from torch.nn.functional import cross_entropy

    passages = texts[:, 1:].transpose(0, 1).flatten(0, 1)  # the passages first, then the first negatives, and so on
    scores = (texts[:, 0] @ passages.T * scale).masked_fill(hidden, -torch.inf)
    return cross_entropy(scores, torch.arange(len(texts), device=texts.device), reduction="none")


def _cosent(texts: Tensor, scores: Tensor, scale: float) -> Tensor:
    """Compute log(1 + sum of exp(scale * (cosine i - cosine j))) over the pairs i, j where j has the higher score."""
    import torch

    cosines = (texts[:, 0] * texts[:, 1]).sum(dim=1) * scale
    differences = (cosines[:, None] - cosines[None, :])[scores[:, None] < scores[None, :]]
    return torch.cat([differences.new_zeros(1), differences]).logsumexp(dim=0)


def _no_negatives(batches: Sequence[Batch], labels: Tensor) -> Tensor:
    """Return which candidates of a query are not its negatives, [E, E * (S - 1)].

    They are its own passage wherever it occurs again, candidates that occurred before, and passages of a query with
    the same words or label.
    """
    import torch

    codes: dict[tuple[int, ...], int] = {}
    rows = [
        codes.setdefault(tuple(batch.ids[path[path >= 0]].tolist()), len(codes))
        for batch in batches
        for path in batch.row_index
    ]
    texts = torch.tensor(rows, device=labels.device).view(len(labels), -1)
    candidates = texts[:, 1:].T.flatten()
    order = torch.arange(len(candidates), device=labels.device)
    first = torch.full((len(codes),), len(candidates), device=labels.device).scatter_reduce(
        0, candidates, order, "amin"
    )
    hidden = (candidates[None, :] == texts[:, 1:2]) | (first[candidates] < order)[None, :]
    alike = (texts[:, :1] == texts[:, 0][None, :]) | ((labels[:, None] == labels[None, :]) & (labels >= 0)[:, None])
    hidden[:, : len(labels)] |= alike
    return hidden & ~torch.eye(len(labels), len(candidates), dtype=torch.bool, device=labels.device)
