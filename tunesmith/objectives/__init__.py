"""Axis A: what is learned. The visible list."""

from tunesmith.objectives.classify import Classify
from tunesmith.objectives.instruct import Instruct

OBJECTIVES = (Classify, Instruct)

__all__ = ["OBJECTIVES", "Classify", "Instruct"]
