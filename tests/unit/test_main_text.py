"""HTML to text, encodings, languages, masking, URL lists, and the guard around hostile pages."""

from __future__ import annotations

import codecs
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import UserError
from headrace.features import language, masking, url_filter
from headrace.features.guarded import Guarded, Lost
from headrace.features.main_text import Settings, decode, extract, published
from headrace.features.masking import mask

PAGE = """<html><head><title>A  title</title><style>p {{}}</style></head><body>
<nav><a href="/">Home</a> <a href="/x">Links</a></nav>
<main><h1>Heading</h1><p>{}</p><ul><li>point</li></ul><script>var x = 1;</script></main>
<footer>Copyright</footer></body></html>"""


def test_main_text_leaves_the_boilerplate_out() -> None:
    found = extract(PAGE.format("A paragraph &amp; more.").encode(), "text/html", Settings())
    assert found.text is not None and "A paragraph & more." in found.text
    assert found.error is None and found.title == "A title" and found.encoding == "utf-8"
    assert "Home" not in found.text and "var x" not in found.text and "Copyright" not in found.text
    everything = extract(PAGE.format("A paragraph.").encode(), "text/html", Settings(main_content=False)).text
    assert everything is not None and "Home" in everything and "var x" not in everything


@pytest.mark.parametrize(
    ("payload", "header", "text", "encoding"),
    [
        ("é".encode(), "text/html; charset=utf-8", "é", "utf-8"),
        ("é".encode("latin-1"), "text/html; charset=ISO-8859-1", "é", "cp1252"),
        (b"\xef\xbb\xbf\xc3\xa9", "text/html; charset=latin-1", "é", "utf-8"),
        ("\ufeffé".encode("utf-16-le"), None, "é", "utf-16-le"),
        (b'<meta charset="windows-1251">\xe9', None, "й", "cp1251"),
        (b'<META http-equiv=Content-Type content="text/html; charset=Shift_JIS">\x82\xa0', None, "あ", "shift_jis"),
        ("日本語".encode("euc-jp"), "text/html; charset='euc-jp'", "日本語", "euc_jp"),
        ("é".encode(), None, "é", "utf-8"),
        ("é".encode(), "text/html; charset=nonsense-9", "é", "utf-8"),
    ],
)
def test_encodings_are_found_where_browsers_look(payload: bytes, header: str | None, text: str, encoding: str) -> None:
    found, name = decode(payload, header)
    assert found.endswith(text)
    assert codecs.lookup(name).name == codecs.lookup(encoding).name


def test_a_wrong_declaration_gives_way_to_detection() -> None:
    russian = "Привет, как дела? Это простой русский текст о погоде и природе.".encode("cp1251")
    text, _ = decode(russian * 3, "text/html; charset=utf-8")
    assert text.startswith("Привет")


@pytest.mark.parametrize(
    ("payload", "header", "error"),
    [
        (b"%PDF-1.4", "text/html", "not_html"),
        (b"\x89PNG\r\n", "image/png", "not_html"),
        (b"{}", "application/json", "not_html"),
        (b"no tags", None, "not_html"),
        (b"<html>" + b"x" * 2000, "text/html", "too_large"),
        (b"<html><body></body></html>", "text/html", "empty"),
        (b"", "text/html", "empty"),
    ],
)
def test_what_has_no_text_says_why(payload: bytes, header: str | None, error: str) -> None:
    found = extract(payload, header, Settings(max_bytes=1000))
    assert (found.text, found.error) == (None, error)


def test_pages_without_a_header_and_plain_text() -> None:
    assert extract(b"<!DOCTYPE html><p>Hi there</p>", None, Settings(main_content=False)).text == "Hi there"
    assert extract(b"a < b\r\nc\x00", "text/plain", Settings()).error == "not_html"  # NUL: binary
    assert extract(b"a < b\r\nc", "text/plain", Settings()).text == "a < b\nc"


