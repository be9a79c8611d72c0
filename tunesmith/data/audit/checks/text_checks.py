"""Checks of a text's words: language, tokens of chat formats, refusals, sentences shared by many rows."""

from __future__ import annotations

import re

TOKENS = re.compile(
    r"<\|[\w:.-]{2,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk|mask|sep|cls)>"
    r"|<｜[^｜>]{2,40}｜>|^#{2,3} (?:Instruction|Response|Input|Assistant|Human|User|System):"
    r"|\[/?(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]",
    re.MULTILINE,
)
REFUSALS = re.compile(
    r"(?i)\bas an ai (?:language )?model\b|\bi(?:'|’)?m sorry,? but (?:as an ai|i (?:cannot|can't|am unable))"
    r"|\bmy knowledge cutoff\b|\bas of my last (?:update|training)\b|\bi do not have (?:personal|access to real-time)"
)
BREAK = re.compile(r"\n+|(?<=[.!?])\s+(?=[A-ZÀ-Þ<\[])")
SHORTEST = 25


def chat_tokens(text: str) -> str:
    """Return the first chat-format token in a text; empty if there is none."""
    if not any(
        mark in text for mark in ("<|", "<s>", "</s>", "[", "<<", "<s", "<e", "<b", "<p", "<u", "<m", "<c", "##", "<｜")
    ):
        return ""
    match = TOKENS.search(text)
    return match[0] if match else ""


def refusal(text: str) -> str:
    """Return the words with which a model mentions that it is a model; empty if there are none."""
    match = REFUSALS.search(text) if "AI" in text or "odel" in text or "knowledge" in text or "sorry" in text else None
    return match[0] if match else ""


def edges(text: str) -> tuple[str, str]:
    """Return the first and last sentence or line of a text with several; empty if shorter than 25 characters."""
    parts = [part.strip() for part in BREAK.split(text.strip()) if part.strip()]
    if len(parts) < 2:
        return "", ""
    first, last = parts[0], parts[-1]
    return (first if len(first) >= SHORTEST else ""), (last if len(last) >= SHORTEST else "")
