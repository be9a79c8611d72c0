"""A request for an export: the format and the precision of the weights."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.errors import RecipeError
from tunesmith.inference.export.dtypes import DTYPES, SMALLEST

PROGRAMS = {
    "merged": "transformers",
    "adapter": "transformers and PEFT",
    "gguf": "llama.cpp",
    "compressed-tensors": "transformers and compressed-tensors",
}


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """The format of an export, one of DTYPES, and the precision of the weights."""

    kind: str
    dtype: str  # of the weights, or `smallest`
    margin: float = 1.0  # of `smallest`, in points
    verify: bool = True  # ask the export the challenge of the run

    @classmethod
    def of(
        cls,
        kind: str = "",
        dtype: str = "",
        *,
        smallest: bool = False,
        margin: float | None = None,
        verify: bool = True,
    ) -> ExportRequest:
        """Return the request for a format, merged by default, and its dtype, the first by default.

        Raises:
            RecipeError: the options exclude each other, or the format has no such dtype.
        """
        if smallest:
            if dtype or kind not in ("", "gguf"):
                given = f"--dtype {dtype}" if dtype else f"--format {kind}"
                raise RecipeError(f"--smallest: writes a gguf file and chooses its types; omit {given}")
            return cls.smallest(1.0 if margin is None else margin, verify=verify)
        if margin is not None:
            raise RecipeError("--margin: only valid with --smallest; add it, or omit --margin")
        kind = kind or "merged"
        if dtype and dtype not in DTYPES[kind]:
            supported = " or ".join(DTYPES[kind])
            raise RecipeError(f"--dtype {dtype}: not supported by {kind}; use {supported}, or omit it")
        return cls(kind, dtype or DTYPES[kind][0], verify=verify)

    @classmethod
    def smallest(cls, margin: float = 1.0, *, verify: bool = True) -> ExportRequest:
        """Return the request for the smallest GGUF file not worse by a margin in points. Raises RecipeError."""
        if not 0 < margin < 100:
            raise RecipeError(f"--margin {margin:g}: expected points of the metric above 0 and below 100; use 1")
        return cls("gguf", SMALLEST, margin, verify)

    @property
    def name(self) -> str:
        """Return the name used in tables and folder names."""
        return self.kind if self.dtype == "f32" else f"{self.kind} {self.dtype}"
