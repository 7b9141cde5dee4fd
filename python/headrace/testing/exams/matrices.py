"""Rules of whole weight matrices: Adafactor with its matrices written out, Muon by singular values."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from headrace import optim
from headrace.optim.muon import orthogonalized
from headrace.testing.exams.adaptive import adam, adamw
from headrace.testing.exams.first_order import DECOUPLED, decaying, mean_of, options
from headrace.testing.optim_exam import Array, Exam, Rule, Run
from headrace.testing.problems import perceptron

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def adafactor(
    lr: float, relative_step: bool, momentum: float, weight_decay: float, decoupled: bool, **moments: float
) -> Rule:
    """Shazeer and Stern 2018, algorithms 4 to 6, sums over rows, columns and history; momentum over all steps."""
    gradients: list[Array] = []
    steps: list[Array] = []

    def rule(w: Array, g: Array) -> Array:
        rate = min(lr, 1.0 / np.sqrt(len(gradients) + 1)) if relative_step else lr
        if decoupled:
            w = w - rate * weight_decay * w
        gradients.append(g if decoupled else g + weight_decay * w)
        update = _update([x.reshape(w.shape[0], -1) if w.ndim > 1 else x for x in gradients], **moments).reshape(
            w.shape
        )
        size = max(moments["eps_scale"], np.sqrt((w**2).mean())) if relative_step else 1.0
        steps.append(rate * size * update)
        return np.asarray(w - (mean_of(steps, momentum) if momentum else steps[-1]))

    return rule


def _update(
    gradients: list[Array], *, beta2_decay: float, eps: float, eps_scale: float, clip_threshold: float
) -> Array:
    """U of the newest gradient: V is a weighted sum over all of them, as a matrix R 1 1^T C / (1^T R)."""
    betas = [1.0 - t**-beta2_decay for t in range(1, len(gradients) + 1)]
    weights = [(1.0 - betas[i]) * np.prod(betas[i + 1 :]) for i in range(len(betas))]
    v = np.asarray(sum(weight * (g**2 + eps) for weight, g in zip(weights, gradients, strict=True)))
    if v.ndim > 1:
        v = np.outer(v.sum(axis=1), v.sum(axis=0)) / v.sum()
    u = gradients[-1] / np.sqrt(v)
    return np.asarray(u / max(1.0, float(np.sqrt((u**2).mean())) / clip_threshold))


def muon(lr: float, momentum: float, nesterov: bool, ns_steps: int, eps: float, match_rms: bool, **more: Any) -> Rule:
    """Jordan 2024: the polynomial on singular values; AdamW of Loshchilov and Hutter for vectors of any shape."""
    gradients: list[Array] = []
    decay = {name: more[name] for name in ("weight_decay", "decoupled")}
    vectors = adamw if more["decoupled"] else adam
    other = vectors(lr * more["adam_scale"], more["adam_betas"], more["adam_eps"], more["weight_decay"])

    def rule(w: Array, g: Array) -> Array:
        gradients.append(g)
        d = mean_of(gradients, momentum)
        d = momentum * d + (1.0 - momentum) * g if nesterov else d
        u, s, vt = np.linalg.svd(d.reshape(d.shape[0], -1), full_matrices=False)
        s = s / (np.sqrt((s**2).sum()) + eps)
        for _ in range(ns_steps):
            s = sum(c * s**power for c, power in zip(NEWTON_SCHULZ, (1, 3, 5), strict=True))
        n, m = u.shape[0], vt.shape[1]
        scale = 0.2 * np.sqrt(max(n, m)) if match_rms else np.sqrt(max(1.0, n / m))
        return np.asarray(w - lr * scale * ((u * s) @ vt).reshape(w.shape))

    hidden = decaying(rule, lr=lr, **decay)
    return lambda w, g: (hidden if w.ndim > 1 and 1 not in (w.shape[0], w[0].size) else other)(w, g)


class _TorchMuon(torch.optim.Optimizer):
    """torch's Muon for matrices, its AdamW for the rest."""

    def __init__(self, params: Any, *, lr: float, **options: Any) -> None:
        params = list(params)
        super().__init__(params, {})
        self.parts = (
            torch.optim.Muon([p for p in params if p.dim() == 2], lr=lr, weight_decay=0.1, **options),
            torch.optim.AdamW(
                [p for p in params if p.dim() != 2], lr=0.015 * lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.1
            ),
        )

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()


