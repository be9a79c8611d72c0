"""Personal data by its format: e-mail, phone number, payment card, bank account and IP address, with checksums if any.

With the extra `audit`, also any valid phone number of the country whose language the text is in.
Cards: Luhn (ISO/IEC 7812). Accounts: IBAN with its country's length and modulo 97 (ISO 13616). Each pattern is tried
only on texts that contain what it requires, so that most rows cost almost nothing.
"""

from __future__ import annotations

import ipaddress
import locale
import re
from bisect import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

from tunesmith.data.text.language import language

IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LI": 21, "LT": 20, "LU": 20, "LV": 21,
    "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PS": 29,
    "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "TN": 24, "TR": 26,
    "UA": 29, "VA": 22, "VG": 24, "XK": 20,
}  # fmt: skip
# Leading digits and lengths of payment cards by issuer.
CARD = re.compile(r"(?:4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3[0689]\d{12}|6\d{15}|35\d{14})")
# Domains reserved for examples (RFC 2606).
EXAMPLES = re.compile(r"@(?:[\w-]+\.)*(?:example|test|invalid|localhost)(?:\.(?:com|net|org))?$", re.IGNORECASE)

MAIL = re.compile(
    r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![\w-])"
)
# Groups of digits; longer ones, versions and sums do not match.
DIGITS = re.compile(r"(?<![\w.,+:/-])(?:\d[ -]?){12,18}\d(?![\w]|[.,:/-]\d)")
ACCOUNT = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
ADDRESS = re.compile(
    r"(?<![\w.:-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)|(?<![\w:.])(?:[0-9a-fA-F]{1,4}:){3,7}(?::|[0-9a-fA-F:]+)(?![\w:])"
)
# Section number in a manual.
SECTION = re.compile(r"(?:^|\n)\s*(?:\d+\.){4}\s")
VERSION_BEFORE = re.compile(r"(?:version|ver|release|v|section|chapter|§|>=|<=|=|<|>)[\s.:]*\(?\s*$", re.IGNORECASE)
PHONE = re.compile(
    r"(?<![\w.,/+-])(?<!\d )(?:"
    r"\+\d{1,3}[ ./-]?(?:\(0?\d{1,4}\)[ ./-]?)?\d{1,4}(?:[ ./-]?\d{2,4}){1,4}"  # +49 30 123456, +1 (212) 555-0123
    r"|\((?!(?:19|20)\d\d\))0?\d{2,4}\)[ ./-]?\d{3,4}[ .-]?\d{3,4}"  # (212) 555-0123
    r"|(?:1[ .-])?[2-9]\d{2}([.-])[2-9]\d{2}\1\d{4}"  # 212-555-0123
    r"|0\d{1,4}[ /-]\d{3,4}[ -]?\d{3,5}"  # 020 7946 0958, 030/1234567
    r"|0[1-9](?:[ .]\d{2}){4}"  # 01 23 45 67 89
    r")(?![\w]|[.,/:-]\d)"
)
CALLED = re.compile(
    r"(?:phone|tel(?:efon|ephone)?|mobile|cell|fax|call(?: me)?(?: at| on)?|whatsapp|sms|hotline|handy)"
    r"\W{0,4}(?:no\.?|number|nr\.?)?\W{0,4}"
    r"(\+?\d[\d ()/.-]{5,16}\d)(?!\w)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Span:
    """A range of characters and the kind of data in it."""

    start: int
    end: int
    word: str


def personal(text: str) -> list[Span]:
    """Return all personal data in a text, in order and without overlaps."""
    spans: list[Span] = []
    if "@" in text:
        spans += [Span(*match.span(), "email") for match in MAIL.finditer(text) if not EXAMPLES.search(match[0])]
    digits = sum(map(text.count, "0123456789"))
    for least, detector in DETECTORS:
        if digits >= least:
            spans += detector(text)
    return without_overlaps(spans)


def without_overlaps(spans: list[Span]) -> list[Span]:
    """Return the spans in order; of two that overlap, the one listed first."""
    result: list[Span] = []  # sorted, so that only the two neighbours can overlap
    for span in spans:
        index = bisect(result, span.start, key=lambda other: other.start)
        before = result[index - 1 : index] if index else []
        after = result[index : index + 1]
        if all(other.end <= span.start for other in before) and all(span.end <= other.start for other in after):
            result.insert(index, span)
    return result


def luhn(digits: str) -> bool:
    """Return whether the last digit of a card number is the Luhn checksum of the others."""
    doubled = [sum(divmod(2 * int(d), 10)) if i % 2 else int(d) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def mod97(account: str) -> bool:
    """Return whether an IBAN without spaces has its country's length and a valid checksum."""
    if IBAN_LENGTHS.get(account[:2]) != len(account):
        return False
    return int("".join(str(int(letter, 36)) for letter in account[4:] + account[:4])) % 97 == 1


def _accounts(text: str) -> Iterator[Span]:
    for match in ACCOUNT.finditer(text):
        plain = match[0].replace(" ", "")
        length = IBAN_LENGTHS.get(plain[:2], 0)
        # The pattern may also match words after the number, so the span ends after `length` characters without spaces.
        if length and len(plain) >= length and mod97(plain[:length]):
            text_length = next(n for n in range(1, len(match[0]) + 1) if n - match[0][:n].count(" ") == length)
            yield Span(match.start(), match.start() + text_length, "iban")


def _cards(text: str) -> Iterator[Span]:
    for match in DIGITS.finditer(text):
        plain = match[0].replace(" ", "").replace("-", "")
        if CARD.fullmatch(plain) and len(set(plain)) > 1 and luhn(plain):
            yield Span(*match.span(), "card")


def _addresses(text: str) -> Iterator[Span]:
    for match in ADDRESS.finditer(text):
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            continue
        special = address.is_loopback or address.is_unspecified or address.is_multicast
        small = address.version == 4 and all(int(part) < 20 for part in match[0].split("."))
        network = text[match.end() : match.end() + 1] == "/" or SECTION.match(text, max(0, match.start() - 1))
        version = VERSION_BEFORE.search(text, max(0, match.start() - 12), match.start())
        if not special and not small and not network and not version:
            yield Span(*match.span(), "ip")


def _phones(text: str) -> Iterator[Span]:
    for match in PHONE.finditer(text):
        if 7 <= sum(map(str.isdigit, match[0])) <= 15:
            yield Span(*match.span(), "phone")
    for match in CALLED.finditer(text):
        if 7 <= sum(map(str.isdigit, match[1])) <= 15:
            yield Span(*match.span(1), "phone")
    if not _has_phonenumbers():
        return
    # English texts come from too many countries: more than these patterns find are numbers of another kind.
    code = language(text)
    country = "BR" if code == "pt" else locale.normalize(code)[3:5]
    if code != "en" and country.isupper():
        import phonenumbers

        for number in phonenumbers.PhoneNumberMatcher(text, country):
            yield Span(number.start, number.end, "phone")


@cache
def _has_phonenumbers() -> bool:
    return find_spec("phonenumbers") is not None


# (minimum number of digits in the text, detector), the most reliable first: a card is not also a phone number.
DETECTORS: tuple[tuple[int, Callable[[str], Iterator[Span]]], ...] = (
    (12, _accounts),
    (12, _cards),
    (4, _addresses),
    (7, _phones),
)
