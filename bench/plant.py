"""Faults planted into real rows, by seed: what bench/audit.py looks for. Makes text, knows nothing of the checks."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Sequence
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FIRST = """
    anna boris carla dmitri elena farid grace hugo ines jonas kofi lena marta noor oskar priya quentin rosa
"""
LAST = """
    abbott berger costa dubois eriksen fischer garcia hoffmann ivanov jansen kowalski lopez meyer novak okafor
"""
HOSTS = """
    gmail.com outlook.com web.de orange.fr uni-jena.de mail.example-corp.co.uk acme-industries.com posteo.net
"""
LETTERS = string.ascii_letters + string.digits

Row = dict[str, object]
Chance = random.Random


def rows_of(name: str) -> list[Row]:
    """The rows of a set in ../shared/data."""
    with (SHARED / name / f"{name}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path: Path, rows: Sequence[Row]) -> Path:
    """The rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def edited(text: str, words: Sequence[str], chance: Chance) -> str:
    """The text with about one edit in ten words: a word swapped, left out, put in, misspelt or repeated, or a mark."""
    parts = text.split(" ")
    for _ in range(max(1, len(parts) // 10)):
        at = chance.randrange(len(parts))
        kind = chance.choice(("swap", "drop", "insert", "slip", "case", "mark"))
        if kind == "swap":
            parts[at] = chance.choice(words)
        elif kind == "drop" and len(parts) > 3:
            del parts[at]
        elif kind == "insert":
            parts.insert(at, chance.choice(words))
        elif kind == "slip" and len(parts[at]) > 3:
            i = chance.randrange(len(parts[at]) - 1)
            parts[at] = parts[at][:i] + parts[at][i + 1] + parts[at][i] + parts[at][i + 2 :]
        elif kind == "case":
            parts[at] = parts[at].upper()
        else:
            parts[at] += chance.choice((",", "!", ";", " -", "..."))
    return " ".join(parts)


def personal(chance: Chance) -> str:
    """A sentence with a mail address, phone number, card, account or IP address that nobody has."""
    return chance.choice((_mail, _phone, _card, _iban, _ip))(chance)


def secret(chance: Chance) -> str:
    """A sentence with a key in the form of some issuer, drawn by chance."""

    def drawn(count: int, letters: str = LETTERS) -> str:
        return "".join(chance.choice(letters) for _ in range(count))

    upper = string.ascii_uppercase + string.digits
    forms: tuple[Callable[[], str], ...] = (
        lambda: "AKIA" + drawn(16, upper),
        lambda: "ghp_" + drawn(36),
        lambda: "sk-proj-" + drawn(48),
        lambda: "sk_live_" + drawn(24),
        lambda: "xoxb-" + drawn(12, string.digits) + "-" + drawn(24),
        lambda: "AIza" + drawn(35),
        lambda: "hf_" + drawn(34),
        lambda: "glpat-" + drawn(20),
        lambda: f"password: {drawn(12)}7#",
        lambda: f'api_key = "{drawn(32)}"',
        lambda: f"postgres://admin:{drawn(14)}9@db.internal:5432/prod",
        lambda: f"-----BEGIN RSA PRIVATE KEY-----\n{drawn(64)}\n{drawn(64)}\n-----END RSA PRIVATE KEY-----",
        lambda: f"eyJ{drawn(20)}.eyJ{drawn(40)}.{drawn(43)}",
    )
    return chance.choice(("use {}", "here it is: {}", "the config has {} in it", "{}")).format(chance.choice(forms)())


def harmless(chance: Chance) -> str:
    """A sentence with numbers and words that only look like personal data or a key."""
    digits = "".join(chance.choice(string.digits) for _ in range(16))
    if _luhn(digits[:15]) == digits[15]:
        digits = digits[:15] + str((int(digits[15]) + 1) % 10)
    number = chance.randrange
    return chance.choice(
        (
            f"order number {digits} never arrived",
            f"version {number(1, 9)}.{number(20)}.{number(20)}.{number(20)} is out",
            f"bought on 2024-0{number(1, 9)}-{number(10, 28)} at 10:{number(10, 59)}",
            f"ISBN 978-3-16-{number(100000, 999999)}-0",
            f"commit {number(16**39, 16**40):x} fixed it",
            f"it cost {number(1, 9)},{number(100, 999)}.{number(10, 99)} or {number(10, 99)} percent less",
            f"between {number(1900, 1950)}-{number(1951, 1999)} and {number(2000, 2010)}/{number(11, 20)}",
            "reset your password: click the link, then choose a token and a key phrase",
            f"model DX-{number(100, 999)}-{number(1000, 9999)} is @ its best in aisle {number(20)}",
            f"{number(100, 999)} {number(100, 999)} {number(100, 999)} steps",
        )
    )


def broken(text: str, chance: Chance) -> str:
    """The text as a program shows it that takes UTF-8 for Windows-1252 or Latin-1."""
    for wrong in chance.sample(("cp1252", "latin-1"), 2):
        try:
            return text.encode("utf-8").decode(wrong)
        except UnicodeDecodeError:
            continue
    return text.encode("utf-8").decode("latin-1")


def _mail(chance: Chance) -> str:
    parts = (FIRST.split(), (".", "_", ""), LAST.split(), ("", "7", "84"))
    name = "".join(chance.choice(part) for part in parts)
    return chance.choice(("write to {}", "my address is {}.", "contact {} for a refund", "<{}>")).format(
        f"{name}@{chance.choice(HOSTS.split())}"
    )


def _phone(chance: Chance) -> str:
    def digits(count: int) -> str:
        return str(chance.randrange(2, 10)) + "".join(chance.choice(string.digits) for _ in range(count - 1))

    number = chance.choice(
        (
            f"+49 {digits(3)} {digits(7)}",
            f"+1 ({digits(3)}) {digits(3)}-{digits(4)}",
            f"{digits(3)}-{digits(3)}-{digits(4)}",
            f"({digits(3)}) {digits(3)}-{digits(4)}",
            f"020 {digits(4)} {digits(4)}",
            f"0{digits(1)} {digits(2)} {digits(2)} {digits(2)} {digits(2)}",
            f"+44{digits(10)}",
        )
    )
    return chance.choice(("call {}", "my number is {}", "tel. {}", "{} after six")).format(number)


def _card(chance: Chance) -> str:
    head, size = chance.choice((("4", 16), ("51", 16), ("37", 15), ("6011", 16)))
    body = head + "".join(chance.choice(string.digits) for _ in range(size - 1 - len(head)))
    number = body + _luhn(body)
    mark = chance.choice(("", " ", "-"))
    return chance.choice(("card {}", "I paid with {}", "charged to {} twice")).format(
        mark.join(number[i : i + 4] for i in range(0, size, 4)) if size == 16 else number
    )


def _iban(chance: Chance) -> str:
    country, size = chance.choice((("DE", 18), ("NL", 0), ("ES", 20)))
    body = (
        "".join(chance.choice(string.digits) for _ in range(size))
        if size
        else "ABNA" + str(chance.randrange(10**9, 10**10))
    )
    number = int("".join(str(int(c, 36)) for c in body + country + "00"))
    whole = f"{country}{98 - number % 97:02d}{body}"
    shown = " ".join(whole[i : i + 4] for i in range(0, len(whole), 4)) if chance.random() < 0.5 else whole
    return chance.choice(("transfer it to {}", "IBAN {}")).format(shown)


def _ip(chance: Chance) -> str:
    parts = (chance.randrange(20, 223), chance.randrange(256), chance.randrange(256), chance.randrange(1, 255))
    return f"the log says {'.'.join(map(str, parts))}"


def _luhn(body: str) -> str:
    """The digit that makes a number pass (ISO/IEC 7812), by its own way of counting."""
    total = 0
    for place, digit in enumerate(reversed(body)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return str((10 - total % 10) % 10)
