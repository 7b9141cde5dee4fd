"""Pages of a generated crawl: each a function of (mix, number), with what is planted in it.

A page's number decides its kind. A duplicate copies an original of a smaller number, so that the smallest number of a
cluster is the one that survives, and any range of numbers can be made without the others: also a later crawl that
repeats pages of an earlier one. A near-duplicate has words of its original replaced: with S shingles (word 5-grams) and
d of them lost, J = (S - d) / (S + d); the Jaccard similarity that came out is measured on the finished texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from headrace.errors import UserError
from headrace.ingest.generated_crawl_spam import SPAM
from headrace.ingest.generated_crawl_words import LANGUAGES, Draw, Language

Kind = Literal["page", "exact_duplicate", "near_duplicate", "spam", "other"]
SHINGLE_WORDS = 5
_WORD = re.compile(r"\w+")
_EMAIL = re.compile(r"[\w.]+@[\w.]+\.example")
_PUBLIC_IP = re.compile(r"\b8\.8\.\d+\.\d+\b")
_VIRAL = 8  # one duplicate in so many copies the first page of all: a large cluster
_PERSONAL = 12  # one page in so many has an address in it
_HOSTILE = (
    "http://{host}/../../../../etc/passwd",
    "http://{host}/%2e%2e/%2e%2e/etc/passwd%00.html",
    "http://{host}/a page with spaces/and 'quotes'; rm -rf $HOME",
    "http://{host}/..\\..\\windows\\system32",
    "file:///etc/shadow?{host}",
    "http://{host}/" + "long/" * 800,
    "http://{host}/%0d%0aSet-Cookie:x=y",
)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What pages a crawl has; shares are of all pages, the rest are ordinary ones.

    Args:
        seed: of everything.
        exact: share of exact duplicates of another page's text; half of them repeat its bytes as well.
        near: share of near-duplicates, at one of `jaccards` from their original.
        spam: share of pages that a quality rule must remove, the rules in turn.
        other: share of records that are no page (JSON).
        hostile: share of pages whose URI tries something.
        jaccards: similarities to plant.
        languages: codes, such as en; English pages are as many as all others together.
    """

    seed: int = 1
    exact: float = 0.05
    near: float = 0.1
    spam: float = 0.1
    other: float = 0.02
    hostile: float = 0.01
    jaccards: tuple[float, ...] = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
    languages: tuple[str, ...] = tuple(LANGUAGES)

    def check(self) -> None:
        """Raise UserError where the settings make no sense."""
        shares = {name: getattr(self, name) for name in ("exact", "near", "spam", "other", "hostile")}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise UserError(f"--{name} {value} is not a share", "give a number from 0 to 1")
        if sum(shares.values()) - self.hostile > 1:
            raise UserError("--exact, --near, --spam and --other add up to more than 1", "give smaller shares")
        if not self.languages or set(self.languages) - set(LANGUAGES):
            raise UserError(f"--languages {','.join(self.languages)}", f"known are {', '.join(LANGUAGES)}")
        if not self.jaccards or any(not 0.3 <= value < 1 for value in self.jaccards):
            raise UserError(f"--jaccards {self.jaccards}", "give similarities from 0.3 to below 1, such as 0.8,0.9")


@dataclass(frozen=True)
class Page:
    """A page and the truth about it.

    Args:
        number: of the page, over all crawls of the same seed.
        kind: what was planted.
        language: code.
        text: its main text, a paragraph a line.
        title: of the page.
        uri: its address.
        original: the page that a duplicate repeats; else its own number.
        jaccard: measured, of word 5-grams with the original; None for others than near-duplicates.
        same_payload: its bytes are the original's too.
        rule: the quality rule it breaks; None where it is not spam.
        template: number of the page whose site, encoding and boilerplate it has.
    """

    number: int
    kind: Kind
    language: str
    text: str
    title: str
    uri: str
    original: int
    jaccard: float | None
    same_payload: bool
    rule: str | None
    template: int

    @property
    def emails(self) -> int:
        """E-mail addresses in the text."""
        return len(_EMAIL.findall(self.text))

    @property
    def public_ips(self) -> int:
        """Public IP numbers in the text."""
        return len(_PUBLIC_IP.findall(self.text))


def page(mix: Mix, number: int) -> Page:
    """The page of a number."""
    kind, original = _kind(mix, number), number
    if kind in ("exact_duplicate", "near_duplicate"):
        found = _original(mix, number)
        kind, original = (kind, found) if found is not None else ("page", number)
    language = "en" if kind == "spam" else _language(mix, original)
    draw = Draw(mix.seed, number, "page")
    text = _text(mix, original)
    same_payload = kind == "exact_duplicate" and draw.below(2) == 0
    rule, jaccard = None, None
    if kind == "near_duplicate":
        target = draw.pick(mix.jaccards)
        text, before = _edited(text, LANGUAGES[language], target, draw), text
        jaccard = similarity(text, before)
    elif kind == "spam":
        rule = sorted(SPAM)[number % len(SPAM)]
        text = "\n".join(SPAM[rule](draw))
    title = _title(mix, original if same_payload else number, language)
    template = original if same_payload else number
    return Page(
        number,
        kind,
        language,
        text,
        title,
        _uri(mix, number, language),
        original,
        jaccard,
        same_payload,
        rule,
        template,
    )


