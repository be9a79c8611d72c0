"""Secrets: keys, tokens and passwords, by the formats of their issuers and by the words before them."""

from __future__ import annotations

import math
import re
from collections import Counter

from tunesmith.data.audit.checks.personal_data import Span, personal, without_overlaps
from tunesmith.data.audit.edits import Edit, edited

# (required substring, pattern): the pattern is tried only on texts with the substring.
FORMS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (piece, re.compile(pattern))
    for piece, pattern in (
        # Up to its end marker; if that is cut off, as far as its lines go.
        ("-----BEGIN", r"-----BEGIN ((?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?)-----(?:[\s\S]*?-----END \1-----"
         r"|(?:(?:[\s>]|\\[nr])+(?:[A-Z][A-Za-z-]*: [^\n\\]*|[A-Za-z0-9+/=]{20,}))*"
         r"(?:(?:[\s>]|\\[nr])+[A-Za-z0-9+/=]{1,19}$)?)"),
        ("AKIA", r"\bAKIA[0-9A-Z]{16}\b"),
        ("ASIA", r"\bASIA[0-9A-Z]{16}\b"),
        ("gh", r"\bgh[pousr]_[A-Za-z0-9]{36,}\b"),
        ("github_pat_", r"\bgithub_pat_[A-Za-z0-9_]{60,}\b"),
        ("glpat-", r"\bglpat-[A-Za-z0-9_-]{20,}"),
        ("xox", r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
        ("hooks.slack.com", r"https://hooks\.slack\.com/services/[A-Za-z0-9/]{20,}"),
        ("sk-", r"\bsk-(?:proj-|ant-|svcacct-|or-)?[A-Za-z0-9_-]{20,}"),
        ("k_", r"\b[srp]k_(?:live|test)_[A-Za-z0-9]{16,}"),
        ("AIza", r"\bAIza[0-9A-Za-z_-]{35}"),
        ("ya29.", r"\bya29\.[0-9A-Za-z_-]{20,}"),
        ("hf_", r"\bhf_[A-Za-z0-9]{30,}\b"),
        ("npm_", r"\bnpm_[A-Za-z0-9]{36}\b"),
        ("pypi-", r"\bpypi-AgE[A-Za-z0-9_-]{40,}"),
        ("SG.", r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),
        ("dop_v1_", r"\bdop_v1_[a-f0-9]{64}\b"),
        ("eyJ", r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
        ("://", r"\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@<>{}$]{1,64}:(?!\/)[^\s/@<>{}$]{3,64}@[\w.-]+"),
    )
)  # fmt: skip
# `password: ...`, `API_KEY = "..."`, `Authorization: Bearer ...`; the value must look random.
VALUE = r"[\"']?\s*(?:[:=：]|=>|\b(?:is|ist|est|es|è|é|är|er|jest)\b|[是は]|(?<=bearer))\s*[\"']?"
VALUE += r"([^\s\"',;<>(){}\[\]，。；、（）「」]{8,128})"
ENGLISH = (
    r"(?i)\b(?:[\w-]*(?:api|access|secret|private|auth|client|service|account|master|encryption|license)"
    r"[_ -]?(?:key|token|secret)(?:[_ -]?(?:key|id))?|[\w-]*token|pass(?:word|wd|phrase|code)|pwd|bearer|credentials?)"
)
PASSWORDS = (
    "passwort", "kennwort", "mot de passe", "contraseña", "senha", "palavra-passe", "wachtwoord", "lösenord", "passord",
    "adgangskode", "salasana", "hasło", "heslo", "jelszó", "şifre", "parola", "parolă", "пароль", "κωδικός", "mật khẩu",
    "kata sandi", "비밀번호", "كلمة المرور", "كلمة السر", "סיסמה", "पासवर्ड", "رمز عبور",
    "api-schlüssel", "clé d'api", "clave api",
)  # fmt: skip
UNSPACED = ("パスワード", "密码", "密碼", "รหัสผ่าน")  # of languages without spaces between words
OTHERS = rf"(?i)(?:\b(?:{'|'.join(PASSWORDS)})\w{{0,2}}|{'|'.join(UNSPACED)})"
# A text that a pattern matches has one of its words.
NAMED = {
    ("key", "token", "secret", "pass", "pwd", "bearer", "credential"): re.compile(ENGLISH + VALUE),
    (*PASSWORDS, *UNSPACED): re.compile(OTHERS + VALUE),
}
# Words joined by punctuation, quantities and versions.
PLAIN = re.compile(r"[A-Za-z]+\d?(?:[-_./][A-Za-z]+\d?)+|\d+[A-Za-z]{1,3}|v?[\d.]+\w?")
# Placeholders for passwords in manuals.
STAND_IN = re.compile(r":(?:[A-Z_]+|\*+|x+|\.+|pass(?:word)?|pw|pwd|secret|foobar|changeme|[\w-]*pass(?:word)?)@")


def keys(text: str) -> list[Span]:
    """Return all keys, tokens and passwords in a text, in order."""
    spans = [
        Span(*match.span(), "secret")
        for piece, form in FORMS
        if piece in text
        for match in form.finditer(text)
        if piece != "://" or not STAND_IN.search(match[0])
    ]
    lower = text.lower()
    for words, pattern in NAMED.items():
        if any(word in lower for word in words):
            spans += [Span(*m.span(1), "secret") for m in pattern.finditer(text) if looks_drawn(m[1].rstrip(".!?"))]
    return without_overlaps(spans)


def looks_drawn(value: str) -> bool:
    """Return whether a word looks random: letters and digits mixed, few repeated."""
    letters, digits = any(map(str.isalpha, value)), sum(map(str.isdigit, value))
    if value.startswith(("$", "%", "/", "http", "--", "~", "*", "<")) or not letters or len(set(value)) < 6:
        return False
    mixed = digits > 0 and (digits >= 2 or any(not c.isalnum() for c in value))
    return mixed and entropy(value) >= 2.75 and not PLAIN.fullmatch(value)


def entropy(value: str) -> float:
    """Compute the Shannon entropy of a word's characters, bits per character."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


def masked(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the text with placeholders such as `<email>` for personal data and secrets, and the kinds replaced."""
    edits = masks(text)
    return edited(text, edits), tuple(edit.new[1:-1] for edit in edits)


def masks(text: str) -> list[Edit]:
    """Return the replacements of `masked`."""
    spans = without_overlaps([*keys(text), *personal(text)])
    return [Edit(span.start, span.end, f"<{span.word}>") for span in spans]
