"""Chat templates with bounded time and memory: a template is a program from the files of a model.

Jinja's sandbox keeps a template from reading or running anything else, not from computing without end. Here what a
template builds and keeps is measured, and it is stopped when that is far larger than the chat, or takes long.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import Any

from jinja2 import nodes
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from tunesmith.errors import OverBudgetError

# CPU seconds of one rendering, thousands of times of what a chat takes; and those for each of its characters, because
# some templates look at all messages in every turn; and at most.
LEAST_SECONDS = 3.0
SECONDS_PER_CHAR = 1e-4
MOST_SECONDS = 30.0
# Characters of one value, in excess of 64 times the chat; and of all values of a rendering, as a multiple of that.
MOST_CHARS = 2**19
MOST_VALUES = 32
MOST_PARTS = 100  # of one concatenation
MOST_FORMAT = 200  # characters of a date's format: the C library takes memory for 256 times of it
# Filters and methods whose result may be far larger than what they are given, and those that no chat template needs.
GROWING = {"batch", "center", "expandtabs", "format", "format_map", "indent", "join", "ljust", "replace", "rjust"}
GROWING |= {"round", "slice", "tojson", "zfill"}
WITHOUT = {"encode", "filesizeformat", "pprint", "striptags", "to_bytes", "translate", "urlize", "wordwrap", "xmlattr"}
NAMESPACE = "_Namespace__attrs"  # attribute of Jinja's namespaces with their values
BUILDING = (nodes.Add, nodes.Concat, nodes.Dict, nodes.List, nodes.Mod, nodes.Mul, nodes.Pow, nodes.Tuple)


class _Budget(threading.local):
    """Remaining budget of the rendering in this thread."""

    most = chars = until = due = 0.0
    probes: Probes | None = None
    seconds = LEAST_SECONDS
    known: Mapping[int, int] = {}  # what the variables contain: id and size, written out


_left = _Budget()


class Probes:
    """The CPU seconds of all renderings together that find out how one template writes."""

    def __init__(self) -> None:
        self.seconds = LEAST_SECONDS

    @contextmanager
    def spend(self) -> Iterator[None]:
        """Let the renderings in the context share what is left; those of a context inside of it, too."""
        outer, _left.probes = _left.probes, self
        try:
            yield
        finally:
            _left.probes = outer


def render(source: str, variables: Mapping[str, Any]) -> str:
    """Render a chat template.

    Args:
        source: the template.
        variables: what it reads, all of JSON types.

    Raises:
        OverBudgetError: it takes too much time or memory.
        Exception: whatever the template itself raises.
    """
    template = _compiled(source)
    known = _sizes(variables)
    size = known[id(variables)]
    _left.most = MOST_CHARS + 64 * size
    _left.chars = MOST_VALUES * _left.most
    _left.seconds = min(LEAST_SECONDS + SECONDS_PER_CHAR * size, MOST_SECONDS)
    began, probes = time.thread_time(), _left.probes
    _left.until, _left.due = began + (probes.seconds if probes else _left.seconds), 0.0
    _left.known = known
    try:
        return str(template.render(variables))
    finally:
        if probes:
            probes.seconds -= time.thread_time() - began
        _left.known, _left.seconds = {}, LEAST_SECONDS  # ids are given again


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
    environment.tests = {name: _timed(test) for name, test in environment.tests.items()}
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
        name, owner = getattr(inner, "__name__", ""), getattr(inner, "__self__", None)
        if name == "strftime_now" and _size((args, kwargs)) > MOST_FORMAT:
            raise _too_much()
        if isinstance(owner, str | bytes | int):  # those of Markup are written in Python
            if name in WITHOUT:
                raise _too_much()
            if name in GROWING:
                args = _admitted(name, (owner, *args), kwargs)[1:]
        return _kept(super().call(context, obj, *args, **kwargs))


def _measured(name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter whose result is measured, and bounded before if it may grow.

    An iterator is run here, while there is time: whatever takes it later, like a sort in C, is not interrupted.
    """
    own = int(hasattr(filter, "jinja_pass_arg"))  # Jinja's argument before the value

    @wraps(filter)
    def measured(*args: Any, **kwargs: Any) -> Any:
        _check_time()
        rest = _admitted(name, args[own:], kwargs) if name in GROWING else args[own:]
        result = (_sum if name == "sum" else filter)(*args[:own], *rest, **kwargs)
        # Again an iterator: an empty one is true.
        return iter(_kept(list(_each(result)))) if isinstance(result, Iterator) else _kept(result)

    return measured


