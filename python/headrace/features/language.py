"""The language of a text and how sure that is: py3langid, a naive Bayes classifier over byte n-grams.

Lui and Baldwin, langid.py: An Off-the-shelf Language Identification Tool, ACL 2012. The score is the normalized
probability among the languages the model knows. A long text is judged by samples from its beginning, middle and end.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

_SAMPLES = 3


class Language(NamedTuple):
    """ISO 639-1 code and probability; None and 0 where the text says too little."""

    code: str | None
    score: float


def detect(text: str, max_chars: int = 6000) -> Language:
    """The most likely language of a text.

    Args:
        text: any.
        max_chars: a longer text is judged by three samples with so many characters together.
    """
    sample = _sample(text, max_chars)
    if not any(map(str.isalpha, sample)):
        return Language(None, 0.0)
    code, score = _identifier().classify(sample)
    return Language(str(code), float(score))


def codes() -> tuple[str, ...]:
    """The languages the model knows, sorted."""
    return tuple(sorted(set(_identifier().nb_classes)))


def _sample(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    size = max_chars // _SAMPLES
    starts = [(len(text) - size) * i // (_SAMPLES - 1) for i in range(_SAMPLES)]
    return "\n".join(text[start : start + size] for start in starts)


@lru_cache(1)
def _identifier() -> Any:
    """The model, once a process: 1 s to load, 60 MB."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
