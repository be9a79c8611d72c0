"""The routes of search: documents ranked by a run of `rerank`, and vectors by a run of `embed`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.served import HEAD, Served, save_run, served
from tunesmith.inference.saved_model import load
from tunesmith.inference.serving.protocol import Limits
from tunesmith.objectives import Embed, Multitask, Rerank
from tunesmith.objectives.multitask import TaskRows, TaskSection
from tunesmith.techniques import Lora

SIZE = 4  # of the first entries that are a vector of their own
QUERY = "where is the red house?"
PASSAGES = ["it is in the street", "the red house is near the river", "nobody knows", "a house is red " * 60]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reranker, a retriever with prompts, a classifier, and a reranker as one task of two."""
    folder = tmp_path_factory.mktemp("runs")
    prompts = Embed(query_prompt="query: ", passage_prompt="passage: ", pooling="mean", sizes=(SIZE,))
    tasks = {
        name: TaskSection(data=TaskRows(), objective=kind) for name, kind in (("rank", Rerank()), ("find", prompts))
    }
    save_run(folder / "rank", Lora(rank=4), Rerank(), kind="bert")
    save_run(folder / "find", Lora(rank=4), prompts, kind="bert")
    save_run(folder / "mood", Lora(rank=4), HEAD, kind="bert")
    save_run(folder / "both", Lora(rank=4), Multitask(tasks=tasks), kind="bert")
    return folder


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[Served]:
    sources = {name: [runs / name] for name in ("rank", "find", "mood", "both")}
    with served(sources, limits=Limits(read=64)) as found:
        yield found
        assert found.bugs == []


def post(server: Served, route: str = "/v1/rerank", **body: Any) -> httpx2.Response:
    asked = {"model": "rank", "query": QUERY, "documents": PASSAGES} if "rerank" in route else {}
    return httpx2.post(f"{server.url}{route}", json={**asked, **body}, timeout=60)


def test_documents_are_ranked_as_in_python(server: Served, runs: Path):
    model = load(runs / "rank")
    answer = post(server).json()
    assert answer["id"].startswith("rerank-")
    assert [result["index"] for result in answer["results"]] == [index for index, _ in model.rank(QUERY, PASSAGES)]
    for result in answer["results"]:
        assert result["relevance_score"] == pytest.approx(
            model.relevance([(QUERY, PASSAGES[result["index"]])])[0], abs=1e-5
        )
        assert result["document"] == {"text": PASSAGES[result["index"]]}
    read = [model.objective.pair(QUERY, text, model.template, limit=model.limit) for text in PASSAGES]
    tokens = sum(len(row.ids) for row, _ in read)
    assert [cut for _, cut in read] == [False, False, False, True]
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens, "shortened": True}

    objects = [{"text": text, "id": number} for number, text in enumerate(PASSAGES[:2])]
    short = post(server, "/v2/rerank", documents=objects, top_n=1, return_documents=False, user=None).json()
    best = model.rank(QUERY, PASSAGES[:2])[0]
    assert short["results"] == [{"index": best[0], "relevance_score": pytest.approx(best[1], abs=1e-5)}]
    assert "shortened" not in short["usage"]
    assert len(post(server, top_n=99).json()["results"]) == len(PASSAGES)
    task = post(server, model="both/rank").json()
    assert [result["index"] for result in task["results"]] == [
        i for i, _ in load(runs / "both").rank(QUERY, PASSAGES, task="rank")
    ]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "nobody"}, 404, "model: 'nobody' is not"),
        ({"model": "mood"}, 400, "model: mood ranks nothing; use another route, or a run tuned with rerank"),
        ({"model": "both"}, 400, "model: both ranks nothing"),
        ({"query": ""}, 400, "query: "),
        ({"query": " \n"}, 400, "query: empty; send a text"),
        ({"query": ["a"]}, 400, "query: "),
        ({"documents": []}, 400, "documents: expected 1 to 1024 documents, got 0"),
        ({"documents": ["a"] * 1025}, 400, "documents: expected 1 to 1024 documents, got 1025; send several requests"),
        ({"documents": "a"}, 400, "documents: "),
        ({"documents": ["a", " "]}, 400, "document 2 is not a text, or empty"),
        ({"documents": ["a", {"title": "b"}]}, 400, "document 2 is not a text, or empty"),
        ({"documents": ["a", {"text": 3}]}, 400, "document 2 is not a text"),
        ({"documents": ["a", None]}, 400, "document 2 is not a text"),
        ({"top_n": 0}, 400, "top_n: "),
        ({"top_n": "many"}, 400, "top_n: "),
        ({"max_tokens_per_doc": 4096}, 400, "max_tokens_per_doc: "),
        ({"rank_fields": ["title"]}, 400, "rank_fields"),
        ({"documents": ["x" * 600_000]}, 413, "524288"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(server: Served, body: dict[str, Any], status: int, said: str):
    answer = post(server, **body)
    message = answer.json()["error"]["message"]
    assert (answer.status_code, said in message) == (status, True), message
    assert "\n" not in message


def test_a_missing_or_repeated_key_is_refused(server: Served):
    for text in (
        '{"model": "rank", "query": "a"}',
        '{"model": "rank", "query": "a", "query": "b", "documents": ["c"]}',
        "[]",
    ):
        answer = httpx2.post(f"{server.url}/v1/rerank", content=text, headers={"content-type": "application/json"})
        assert answer.status_code == 400


def test_vectors_of_passages_are_asked_for_by_their_input_type(server: Served, runs: Path):
    model = load(runs / "find")
    vectors = {passage: model.embed(PASSAGES, passage=passage).tolist() for passage in (False, True)}
    assert vectors[False] != vectors[True]
    for kind in (None, "query", "search_query", "passage", "document", "search_document"):
        passage = kind is not None and "query" not in kind
        answer = post(server, "/v1/embeddings", model="find", input=PASSAGES, input_type=kind).json()
        for found, wanted in zip(answer["data"], vectors[passage], strict=True):
            assert found["embedding"] == pytest.approx(wanted, abs=1e-5)
        assert answer["usage"]["total_tokens"] == sum(len(model.tokens(text, passage=passage).ids) for text in PASSAGES)
    width = len(vectors[False][0])
    short = post(server, "/v1/embeddings", model="find", input=PASSAGES, dimensions=SIZE).json()
    for found, whole in zip(short["data"], vectors[False], strict=True):
        length = math.sqrt(sum(entry**2 for entry in whole[:SIZE]))
        assert found["embedding"] == pytest.approx([entry / length for entry in whole[:SIZE]], abs=1e-5)
    refused = post(server, "/v1/embeddings", model="find", input=PASSAGES, dimensions=SIZE + 1)
    assert f"dimensions: expected {SIZE} or {width} for find, got {SIZE + 1}" in json.dumps(refused.json())
    refused = post(server, "/v1/embeddings", model="find", input=PASSAGES, input_type="answer")
    assert (refused.status_code, "input_type: " in json.dumps(refused.json())) == (400, True)
