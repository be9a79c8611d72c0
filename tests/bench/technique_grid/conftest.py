"""The tiny world of the other tests that run whole stories."""

from tests.pipelines.conftest import small_world

__all__ = ["small_world"]
