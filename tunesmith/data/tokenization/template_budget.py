"""Chat templates with bounded time and memory: a template is a program from the files of a model.

Jinja's sandbox keeps a template from reading or running anything else, not from computing without end. Here what a
template builds and keeps is measured, and it is stopped when that is far larger than the chat, or takes long.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache, wraps
from itertools import islice
from types import BuiltinFunctionType
from typing import Any

from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from tunesmith.errors import TemplateError

# CPU seconds of one rendering, thousands of times of what a chat takes.
MOST_SECONDS = 3.0
# Characters of one value, in excess of 64 times the chat; and of all values of a rendering, as a multiple of that.
MOST_CHARS = 2**19
MOST_VALUES = 32
MOST_PARTS = 100  # of one concatenation
# Filters and methods whose result may be far larger than what they are given, and those that no chat template needs.
GROWING = {"batch", "center", "expandtabs", "format", "format_map", "indent", "join", "ljust", "replace", "rjust"}
GROWING |= {"round", "slice", "tojson", "zfill"}
WITHOUT = {"encode", "filesizeformat", "pprint", "striptags", "to_bytes", "translate", "urlize", "wordwrap", "xmlattr"}
NAMESPACE = "_Namespace__attrs"  # attribute of Jinja's namespaces with their values
BUILDING = (nodes.Add, nodes.Concat, nodes.Dict, nodes.List, nodes.Mod, nodes.Mul, nodes.Pow, nodes.Tuple)


class _Budget(threading.local):
    """Remaining budget of the rendering in this thread."""

    most = chars = until = 0.0


_left = _Budget()


def render(source: str, variables: Mapping[str, Any]) -> str:
    """Render a chat template.

    Args:
        source: the template.
        variables: what it reads, all of JSON types.

    Raises:
        TemplateError: it takes too much time or memory.
        Exception: whatever the template itself raises.
    """
    template = _compiled(source)
    _left.most = float("inf")
    _left.most = MOST_CHARS + 64 * _size(variables)
    _left.chars = MOST_VALUES * _left.most
    _left.until = time.thread_time() + MOST_SECONDS
    return str(template.render(variables))


@lru_cache(maxsize=64)
def _compiled(source: str) -> Any:
    from transformers.utils import chat_template_utils

    # That of an empty template: compiling computes constants, which may be without end.
    environment = chat_template_utils._compile_jinja_template("").environment.overlay()
    environment.__class__ = _Bounded
    environment.concat = _concat
    environment.globals = {name: value for name, value in environment.globals.items() if name != "lipsum"}
    filters = {name: _measured(name, filter) for name, filter in environment.filters.items() if name not in WITHOUT}
    environment.filters = filters | {"_kept": _kept, "_each": _each}
    return environment.from_string(source)


class _Measured(NodeTransformer):
    """Sends all values that a template builds through `_kept`, and those that it iterates over through `_each`."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        super().generic_visit(node, *args, **kwargs)
        if isinstance(node, nodes.Concat) and len(node.nodes) > MOST_PARTS:
            raise _too_much()
        if isinstance(node, nodes.For):
            node.iter = nodes.Filter(node.iter, "_each", [], [], None, None, lineno=node.lineno)
        built = isinstance(node, BUILDING) and getattr(node, "ctx", "load") == "load"  # a tuple may be a target
        built |= isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        return nodes.Filter(node, "_kept", [], [], None, None, lineno=node.lineno) if built else node


class _Bounded(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%"})

    def _parse(self, *args: Any) -> nodes.Template:
        tree: nodes.Template = _Measured().visit(super()._parse(*args))
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator != "%" or isinstance(left, str):
            _admitted(operator, (right, left) if operator == "*" and isinstance(left, int) else (left, right), {})
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        _check_time()
        inner = getattr(obj, "__wrapped__", obj)  # the sandbox wraps `str.format`
        if isinstance(inner, BuiltinFunctionType) and inner.__name__ in WITHOUT:
            raise _too_much()
        if isinstance(inner, BuiltinFunctionType) and inner.__name__ in GROWING:
            args = _admitted(inner.__name__, (inner.__self__, *args), kwargs)[1:]
        return _kept(super().call(context, obj, *args, **kwargs))


def _measured(name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter whose result is measured, and bounded before if it may grow."""
    own = int(hasattr(filter, "jinja_pass_arg"))  # Jinja's argument before the value

    @wraps(filter)
    def measured(*args: Any, **kwargs: Any) -> Any:
        rest = _admitted(name, args[own:], kwargs) if name in GROWING else args[own:]
        return _kept(filter(*args[:own], *rest, **kwargs))

    return measured


def _admitted(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the arguments, lists in place of iterators; raise TemplateError if the result may be too large."""
    args = tuple(list(arg) if isinstance(arg, Iterator) else arg for arg in args)
    first, *others = (*args, *kwargs.values())
    size = 1 + _size(first)
    if isinstance(first, str) and name in ("format", "format_map", "%"):
        if re.search(r"%[^%a-zA-Z]*\*|:[^}]*\{", first):  # a width among the values
            raise _too_much()
        bound = size + sum(map(int, re.findall(r"\d+", first))) + sum(map(first.count, "%{")) * _size(others)
    else:
        grown = others[1:] if name == "replace" else others
        bound = size * (1 + max((abs(it) if isinstance(it, int) else _size(it) for it in grown), default=0))
    if bound > _left.most:
        raise _too_much()
    return args


def _size(value: Any) -> int:
    """Return the characters and items of a value, written out; raise TemplateError if it is too large."""
    size, stack, most = 0, [value], _left.most
    while stack:
        inner = stack.pop()
        size += 1
        if isinstance(inner, str):
            size += len(inner)
        elif inner is None or inner is True or inner is False:
            pass
        elif isinstance(inner, int):
            size += inner.bit_length() // 3
        elif isinstance(inner, Mapping):
            stack += (*inner, *inner.values())
        elif isinstance(inner, Collection):
            stack += inner
        elif hasattr(inner, NAMESPACE):
            stack.append(getattr(inner, NAMESPACE))
        if size > most:
            raise _too_much()
    return size


def _check_time() -> None:
    if time.thread_time() > _left.until:
        raise _too_much()


def _too_much() -> TemplateError:
    problem = f"takes more than {MOST_SECONDS:.0f} s, or memory for far more than the chat"
    return TemplateError(f"chat template: {problem}; do not use this model, or replace its template")


def _kept(value: Any) -> Any:
    """Return a value after measuring it."""
    _left.chars -= _size(value)
    if _left.chars < 0:
        raise _too_much()
    return value


def _each(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the items of a loop while there is time."""
    for value in values:
        _check_time()
        yield value


def _concat(parts: Iterable[str]) -> str:
    """Join what a template or a part of it writes."""
    texts: list[str] = []
    rest = iter(parts)
    while some := list(islice(rest, 1000)):
        texts.append(_kept("".join(some)))
    return "".join(texts)
