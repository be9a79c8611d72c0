"""Languages: of a text, by its letters and function words, and of a column, by its name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tunesmith.data.text.words import words_of

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
    joined = "\n".join(texts[:SAMPLED])
    name = LANGUAGES[language(joined, list(dict.fromkeys(words_of(joined))))]
    # Not Cyrillic and Arabic letters, which serve several languages.
    own_script = ("chinese", "japanese", "korean", "greek", "hebrew", "thai", "hindi")
    return name.capitalize() if name in own_script else NAMES.get(name, "")


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
