"""The app of the page: its screens, their templates and static files, and how errors are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from tunesmith.errors import TunesmithError
from tunesmith.web.pages.app import KINDS, static_files
from tunesmith.web.security import RequestPolicy
from tunesmith.web.studio.data import Data
from tunesmith.web.studio.decide import Decide
from tunesmith.web.studio.job_pages import JobPages
from tunesmith.web.studio.people import People
from tunesmith.web.studio.playground import Playground
from tunesmith.web.studio.runs import Runs
from tunesmith.web.studio.screen import Studio
from tunesmith.web.studio.ship import Ship
from tunesmith.web.studio.tune import Tune

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
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    studio = Studio(folder, offline=offline)
    contents = static_files()

    def static(name: str) -> Any:
        if name not in contents:
            raise HTTPException(404, "no such file")
        return Response(contents[name], media_type=KINDS[name[name.rindex(".") :]])

    def shown(request: Request, error: Exception) -> Any:
        """Show an error in the place for messages, or as a page where a whole page was asked for."""
        message, status = str(error), 422
        if isinstance(error, RequestValidationError):  # of a request that no form of ours sends
            message = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        elif isinstance(error, StarletteHTTPException):
            message, status = str(error.detail), error.status_code
        if "hx-request" not in request.headers:
            page = studio.render("error", message=message, here="")
            page.status_code = status
            return page
        part = studio.render("problem", message=message)
        return HTMLResponse(part.body, status, {"HX-Retarget": "#problem", "HX-Reswap": "innerHTML"})

    app.get("/static/{name}")(static)
    for kind in (TunesmithError, RequestValidationError, StarletteHTTPException):
        app.exception_handler(kind)(shown)
    for screen in (Data, Decide, Tune, Runs, Playground, People, Ship, JobPages):
        for method, path, handler in screen(studio).routes():
            app.add_api_route(path, handler, methods=[method], response_model=None)
    return app