def test_published_text_is_taken_as_it_is_and_cut_at_a_line() -> None:
    assert published("Zeile\r\nzwei \u0007ä".encode(), Settings()).text == "Zeile\nzwei ä"
    assert published(b"caf\xe9", Settings()).text == "caf\ufffd"
    assert published(b"12345678\n1234", Settings(max_chars=10)).text == "12345678"
    assert published(b" \n\t", Settings()).error == "empty"


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=300).map(lambda raw: b"<html><body>" + raw) | st.binary(max_size=300),
    st.sampled_from(
        [None, "text/html", "text/html; charset=utf-16", "text/html;charset=utf-7", "text/plain", ";;", "\ud800"]
    ),
)
def test_any_bytes_give_a_text_or_a_reason(payload: bytes, header: str | None) -> None:
    found = extract(payload, header, Settings())
    assert (found.text is None) != (found.error is None)
    if found.text is not None:
        assert found.text.encode() and "\x00" not in found.text and found.text.strip() == found.text


def test_every_single_byte_in_every_encoding() -> None:
    page = b"<html><body><p>" + bytes(range(1, 256)) + b"</p></body></html>"
    for name in ("utf-8", "big5", "gb18030", "iso-2022-jp", "euc-kr", "koi8-r", "utf-16be", "x-user-defined"):
        assert extract(page, f"text/html; charset={name}", Settings(main_content=False)).error in (None, "empty")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The quick brown fox jumps over the lazy dog and runs away.", "en"),
        ("Der schnelle braune Fuchs springt über den faulen Hund.", "de"),
        ("敏捷的棕色狐狸跳过了懒狗，然后跑进了森林。", "zh"),
        ("Быстрая коричневая лиса прыгает через ленивую собаку.", "ru"),
    ],
)
def test_languages(text: str, code: str) -> None:
    found = language.detect(text)
    assert found.code == code and 0.5 < found.score <= 1
    assert code in language.codes()
    assert language.detect(text * 1000, max_chars=500).code == code


@pytest.mark.parametrize("text", ["", "   ", "12345 !!!", "🙂"])
def test_no_letters_no_language(text: str) -> None:
    assert language.detect(text) == (None, 0.0)


EMAIL, IP = masking.Settings().email, masking.Settings().ip


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to john.doe+x@mail.example.co.uk, or <a@b.de>.", f"write to {EMAIL}, or <{EMAIL}>."),
        ("müller@exämple.de _x@y.org 'q@w.com'", f"{EMAIL} {EMAIL} '{EMAIL}'"),
        ("root@8.8.8.8 root@[8.8.8.8]", f"{EMAIL} {EMAIL}"),
        ("a@b, 5@3.99, @handle, x@y.c", "a@b, 5@3.99, @handle, x@y.c"),
        ("8.8.8.8, (1.1.1.1:53) 9.9.9.9/24 4.4.4.4-5.5.5.5.", f"{IP}, ({IP}:53) {IP}/24 {IP}-{IP}."),
        ("10.0.0.1 192.168.1.1 127.0.0.1 172.16.0.1 169.254.1.1 0.0.0.0", None),
        ("version 1.2.3.4 v1.2.3.4 1.2.3.4.5 1.2.3.4-beta Firmware: 8.8.8.8 256.1.1.1 1.2.3.04 1.2.3", None),
        (
            "2001:4860:4860::8888 and 2001:db8::1 ::1 12:30:45 dead::beef std::abc",
            f"2001:db8::1 and {'2001:db8::1'} ::1 12:30:45 dead::beef std::abc",
        ),
    ],
)
def test_masking(text: str, masked: str | None) -> None:
    found = mask(text)
    assert found.text == (text if masked is None else masked)
    assert (found.num_emails + found.num_ips > 0) == (masked not in (None, text))
    assert mask(found.text) == (found.text, 0, 0)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["a@b.de", "8.8.8.8", ".", "@", "1", "a", ":", "-", " ", "::", "2001", "é"]), max_size=30)
)
def test_masking_any_text(pieces: list[str]) -> None:
    text = "".join(pieces)
    found = mask(text)
    assert (found.text == text) == (found.num_emails + found.num_ips == 0)
    assert found.num_emails <= text.count("@")


