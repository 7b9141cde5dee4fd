"""Exams by the names of OPTIMIZERS; a file a family."""

from __future__ import annotations

from headrace.testing.exams import first_order, shampoo
from headrace.testing.optim_exam import Exam

EXAMS: dict[str, Exam] = {**first_order.EXAMS, **shampoo.EXAMS}
