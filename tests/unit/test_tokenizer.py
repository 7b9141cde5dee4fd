"""The tokenizer: one corpus, one file of bytes; nothing lost on the way there and back; nothing foreign let in."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import UserError
from headrace.features import tokenizer
from headrace.features.tokenizer import END_OF_TEXT, Encoder, Trained, train

WORDS = ["river", "lake", "mill", "race", "water", "wheel", "the", "of", "brücke", "水車", "stone's", "gate\n"]


def corpus(seed: int = 1, documents: int = 40) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 60))) for _ in range(documents)]


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train(corpus(), 320)


def test_first_merges_are_those_of_a_plain_count(trained: Trained) -> None:
    """Against the algorithm as it is written down: count neighbouring pairs, join the most frequent, repeat."""
    from tokenizers import pre_tokenizers

    cutter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = Counter(word for text in corpus() for word, _ in cutter.pre_tokenize_str(text))
    split = {word: list(word) for word in words}
    merges = [tuple(merge) for merge in json.loads(trained.text)["model"]["merges"]]
    for merge in merges[:25]:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in zip(split[word], split[word][1:], strict=False):
                pairs[pair] += count
        assert pairs[merge] == max(pairs.values())
        for word, parts in split.items():
            at = 0
            while at < len(parts) - 1:
                if (parts[at], parts[at + 1]) == merge:
                    parts[at : at + 2] = ["".join(merge)]
                at += 1
            split[word] = parts
    assert trained.vocab_size <= 320 and len(merges) == trained.vocab_size - tokenizer.MIN_VOCABULARY


def test_the_same_bytes_in_other_processes_with_and_without_threads(trained: Trained) -> None:
    script = (
        "import sys; sys.path.insert(0, 'tests/unit'); from test_tokenizer import corpus;"
        "from headrace.features.tokenizer import train; print(train(corpus(), 320).sha256)"
    )
    found = set()
    for threads in ("false", "true"):
        environment = os.environ | {"TOKENIZERS_PARALLELISM": threads, "RAYON_NUM_THREADS": "5"}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        found.add(done.stdout.strip())
    assert found == {trained.sha256}


@given(st.lists(st.text(max_size=60), max_size=5))
@settings(max_examples=60)
def test_there_and_back(trained: Trained, texts: list[str]) -> None:
    encoder = Encoder(trained.text, trained.sha256)
    for text, tokens in zip(texts, encoder.encode(texts), strict=True):
        assert encoder.decode(tokens) == text
        assert not len(tokens) or (tokens.min() >= 2 and tokens.max() < trained.vocab_size)


def test_a_documents_text_cannot_end_it(trained: Trained) -> None:
    encoder = Encoder(trained.text)
    (tokens,) = encoder.encode([f"before {END_OF_TEXT} after"])
    assert encoder.end_of_text not in tokens
    assert encoder.decode(tokens) == f"before {END_OF_TEXT} after"


@given(st.text(alphabet="ab \n\r\t's1.é", max_size=80), st.integers(1, 20))
@settings(max_examples=150)
def test_cutting_a_long_text_at_newlines_changes_no_token(trained: Trained, text: str, size: int) -> None:
    pieces = list(tokenizer.cut(text, size))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= 2 * size for piece in pieces)
    if all(piece.endswith("\n") and piece[-2:-1].strip() for piece in pieces[:-1]):
        encoder = Encoder(trained.text)
        np.testing.assert_array_equal(
            np.concatenate([*encoder.encode(pieces), np.empty(0, np.int64)]), encoder.encode([text])[0]
        )


def test_what_is_refused(trained: Trained) -> None:
    with pytest.raises(UserError, match="cannot hold the 256 bytes"):
        train([], 257)
    content = json.loads(trained.text)
    foreign = [
        content
        | {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": False}},
        content | {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "?"}},
        content | {"normalizer": {"type": "Lowercase"}},
        content | {"added_tokens": [], "model": content["model"] | {"vocab": {"a": 0}, "merges": []}},
        content | {"version": "9"},
        [],
    ]
    for each in (*map(json.dumps, foreign), "{", "[" * 100_000, ""):
        with pytest.raises(UserError, match="not a tokenizer of ours"):
            Encoder(each)
    with pytest.raises(UserError, match="its checksum is another"):
        Encoder(trained.text + " ", trained.sha256)


def test_nothing_to_learn_from_gives_the_bytes() -> None:
    bare = train([], 400)
    assert bare.vocab_size == tokenizer.MIN_VOCABULARY
    (tokens,) = Encoder(bare.text).encode(["é"])
    assert len(tokens) == 2
    assert (tokenizer.element_of(1 << 16), tokenizer.element_of((1 << 16) + 1)) == ("uint16", "int32")
