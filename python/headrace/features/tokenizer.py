"""A byte-level BPE tokenizer learned from a corpus; the same corpus gives the same bytes. The home of `tokenizers`.

Training joins, again and again, the pair of neighbouring tokens that stands most often in the sample, until the
vocabulary is full (ties: the pair of smaller ids). It starts from the 256 bytes, so every text can be written and read
back without loss. Words are cut by GPT-2's pattern before, and no token crosses a cut.

Reference: R. Sennrich et al., Neural Machine Translation of Rare Words with Subword Units, 2016; A. Radford et al.,
Language Models are Unsupervised Multitask Learners, 2019 (bytes). What is different here: marks such as `<|endoftext|>`
that stand in a document's own text are read as plain characters, so that no document can end another one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import UserError

END_OF_TEXT, PADDING = "<|endoftext|>", "<|padding|>"
SPECIAL_TOKENS = (END_OF_TEXT, PADDING)
MIN_VOCABULARY = 256 + len(SPECIAL_TOKENS)
_MAX_JSON_BYTES = 256 << 20
_PIECE_CHARS = 1 << 18
_KNOWN_PARTS = {"model": "BPE", "pre_tokenizer": "ByteLevel", "decoder": "ByteLevel"}
# A cut here changes no token: the pattern takes a single newline between two words as a word of its own.
_SAFE_CUT = re.compile(r"(?<=\S)\n(?=\S)")

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trained:
    """A tokenizer as it is kept.

    Args:
        text: the library's own JSON.
        sha256: of that text's UTF-8 bytes, in hex.
        vocab_size: number of tokens, special ones included; ids are 0 .. vocab_size - 1.
    """

    text: str
    sha256: str
    vocab_size: int


def train(texts: Iterable[str], vocab_size: int, *, min_frequency: int = 2) -> Trained:
    """Learn a vocabulary.

    Args:
        texts: the sample, in an order that its content alone decides.
        vocab_size: tokens wanted, special ones included; a small sample may give fewer.
        min_frequency: a pair that stands less often is not joined.

    Raises:
        UserError: a vocabulary smaller than the bytes and the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < MIN_VOCABULARY:
        raise UserError(
            f"a vocabulary of {vocab_size} cannot hold the 256 bytes and {len(SPECIAL_TOKENS)} special tokens",
            f"give {MIN_VOCABULARY} or more",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    text = tokenizer.to_str()
    return Trained(text, _sha256(text), tokenizer.get_vocab_size())


class Encoder:
    """A tokenizer ready to use, from its JSON.

    Args:
        text: the JSON.
        sha256: what its checksum must be; None where it is not known.

    Raises:
        UserError: another checksum, or not a byte-level BPE with our special tokens.
    """

    def __init__(self, text: str, sha256: str | None = None) -> None:
        _check(text, sha256)
        # One process a core encodes already: threads of its own would only take turns with the others'.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise _refused(str(error)) from None
        self._tokenizer.encode_special_tokens = True
        self.vocab_size: int = self._tokenizer.get_vocab_size()
        self.end_of_text: int = self._id(END_OF_TEXT)
        self.padding: int = self._id(PADDING)

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of each text: int64 [number of tokens], no special token among them."""
        pieces = [(number, piece) for number, text in enumerate(texts) for piece in cut(text)]
        encoded = self._tokenizer.encode_batch_fast([piece for _, piece in pieces], add_special_tokens=False)
        parts: list[list[Tokens]] = [[] for _ in texts]
        for (number, _), each in zip(pieces, encoded, strict=True):
            parts[number].append(np.array(each.ids, np.int64))
        return [np.concatenate(part) if part else np.empty(0, np.int64) for part in parts]

    def decode(self, tokens: Sequence[int] | Tokens) -> str:
        """The text of token ids, special tokens left out; bytes that are no UTF-8 (a cut character) become U+FFFD."""
        return str(self._tokenizer.decode([int(token) for token in tokens]))

    def _id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise _refused(f"it has no {token}")
        return int(found)


def cut(text: str, piece_chars: int = _PIECE_CHARS) -> Iterator[str]:
    """A long text in pieces whose tokens, one after the other, are those of the whole: memory follows the piece.

    A text that has no newline between words for twice `piece_chars` characters is cut where it is; only there can a
    token be another than in one go.
    """
    start = 0
    while len(text) - start > piece_chars:
        match = _SAFE_CUT.search(text, start + piece_chars, min(len(text), start + 2 * piece_chars))
        end = match.end() if match else min(len(text), start + 2 * piece_chars)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def element_of(vocab_size: int) -> str:
    """The smallest type that holds every id: what token ids are kept in."""
    return "uint16" if vocab_size <= 1 << 16 else "int32"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check(text: str, sha256: str | None) -> None:
    """Only what `train` makes is let into the library: its JSON may name other parts, patterns among them."""
    if len(text) > _MAX_JSON_BYTES:
        raise _refused(f"it has over {_MAX_JSON_BYTES} bytes")
    if sha256 is not None and _sha256(text) != sha256:
        raise _refused("its checksum is another")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refused(f"it is not JSON: {error}") from None
    for name, kind in _KNOWN_PARTS.items():
        part: Any = content.get(name) if isinstance(content, dict) else None
        if not isinstance(part, dict) or part.get("type") != kind:
            raise _refused(f"its {name} is not {kind}")
    if content.get("normalizer") or content.get("truncation") or content.get("padding"):
        raise _refused("it changes or cuts texts")


def _refused(why: str) -> UserError:
    return UserError(f"this is not a tokenizer of ours: {why}", "train it again: headrace featurize-text")