def muon_leaves_named_tensors_to_adamw() -> None:
    """A part of a tensor's name decides; without names only the dimensions do."""
    ours, theirs = perceptron(), perceptron()
    a = optim.create("muon", ours.model, lr=0.1, adam_scale=0.5, adam_names=("w*t", "4.*"), weight_decay=0.1)
    b = optim.create("adamw", theirs.model, lr=0.05, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.1)
    for ids in ours.batches(16, 5):
        ours.step(a, ids)
        theirs.step(b, ids)
    for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-12), "muon: a named tensor does not take AdamW's step"


def muon_orthogonalizes() -> None:
    """Five steps put all singular values that are not tiny near 1 (Jordan 2024: about .7 to 1.2)."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((30, 20), (20, 50)):
        d = torch.randn(shape, generator=generator)
        s = torch.linalg.svdvals(orthogonalized(d, steps=5, eps=1e-7))
        assert float(s.min()) > 0.6 and float(s.max()) < 1.3, f"muon: singular values from {s.min()} to {s.max()}"


_MUON = options(
    momentum=0.8, nesterov=True, ns_steps=4, eps=1e-3, bfloat16=False, match_rms=False, adam_names=("4",),
    adam_scale=0.5, adam_betas=(0.7, 0.9), adam_eps=1e-4,
)  # fmt: skip

EXAMS: dict[str, Exam] = {
    "adafactor": Exam(
        rule=adafactor,
        options=options(
            relative_step=True,
            beta2_decay=0.7,
            eps=1e-3,
            eps_scale=0.5,
            clip_threshold=0.9,
            momentum=0.0,
            decoupled=True,
        ),
        variants=[
            {"decoupled": False},
            {"relative_step": False},
            {"momentum": 0.8},
            {"lr": 10.0, "eps_scale": 1e-3},
            {"relative_step": False, "momentum": 0.8, "decoupled": False},
        ],
        reductions=[
            ({"lr": 0.02, "eps": 1e-40}, partial(torch.optim.Adafactor, lr=0.02, eps=(1e-30, 1e-3))),
            (
                {"lr": 0.02, "eps": 1e-40, "clip_threshold": 2.0, "beta2_decay": 0.5},
                partial(torch.optim.Adafactor, lr=0.02, eps=(1e-30, 1e-3), d=2.0, beta2_decay=-0.5),
            ),
        ],
        rosenbrock=Run(options={"lr": 0.1, "momentum": 0.9}, steps=1_000, gap=1e-5),
        logistic=Run(options={"lr": 0.1}, steps=300, gap=1e-6, schedule="linear"),
    ),
    "muon": Exam(
        rule=muon,
        whole=[muon_leaves_named_tensors_to_adamw, muon_orthogonalizes],
        options=_MUON,
        variants=[DECOUPLED, {"nesterov": False, "match_rms": True}],
        reductions=[
            ({"bfloat16": True, "weight_decay": 0.1}, partial(_TorchMuon, lr=0.02)),
            (
                {"bfloat16": True, "weight_decay": 0.1, "match_rms": True, "nesterov": False},
                partial(_TorchMuon, lr=0.02, adjust_lr_fn="match_rms_adamw", nesterov=False),
            ),
        ],
        rosenbrock=Run(options={"lr": 0.1, "adam_scale": 1.0, "adam_betas": (0.9, 0.999)}, steps=1_000, gap=1e-4),
        logistic=Run(options={"lr": 0.1, "adam_scale": 1.0, "adam_betas": (0.9, 0.999)}, steps=200, gap=1e-8),
    ),
}
