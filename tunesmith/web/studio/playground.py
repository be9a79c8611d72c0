"""Screen "Playground": models side by side, answered by `tunesmith serve`, and thumbs that become rows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from tunesmith.web.studio.jobs import Job
from tunesmith.web.studio.screen import Route, Screen, redirect
from tunesmith.web.studio.workspace import WorkspaceError

SUBJECT = "playground"
SECONDS = 120.0  # for an answer to begin
# Routes of the server that the page may reach.
ROUTES = ("v1/chat/completions", "classify", "predict", "feedback")


class Playground(Screen):
    """The screen."""

    def routes(self) -> Sequence[Route]:
        """Return the routes."""
        return (
            ("GET", "/playground", self._screen),
            ("GET", "/playground/status", self._status),
            ("POST", "/playground/start", self._start),
            ("POST", "/playground/stop", self._stop),
            ("POST", "/playground/api/{route:path}", self._forward),
        )

    def _screen(self, run: str = "") -> Any:
        job = self.jobs.about(SUBJECT, "serve")
        runs = self.studio.finished_runs()
        values = {"chosen": run, "runs": runs, "job": job, "served": job.output() if job and job.is_active else None}
        return self.studio.render("playground", here="playground", **values)

    def _start(self, fields: dict[str, str]) -> Any:
        chosen = [name for name in fields if fields[name] == "on"]
        if not chosen:
            raise WorkspaceError("playground: no model is chosen; tick one or two runs")
        self._stop()
        models = [f"runs/{self.workspace.run(name).name}" for name in chosen]
        self.studio.start("serve", *models, "--port", "0", subject=SUBJECT, queued=False)
        return redirect("/playground")

    def _stop(self) -> Any:
        for job in self.jobs.active():
            if job.command.subject == SUBJECT:
                job.stop()
        return redirect("/playground")

    def _status(self) -> Any:
        job = self.jobs.about(SUBJECT, "serve")
        return self.studio.render("playground_status", job=job, served=job.output() if job and job.is_active else None)

    async def _forward(self, route: str, request: Any) -> Any:
        """Pass a request on to the server of the models, and its answer back as it comes."""
        from fastapi.responses import StreamingResponse

        if route not in ROUTES:
            raise WorkspaceError(f"{route}: not a route of the playground")
        address = _address(self.jobs.about(SUBJECT, "serve"))
        body = await request.body()
        return StreamingResponse(_answer(f"{address}{route}", body), media_type="text/event-stream")


def _address(job: Job | None) -> str:
    """Return the address of the server, without `v1`. Raises WorkspaceError if there is none yet."""
    served = job.output() if job is not None and job.is_active else None
    if not isinstance(served, dict) or "url" not in served:
        raise WorkspaceError("playground: no model is loaded; choose models and load them")
    return str(served["url"]).removesuffix("v1")


async def _answer(address: str, body: bytes) -> AsyncIterator[bytes]:
    import httpx

    headers = {"content-type": "application/json"}
    try:
        async with (
            httpx.AsyncClient(timeout=SECONDS, trust_env=False) as client,
            client.stream("POST", address, content=body, headers=headers) as reply,
        ):
            async for part in reply.aiter_bytes():
                yield part
    except httpx.HTTPError as error:
        message = f"the server of the models does not answer ({error or type(error).__name__}); load them again"
        yield json.dumps({"error": {"message": message}}).encode()
