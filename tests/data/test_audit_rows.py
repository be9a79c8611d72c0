"""What the audit tells from one row alone: personal data, keys, broken letters, chat tokens, language, blanks."""

from __future__ import annotations

import re
import socket

import pytest

from tunesmith.data.audit.checks import personal_data
from tunesmith.data.audit.checks.label_checks import rare, uneven, variants
from tunesmith.data.audit.checks.mojibake import damage, has_lost_characters, repaired
from tunesmith.data.audit.checks.personal_data import luhn, mod97, personal
from tunesmith.data.audit.checks.secrets import keys, masked
from tunesmith.data.audit.checks.text_checks import chat_tokens, edges, refusal
from tunesmith.data.audit.row_view import view
from tunesmith.data.examples.usable import usable
from tunesmith.data.readers.row import Row
from tunesmith.data.text import language as language_module
from tunesmith.data.text.language import language
from tunesmith.data.text.minhash import grams, signatures, slots
from tunesmith.data.text.words import words_of
from tunesmith.errors import DataError
from tunesmith.objectives import OBJECTIVES

TEXT = {"text": "text", "label": "label"}
PAIR = {"prompt": "q", "answer": "a"}
PREFERRED = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
COMPARED = {"prompt": "prompt", "chosen": "answer_a", "rejected": "answer_b", "winner": "winner"}
THUMB = {"prompt": "prompt", "answer": "completion", "label": "label"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("write to anna.berg@posteo.net, please", ["email"]),
        ("paid with 4111 1111 1111 1111 twice", ["card"]),
        ("IBAN DE89 3704 0044 0532 0130 00 it is", ["iban"]),
        ("call +49 30 901820 or (212) 555-0123", ["phone", "phone"]),
        ("tel. 0301234567", ["phone"]),
        ("a login from 84.17.46.3 was seen", ["ip"]),
        ("from 2001:db8:85a3:0:0:8a2e:370:7334 again", ["ip"]),
    ],
)
def test_personal_data_is_known_by_its_form(text: str, words: list[str]) -> None:
    assert [span.word for span in personal(text)] == words


NATIONAL = [
    "Ligue para o meu celular, 11 91234-5678, depois das seis da tarde.",
    "我的电话号码是 138 0013 8000，请在晚上打电话给我。",
    "Proszę zadzwonić do mnie jutro wieczorem, mój numer to 512 345 678, dziękuję.",
]


def test_phone_numbers_are_known_by_the_plan_of_the_country_whose_language_the_text_is_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [[span.word for span in personal(text)] for text in NATIONAL] == [["phone"]] * 3
    assert personal("Der Auftrag 123 456 789 ist seit einer Woche nicht angekommen.") == []
    assert personal("لم يصل الطلب رقم 123 456 789 منذ أسبوع كامل") == []  # its language has no one country
    assert personal("The order 512 345 678 has not arrived for a whole week.") == []
    monkeypatch.setattr(personal_data, "_has_phonenumbers", lambda: False)
    assert [personal(text) for text in NATIONAL] == [[]] * 3
    assert [span.word for span in personal("Ruf mich unter 030 901820 an.")] == ["phone"]


@pytest.mark.parametrize(
    "text",
    [
        "order 4111 1111 1111 1112 never came",  # the checksum is off by one
        "IBAN DE88 3704 0044 0532 0130 00",
        "version 41.120.33.7 is out",
        "from 192.168.12.0/24 on",
        "\n41.6.4.1. If then else",
        "bought on 2024-05-17 at 10:30:00",
        "someone@example.com is nobody",
        "it cost 1,234,567.89 in all",
        "(2010) 455-461",
    ],
)
def test_what_only_looks_like_personal_data_is_let_through(text: str) -> None:
    assert personal(text) == []


def test_checksums_are_those_of_the_standards() -> None:
    assert luhn("79927398713")
    assert not luhn("79927398710")
    assert mod97("GB82WEST12345698765432")
    assert not mod97("GB82WEST12345698765433")
    assert not mod97("GB82WEST1234569876543")


