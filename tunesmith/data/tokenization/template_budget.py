"""Bounds of chat templates: a template is a program from the files of a model, and renders what its author wants."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tunesmith.data.cpu_count import peak_resident
from tunesmith.errors import TemplateError

# Of the probes of a template, chats of a few words: CPU seconds, and bytes by which the process may grow.
PROBE_SECONDS = 5.0
PROBE_BYTES = 256 * 2**20
# Digits of a number, and of a width in a format string, which has to be shorter. One operation on a larger one could
# take all memory, and no bound of time interrupts it.
MOST_DIGITS = 5
_WIDE = re.compile(rf"%[^%a-zA-Z]*\d{{{MOST_DIGITS}}}|\{{[^}}]*:[^}}]*\d{{{MOST_DIGITS}}}")
_FIX = "do not use this model, or replace its template"


def check_source(source: str) -> None:
    """Raise TemplateError if the text of a template has a power, a number of six digits, or a width of five."""
    from jinja2 import Environment, TemplateSyntaxError

    try:
        tokens = list(Environment().lex(source))
    except TemplateSyntaxError:
        return  # rendering reports it
    for line, kind, text in tokens:
        large = kind == "integer" and len(text.replace("_", "")) > MOST_DIGITS
        if large or (kind == "operator" and text == "**") or (kind == "string" and _WIDE.search(text)):
            raise TemplateError(f"chat template:{line}: {text[:40]!r} can take all memory; {_FIX}")


@contextmanager
def bounded() -> Iterator[None]:
    """Enter a context in which a template that renders for long, or takes much memory, raises TemplateError.

    Each line of a template is traced, which doubles its time: only its probes are rendered like this.
    """
    until = time.thread_time() + PROBE_SECONDS
    most = peak_resident() + PROBE_BYTES

    def on_line(frame: FrameType, event: str, value: Any) -> Any:
        if time.thread_time() > until or peak_resident() > most:
            raise TemplateError(f"chat template: takes more than {PROBE_SECONDS:.0f} s or 256 MB to render; {_FIX}")
        return on_line

    def on_call(frame: FrameType, event: str, value: Any) -> Any:
        return on_line if frame.f_code.co_filename == "<template>" else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(before)
