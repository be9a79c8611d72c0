"""What every page shares: an app with the look of the report, its own files and nothing else."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tunesmith.feedback.store import Unwritten

# File in static/ -> what the browser is to take it for. The report's own sheet stands first: one look, one source.
KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def make_app(page: str, *, refuses: type[Exception]) -> Any:
    """A FastAPI app that answers / with the page of that name in pages/, and /static/NAME with its files.

    What is raised as `refuses` is a bad request (422) with its text; Unwritten is one to try again (503). There are no
    documentation pages, which load from elsewhere.
    """
    from fastapi import FastAPI, HTTPException
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    contents = {path.name: path.read_bytes() for path in (files("tunesmith.web") / "static").iterdir()}
    contents["report.css"] = (files("tunesmith.report") / "report.css").read_bytes()
    templates = Environment(loader=PackageLoader("tunesmith.web", "pages"), autoescape=True, undefined=StrictUndefined)
    html = templates.get_template(f"{page}.html.jinja").render()

    def file(name: str) -> Any:
        if name not in contents:
            raise HTTPException(404, "no such file")
        return Response(contents[name], media_type=KINDS[name[name.rindex(".") :]])

    def front() -> Any:
        return Response(html, media_type="text/html")

    def telling(status: int) -> Any:
        return lambda _, error: JSONResponse({"detail": str(error)}, status_code=status)

    def malformed(_: Any, error: Exception) -> Any:
        told = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": str(error)}
        first: dict[str, Any] = dict(told)
        place = ".".join(map(str, first["loc"])) or "request"
        own = first.get("ctx", {}).get("error")  # what a check of ours said, in its own words
        return JSONResponse({"detail": str(own or f"{place}: {first['msg']}")}, status_code=422)

    app.get("/")(front)
    app.get("/static/{name}")(file)
    app.exception_handler(refuses)(telling(422))
    app.exception_handler(Unwritten)(telling(503))
    app.exception_handler(RequestValidationError)(malformed)
    return app