def test_masking_long_texts_is_linear() -> None:
    for piece in ("a", "a.", "a@", "1.", "1:", "a@a.", "!", "ab:", "1.1.1.1", "1:1:" + "a" * 29 + " "):
        mask(piece * (200_000 // len(piece)))  # what is quadratic runs into the test's time limit


def lists(tmp_path: Path, **files: bytes) -> url_filter.UrlFilter:
    paths: dict[str, Any] = {}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        paths[name] = str(tmp_path / name)
    return url_filter.read(url_filter.Settings(**paths))


def test_domains_block_their_subdomains(tmp_path: Path) -> None:
    hostile = b"\xff\xfe\x00bad\n" + b"x" * 10_000 + b"\nnot a domain here\n<script>\n"
    content = b"# list\n0.0.0.0 ads.example.com\n127.0.0.1\ttracker.net # why\nPlain.ORG.\r\n||block.io^\n*.wild.de\n"
    found = lists(tmp_path, domains=content + hostile, allow=b"good.plain.org")
    removed = ["http://ads.example.com/x", "https://a.b.TRACKER.net:8080", "http://plain.org", "http://x.block.io/"]
    removed += ["http://wild.de", "http://u:p@plain.org/"]
    assert [found.reason(url) for url in removed] == ["url_domain"] * 6
    for url in ("http://example.com", "http://notplain.org", "http://good.plain.org", "nonsense", "", "http://[", None):
        assert found.reason(url) is None
    assert sum(found.left_out.values()) == 4


def test_urls_and_words(tmp_path: Path) -> None:
    found = lists(
        tmp_path,
        urls=b"http://a.com/page/\nb.com/x?y\n",
        words=b"casino\n",
        soft_words=b"free\nwin\n",
        subwords=b"badstuff",
    )
    assert found.reason("https://A.com:443/page#top") == "url_listed"
    assert found.reason("http://b.com/x?y") == "url_listed" and found.reason("http://b.com/x?z") is None
    assert found.reason("http://c.com/Casino-royal") == "url_word" and found.reason("http://c.com/casinos") is None
    assert found.reason("http://c.com/free/free") is None and found.reason("http://c.com/free-win") == "url_soft_words"
    assert found.reason("http://c.com/bad-st/uff") == "url_subword"


def test_lists_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the list"):
        url_filter.read(url_filter.Settings(domains=str(tmp_path / "absent")))
    with pytest.raises(UserError, match="holds no entry"):
        lists(tmp_path, domains=b"# nothing\n")
    assert not url_filter.read(url_filter.Settings())


@pytest.mark.parametrize(
    ("url", "host", "domain"),
    [
        ("http://www.Example.co.uk/a", "www.example.co.uk", "example.co.uk"),
        ("https://a.b.example.com.:80", "a.b.example.com", "example.com"),
        ("http://8.8.8.8/", "8.8.8.8", "8.8.8.8"),
        ("http://localhost", "localhost", "localhost"),
        ("co.uk", None, None),
        ("http://[::1", None, None),
        ("", None, None),
    ],
)
def test_places(url: str, host: str | None, domain: str | None) -> None:
    assert url_filter.place(url) == (host, domain)


def misbehave(how: str) -> str:
    if how == "wait":
        time.sleep(60)
    while how == "hang":
        pass
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "memory":
        return str(len(bytearray(4 << 30)))
    if how == "raise":
        raise RuntimeError("no")
    return how.upper()


def test_a_bad_item_costs_itself_only() -> None:
    with Guarded[str, str](misbehave, seconds=0.2, memory_bytes=256 << 20) as guarded:
        found = [guarded(how) for how in ("ok", "hang", "ok", "crash", "wait", "memory", "raise", "fine")]
    reasons = [item.reason if isinstance(item, Lost) else item for item in found]
    assert reasons == ["OK", "timeout", "OK", "crashed", "timeout", "memory", "failed", "FINE"]