def _timed(test: Callable[..., bool]) -> Callable[..., bool]:
    @wraps(test)
    def timed(*args: Any, **kwargs: Any) -> bool:
        _check_time()
        return test(*args, **kwargs)

    return timed


def _sum(environment: Any, values: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    """Return the sum of values, like the filter of Jinja, measured after each."""
    read = make_attrgetter(environment, attribute)
    for value in _each(values):
        start = _kept(start + (value if attribute is None else read(value)))
    return start


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
    return _measure(value)[0]


def _measure(value: Any) -> tuple[int, int]:
    """Return the size of a value, written out, and of what it does not share with the variables."""
    size = new = 0
    stack, most, known = [value], _left.most, _left.known
    while stack:
        inner = stack.pop()
        if (whole := known.get(id(inner))) is not None:
            size += whole
            new += 1
        else:
            own = _own_size(inner)
            size += own
            new += own
            parts = _parts(inner)
            sizes = list(map(known.get, map(id, parts))) if known else [None]
            if None in sizes:
                stack += parts
            else:
                size += sum(filter(None, sizes))
                new += len(sizes)
        if size > most:
            raise _too_much()
    return size, new


def _sizes(value: Any) -> dict[int, int]:
    """Return the sizes of a value and of all texts, lists and mappings in it, by their ids."""
    sizes: dict[int, int] = {}
    stack = [value]
    while stack:
        inner = stack[-1]
        parts = _parts(inner)
        missing = [part for part in parts if isinstance(part, Collection) and id(part) not in sizes]
        if missing:
            stack += missing
        else:
            stack.pop()
            sizes[id(inner)] = _own_size(inner) + sum(sizes.get(id(it)) or _own_size(it) for it in parts)
    return sizes


def _own_size(value: Any) -> int:
    """Return the size of a value without its parts."""
    if isinstance(value, str):
        return 1 + len(value)
    return 1 + value.bit_length() // 3 if isinstance(value, int) and not isinstance(value, bool) else 1


def _parts(value: Any) -> Collection[Any]:
    if isinstance(value, str):
        return ()
    if isinstance(value, Mapping):
        return (*value, *value.values())
    if isinstance(value, Collection):
        return value
    return (getattr(value, NAMESPACE),) if hasattr(value, NAMESPACE) else ()


def _check_time() -> None:
    if time.perf_counter() < _left.due:  # no thread has more CPU seconds than have passed
        return
    rest = _left.until - time.thread_time()
    if rest < 0:
        raise _too_much()
    _left.due = time.perf_counter() + rest


def _too_much() -> OverBudgetError:
    problem = f"takes more than {_left.seconds:.0f} s, or memory for far more than the chat"
    return OverBudgetError(f"chat template: {problem}; do not use this model, or replace its template")


def _kept(value: Any) -> Any:
    """Return a value after measuring it."""
    _spend(_measure(value)[1])
    return value


def _spend(size: int) -> None:
    _left.chars -= size
    if _left.chars < 0:
        raise _too_much()


def _each(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the items of a loop while there is time."""
    for value in values:
        _check_time()
        yield value


def _concat(parts: Iterable[str]) -> str:
    """Join what a template or a part of it writes."""
    texts: list[str] = []
    for part in parts:
        _spend(1 + len(part))
        texts.append(part)
    return "".join(texts)
