"""Examples in files instead of memory."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError

from tunesmith.data.examples.types import Chat, Example, LabelledText, RatedText, Text
from tunesmith.data.stored import Ragged, RaggedWriter, StoredSequence
from tunesmith.errors import DataError

NAME = "examples"
# Kinds of examples that can be stored; the objectives with pairs compare prompts over all rows, in memory.
ADAPTERS: dict[str, TypeAdapter[Any]] = {
    kind.__name__: TypeAdapter(kind) for kind in (Text, LabelledText, RatedText, Chat)
}
WRITTEN_AT_ONCE = 1000


class StoredExamples(StoredSequence[Example]):
    """Examples of one kind."""

    def _open(self) -> int:
        self._lines = Ragged(self.folder, NAME, "|u1")
        self._adapter = ADAPTERS[(self.folder / "kind").read_text(encoding="utf-8")]
        return len(self._lines)

    def _read(self, index: int) -> Example:
        example: Example = self._adapter.validate_json(self._lines[index].tobytes())
        return example

    @classmethod
    def write(cls, folder: Path, examples: Iterable[Example]) -> StoredExamples:
        """Write examples to a new folder and return them.

        Raises:
            DataError: a group is not valid text.
        """
        folder.mkdir(parents=True)
        rest = iter(examples)
        kind = Text.__name__
        with closing(RaggedWriter(folder, NAME, "|u1")) as writer:
            while part := list(islice(rest, WRITTEN_AT_ONCE)):
                kind = type(part[0]).__name__
                lines = [_as_json(example, ADAPTERS[kind]) for example in part]
                writer.append(np.frombuffer(b"".join(lines), np.uint8), list(map(len, lines)))
        (folder / "kind").write_text(kind, encoding="utf-8")
        return cls(folder)


def _as_json(example: Example, adapter: TypeAdapter[Any]) -> bytes:
    try:
        return adapter.dump_json(example, exclude_defaults=True)
    except PydanticSerializationError as error:  # the parsers check every other text
        raise DataError(f"{example.where}: the group is not valid text ({error}); correct it") from error