def shingles(text: str) -> set[tuple[str, ...]]:
    """Word 5-grams of a text: runs of letters, digits and _, in lower case."""
    words = _WORD.findall(text.lower())
    return set(zip(*(words[start:] for start in range(SHINGLE_WORDS)), strict=False))


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of two texts' shingles."""
    first, second = shingles(one), shingles(other)
    return len(first & second) / max(1, len(first | second))


def _kind(mix: Mix, number: int) -> Kind:
    place = Draw(mix.seed, number, "kind").unit()
    shares: list[tuple[Kind, float]] = [
        ("exact_duplicate", mix.exact),
        ("near_duplicate", mix.near),
        ("spam", mix.spam),
        ("other", mix.other),
    ]
    for kind, share in shares:
        if place < share:
            return kind
        place -= share
    return "page"


def _original(mix: Mix, number: int) -> int | None:
    """An ordinary page of a smaller number: the nearest below a drawn place, else the nearest above."""
    draw = Draw(mix.seed, number, "original")
    start = 0 if number == 0 or draw.below(_VIRAL) == 0 else draw.below(number)
    for candidate in (*range(start, -1, -1), *range(start + 1, number)):
        if candidate < number and _kind(mix, candidate) == "page":
            return candidate
    return None


def _language(mix: Mix, number: int) -> str:
    draw = Draw(mix.seed, number, "language")
    if "en" in mix.languages and draw.below(2) == 0:
        return "en"
    return draw.pick(mix.languages)


def _text(mix: Mix, number: int) -> str:
    """Paragraphs of 2 to 6 sentences, 10 to 49 sentences in all, one page in 16 twice as many."""
    draw = Draw(mix.seed, number, "text")
    language = LANGUAGES[_language(mix, number)]
    count = (10 + draw.below(40)) * (2 if draw.below(16) == 0 else 1)
    sentences = [language.sentence(draw) for _ in range(count)]
    if language.code == "en":  # some of the words that Gopher's rule wants
        sentences[0] = f"The story of {draw.pick(language.nouns)} and {draw.pick(language.nouns)} begins here."
    if draw.below(_PERSONAL) == 0:
        sentences.insert(draw.below(count), _personal(draw))
    paragraphs = []
    while sentences:
        size = 2 + draw.below(5)
        size = size if len(sentences) - size >= 2 else len(sentences)
        paragraphs.append(" ".join(sentences[:size]))
        sentences = sentences[size:]
    return "\n".join(paragraphs)


def _personal(draw: Draw) -> str:
    name = draw.pick(("anna.keller", "joe_baker", "m.rossi", "info", "press.office"))
    public, private = f"8.8.{draw.below(256)}.{1 + draw.below(254)}", f"192.168.{draw.below(256)}.7"
    return f"Write to {name}{draw.below(100)}@mail.example, from {public} or from {private}."


def _edited(text: str, language: Language, target: float, draw: Draw) -> str:
    """Words replaced so that shingles have about the target similarity: in one run at the end, or far from each other.

    A run of d words loses d shingles where it ends the text; a single word inside loses 5.
    """
    lines = [line.split(" ") for line in text.split("\n")]
    places = [(row, column) for row, line in enumerate(lines) for column in range(len(line))]
    lost = (len(places) - SHINGLE_WORDS + 1) * (1 - target) / (1 + target)
    if draw.below(2):
        chosen = places[len(places) - max(1, round(lost)) :]
    else:
        count = max(1, round(lost / SHINGLE_WORDS))
        chosen = [places[(2 * k + 1) * len(places) // (2 * count)] for k in range(count)]
    for row, column in chosen:
        lines[row][column] = _another(lines[row][column], language, draw)
    return "\n".join(" ".join(line) for line in lines)


def _another(word: str, language: Language, draw: Draw) -> str:
    """A word that stands nowhere else, with the same punctuation and capital."""
    core = word.rstrip(".,")
    fresh = f"{language.words(draw, 1)[0].lower()}{draw.below(10_000)}"
    return (fresh.capitalize() if core[:1].isupper() else fresh) + word[len(core) :]


def _title(mix: Mix, number: int, language: str) -> str:
    draw = Draw(mix.seed, number, "title")
    return " ".join(LANGUAGES[language].words(draw, 3 + draw.below(3))).capitalize()


def _uri(mix: Mix, number: int, language: str) -> str:
    """Hosts have a power law; every address is another, hostile ones only differ by host."""
    draw = Draw(mix.seed, number, "uri")
    host = f"www.site{int(2000 * draw.unit() ** 3)}.example"
    if draw.unit() < mix.hostile:
        return draw.pick(_HOSTILE).format(host=f"p{number}.{host}")
    topic = draw.pick(("news", "blog", "wiki", "shop", "forum"))
    return f"https://{host}/{language}/{topic}/{number}.html"
