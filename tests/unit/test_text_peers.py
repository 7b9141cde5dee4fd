"""Verdicts and words equal datatrove's and spaCy's on every real document and on hostile ones; needs `make peers`."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.features import main_text, masking, text_rules
from headrace.features.text_rules import judge
from headrace.features.text_rules.contractions import special_cases

pytest.importorskip("datatrove", reason="datatrove is not installed: make peers")
pytest.importorskip("spacy", reason="spacy is not installed: make peers")
REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
MEASURES = text_rules.Measures()
THEIRS = {
    "gopher_short_doc": "gopher_short_doc",
    "gopher_long_doc": "gopher_long_doc",
    "gopher_short_words": "gopher_below_avg_threshold",
    "gopher_long_words": "gopher_above_avg_threshold",
    "gopher_hashes": "gopher_too_many_hashes",
    "gopher_ellipses": "gopher_too_many_ellipsis",
    "gopher_bullet_lines": "gopher_too_many_bullets",
    "gopher_ellipsis_lines": "gopher_too_many_end_ellipsis",
    "gopher_few_letters": "gopher_below_alpha_threshold",
    "gopher_few_stop_words": "gopher_enough_stop_words",
    "repetition_dup_paragraphs": "dup_para_frac",
    "repetition_dup_paragraph_chars": "dup_para_char_frac",
    "repetition_dup_lines": "dup_line_frac",
    "repetition_dup_line_chars": "dup_line_char_frac",
    **{f"repetition_top_{n}_gram": f"top_{n}_gram" for n in (2, 3, 4)},
    **{f"repetition_dup_{n}_gram": f"duplicated_{n}_n_grams" for n in range(5, 11)},
    "c4_lorem_ipsum": "lorem_ipsum",
    "c4_curly_bracket": "curly_bracket",
    "c4_few_sentences": "too_few_sentences",
    "fineweb_blank": "empty",
    "fineweb_line_punctuation": "line_punct_ratio",
    "fineweb_short_lines": "short_line_ratio",
    "fineweb_dup_line_chars": "char_dup_ratio",
    "fineweb_newlines": "list_ratio",
}


@functools.lru_cache
def filters() -> dict[str, Any]:
    from datatrove.pipeline import filters as theirs

    return {
        "repetition": theirs.GopherRepetitionFilter(),
        "gopher": theirs.GopherQualityFilter(),
        "c4": theirs.C4QualityFilter(),
        "fineweb": theirs.FineWebQualityFilter(),
    }


@functools.lru_cache
def tokenizer() -> Any:
    from datatrove.utils.word_tokenizers import SpaCyTokenizer

    return SpaCyTokenizer("en")


def differences(text: str, only: str | None = None) -> list[tuple[str, str | None, str | None]]:
    """Families whose verdict differs: ours and theirs."""
    from datatrove.data import Document

    values, found = MEASURES.of(text), []
    for family, theirs in filters().items():
        if only not in (None, family):
            continue
        ours = judge.first(text_rules.rules(text_rules.Thresholds(), (family,)), values)
        result = theirs.filter(Document(text=text, id="0"))
        reason = None if result is True else result[1]
        if (THEIRS[ours] if ours else None) != reason:
            found.append((family, ours, reason))
    return found


def archived() -> Iterator[bytes]:
    """Bodies of the records in every archive we have; a broken archive as far as it goes."""
    from fastwarc import ArchiveIterator

    for path in sorted(REAL.glob("*/*")):
        if (".warc" in path.name and ".paths" not in path.name) or ".wet" in path.name:
            try:
                with path.open("rb") as file:
                    for record in ArchiveIterator(file, parse_http=True):
                        yield record.reader.read(2_000_000)
            except OSError:
                continue


def real_documents() -> Iterator[str]:
    for body in archived():
        raw = main_text.decode(body, None)[0].replace("\x00", "")
        yield raw[:20_000]
        for main in (True, False):
            chosen = main_text.Settings(main_content=main)
            yield main_text.extract(b"<html>" + body, "text/html", chosen).text or ""
    for path in sorted(REAL.glob("wikitext2/*")) + sorted(REAL.glob("tiny_shakespeare/*")):
        text = path.read_text(errors="replace")[:400_000]
        yield from (text[start : start + 5000] for start in range(0, len(text), 5000))


def test_verdicts_equal_on_every_real_document() -> None:
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is absent")
    compared: Counter[str] = Counter()
    for text in set(real_documents()) - {""}:
        assert differences(text) == [], text[:300]
        compared[judge.first(text_rules.rules(text_rules.Thresholds()), MEASURES.of(text)) or "stays"] += 1
    assert sum(compared.values()) > 300 and len(compared) > 5, compared


PIECES = [
    *special_cases(),
    "http://a.b.com/x",
    "user@site.org",
    "1.2.3.4",
    "5km",
    "US$5",
    "A.B",
    "foo-bar",
    "10-20",
    "…",
]
LETTERS = (
    "aAbZ09. ,;:!?'\"()[]{}<>-_=+*/\\|#$€%&@~^°…—–’‘“”«»\n\t \u00a0\u3000中国人。、，！あ🙂😀🥰éßñЖжא ب٪½²µm k\x1c\x85"
)


def hostile(seed: int) -> str:
    draw = random.Random(seed)
    pieces = []
    for _ in range(draw.randint(1, 80)):
        kind = draw.random()
        if kind < 0.5:
            pieces.append(draw.choice(LETTERS))
        elif kind < 0.85:
            pieces.append(draw.choice(PIECES) + draw.choice(["", " "]))
        else:
            pieces.append(
                chr(
                    draw.choice([draw.randint(32, 0x24F), draw.randint(0x2000, 0x3100), draw.randint(0x1F000, 0x1FAFF)])
                )
            )
    return "".join(pieces)


def test_words_and_sentences_equal_spacys_on_hostile_texts() -> None:
    for seed in range(400):
        text = hostile(seed)
        assert MEASURES.words.cut(text) == tokenizer().word_tokenize(text), text
        assert MEASURES.words.sentences(text) == max(1, len(tokenizer().span_tokenize(text))), text


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=120))
def test_words_equal_spacys_on_any_text(text: str) -> None:
    assert MEASURES.words.cut(text) == tokenizer().word_tokenize(text)


SENTENCES = [
    "The cat is here.",
    "the cat is here",
    "- a point",
    "…",
    "x {",
    "lorem ipsum is it.",
    "#",
    "a b c d e f g.",
    "\n",
    "\n\n",
    "uses cookies here.",
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=60), st.sampled_from(["\n", " ", "\n\n"]))
def test_verdicts_equal_on_generated_documents(pieces: list[str], between: str) -> None:
    text = between.join(pieces)
    if text.strip():
        assert differences(text) == []


def test_nothing_that_their_masking_finds_is_left_but_what_we_say() -> None:
    """Their e-mail pattern also takes prices (5@3.99) and names without a top-level domain; versions are our choice."""
    from datatrove.pipeline.formatters.pii import PIIFormatter

    theirs = PIIFormatter(email_replacement="E@e.ee", ip_replacement="9.9.9.9")
    for text in (
        "mail a.b+c@d-e.co.uk!",
        "(x@y.org)",
        "8.8.8.8",
        "ip:1.1.1.1:80",
        "to a@b.de,c@d.fr",
        "10.1.1.1 127.0.0.1",
    ):
        ours = masking.mask(text, masking.Settings(email="E@e.ee", ip="9.9.9.9"))
        assert ours.text == theirs.format(text)
