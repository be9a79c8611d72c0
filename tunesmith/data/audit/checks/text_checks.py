"""Checks of a text's words: language, tokens of chat formats, refusals, sentences shared by many rows."""

from __future__ import annotations

import re
from collections.abc import Sequence

# The most common function words of each language; a word may belong to several.
COMMON = {
    "en": """
        the of and to in is that it for was with as his on be at by this had not are but from or have an they
        which you were all she there would their we him been has when who will no more if out so what up its
        about than into them can only other time new some could these two may first then do any my now such like
        our over me even most made after also did many off before must well back through much good where our your
    """,
    "de": """
        der die das und ist nicht ein eine zu den mit sich des auf für von im dem es auch als an er aus bei nach
        wird sie sind oder wie werden zum zur haben kann über einen einer eines durch wenn nur aber noch hat
        dieses diese vor
    """,
    "fr": """
        le la les des et est une un du que qui dans pour pas sur plus par avec il ce ne se sont au aux cette ou
        mais nous vous elle leur être été ces comme sans fait tout son sa ses peut avoir
    """,
    "es": """
        el la los las de que y en un una es por con para no se del al lo como más pero sus su este esta ha sin
        sobre también fue muy entre cuando hay desde son ser todo está nos
    """,
    "it": """
        il la di che e è un una per non con del della dei le si da in sono come anche più ma alla nel gli lo
        questo questa al delle ha dal essere dalla ed se sul nella
    """,
    "pt": """
        o a os as de que e em um uma é por com para não se do da dos das no na ao mais como mas foi ele sua seu
        ou ser quando muito há nos já está eu também só pelo pela até isso
    """,
    "nl": """
        de het een en van is dat niet op te zijn met voor in die aan er om als maar ook bij naar wordt uit dan
        door hij nog over deze dit heeft hebben kan worden wat meer geen
    """,
    "pl": """
        i w na z się nie do to jest że o jak po co od za ale przez oraz dla lub czy tak tylko może być jego są
        był która które który
    """,
    "sv": """
        och att det som en på är av för med den till inte har de ett om han var jag men kan från vid så eller när
        sig också efter
    """,
    "tr": """
        ve bir bu için ile de da olarak çok en daha olan gibi kadar değil ama var sonra her ne o ya mi
    """,
}
LANGUAGES = ("", *COMMON, "cyrillic", "greek", "arabic", "hebrew", "chinese", "japanese", "korean", "thai", "hindi")
_SPEAKS: dict[str, list[str]] = {}
for _language, _words in COMMON.items():
    for _word in set(_words.split()):
        _SPEAKS.setdefault(_word, []).append(_language)
SCRIPTS = (
    ("japanese", re.compile("[぀-ヿ]")),
    ("korean", re.compile("[가-힯]")),
    ("chinese", re.compile("[一-鿿]")),
    ("cyrillic", re.compile("[Ѐ-ӿ]")),
    ("greek", re.compile("[Ͱ-Ͽ]")),
    ("arabic", re.compile("[؀-ۿ]")),
    ("hebrew", re.compile("[֐-׿]")),
    ("thai", re.compile("[฀-๿]")),
    ("hindi", re.compile("[ऀ-ॿ]")),
)
LEAST_HITS = 4  # function words needed
LOOKED_AT = 200  # words

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


def language(text: str, words: Sequence[str]) -> int:
    """Return the index in LANGUAGES of the text's language; 0 if it is unclear."""
    if not text.isascii():
        size = sum(map(len, words)) or 1
        for name, letters in SCRIPTS:
            if len(letters.findall(text)) > 0.3 * size:
                return LANGUAGES.index(name)
    hits: dict[str, int] = {}
    for word in set(words[:LOOKED_AT]):
        for name in _SPEAKS.get(word, ()):
            hits[name] = hits.get(name, 0) + 1
    if not hits:
        return 0
    best, second = (sorted(hits.items(), key=lambda item: -item[1]) + [("", 0)])[:2]
    certain = best[1] >= LEAST_HITS and best[1] >= 2 * second[1] and best[1] >= 0.05 * min(len(words), LOOKED_AT)
    return LANGUAGES.index(best[0]) if certain else 0


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
