"""Every optimizer sits its exam: headrace.testing.optim_exam says what is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from headrace.optim import OPTIMIZERS, OptimizerSpec
from headrace.testing.exams import EXAMS
from headrace.testing.optim_exam import PARTS, Exam


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors here are small: a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_optimizer_has_an_exam() -> None:
    assert set(EXAMS) == set(OPTIMIZERS)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_exam(name: str, part: Callable[[str, OptimizerSpec, Exam], None]) -> None:
    part(name, OPTIMIZERS[name], EXAMS[name])
