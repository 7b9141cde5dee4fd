"""Exams by the names of OPTIMIZERS; a file a family."""

from __future__ import annotations

from headrace.testing.exams import first_order, newton_products, quasi_newton
from headrace.testing.optim_exam import Exam

EXAMS: dict[str, Exam] = {**first_order.EXAMS, **quasi_newton.EXAMS, **newton_products.EXAMS}
