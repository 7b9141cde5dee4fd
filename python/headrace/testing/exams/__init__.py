"""Exams by the names of OPTIMIZERS; a file a family."""

from __future__ import annotations

from headrace.testing.exams import (
    adaptive,
    first_order,
    kfac,
    large_batch,
    matrices,
    newton_products,
    quasi_newton,
    shampoo,
    variance_reduction,
)
from headrace.testing.optim_exam import Exam

EXAMS: dict[str, Exam] = {
    **first_order.EXAMS,
    **variance_reduction.EXAMS,
    **adaptive.EXAMS,
    **matrices.EXAMS,
    **kfac.EXAMS,
    **large_batch.EXAMS,
    **shampoo.EXAMS,
    **quasi_newton.EXAMS,
    **newton_products.EXAMS,
}
