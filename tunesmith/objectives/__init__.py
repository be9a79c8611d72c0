"""Axis A: what is learned. The visible list."""

from tunesmith.objectives.classify import Classify
from tunesmith.objectives.domain import Domain
from tunesmith.objectives.instruct import Instruct

OBJECTIVES = (Classify, Domain, Instruct)

__all__ = ["OBJECTIVES", "Classify", "Domain", "Instruct"]
