"""App shared by all annotation pages: one HTML page, static files and error handlers, without external resources."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tunesmith.annotation.vote_store import Unwritten

# Content types of the files in static/.
KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def make_app(page: str, *, refuses: type[Exception]) -> Any:
    """Create a FastAPI app that serves a page at / and its files at /static/NAME.

    FastAPI's documentation pages are disabled because they load scripts from a CDN.

    Args:
        page: name of the template in pages/.
        refuses: exception answered with status 422 and its text; Unwritten is answered with 503.
    """
    from fastapi import FastAPI, HTTPException
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    contents = static_files()
    templates = Environment(
        loader=PackageLoader("tunesmith.web", "templates"), autoescape=True, undefined=StrictUndefined
    )
    html = templates.get_template(f"{page}.html.jinja").render()

    def file(name: str) -> Any:
        if name not in contents:
            raise HTTPException(404, "no such file")
        return Response(contents[name], media_type=KINDS[name[name.rindex(".") :]])

    def front() -> Any:
        return Response(html, media_type="text/html")

    def error_handler(status: int) -> Any:
        return lambda _, error: JSONResponse({"detail": str(error)}, status_code=status)

    def invalid_request(_: Any, error: Exception) -> Any:
        details = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": str(error)}
        first: dict[str, Any] = dict(details)
        key = ".".join(map(str, first["loc"])) or "request"
        own = first.get("ctx", {}).get("error")  # raised by a validator of ours, with a complete message
        return JSONResponse({"detail": str(own or f"{key}: {first['msg']}")}, status_code=422)

    app.get("/")(front)
    app.get("/static/{name}")(file)
    app.exception_handler(refuses)(error_handler(422))
    app.exception_handler(Unwritten)(error_handler(503))
    app.exception_handler(RequestValidationError)(invalid_request)
    return app


def static_files() -> dict[str, bytes]:
    """Return the static files of all pages by name."""
    folder = files("tunesmith.web") / "static"
    paths = [*folder.iterdir(), *(folder / "vendor").iterdir(), files("tunesmith.report") / "templates" / "report.css"]
    return {path.name: path.read_bytes() for path in paths if Path(path.name).suffix in KINDS}
