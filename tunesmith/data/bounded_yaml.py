"""YAML whose aliases cannot expand without end: nine lines of nine aliases each are a billion values."""

from __future__ import annotations

from itertools import chain
from typing import Any

import yaml

# Values of a file with all aliases written out, in excess of ten times those without.
MOST_VALUES = 100_000


class BoundedLoader(yaml.SafeLoader):
    """A SafeLoader that rejects a file whose aliases expand to far more values than it has."""

    def get_single_node(self) -> yaml.Node | None:
        """Compose the file. Raises ConstructorError if its aliases expand too far."""
        node: yaml.Node | None = super().get_single_node()
        sizes: dict[int, float] = {}
        if node is not None and _expanded(node, sizes) > MOST_VALUES + 10 * len(sizes):
            problem = f"its aliases expand to more than {MOST_VALUES} values"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return node


def parse_yaml(text: str) -> Any:
    """Parse a YAML file.

    Raises:
        yaml.YAMLError: it is invalid, or its aliases expand too far.
    """
    return yaml.load(text, BoundedLoader)  # a SafeLoader


def _expanded(node: yaml.Node, sizes: dict[int, float]) -> float:
    """Return the number of values of a node with all aliases written out; `sizes` has that of each node by its id."""
    if id(node) not in sizes:
        sizes[id(node)] = float("inf")  # an alias inside itself
        inner = chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
        children = inner if isinstance(node, yaml.CollectionNode) else ()
        sizes[id(node)] = 1 + sum(_expanded(child, sizes) for child in children)
    return sizes[id(node)]
