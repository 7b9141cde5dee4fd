"""Every optimizer sits its exam: headrace.testing.optim_exam says what is asked."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headrace.optim import OPTIMIZERS, OptimizerSpec
from headrace.testing.exams import EXAMS
from headrace.testing.optim_exam import PARTS, Exam

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_optimizer_has_an_exam() -> None:
    assert set(EXAMS) == set(OPTIMIZERS)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_exam(name: str, part: Callable[[str, OptimizerSpec, Exam], None]) -> None:
    part(name, OPTIMIZERS[name], EXAMS[name])
