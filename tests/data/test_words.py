"""Words of scripts with and without spaces, and what they do to scores."""

from __future__ import annotations

import unicodedata

from tunesmith.data.documents.document import plain
from tunesmith.data.text.words import searched, spaced, words_of
from tunesmith.metrics.scores import contains, exact_match, rouge_l
from tunesmith.pipelines.compare.prompting import label_in


def test_marks_stay_with_their_letters_and_scripts_without_spaces_come_letter_by_letter():
    assert words_of("लड़की C++ a_b 3.5") == [unicodedata.normalize("NFC", "लड़की"), "c", "a", "b", "3", "5"]
    assert words_of("猫坐。ที่ ok") == ["猫", "坐", "ที่", "ok"]
    assert spaced("首都Rom") == " 首  都 Rom"
    assert searched("德国的 is 京 ที่นี่ မြန်မာ။ की a_b x") == ["德国", "国的", "is", "京", "ที่นี่", "မြန်", "န်မာ", "की", "a_b"]


def test_words_that_differ_in_a_mark_are_two_and_accents_written_apart_are_none():
    assert plain("लड़की") != plain("लड़का")
    assert rouge_l(["की"], ["का"])[0] == 0
    assert exact_match(["café"], ["cafe\u0301"])[0] == 1


def test_nearly_right_answers_of_a_script_without_spaces_score():
    assert rouge_l(["猫坐在垫子上睡觉。"], ["猫坐在垫子上睡觉了。"])[0] > 0.9
    assert contains(["北京", "东京"], ["首都是北京。", "首都是北京。"]).tolist() == [1, 0]
    assert label_in("这是正面的评价", ["正面", "负面"]) == "正面"
