"""docs/adding_an_optimizer.md does what it says: its code, run as it stands there, passes the exam."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headrace.optim.base import Params, State
from headrace.optim.elementwise import Elementwise
from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec, numbers
from headrace.testing.optim_exam import Array, Exam, Rule, Run, sit

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding_an_optimizer.md"
NAMES: dict[str, Any] = {
    "Any": Any, "Array": Array, "DENSE_ONLY": DENSE_ONLY, "Elementwise": Elementwise, "Mapping": Mapping, "np": np,
    "OptimizerSpec": OptimizerSpec, "Params": Params, "Rule": Rule, "STATEFUL": STATEFUL, "State": State,
    "Tensor": torch.Tensor, "numbers": numbers, "torch": torch,
}  # fmt: skip
OPTIONS = {"lr": 0.01, "momentum": 0.8, "weight_decay": 0.1, "decoupled": True}


def written(page: str) -> tuple[OptimizerSpec, Any]:
    """The specification and the reference that the page's code makes."""
    made = dict(NAMES)
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, str(PAGE), "exec"), made)
    return made["SPEC"], made["sign_momentum"]


def exam_of(rule: Any) -> Exam:
    to_minimum = Run(options={"lr": 0.05}, steps=400, gap=1e-3, schedule="linear")
    return Exam(rule=rule, options=OPTIONS, rosenbrock=None, logistic=to_minimum)


def test_the_page_is_followed_to_a_passed_exam() -> None:
    spec, rule = written(PAGE.read_text(encoding="utf-8"))
    sit("sign_momentum", spec, exam_of(rule))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("alpha=-options", "alpha=options"),
        ("1.0 - options", "options"),
        ("_foreach_sign(m)", "_foreach_sign(grads)"),
        ("numbers(1)", "numbers(0.5)"),
    ],
)
def test_a_rule_broken_by_hand_fails(right: str, wrong: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(right) == 1
    spec, rule = written(page.replace(right, wrong))
    with pytest.raises(AssertionError):
        sit("sign_momentum", spec, exam_of(rule))
