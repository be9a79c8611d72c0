"""Screen "Playground": models side by side, answered by `tunesmith serve`, an arm or a server; thumbs become rows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

from tunesmith.data.documents.document import one_line
from tunesmith.inference.openai_client import Endpoint, check, is_local
from tunesmith.objectives import OBJECTIVES, objective_class
from tunesmith.report.predictions import read_predictions
from tunesmith.web.studio.jobs import STOP, Job
from tunesmith.web.studio.screen import Route, Screen, Studio, redirect
from tunesmith.web.studio.workspace import WorkspaceError

SUBJECT = "playground"
SECONDS = 120.0  # for an answer to begin
POLL = 0.2  # seconds between two looks at a command that answers
EXAMPLES = 40  # test rows that the page offers
MOST_MODELS = 4  # of a server, side by side
# Routes of a server that the page may reach.
CHAT = "v1/chat/completions"
ROUTES = (*{each.route for each in OBJECTIVES if each.route}, "feedback")
ARM = "comparison:"  # begins the fields of comparisons
NOTHING: Mapping[str, Any] = {}
Column = dict[str, Any]  # what the page has to know of a model


class Playground(Screen):
    """The screen."""

    def __init__(self, studio: Studio) -> None:
        super().__init__(studio)
        self._others: list[Column] = []  # comparisons, and models of a server
        self._server = Endpoint("")  # in memory only, since it has a key

    def routes(self) -> Sequence[Route]:
        """Return the routes."""
        return (
            ("GET", "/playground", self._screen),
            ("GET", "/playground/status", self._status),
            ("POST", "/playground/start", self._start),
            ("POST", "/playground/stop", self._stop),
            ("POST", "/playground/arm", self._arm),
            ("POST", "/playground/api/{route:path}", self._forward),
        )

    def _screen(self, run: str = "") -> Any:
        job = self._serving()
        server = _server_of(job)
        loading = job is not None and job.is_active and server is None
        columns = [] if loading else [*(columns_of(server, at="") if server else []), *self._others]
        comparisons = self.workspace.folder.glob("comparisons/*/comparison.json")
        values: dict[str, Any] = {"chosen": run, "job": job, "loading": loading, "columns": columns}
        values |= {"runs": self.studio.finished_runs(), "comparisons": sorted(path.parent.name for path in comparisons)}
        return self.studio.render("playground", here="playground", examples=self._examples(columns), **values)

    def _examples(self, columns: Sequence[Column]) -> list[dict[str, str]]:
        """Return test rows of the first run, without its instruction, which the page adds."""
        if not columns or columns[0]["at"]:
            return []
        rows = read_predictions(self.workspace.runs / columns[0]["model"].partition("/")[0])[:EXAMPLES]
        lead = f"{columns[0]['instruction']}\n\n"
        return [{"text": row.question.removeprefix(lead), "reference": row.gold} for row in rows]

    def _start(self, fields: dict[str, str]) -> Any:
        chosen = [name for name in fields if fields[name] == "on"]
        models = [f"runs/{self.workspace.run(name).name}" for name in chosen if not name.startswith(ARM)]
        arms = [self.workspace.new_name(name.removeprefix(ARM)) for name in chosen if name.startswith(ARM)]
        others = [_column(self.workspace.path(f"comparisons/{name}").name, at=ARM) for name in arms]
        server = Endpoint(fields.get("server", "").strip(), fields.get("model", "").strip(), fields.get("key", ""))
        if server.url:
            others += self._models_of(server)
        if not models and not others:
            raise WorkspaceError("playground: no model is chosen; tick one or two, or give the address of a server")
        self._stop()
        self._others, self._server = others, server
        if models:
            self.studio.start("serve", *models, "--port", "0", subject=SUBJECT, queued=False)
        return redirect("/playground")

    def _models_of(self, server: Endpoint) -> list[Column]:
        """Return the columns of a server, which is on this machine or has a key."""
        check(server, offline=self.studio.offline)
        if not is_local(server.url) and not server.key:
            raise WorkspaceError(f"{server.url}: not on this machine; give its key as well")
        listed = columns_of(server, at=server.url)
        if server.model:
            return [one for one in listed if one["model"] == server.model] or [_column(server.model, at=server.url)]
        if not 1 <= len(listed) <= MOST_MODELS:
            raise WorkspaceError(
                f"{server.url}: lists {len(listed)} models; name one, or check the address and the key"
            )
        return listed

    def _stop(self) -> Any:
        for job in self.jobs.active():
            if job.command.subject == SUBJECT:
                job.stop()
        self._others, self._server = [], Endpoint("")
        return redirect("/playground")

    def _serving(self) -> Job | None:
        """Return the last command that serves runs; None once it was asked to stop."""
        job = self.jobs.about(SUBJECT, "serve")
        return None if job is None or (job.folder / STOP).exists() else job

    def _status(self) -> Any:
        job = self._serving()
        if job is not None and job.is_active and _server_of(job) is None:
            return self.studio.render("playground_status", job=job)
        return redirect("/playground")

    async def _arm(self, fields: dict[str, str], request: Any) -> Any:
        """Answer by the recommended arm of a comparison, with the passages behind the answer."""
        from fastapi.responses import JSONResponse

        text = fields["text"]
        words = ["ask", f"comparisons/{self.workspace.new_name(fields['model'])}"]
        words += [f" {text}" if text.startswith("-") else text]  # else an option
        job = await asyncio.to_thread(partial(self.studio.start, *words, subject=SUBJECT, queued=False))
        while await asyncio.to_thread(lambda: job.is_active):
            if await request.is_disconnected():  # "Stop writing", or a closed page
                job.stop()
            await asyncio.sleep(POLL)
        answer = job.output() or {"error": {"message": job.log()[-400:] or job.state().name}}
        await asyncio.to_thread(self.jobs.delete, job.name)  # the page has the answer; jobs are for commands
        return JSONResponse(answer)

    async def _forward(self, route: str, request: Any, at: str = "") -> Any:
        """Pass a request on to a server, and its answer back as it comes."""
        from fastapi.responses import StreamingResponse

        if route not in ROUTES:
            raise WorkspaceError(f"{route}: not a route of the playground")
        local = await asyncio.to_thread(lambda: _server_of(self._serving()))
        server = self._server if at else local
        if server is None or server.url != (at or server.url):
            raise WorkspaceError("playground: no model is loaded; choose models and load them")
        return StreamingResponse(_answer(server, route, await request.body()), media_type="text/event-stream")


def _server_of(job: Job | None) -> Endpoint | None:
    """Return the server of the runs; None if it does not run, or is still loading them."""
    served = job.output() if job is not None and job.is_active else None
    return Endpoint(served["url"]) if isinstance(served, dict) and "url" in served else None


def columns_of(server: Endpoint, *, at: str) -> list[Column]:
    """Return the models that a server lists, as columns; none if it does not answer.

    Args:
        server: its address and key.
        at: its address in requests of the page; empty for the server of the runs.
    """
    import httpx2

    try:
        with httpx2.Client(timeout=SECONDS, trust_env=False, headers=_headers(server)) as client:
            cards = client.get(f"{server.url.rstrip('/')}/models").json()["data"]
        cards = [card for card in cards if card.get("objective") != "multitask"]  # its tasks are listed
        instruction = next((card["instruction"] for card in cards if "instruction" in card), "")
        return [_column(card["id"], at=at, card={"instruction": instruction, **card}) for card in cards]
    except (httpx2.HTTPError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _column(model: str, *, at: str, card: Mapping[str, Any] = NOTHING) -> Column:
    """Return a column; `card` is what our own server lists of a model, and its base is asked as its runs are."""
    own = card.get("owned_by") == "tunesmith"
    what = card.get("objective", "")
    column = {"model": str(model), "at": at, "what": what, "instruction": card.get("instruction", "")}
    kind = "arm" if at == ARM else objective_class(what).route or CHAT
    return {**column, "kind": kind, "thinks": not own or "thinking" in card, "rated": own}


def _headers(server: Endpoint) -> dict[str, str]:
    return {"content-type": "application/json"} | ({"authorization": f"Bearer {server.key}"} if server.key else {})


async def _answer(server: Endpoint, route: str, body: bytes) -> AsyncIterator[bytes]:
    """Yield the parts of an answer as they come, or an error as OpenAI's servers write it."""
    import httpx2

    base = server.url.rstrip("/")
    address = f"{base}{route[2:]}" if route.startswith("v1/") else f"{base.removesuffix('/v1')}/{route}"
    try:
        async with (
            httpx2.AsyncClient(timeout=SECONDS, trust_env=False) as client,
            client.stream("POST", address, content=body, headers=_headers(server)) as reply,
        ):
            if reply.status_code >= 400:
                yield _refusal(reply.status_code, (await reply.aread()).decode("utf-8", "replace"))
                return
            async for part in reply.aiter_bytes():
                yield part
    except httpx2.HTTPError as error:
        yield _error(f"the server of the models does not answer ({error or type(error).__name__}); load them again")


def _refusal(status: int, text: str) -> bytes:
    """Return the error in a response of a server, which may be JSON on several lines, or a page."""
    try:
        document = json.loads(text)
        error = document.get("error", document)
        message = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, AttributeError):
        message = one_line(text)[:300]
    return _error(str(message or f"the server of the models rejected the request ({status})"))


def _error(message: str) -> bytes:
    return json.dumps({"error": {"message": message}}).encode()
