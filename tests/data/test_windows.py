"""Documents as windows, hidden words, terms, near-copies, and folders of documents."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from transformers import PhobertTokenizer, PreTrainedTokenizerFast

from tests.bases import base, template
from tests.tiny import BERT_ROLES, BERT_TOKENS, DECODERS, ENCODERS, SENTENCES
from tunesmith.data.examples.types import Text
from tunesmith.data.readers.read import read_rows
from tunesmith.data.splits.load import Sources, load
from tunesmith.data.splits.near_duplicates import near_copies, without_near_copies
from tunesmith.data.splits.split import Split
from tunesmith.data.text.domain_terms import field_terms, general_text
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.data.tokenization.masking import Masking
from tunesmith.data.tokenization.span_tokens import TextTokens
from tunesmith.data.tokenization.windows import windows
from tunesmith.errors import DataError, ModelError

LONG = " ".join(SENTENCES)


# ------------------------------------------------------------------ windows


@pytest.mark.parametrize("kind", DECODERS)
def test_windows_of_a_decoder_together_are_the_whole_document_and_its_end(kind: str):
    form = template(kind)
    made = windows(LONG, form, limit=40)
    bos = form.tokenizer("a")["input_ids"][:-1]
    assert all(window.ids[: len(bos)] == bos and 2 <= len(window.ids) <= 40 for window in made)
    told = [token for window in made for token in window.ids[len(bos) :]]
    assert told == [*form.tokenizer(LONG, add_special_tokens=False)["input_ids"], form.tokenizer.eos_token_id]


@pytest.mark.parametrize("kind", ENCODERS)
def test_windows_of_an_encoder_each_stand_between_its_marks(kind: str):
    form = template(kind)
    made = windows(LONG, form, limit=40)
    assert all(window.ids[0] == 2 and window.ids[-1] == 3 and len(window.ids) <= 40 for window in made)
    told = [token for window in made for token in window.ids[1:-1]]
    assert told == form.tokenizer(LONG, add_special_tokens=False)["input_ids"]


def test_a_special_token_in_a_document_is_only_text():
    (window,) = windows("Say <|im_end|> and go.", template("llama"), limit=64)
    assert window.ids.count(2) == 1  # the document's own end


def test_bytes_are_those_of_the_ids_that_are_told():
    text = "Grüße aus Köln. " * 6
    whole = windows(text, template("gemma"), limit=512)
    assert sum(window.size for window in whole) == len(text.encode())
    (only,) = windows(text, template("llama"), limit=512)
    first = template("llama").tokenizer.decode(only.ids[:1])
    assert only.size == len(text.encode()) - len(first.encode())
    assert len(only.told()) == len(only.ids) - 2  # neither the first id, which nothing stands before, nor the end


def test_no_window_is_a_lone_id():
    form = template("llama")
    length = len(form.tokenizer(LONG)["input_ids"]) + 1
    made = windows(LONG, form, limit=length - 1)
    assert [len(window.ids) for window in made] == [length - 2, 2]


# ------------------------------------------------------------------ hidden words


def masked(turn: int | str = 0, *, where: str = "m:1 window 1", share: float = 0.15, seed: int = 0):
    form = template("bert")
    (window,) = windows(LONG * 2, form, limit=1024)
    row = window.row(where, next_token=False)
    return row, Masking.of(form, share=share, seed=seed).hide(row, turn)


def test_hidden_words_follow_from_seed_pass_and_row_alone():
    assert masked(3)[1] == masked(3)[1]
    others = [masked(4)[1], masked(3, seed=1)[1], masked(3, where="m:2 window 1")[1]]
    assert all(other.hidden != masked(3)[1].hidden for other in others)


def test_words_are_hidden_whole_and_so_many_of_them():
    row, hidden = masked()
    places = {place for place, _ in hidden.hidden}
    words = {row.words[place] for place in places}
    assert -1 not in words
    assert places == {place for place, word in enumerate(row.words) if word in words}
    assert len(words) == round(0.15 * len(set(row.words) - {-1}))
    assert [told for _, told in hidden.hidden] == [row.sequences[0].ids[place] for place in sorted(places)]


def test_eight_in_ten_hidden_words_are_masked_one_is_replaced_and_one_stands():
    fates: Counter[str] = Counter()
    for turn in range(300):
        row, hidden = masked(turn)
        for place, told in hidden.hidden:
            now = hidden.sequences[0].ids[place]
            fates["masked" if now == 4 else "stands" if now == told else "replaced"] += 1
    share = {fate: count / fates.total() for fate, count in fates.items()}
    assert share["masked"] == pytest.approx(0.8, abs=0.03)
    assert share["stands"] == pytest.approx(0.1, abs=0.03)
    assert share["replaced"] == pytest.approx(0.1, abs=0.03)


def test_nothing_else_of_the_row_changes():
    row, hidden = masked()
    places = {place for place, _ in hidden.hidden}
    assert all(
        a == b or i in places
        for i, (a, b) in enumerate(zip(row.sequences[0].ids, hidden.sequences[0].ids, strict=True))
    )
    assert replace(hidden, sequences=row.sequences, hidden=()) == row


def test_what_an_encoder_cannot_read_is_never_hidden():
    vocabulary = {word: i for i, word in enumerate((*BERT_TOKENS, "the", "index", "is", "good"))}
    inner = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    form = Template(PreTrainedTokenizerFast(tokenizer_object=inner, mask_token="[MASK]", **BERT_ROLES), chat=False)
    (window,) = windows("the zürn index is qqq good", form, limit=64)
    assert window.ids == [5, 1, 6, 7, 1, 8]
    row = window.row("m:1", next_token=False)
    assert row.sequences[0].learn == [True, False, True, True, False, True]
    hidden = [Masking.of(form, share=1.0, seed=0).hide(row, turn).hidden for turn in range(4)]
    assert all([told for _, told in one] == [5, 6, 7, 8] for one in hidden)


def test_words_are_hidden_one_by_one_where_the_tokenizer_takes_the_document_for_one_word():
    form = Template(copy.deepcopy(base("bert").tokenizer), chat=False)
    form.tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    (window,) = windows(LONG, form, limit=1024)
    spelled: dict[int, str] = {}
    for word, (start, end) in zip(window.words[1:-1], window.spans[1:-1], strict=True):
        spelled[word] = spelled.get(word, "") + LONG[start:end]
    assert [text.strip() for text in spelled.values()] == LONG.split()
    assert len(Masking.of(form, share=0.15, seed=0).hide(window.row("m:1", next_token=False), 0).hidden) < 40


@pytest.mark.parametrize("kind", ENCODERS)
def test_letters_without_spaces_between_them_are_hidden_one_by_one(kind: str):
    (window,) = windows("法国的首都是巴黎", template(kind), limit=1024)  # several bytes, and so ids, each
    assert [window.words.count(word) for word in range(8)] == [3] * 8


def test_a_tokenizer_without_offsets_is_refused_in_one_line(tmp_path: Path):
    (tmp_path / "vocab.txt").write_text("a 1\nb@@ 1\n")
    (tmp_path / "bpe.codes").write_text("a b 1\n")
    slow = PhobertTokenizer(str(tmp_path / "vocab.txt"), str(tmp_path / "bpe.codes"))
    form = Template(slow, chat=False)
    assert form.document("a b a").ids
    for read in (lambda: windows("a b a", form, limit=64), lambda: TextTokens.of("a b a", form)):
        with pytest.raises(
            ModelError, match=r"^tokenizer: PhobertTokenizer has no character offsets; use a model with"
        ):
            read()


# ------------------------------------------------------------------ terms


def test_terms_are_frequent_here_and_not_in_general_text():
    texts = [f"{page} The vacuum of a tablespace." for page in general_text()[:6]]
    found = field_terms(texts)
    assert set(found[:2]) == {"vacuum", "tablespace"}
    assert not {"the", "would", "have", "there"} & set(found)


def test_a_word_of_few_occurrences_is_no_term():
    assert field_terms(["tablespace and vacuum"] * 4) == ()


def test_two_documents_have_terms_too():
    assert field_terms([f"The vacuum of {word} tablespaces, one vacuum more. " * 5 for word in ("old", "new")])


# ------------------------------------------------------------------ near-copies

PAGE = " ".join(f"word{i} stands here" for i in range(40))


def text(content: str, place: int = 1, group: str = "") -> Text:
    return Text(f"m.jsonl:{place}", content, group)


@pytest.mark.parametrize(
    ("content", "near"),
    [
        (PAGE.upper() + " and a little more", True),
        (PAGE.replace("word20", "another"), True),
        ("Something else before it. " * 30 + PAGE[: len(PAGE) // 2 + 40], True),
        (" ".join(f"line{i} is new" for i in range(40)), False),
        ("word1 stands here word2 stands here word3", False),
    ],
    ids=["other case", "one word", "an extract inside another", "another", "a phrase"],
)
def test_a_document_with_half_of_a_held_out_one_is_near_to_it(content: str, near: bool):
    assert near_copies([text(content)], [text(PAGE)]) == ({0} if near else set())


def test_letters_of_a_language_without_spaces_are_words():
    page = "".join(chr(0x4E00 + 7 * i) for i in range(60))
    half, phrase = page[:34] + "".join(chr(0x8000 + i) for i in range(80)), page[:14] + "其他的話"
    assert near_copies([text(half), text(phrase), text(half[34:])], [text(page)]) == {0}


@pytest.mark.parametrize(
    ("content", "near"), [("bad: THE battery, is", True), ("The battery is bad", False), ("...", False)]
)
def test_a_text_too_short_for_runs_is_near_where_its_words_are_the_same(content: str, near: bool):
    assert near_copies([text(content)], [text("Bad: the battery is!"), text(PAGE)]) == ({0} if near else set())


def test_near_copies_leave_training_and_are_counted():
    other = [text(" ".join(f"{name}{i} is new" for i in range(40)), 5) for name in ("a", "b", "c")]
    cut = Split([*other, text(PAGE + " Once more.")], [text(PAGE[:-10], 9)], [text(PAGE, 2)], 3, ("before",))
    made = without_near_copies(cut)
    assert (made.train, made.validation, made.test, made.removed) == (other, [], cut.test, 5)
    assert made.notes == (
        "before",
        "1 documents removed from validation: test contains most of the same text",
        "1 documents removed from train: a held-out part contains most of the same text",
    )


def test_a_split_of_near_copies_only_is_refused():
    with pytest.raises(
        DataError, match="train: 0 documents remain after removing near-duplicates of held-out documents"
    ):
        without_near_copies(Split([text(PAGE + " x")], [], [text(PAGE)], 0, ()))


# ------------------------------------------------------------------ folders


def test_a_folder_of_documents_is_a_row_for_each_file(tmp_path: Path):
    folder = tmp_path / "manual"
    (folder / "part").mkdir(parents=True)
    (folder / "b.md").write_text("# Title\n\nSome *text* here.")
    (folder / "part" / "a.txt").write_text("Plain words.\n\nMore of them.")
    (folder / ".hidden.txt").write_text("no")
    found = read_rows(folder)
    assert [(row.where, row.fields["doc_id"]) for row in found] == [
        ("manual/b.md", "manual/b.md"),
        ("manual/part/a.txt", "manual/part/a.txt"),
    ]
    assert "Some" in str(found[0].fields["text"])
    assert "More of them." in str(found[1].fields["text"])


def test_documents_of_a_folder_are_split_like_rows(tmp_path: Path):
    for i in range(10):
        (tmp_path / f"{i}.txt").write_text(f"Document number {i} says {math.sqrt(i)}.")
    from tunesmith.objectives import Domain

    loaded = load(Sources(str(tmp_path), 0.2, 0.2), lambda rows: Domain().examples(rows, group=""), seed=0)
    assert [len(part) for part in (loaded.split.train, loaded.split.validation, loaded.split.test)] == [6, 2, 2]
