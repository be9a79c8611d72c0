"""Typed examples, and the parsers that build them from rows."""

from tunesmith.data.examples.parsers import labelled
from tunesmith.data.examples.types import Chat, Example, LabelledText, Pair, Text, UnpairedPreference
from tunesmith.data.tokenization.messages import Message

__all__ = ["Chat", "Example", "LabelledText", "Message", "Pair", "Text", "UnpairedPreference", "labelled"]