@pytest.mark.parametrize(
    "text",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "token ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        'api_key = "9f8a7b6c5d4e3f2a1b0c"',
        "password: hUn7er2!x9",
        "postgres://admin:s3cr3tPw@db:5432/prod",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_a_secret_is_masked_whole(text: str) -> None:
    hidden, words = masked(f"so {text} then")
    assert words == ("secret",)
    assert text.split("=")[-1].strip(' "').split(": ")[-1] not in hidden


NAMES = """Das Passwort: X|Kennwort: X|Passwort ist X.|mot de passe : X|mi contraseña es X|hasło: X|пароль: X
密码是X，谢谢|密码：X。|パスワードは X です|비밀번호: X|สวัสดี รหัสผ่าน: X
API-Schlüssel: X|clé d'API : X|AccountKey=X==;|passcode: X|license key: X"""


@pytest.mark.parametrize("text", re.split(r"[|\n]", NAMES))
def test_a_password_is_found_after_its_name_in_any_language(text: str) -> None:
    hidden, words = masked(text.replace("X", "Hx93kQpLz71vTT"))
    assert words == ("secret",)
    assert "Hx93" not in hidden


def test_a_private_key_that_was_cut_off_is_masked_as_far_as_it_goes() -> None:
    body = "\n".join(["MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7"] * 40)
    for text in (f"-----BEGIN PRIVATE KEY-----\n{body}", f"-----BEGIN PRIVATE KEY-----\n{body}".replace("\n", "\\n")):
        assert masked(f"so {text}") == ("so <secret>", ("secret",))
    for head in ("Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0123456789ABCDEF\n\n", "Version: GnuPG v2\n\n"):
        assert masked(f"-----BEGIN RSA PRIVATE KEY-----\n{head}{body}\nabcdEFGH123") == ("<secret>", ("secret",))
    quoted = f"-----BEGIN PGP PRIVATE KEY BLOCK-----\n{body}".replace("\n", "\n> ")
    assert masked(quoted) == ("<secret>", ("secret",))
    said = "-----BEGIN PRIVATE KEY----- is how the file of a key begins"
    assert masked(said)[0] == "<secret> is how the file of a key begins"


@pytest.mark.parametrize(
    "text",
    [
        "the password is required; choose a token and a key phrase",
        "password: the one you chose",
        "mysql://keystone:PASSWORD@127.0.0.1/keystone",
        "the password is MD5-encrypted.",
        "a key = value pair",
        "Das Passwort: bitte ändern Sie es; a resenha: Interstellar2014",
    ],
)
def test_talk_about_secrets_is_none(text: str) -> None:
    assert keys(text) == []


def test_broken_letters_are_found_and_mended() -> None:
    sound = "Größe – naïve café, “so” 日本"
    assert damage(sound) == ""
    for wrong in ("cp1252", "latin-1"):
        try:
            broken = sound.encode().decode(wrong)
        except UnicodeDecodeError:
            broken = "Größe naïve café".encode().decode(wrong)
        assert damage(broken)
        assert repaired(broken) in (sound, "Größe naïve café")
    twice = "é".encode().decode("cp1252").encode().decode("cp1252")
    assert repaired(twice) == "é"
    assert "characters lost" in damage("caf\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize(
    ("text", "lost"),
    [("caf\N{REPLACEMENT CHARACTER}", True), ("cafï¿½", True), ("cafÃ©", False), ("caf\x81", False), ("café", False)],
)
def test_lost_letters_are_those_that_no_repair_restores(text: str, lost: bool) -> None:
    assert has_lost_characters(text) == lost
    assert bool(damage(repaired(text))) == lost


def test_a_capital_before_a_quotation_mark_is_no_damage() -> None:
    assert damage("il a dit « CAFÉ»") == ""
    assert damage("„Ö“ und „Ä“") == ""


@pytest.mark.parametrize(
    "text", ["a <|im_end|> b", "[INST] do it [/INST]", "<start_of_turn>user", "### Response:\nyes"]
)
def test_tokens_of_chat_formats_are_found(text: str) -> None:
    assert chat_tokens(text)
    assert chat_tokens("see [1] and ## Heading and <b>bold</b>") == ""


def test_a_language_is_told_in_short_texts_and_left_open_where_none_is_certain() -> None:
    told = {
        "en": "The battery died after a week.",
        "de": "Der Akku war nach einer Woche leer.",
        "fr": "LA BATTERIE S'EST VIDÉE\nEN UNE SEMAINE.",
        "pl": "Bateria padła po tygodniu.",
        "ru": "Аккумулятор полностью сел уже через одну неделю.",
        "ja": "バッテリーは一週間で切れました。",
    }
    assert {name: language(text) for name, text in told.items()} == {name: name for name in told}
    for unclear in ("", "  \n", "MIT", "0BSD", "kernel panic", "4711 / 0x1f", "🙂", "\0", "\ud83d", "a" * 10**6):
        assert language(unclear) == ""


def test_a_language_is_told_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("no connection is made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    language_module._detector.cache_clear()
    assert language("Der Akku war nach einer Woche leer.") == "de"


def test_sentences_at_both_ends_are_told_and_refusals_of_models() -> None:
    assert edges("This is how it always begins.\nmiddle\nAnd this is how it always ends.") == (
        "This is how it always begins.",
        "And this is how it always ends.",
    )
    assert edges("one sentence only") == ("", "")
    assert refusal("Well, as an AI language model I cannot")


@pytest.mark.parametrize(
    ("fields", "columns", "fault"),
    [
        ({"text": " ", "label": "x"}, TEXT, "empty"),
        ({"text": "fine", "label": ""}, TEXT, "nothing_to_learn"),
        ({"text": "fine", "label": "x"}, TEXT, ""),
        ({"q": "why?", "a": "N/A"}, PAIR, "nothing_to_learn"),
        ({"q": "", "a": "because"}, PAIR, "empty"),
        ({"q": "which is it?", "a": "none"}, PAIR, ""),
        ({"q": "2 + 2?", "a": 4}, PAIR, "unreadable"),
        ({"q": "why?", "a": "because"}, PAIR, ""),
        ({"m": [{"role": "assistant", "content": "hi"}]}, {"messages": "m"}, "wrong_roles"),
        (
            {"m": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " "}]},
            {"messages": "m"},
            "wrong_roles",
        ),
        (
            {"m": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
            {"messages": "m"},
            "",
        ),
        ({"prompt": "why?", "completion": "because", "label": True}, THUMB, ""),
        ({"prompt": "why?", "completion": "N/A", "label": "0"}, THUMB, ""),
        ({"prompt": "why?", "completion": "because", "label": None}, THUMB, "nothing_to_learn"),
        ({"prompt": "why?", "completion": "because", "label": "maybe"}, THUMB, "unreadable"),
        ({"prompt": "why?", "completion": " ", "label": False}, THUMB, "nothing_to_learn"),
        ({"text": "cut \ud83d"}, {"text": "text"}, "unreadable"),
        ({"chosen": "cut \ud83d", "rejected": "not"}, {"chosen": "chosen", "rejected": "rejected"}, "unreadable"),
        ({"chosen": "same", "rejected": "same"}, {"chosen": "chosen", "rejected": "rejected"}, "nothing_to_learn"),
        ({"prompt": "q", "chosen": "so it is", "rejected": "so  it is "}, PREFERRED, "nothing_to_learn"),
        ({"prompt": " ", "chosen": "yes", "rejected": "no"}, PREFERRED, "empty"),
        ({"prompt": "q", "chosen": "yes", "rejected": "no"}, {**PREFERRED, "margin": "by"}, ""),
        ({"prompt": "q", "chosen": "yes", "rejected": "no", "by": "much"}, {**PREFERRED, "margin": "by"}, "unreadable"),
        ({"prompt": [{"role": "king", "content": "q"}], "chosen": "yes", "rejected": "no"}, PREFERRED, "unreadable"),
        ({"prompt": "q", "answer_a": "yes", "answer_b": "no", "winner": "b"}, COMPARED, ""),
        ({"prompt": "q", "answer_a": "yes", "answer_b": "no", "winner": "tie"}, COMPARED, "nothing_to_learn"),
        ({"prompt": "q", "answer_a": "yes", "answer_b": "no", "winner": None}, COMPARED, "nothing_to_learn"),
    ],
)
def test_a_row_that_cannot_be_learned_from_is_told_by_its_fault(
    fields: dict[str, object], columns: dict[str, str], fault: str
) -> None:
    assert view(Row("x.jsonl:1", fields), columns).problem == fault


NAN = float("nan")
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
# A valid row of each kind of rows, its columns, and its objective.
VALID: list[tuple[dict[str, object], dict[str, str], str]] = [
    ({"text": "fine", "label": "x"}, TEXT, "classify"),
    ({"text": "fine", "target": 0.5}, {"text": "text", "target": "target"}, "regress"),
    ({"text": "fine"}, {"text": "text"}, "domain"),
    ({"q": "why?", "a": "so"}, PAIR, "instruct"),
    ({"m": TURNS}, {"messages": "m"}, "instruct"),
    ({"prompt": "q", "chosen": "yes", "rejected": "no"}, PREFERRED, "preference"),
    ({"prompt": "q", "answer_a": "yes", "answer_b": "no", "winner": "a"}, COMPARED, "preference"),
    ({"prompt": "q", "completion": "so", "label": True}, THUMB, "preference"),
    ({"q": "why?", "p": "so"}, {"query": "q", "passage": "p"}, "embed"),
]


@pytest.mark.parametrize(("fields", "columns", "kind"), VALID)
def test_the_audit_and_a_run_agree_on_what_is_skipped_and_what_is_rejected(
    fields: dict[str, object], columns: dict[str, str], kind: str
) -> None:
    objective = next(each() for each in OBJECTIVES if each().kind == kind)
    found = {}
    for role, column in columns.items():
        for value in (None, " ", NAN, [], 123, {"a": 1}, "tie", TURNS[:1], [*TURNS[:1], {**TURNS[1], "content": ""}]):
            if role == "answer" and isinstance(value, list):
                continue  # the other rows decide if it is a list of answers
            odd = Row("x.jsonl:2", {**fields, column: value})
            try:
                rows, _ = usable([Row("x.jsonl:1", fields), odd], columns)
                objective.examples(rows, group="", columns=columns)
                run = "sound" if odd in rows else "skipped"
            except DataError:
                run = "rejected"
            problem = view(odd, columns).problem
            audit = {"": "sound", "unreadable": "rejected", "wrong_roles": "rejected"}.get(problem, "skipped")
            found[f"{column}: {value}"] = (audit, run)
    assert {what: both for what, both in found.items() if both[0] != both[1]} == {}
    assert {"skipped", "rejected"} <= {run for _, run in found.values()}


def test_the_system_turn_is_a_part_of_what_was_judged() -> None:
    for fields, parts in (
        ({"prompt": "q", "chosen": "yes", "rejected": "no"}, PREFERRED),
        ({"prompt": "q", "completion": "yes", "label": True}, THUMB),
    ):
        seen = [
            view(Row("x.jsonl:1", {**fields, "s": s}), {**parts, "system": "s"}) for s in ("be kind", "be curt", "")
        ]
        assert len({one.question for one in seen}) == 3
        assert {one.problem for one in seen} == {""}


def test_spellings_of_one_label_are_joined_and_numbers_are_not() -> None:
    counts = {"positive": 100, "Positive": 3, "positve": 2, "class_1": 50, "class_2": 1, "negative": 90}
    assert variants(counts) == {"Positive": "positive", "positve": "positive"}
    assert rare(counts) == {"Positive", "positve", "class_2"}
    assert variants({"positive": 400, "positve": 5, "Positve": 2}) == dict.fromkeys(("positve", "Positve"), "positive")
    assert variants({"positive": 9000, "positve": 400, "positv": 9, "Positv": 2}) == dict.fromkeys(
        ("positve", "positv", "Positv"), "positive"
    )
    assert variants({"bug report": 9, "Bug_Report": 2, "bug-report": 1}) == dict.fromkeys(
        ("Bug_Report", "bug-report"), "bug report"
    )
    for others in (("1", "-1", "0"), ("C", "C++", "C#"), ("A+", "A-", "A"), ("1.5", "15"), ("<5", ">5")):
        assert variants({label: 9 - place for place, label in enumerate(others)}) == {}
    assert variants({"vitamin b": 400, "vitamin d": 20, "group_a": 400, "group_b": 20}) == {}
    assert "'positive' 100 rows" in uneven(counts)
    assert uneven({"a": 9, "b": 1}) == ""


def test_signatures_estimate_how_much_two_texts_share() -> None:
    one = b"the quick brown fox jumps over the lazy dog and runs away from the big bad wolf"
    two = one.replace(b"lazy", b"tired")
    other = b"completely different words stand here, nothing of them is found above at all, ever"
    same, near, far = (float((signatures([one])[0] == signatures([text])[0]).mean()) for text in (one, two, other))
    # By hand: 76 runs of five in `one`; the edit takes 8 of them and brings 9: 68 of 85 shared, 0.80.
    assert same == 1.0
    assert near == pytest.approx(0.80, abs=0.13)
    assert far < 0.1


def test_runs_of_thirteen_words_do_not_reach_into_the_next_text() -> None:
    texts = [" ".join(f"w{i}" for i in range(14)), "too short", " ".join(f"w{i}" for i in range(13))]
    found, owners = grams([slots(words_of(text)) for text in texts])
    assert owners.tolist() == [0, 0, 2]
    assert found[0] == found[2]
    assert found[0] != found[1]


def test_the_audit_reads_thumbs_beside_chats_as_a_run_does() -> None:
    turns = [{"role": "user", "content": "Capital?"}, {"role": "assistant", "content": "Paris."}]
    for written in (turns, str(turns)):
        seen = view(Row("a:1", {"m": written, "label": "no"}), {"messages": "m", "label": "label"})
        assert (seen.question, seen.answer, seen.problem) == ("Capital?\nParis.", "bad", "")


def test_the_audit_sees_what_a_judged_question_is_about_and_one_turn_alone() -> None:
    columns = {**PREFERRED, "input": "input"}
    fields = {"prompt": "p", "input": "about", "chosen": {"from": "gpt", "value": "a"}, "rejected": "b"}
    seen = view(Row("a:1", fields), columns)
    assert (seen.question, seen.answer, seen.problem) == ("p\nabout\na\nb", "a", "")


def test_the_audit_tells_a_list_written_as_text_that_nobody_can_read() -> None:
    unread = "[{'role': 'user', 'content': array(1)}]"
    seen = view(Row("a:1", {"m": unread}), {"messages": "m"})
    assert seen.problem == "unreadable"
    assert "list of turns written as text" in seen.why


def test_a_thumb_without_a_part_that_other_rows_have_is_read_as_a_run_reads_it() -> None:
    columns = {"system": "system", "prompt": "prompt", "input": "input", **THUMB}
    seen = view(Row("t.jsonl:1", {"prompt": "why?", "completion": "so", "label": True}), columns)
    assert (seen.problem, seen.answer) == ("", "good")


def test_a_target_that_is_no_number_is_found_and_a_blank_one_is_a_row_to_skip() -> None:
    columns = {"text": "essay", "target": "score"}
    problems = [
        view(Row("a.csv:2", {"essay": "a text", "score": score}), columns).problem
        for score in ("3.5", "3 of 5", "n/a", "")
    ]
    assert problems == ["", "unreadable", "nothing_to_learn", "nothing_to_learn"]
