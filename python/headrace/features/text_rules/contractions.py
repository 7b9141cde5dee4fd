"""Chunks of text that are cut by a list, not by rules: contractions, abbreviations, emoticons.

English as spaCy 3.8 cuts it: `don't` is do + n't, `Mr.` and `:-)` stay whole. Every entry with a straight apostrophe
counts with a typographic one too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

_ENDINGS = (
    ("m", "i"),
    ("ll", "i you he she it we they"),
    ("d", "i you he she it we they"),
    ("ve", "i you we they"),
    ("re", "you we they"),
    ("s", "he she it"),
)
_QUESTIONS = "who what when where why how there"
_NEGATED = "ca could do does did had may might must need ought sha should wo would"
_NEGATED_ONLY = "ai are is was were have has dare"
_NOT_CUT = {"Ill", "ill", "Its", "its", "Hell", "hell", "Shell", "shell", "Shed", "shed"}
_NOT_CUT |= {"were", "Were", "Well", "well", "Whore", "whore"}
_LISTED = (
    "y'|all y|all how|'d|'y How|'d|'y not|'ve not|ve Not|'ve Not|ve can|not Can|not gon|na Gon|na got|ta "
    "Got|ta let|'s Let|'s c'm|on C'm|on"
)
_WHOLE = (
    "em 'em ll 'll nuff 'nuff 'S 's \u2018S \u2018s and/or w/o 're 'Cause 'cause 'cos 'Cos 'coz 'Coz 'cuz "
    "'Cuz 'bout ma'am Ma'am o'clock O'clock 'd C++ <space> '' ' \u2014 \\t \\n \\\") Mt. Ak. Ala. Apr. Ariz. "
    "Ark. Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan. Jul. Jun. Kan. Kans. Ky. "
    "La. Mar. Mass. Mich. Minn. Miss. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Nov. Oct. Okla. Ore. Pa. "
    "S.C. Sep. Sept. Tenn. Va. Wash. Wis. a.m. p.m. Adm. Bros. co. Co. Corp. D.C. Dr. e.g. E.g. E.G. Gen. "
    "Gov. i.e. I.e. I.E. Inc. Jr. Ltd. Md. Messrs. Mo. Mont. Mr. Mrs. Ms. Ph.D. Prof. Rep. Rev. Sen. St. vs. "
    "v.s."
)
_DROPPED_G = "doin goin nothin nuthin ol somethin lovin havin"
_EMOTICONS = (
    ":) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =] :o) (o: :} :-} 8) 8-) (-8 ;) ;-) (; (-; :( "
    ":-( :(( :-(( :((( :-((( ): )-: =( >:( :') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1 :P :-P :p :-p :O "
    ":-O :o :-o :0 :-0 :() >:o :* :-* :3 :-3 =3 :> :-> :X :-X :x :-x :D :-D ;D ;-D =D xD XD xDD XDD 8D 8-D "
    "^_^ ^__^ ^___^ >.< >.> <.< ._. ;_; -_- -__- v.v V.V v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o "
    "0.0 o.0 0.o @_@ <3 <33 <333 </3 (^_^) (-_-) (._.) (>_<) (*_*) (\u00ac_\u00ac) \u0ca0_\u0ca0 "
    "\u0ca0\ufe35\u0ca0 (\u0ca0_\u0ca0) \u00af\\(\u30c4)/\u00af "
    "(\u256f\u00b0\u25a1\u00b0\uff09\u256f\ufe35\u253b\u2501\u253b ><(((*>"
)


def _with_and_without(*parts: str) -> Iterator[tuple[str, ...]]:
    """i + 'll and i + ll, with a small and a capital first letter."""
    for first in (parts[0], parts[0].title()):
        yield (first, *parts[1:])
        yield (first, *(part.replace("'", "") for part in parts[1:]))


def _pronouns() -> Iterator[tuple[str, ...]]:
    for ending, words in _ENDINGS:
        for word in words.split():
            yield from _with_and_without(word, f"'{ending}")
            if ending in ("ll", "d"):
                yield from _with_and_without(word, f"'{ending}", "'ve")
    yield from _with_and_without("i", "'m", "a")


def _question_words() -> Iterator[tuple[str, ...]]:
    demonstratives = (("that", "s ll d"), ("this", "s ll d"), ("these", "ll re ve d"), ("those", "ll re ve d"))
    for word, endings in (*((word, "s ll re ve d") for word in _QUESTIONS.split()), *demonstratives):
        for ending in endings.split():
            yield from _with_and_without(word, f"'{ending}")
            if ending in ("ll", "d"):
                yield from _with_and_without(word, f"'{ending}", "'ve")


def _negations() -> Iterator[tuple[str, ...]]:
    for verb in _NEGATED.split():
        yield from _with_and_without(verb, "n't")
        yield from _with_and_without(verb, "n't", "'ve")
    for verb in _NEGATED_ONLY.split():
        yield from _with_and_without(verb, "n't")
    for verb in ("could", "might", "must", "should", "would"):
        yield from _with_and_without(verb, "'ve")


def _others() -> Iterator[tuple[str, ...]]:
    yield from ((word,) for word in (_WHOLE + " " + _EMOTICONS).split())
    yield from ((f"{letter}.",) for letter in "abcdefghijklmnopqrstuvwxyz\u00e4\u00f6\u00fc")
    yield from (tuple(entry.split("|")) for entry in _LISTED.split())
    yield from (("\u00b0", unit, ".") for unit in "cfkCFK")
    for word in _DROPPED_G.split():
        for form in (word, word.title()):
            yield from ((form,), (f"{form}'",))
    for hour in range(1, 13):
        yield from ((str(hour), period) for period in ("a.m.", "am", "p.m.", "pm"))


@lru_cache
def special_cases() -> dict[str, tuple[str, ...]]:
    """Chunk -> its tokens; they spell the chunk."""
    found: dict[str, tuple[str, ...]] = {}
    for part in (_pronouns(), _question_words(), _negations(), _others()):
        for tokens in part:
            if (chunk := "".join(tokens)) not in _NOT_CUT:
                found[chunk] = tokens
    for chunk, tokens in list(found.items()):
        if "'" in chunk:
            found[chunk.replace("'", "\u2019")] = tuple(token.replace("'", "\u2019") for token in tokens)
    return found
