"""Roots and eigenbases of matrices that are hard, beside their eigenvalues; what rules make of them: test_shampoo."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from headrace.optim.matrix_roots import _by_newton, eigenbases, eigh, inverse_roots, largest_eigenvalues, refined_bases

F64 = torch.float64


pytestmark = pytest.mark.usefixtures("one_thread")


def _with_eigenvalues(values: Tensor, seed: int = 0) -> Tensor:
    """A matrix [n, n], of directions at random."""
    n = len(values)
    turn = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=F64)).Q
    return (turn * values) @ turn.T


def test_the_largest_eigenvalue_is_at_most_a_percent_more() -> None:
    """Of matrices [2, 2] with eigenvectors in all directions and eigenvalues as near as may be, and of larger ones."""
    angles = torch.linspace(0.0, math.pi, 721, dtype=F64)[:, None]
    second = 1.0 - torch.logspace(-4.0, -0.01, 60, dtype=F64)
    c, s = angles.cos(), angles.sin()
    entries = [c**2 + second * s**2, c * s * (1.0 - second), c * s * (1.0 - second), s**2 + second * c**2]
    small = torch.stack(entries, 2).view(-1, 2, 2)
    for matrices in (
        small,
        torch.stack([_with_eigenvalues(torch.tensor([5.0, 4.9, 1.0], dtype=F64), i) for i in range(9)]),
    ):
        ratios = largest_eigenvalues(matrices) / torch.linalg.eigvalsh(matrices)[:, -1]
        assert float(ratios.min()) >= 0.99 and float(ratios.max()) <= 1.0 + 1e-12


def test_newton_goes_on_where_rounding_hides_that_eigenvalues_rise() -> None:
    """All but one eigenvalue are at float32's rounding of it: for some steps the error seems to grow."""
    x = torch.stack(
        [torch.randn(30, 1, generator=torch.Generator().manual_seed(seed), dtype=F64) for seed in range(12)]
    )
    _, good = inverse_roots((x @ x.mT).float(), 1, 1e-7, "newton")
    assert good.all()


def test_newton_ends_where_rounding_keeps_the_error_above_the_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    powers, power = [], torch.linalg.matrix_power
    monkeypatch.setattr(torch.linalg, "matrix_power", lambda *args: powers.append(1) or power(*args))
    _, good = _by_newton(_with_eigenvalues(torch.logspace(0.0, -2.0, 100, dtype=F64))[None].float(), 4.0, 0.0)
    assert good.all() and len(powers) < 20


@pytest.mark.parametrize("exponent", [2, 4])
def test_newtons_roots_have_the_digits_of_their_type(exponent: int) -> None:
    for seed in range(8):
        matrix = _with_eigenvalues(torch.logspace(0.0, -1.0 - 0.1 * seed, 5, dtype=F64), seed)
        for dtype, digits in ((F64, 1e-11), (torch.float32, 1e-5)):
            (root,), _ = inverse_roots(matrix[None].to(dtype), exponent, 0.0, "newton")
            unit = torch.linalg.matrix_power(root.double(), exponent) @ matrix
            assert float((unit - torch.eye(5, dtype=F64)).norm()) < digits


def test_a_matrix_of_a_batch_is_iterated_until_it_is_done_itself() -> None:
    """On accelerators all are in one batch: easy ones do not end it, nor do hard ones spoil them."""
    matrices = torch.stack([torch.eye(3, dtype=F64), _with_eigenvalues(torch.tensor([1.0, 1e-3, 1e-6], dtype=F64))])
    together, good = _by_newton(matrices, 4.0, 0.0)
    assert good.all()
    for i in range(2):
        torch.testing.assert_close(together[i], _by_newton(matrices[i : i + 1], 4.0, 0.0)[0][0], rtol=1e-6, atol=1e-6)


def test_a_matrix_without_eigenvectors_takes_those_of_no_other_of_its_batch() -> None:
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrices = x @ x.mT
    wanted, _ = torch.linalg.eigh(matrices)
    matrices[1, 2, 0] = math.nan  # LAPACK gives up the whole batch
    values, vectors = eigh(matrices)
    assert values[1].isnan().all() and vectors[1].isnan().all()
    for i in (0, 2):
        torch.testing.assert_close(values[i], wanted[i])
        torch.testing.assert_close((vectors[i] * values[i]) @ vectors[i].T, matrices[i])


def test_a_matrix_with_one_number_that_is_none_has_no_refined_basis_and_harms_no_other() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    matrices, bases = x @ x.mT, torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    alone, _ = refined_bases(matrices[:1], bases[:1])
    matrices[1, 0, 2] = math.nan
    made, good = refined_bases(matrices, bases)
    assert good.tolist() == [True, False]
    assert torch.equal(made[:1], alone)


def test_no_matrices_have_no_roots() -> None:
    for made, good in (inverse_roots(torch.zeros(0, 3, 3), 2, 0.0, "eigh"), eigenbases(torch.zeros(0, 3, 3))):
        assert made.shape == (0, 3, 3) and good.shape == (0,)
