"""Quality rules: values computed by hand, verdicts, edge cases; the tokenizer on chosen and on hostile texts."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features import text_rules
from headrace.features.text_rules import c4, fineweb, gopher, judge, repetition
from headrace.features.text_rules.words import Words

MEASURES = text_rules.Measures()
WORDS = MEASURES.words


def words(text: str) -> list[str]:
    return WORDS.cut(text)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Hello, world!", ["Hello", ",", "world", "!"]),
        ("I don't know, it's 5km.", ["I", "do", "n't", "know", ",", "it", "'s", "5", "km", "."]),
        (
            "Mr. Smith (a.k.a. Bob) e.g. said so...",
            ["Mr.", "Smith", "(", "a.k.a", ".", "Bob", ")", "e.g.", "said", "so", "..."],
        ),
        (
            "see http://example.com/a?b=c, user@example.org.",
            ["see", "http://example.com/a?b=c", ",", "user@example.org", "."],
        ),
        (
            "well-known 10-20 1,000 x/y 3+4",
            ["well", "-", "known", "10", "-", "20", "1,000", "x", "/", "y", "3", "+", "4"],
        ),
        ("smile :) wow:) ^_^", ["smile", ":)", "wow", ":)", "^_^"]),
        ("$5 5$ US$5 20%", ["$", "5", "5", "$", "US$", "5", "20", "%"]),
        ("你好，世界。", ["你好，世界", "。"]),
        ("🙂🙂 ok", ["🙂", "🙂", "ok"]),
        ("'quoted' \"text\"", ["'", "quoted", "'", '"', "text", '"']),
        ("  \n\t ", []),
        ("", []),
    ],
)
def test_words_are_cut_as_by_the_published_rules_tokenizer(text: str, tokens: list[str]) -> None:
    assert words(text) == tokens


def test_special_cases_do_not_join_across_a_blank() -> None:
    assert words("hello: )") == ["hello", ":", ")"]
    assert words("hello:)") == ["hello", ":)"]


@pytest.mark.parametrize(
    ("text", "count"),
    [("One. Two! Three?", 3), ("Mr. Smith came.", 1), ("Wait... what?", 1), ("No end", 1), ("Hi!!! You", 2), ("", 1)],
)
def test_sentences(text: str, count: int) -> None:
    assert WORDS.sentences(text) == count


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_tokens_spell_the_text_and_do_not_depend_on_what_was_cut_before(text: str) -> None:
    assert "".join(words(text)) == "".join(text.split())
    assert Words().cut(text) == words(text)
    assert 1 <= WORDS.sentences(text) <= len(text) + 1


@pytest.mark.parametrize("piece", ["(", "!", ".", "a.", "a@", "'", ":)", "a-", "$", "5", "x:", "http://a.", "\u2026"])
def test_long_chunks_are_cut_in_linear_time(piece: str) -> None:
    text = piece * (60_000 // len(piece))
    assert "".join(words(text)) == text  # the quadratic way takes minutes, which the test's time limit sees


def test_gopher_by_hand() -> None:
    text = "- The quick fox...\n- #1 of 20 with that\nand so on…"
    cut = ["-", "The", "quick", "fox", "...", "-", "#", "1", "of", "20", "with", "that", "and", "so", "on", "…"]
    assert words(text) == cut
    values = gopher.measure(text, cut, gopher.Settings())
    # Words that are no punctuation: The quick fox 1 of 20 with that and so on
    lengths = [3, 5, 3, 1, 2, 2, 4, 4, 3, 2, 2]
    assert values == {
        "num_words": 11,
        "mean_word_length": sum(lengths) / 11,
        "hash_ratio": 1 / 16,
        "ellipsis_ratio": 2 / 16,
        "bullet_lines": 2 / 3,
        "ellipsis_lines": 2 / 3,
        "alpha_words": 9 / 16,
        "stop_words": 4,  # of, with, that, and: "The" is not "the"
    }


def test_repetition_of_lines_and_paragraphs_by_hand() -> None:
    text = "ab\nab\n\ncd\n\nab\nab"
    values = repetition.measure(text, words(text))
    assert values["dup_paragraphs"] == 1 / 3 and values["dup_paragraph_chars"] == 5 / 16
    assert values["dup_lines"] == 3 / 5 and values["dup_line_chars"] == 6 / 16


def test_repetition_of_n_grams_by_hand() -> None:
    text = "a b c d e a b c d e a b"  # 23 characters
    values = repetition.measure(text, text.split())
    assert values["top_2_gram"] == 3 * len("a b") / 23
    assert values["top_3_gram"] == 2 * len("a b c") / 23
    assert values["dup_5_gram"] == 5 / 23  # the second abcde; what overlaps it is skipped
    assert values["dup_6_gram"] == 6 / 23
    assert values["dup_8_gram"] == 0


def test_repetition_compares_letters_not_word_ends() -> None:
    one, other = ["ab", "c", "d", "e", "f"], ["a", "bc", "d", "e", "f"]
    letters = len("abcdef")
    assert repetition.measure("x" * 30, one + other)["dup_5_gram"] == letters / 30


def slow_repetition(text: str, cut: list[str]) -> dict[str, float | None]:
    """The n-gram rules word by word."""
    found: dict[str, float | None] = {}
    for n in (2, 3, 4):
        counts: dict[str, int] = {}
        for i in range(len(cut) - n + 1):
            gram = " ".join(cut[i : i + n])
            counts[gram] = counts.get(gram, 0) + 1
        top = max(counts, key=lambda gram: counts[gram]) if counts else None
        found[f"top_{n}_gram"] = None if top is None else len(top) * counts[top] / len(text)
    for n in range(5, 11):
        seen, chars, i = set(), 0, 0
        while i + n <= len(cut):
            gram = "".join(cut[i : i + n])
            if gram in seen:
                chars, i = chars + len(gram), i + n
            else:
                seen.add(gram)
                i += 1
        found[f"dup_{n}_gram"] = chars / len(text)
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "ab", "ba", "the", "é", "🙂"]), max_size=80))
def test_n_grams_equal_the_slow_reference(cut: list[str]) -> None:
    text = " ".join(cut)
    if text:
        values = repetition.measure(text, cut)
        assert {name: values[name] for name in slow_repetition(text, cut)} == slow_repetition(text, cut)


C4_TEXT = "\n".join(
    [
        "This line stays. It has two sentences.",  # 2
        "no punctuation here",
        "Short.",
        "Please enable JavaScript now.",
        "We respect our Privacy Policy always.",
        "Cited as said[1] before.[edit]",  # 1, ends in a full stop only without the citation
        "An ellipsis does not count...",
        "x" * 1001 + " is a long word.",
    ]
)


def test_c4_by_hand() -> None:
    values = c4.measure(C4_TEXT, WORDS, c4.Settings(), None)
    assert values == {
        "lines": 8,
        "lines_long_word": 1,
        "lines_no_punctuation": 2,
        "lines_few_words": 1,
        "lines_javascript": 1,
        "lines_policy": 1,
        "lorem_ipsum": None,
        "curly_bracket": None,
        "sentences": 3,
        "bad_words": None,
    }
    assert c4.kept_lines(C4_TEXT, c4.Settings()) == ("This line stays. It has two sentences.\nCited as said before.")


def test_c4_first_bad_line_names_the_reason() -> None:
    lorem, curly = "Lorem ipsum dolor sit amet.", "A line { of code."
    for text, reason in ((f"{lorem}\n{curly}", "c4_lorem_ipsum"), (f"{curly}\n{lorem}", "c4_curly_bracket")):
        values = {f"rule_c4_{k}": v for k, v in c4.measure(text, WORDS, c4.Settings(), None).items()}
        assert judge.first(c4.rules(c4.Thresholds()), values) == reason
        assert judge.first(c4.rules(c4.Thresholds(curly_bracket=False)), values) == "c4_lorem_ipsum"
        assert judge.first(c4.rules(c4.Thresholds(lorem_ipsum=False)), values) == "c4_curly_bracket"
    only_code = c4.measure("int main() {", WORDS, c4.Settings(), None)
    assert only_code["curly_bracket"] is None  # dropped before, for no punctuation


def test_c4_bad_words_need_word_ends() -> None:
    pattern = c4.word_pattern(["Ass", "two words", ""])
    values = c4.measure("An ass. A class, TWO WORDS!", WORDS, c4.Settings(), pattern)
    assert values["bad_words"] == 2
    assert c4.word_pattern(["女の子"], whole=False).search("あ女の子い")  # type: ignore[union-attr]
    assert c4.word_pattern([" "]) is None


def test_fineweb_by_hand() -> None:
    text = "A line that is longer than thirty letters.\n\nshort one\nshort one\n終わり。"
    values = fineweb.measure(text, words(text), fineweb.Settings())
    first, short, last = 42, 9, 4
    assert values == {
        "lines": 4,
        "line_punctuation": 2 / 4,
        "short_lines": 3 / 4,
        "dup_line_chars": short / (first + 2 * short + last),
        "newlines": 4 / (9 + 4 + 2),
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n",
        "word",
        "!!!",
        "…",
        "no newline at all",
        "漢字かな。",
        "שלום עולם",
        "🙂",
        "\u0000",
        "\ufeff",
        "a" * 5000,
        "{\n" * 50,
        "- \n" * 30,
    ],
)
def test_edge_cases_have_all_values_and_a_verdict(text: str) -> None:
    values = MEASURES.of(text)
    promised = [c.name for c in load("silver/documents").columns if c.name.startswith("rule_")]
    assert sorted(values) == sorted(promised)
    assert not any(isinstance(v, float) and math.isnan(v) for v in values.values())
    judge.first(text_rules.rules(text_rules.Thresholds()), values)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=400))
def test_any_text_is_measured(text: str) -> None:
    values = MEASURES.of(text)
    assert all(v is None or v >= 0 for v in values.values())


def test_thresholds_switch_rules_off_and_keep_their_order() -> None:
    every = text_rules.rules(text_rules.Thresholds())
    assert [rule.name.split("_")[0] for rule in every] == sorted(
        (rule.name.split("_")[0] for rule in every), key=["repetition", "gopher", "c4", "fineweb"].index
    )
    fewer = text_rules.rules(text_rules.Thresholds(gopher=gopher.Thresholds(min_words=None)), ("gopher",))
    assert len(fewer) == 9 and all(rule.name != "gopher_short_doc" for rule in fewer)


def test_a_value_on_the_threshold_stays() -> None:
    row: dict[str, Any] = {"rule_gopher_num_words": 50}
    assert not judge.Rule("n", "rule_gopher_num_words", "<", 50).removes(row)
    assert judge.Rule("n", "rule_gopher_num_words", "<", 51).removes(row)
    assert not judge.Rule("n", "rule_gopher_num_words", ">", 50).removes(row)
    assert not judge.Rule("n", "rule_gopher_num_words", "<", 99, above=50).removes(row)
    assert not judge.Rule("n", "rule_gopher_num_words", "<", 99).removes({"rule_gopher_num_words": None})


def test_a_list_of_words_is_read_with_care(tmp_path: Any) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeffone\r\n\n two words \n".encode())
    assert text_rules.read_bad_words(path) == ["one", "two words"]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="list of words"):
        text_rules.read_bad_words(path)
