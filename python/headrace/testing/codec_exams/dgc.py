"""Deep gradient compression, number by number as the paper's Algorithms 1 and 4 say it, in float64."""

from __future__ import annotations

import math

import numpy as np
import torch

from headrace.compress import Payload, create
from headrace.compress.index_coding import encode_indices
from headrace.testing.codec_exam import Array, CodecExam
from headrace.testing.codec_exams.sparse import coded_size, count_of, largest_of, refused

SPARSITY = (0.75, 0.9375, 0.984375, 0.996)
TURNS, NUMBERS = 12, 900


class SlowWorker:
    """One worker of the paper, one tensor."""

    def __init__(self, n: int, momentum: float, clip: float) -> None:
        self.u, self.v, self.m, self.clip = np.zeros(n), np.zeros(n), momentum, clip

    def turn(self, gradient: Array, k: int) -> Array:
        """What is sent."""
        norm = math.sqrt(sum(g * g for g in gradient))
        if self.clip and norm > self.clip:
            gradient = gradient * self.clip / norm
        self.u = self.m * self.u + gradient
        self.v = self.v + self.u
        sent = largest_of(self.v, k)
        for i in np.flatnonzero(sent):
            self.v[i] = self.u[i] = 0
        return sent


def first_turn(x: Array, ratio: float, momentum: float, warmup_turns: int, clip: float) -> Array:
    """Nothing is held yet."""
    share = max(ratio, 0.25) if warmup_turns else ratio
    return SlowWorker(len(x), momentum, clip).turn(x, count_of(len(x), share))


def follows_the_paper() -> None:
    """Momentum, masking, clipping and the warm-up's four stages over twelve turns."""
    for momentum, clip in ((0.9, 0.0), (0.9, 10.0), (0.0, 0.0)):
        codec = create("dgc", ratio=0.002, momentum=momentum, warmup_turns=8, clip=clip)
        slow, state = SlowWorker(NUMBERS, momentum, clip), codec.init(torch.empty(NUMBERS))
        for step, gradient in enumerate(_gradients()):
            share = 0.002 if step >= 8 else 1 - SPARSITY[step // 2]
            payload, state = codec.compress(gradient, state)
            wanted = slow.turn(gradient.double().numpy(), count_of(NUMBERS, round(share, 9)))
            np.testing.assert_allclose(codec.decompress(payload).numpy(), wanted, 0, 2e-5, err_msg=f"turn {step}")
        np.testing.assert_allclose(state["held"].numpy(), slow.v, 0, 2e-5)
        np.testing.assert_allclose(state["velocity"].numpy(), slow.u, 0, 2e-5)


def loses_nothing_without_momentum() -> None:
    """What was sent and what is held add up to what was given."""
    codec = create("dgc", ratio=0.01, momentum=0.0, warmup_turns=4)
    state, sent, given = codec.init(torch.empty(NUMBERS)), torch.zeros(NUMBERS), torch.zeros(NUMBERS)
    for gradient in _gradients():
        payload, state = codec.compress(gradient, state)
        sent, given = sent + codec.decompress(payload), given + gradient
        torch.testing.assert_close(sent + state["held"], given, rtol=0, atol=1e-5)
    assert float(state["held"].abs().max()) > 0.5, "nothing was held: the proof is empty"


def keeps_nothing_that_is_not_finite() -> None:
    """More of it than can be sent is gone after a turn all the same, and was seen."""
    codec = create("dgc", ratio=0.01, warmup_turns=0)
    gradient = _gradients()[0]
    gradient[100:200] = math.nan
    gradient[200:300] = -math.inf
    payload, state = codec.compress(gradient, codec.init(gradient))
    assert not codec.decompress(payload).isfinite().all()
    assert bool(state["held"].isfinite().all()) and bool(state["velocity"].isfinite().all())


def refuses_lies() -> None:
    """Counts that the bytes or the tensor do not have."""
    codec = create("dgc", ratio=0.1, warmup_turns=0)
    x = torch.arange(64.0)
    right, _ = codec.compress(x, codec.init(x))
    for count in (-1, 0, 6, 8, 65, 1 << 40, (1 << 63) - 1):
        data = right.data.clone()
        data[:8] = torch.tensor([count]).view(torch.uint8)
        refused(codec, Payload(data, x.shape, x.dtype))
    fewer = right.data.clone()
    fewer[36:] = encode_indices(torch.tensor([5]), 7, 64)
    refused(codec, Payload(fewer, x.shape, x.dtype))


def _gradients() -> list[torch.Tensor]:
    rng = np.random.default_rng(4)
    return [torch.from_numpy(rng.normal(size=NUMBERS).astype(np.float32)) for _ in range(TURNS)]


def _bytes(x: Array, decoded: Array, **options: float) -> int:
    k = int(np.count_nonzero(decoded))
    return 8 + 4 * k + coded_size(k, len(x))


DGC = CodecExam(
    rule=first_turn,
    nbytes=_bytes,
    variants=[{"warmup_turns": 0}, {"ratio": 0.4}, {"clip": 1.0, "momentum": 0.0}],
    whole=[follows_the_paper, loses_nothing_without_momentum, keeps_nothing_that_is_not_finite, refuses_lies],
)
