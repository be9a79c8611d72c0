"""The app of the page: its screens, their templates and static files, and how errors are shown."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from tunesmith.data.files import storage_error
from tunesmith.errors import TunesmithError
from tunesmith.web.pages.app import KINDS, static_files
from tunesmith.web.security import RequestPolicy
from tunesmith.web.studio.data import Data
from tunesmith.web.studio.data_file import DataFile
from tunesmith.web.studio.decide import Decide
from tunesmith.web.studio.job_pages import JobPages
from tunesmith.web.studio.people import People
from tunesmith.web.studio.playground import Playground
from tunesmith.web.studio.runs import Runs
from tunesmith.web.studio.screen import Studio
from tunesmith.web.studio.ship import Ship
from tunesmith.web.studio.tune import Tune
from tunesmith.web.studio.workspace import WorkspaceError

CHUNK_BYTES = 4 * 2**20  # of an uploaded file in one request
FORM = "application/x-www-form-urlencoded"
BYTES = "application/octet-stream"
POLICY = RequestPolicy(most_bytes=CHUNK_BYTES + 1024, content_types=("application/json", FORM, BYTES))


def make_studio(folder: Path, *, offline: bool = False) -> Any:
    """Create the FastAPI app of a working folder.

    Args:
        folder: holds data files, recipes and runs; commands run in it.
        offline: commands get `--offline`.
    """
    from fastapi import FastAPI, HTTPException
    from fastapi.responses import HTMLResponse, Response

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    studio = Studio(folder, offline=offline)
    contents = static_files()

    def static(name: str) -> Any:
        if name not in contents:
            raise HTTPException(404, "no such file")
        return Response(contents[name], media_type=KINDS[name[name.rindex(".") :]])

    def shown(request: Any, error: Exception) -> Any:
        """Show an error in the place for messages, or as a page where a whole page was asked for."""
        error = storage_error(error) or error
        message, status = str(getattr(error, "detail", error)), getattr(error, "status_code", 422)
        if not hasattr(error, "status_code") and not isinstance(error, (TunesmithError, OSError)):  # a bug
            message, status = f"{type(error).__name__}: {message}; the log of the server shows where it happened", 500
        if "hx-request" not in request.headers:
            page = studio.render("error", message=message, here="")
            page.status_code = status
            return page
        part = studio.render("problem", message=message)
        return HTMLResponse(part.body, status, {"HX-Retarget": "#problem", "HX-Reswap": "innerHTML"})

    app.get("/static/{name}")(static)
    for kind in (TunesmithError, OSError, 404, 405, 422, Exception):
        app.exception_handler(kind)(shown)
    for screen in (Data, DataFile, Decide, Tune, Runs, Playground, People, Ship, JobPages):
        for method, path, handler in screen(studio).routes():
            app.add_route(path, _called_with(handler), methods=[method])
    return app


def _called_with(handler: Callable[..., Any]) -> Callable[[Any], Awaitable[Any]]:
    """Return the endpoint of a handler: `fields` is the posted form, other parameters are of the path or the query.

    FastAPI's own injection needs its classes in annotations, and these modules are imported without it.
    """
    from fastapi import HTTPException

    parameters = inspect.signature(handler).parameters

    async def endpoint(request: Any) -> Any:
        values: dict[str, Any] = {}
        sent = {**request.query_params, **request.path_params}
        for name, parameter in parameters.items():
            if name == "request":
                values[name] = request
            elif name == "fields":
                values[name] = Fields(
                    parse_qsl((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)
                )
            elif name in sent:
                number = isinstance(parameter.default, int)
                if number and not sent[name].isdecimal():
                    raise HTTPException(422, f"{name}: expected a number, got {sent[name][:40]!r}")
                values[name] = int(sent[name]) if number else sent[name]
            elif parameter.default is parameter.empty:
                raise HTTPException(422, f"{name}: missing in the address")
        if inspect.iscoroutinefunction(handler):
            return await handler(**values)
        return await asyncio.to_thread(handler, **values)

    return endpoint


class Fields(dict[str, str]):
    """A posted form. A missing field raises WorkspaceError, since only a program leaves one out."""

    def __missing__(self, name: str) -> str:
        raise WorkspaceError(f"{name}: missing in the form")
