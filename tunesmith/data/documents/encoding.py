"""Decode the bytes of documents whose encoding is not declared."""

from __future__ import annotations

import codecs
import re

from tunesmith.errors import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Encodings of DOS, old Macs and mainframes. Windows text with a few accents is often mistaken for them, and such files
# are rare.
_OLD = [
    *(f"cp{page}" for page in (437, 720, 737, 775, 850, 852, 855, 856, 857, 858, *range(860, 867), 869, 1006, 1125)),
    *(f"cp{page}" for page in ("037", 273, 424, 500, 875, 1026, 1140)),
    *(f"mac_{name}" for name in ("cyrillic", "greek", "iceland", "latin2", "roman", "turkish")),
    "hp_roman8", "kz1048", "ptcp154",
]  # fmt: skip
# Two or four bytes per letter: any few bytes are letters of some script.
_WIDE = [*(f"utf_{bits}{end}" for bits in (16, 32) for end in ("", "_le", "_be")), "utf_7"]
# These encodings are confused if there are few accents. In the languages below the central European ones are correct.
_LATIN = ("cp1250", "cp1252", "cp1257", *(f"iso8859_{number}" for number in (2, 4, 10, 13, 14, 15, 16)), "latin_1")
_CENTRAL = frozenset(
    ("Croatian", "Czech", "Hungarian", "Polish", "Romanian", "Slovak", "Slovene", "Estonian", "Lithuanian", "Latvian")
)
# Encodings of Chinese, Japanese and Korean, which read an umlaut and the letter after it as one character.
_EAST_ASIAN = [
    *("big5", "big5hkscs", "gb18030", "gb2312", "gbk", "hz", "johab"),
    *("cp932", "cp949", "cp950", "euc_jp", "euc_jis_2004", "euc_jisx0213", "euc_kr"),
    *("shift_jis", "shift_jis_2004", "shift_jisx0213"),
]
# A byte that is not ASCII, and one between bytes that are. Bytes 81 and 83 do not count: with them, cp932 begins
# katakana and Japanese signs, whose second byte is often ASCII. They hardly occur in Latin text.
_OTHER = re.compile(rb"[\x80-\xff]")
_ALONE = re.compile(rb"(?<![\x80-\xff])[\x80\x82\x84-\xff](?![\x80-\xff])")
SAMPLE = 200_000  # bytes used to detect an encoding
LOST = "\N{REPLACEMENT CHARACTER}"
# Up to this share of broken bytes among the non-ASCII characters, a file is treated as damaged UTF-8.
BROKEN_SHARE = 0.25


def decode(data: bytes, *, declared: str = "") -> tuple[str, str]:
    """Decode the bytes of a file by the encoding that it declares, unless that is wrong.

    Returns:
        The text, and a note if the encoding was guessed or bytes are broken.

    Raises:
        DataError: the bytes are not text.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return data.decode(name, errors="replace"), ""
    if declared:
        try:
            return data.decode(declared), ""
        except (LookupError, UnicodeDecodeError):
            pass  # a wrong declaration is ignored
    try:
        text = data.decode()
    except UnicodeDecodeError:
        from charset_normalizer import from_bytes

        text = data.decode(errors="replace")
        others = sum(not letter.isascii() for letter in text)
        if "\x00" not in text and (lost := text.count(LOST)) <= BROKEN_SHARE * others:
            return text, f"invalid UTF-8 at {lost} positions, read as {LOST}; fix these characters"
        # ASCII lines are equal in all encodings, so only the others are a useful sample. With zero bytes the encoding
        # has two bytes per letter, and lines end differently.
        lines = [data] if b"\x00" in data else [line for line in data.split(b"\n") if not line.isascii()]
        excluded = _OLD if b"\x00" in data else [*_OLD, *_WIDE]
        sample = b"\n".join(lines)[:SAMPLE]
        best = from_bytes(sample, cp_exclusion=excluded).best()
        # Of few words that repeat, an umlaut and the letter after it are mistaken for one character of East Asia.
        if best is None or best.encoding in _EAST_ASIAN:
            latin = _is_latin(sample)
            best = from_bytes(sample, cp_exclusion=[*excluded, *_EAST_ASIAN]).best() if latin else best
        if best is None and not latin:
            raise DataError("unknown text encoding; save it as UTF-8") from None
        western = best is None or (best.encoding in _LATIN and best.language not in _CENTRAL)
        name = best.encoding if best and not western else "cp1252"
        return data.decode(name, errors="replace"), f"not UTF-8, read as {name}; check its accents, or save it as UTF-8"
    if "\x00" in text:
        raise DataError("binary data (zero bytes) instead of text; rename the file to its real type")
    return text, ""


def _is_latin(data: bytes) -> bool:
    """Return whether most bytes other than ASCII are single ones, such as accents and signs; in East Asia, few are."""
    return 2 * len(_ALONE.findall(data)) > len(_OTHER.findall(data))
