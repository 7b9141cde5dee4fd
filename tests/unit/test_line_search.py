"""Line searches: the conditions they promise, where they try, and how often."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from headrace.optim.line_search import Trial, backtrack, cubic_minimizer, strong_wolfe

pytestmark = pytest.mark.usefixtures("one_thread")


def phi(function: Callable[[Tensor], Tensor], tried: list[float] | None = None) -> Callable[[float], Trial]:
    def line(step: float) -> Trial:
        a = torch.tensor(step, dtype=torch.float64, requires_grad=True)
        value = function(a)
        (slope,) = torch.autograd.grad(value, a)
        if tried is not None:
            tried.append(step)
        finite = math.isfinite(float(value.detach()))
        return Trial(step, float(value.detach()) if finite else math.inf, float(slope), a.detach(), slope)

    return line


@pytest.mark.parametrize(("c1", "c2"), [(1e-4, 0.9), (1e-3, 0.1), (0.1, 0.1001)])
@pytest.mark.parametrize("first", [1e-3, 0.1, 1.0, 50.0, 1e4])
@pytest.mark.parametrize(
    "function",
    [
        lambda a: -a / (a * a + 2.0),  # More and Thuente 1994, eq. 5.1
        lambda a: (a + 0.004) ** 5 - 2.0 * (a + 0.004) ** 4,  # eq. 5.2
        lambda a: (a - 3.0) ** 2 + torch.sin(5.0 * a),
        lambda a: -torch.log1p(-a / 7.0) - a,  # NaN beyond 7
        lambda a: torch.exp(a) - 2.0 * a,
    ],
    ids=["5.1", "5.2", "waves", "wall", "exp"],
)  # fmt: skip
def test_strong_wolfe_conditions(function: Callable[[Tensor], Tensor], first: float, c1: float, c2: float) -> None:
    tried: list[float] = []
    line = phi(function, tried)
    origin = phi(function)(0.0)
    found = strong_wolfe(line, origin, first, c1, c2, 60)
    assert found.step > 0.0
    assert found.value <= origin.value + c1 * found.step * origin.slope
    assert abs(found.slope) <= c2 * abs(origin.slope)
    assert len(tried) < 25


def test_cubic_interpolation_is_exact_for_cubics() -> None:
    line = phi(lambda a: 2.0 * a**3 - 3.0 * a**2 - 12.0 * a + 1.0)  # minimum at 2
    for ends in ((0.0, 3.0), (3.0, 0.0), (1.5, 1.6), (2.5, 7.0), (-0.9, 0.3)):
        assert cubic_minimizer(line(ends[0]), line(ends[1])) == pytest.approx(2.0, abs=1e-9)
    rising = phi(lambda a: a + a**3)
    assert cubic_minimizer(rising(0.0), rising(1.0)) is None


def test_a_line_that_only_rises_gives_the_origin_and_ends() -> None:
    tried: list[float] = []
    origin = Trial(0.0, 1.0, -1.0, torch.zeros(()), torch.zeros(()))
    found = strong_wolfe(phi(lambda a: 1.0 + a, tried), origin, 1.0, 1e-4, 0.9, 25)
    assert found is origin
    assert len(tried) <= 25


def test_backtracking() -> None:
    assert backtrack(lambda a: (a - 1.0) ** 2, 1.0, -2.0, 1.0, 0.01, 0.8, 60) == 1.0
    assert backtrack(lambda a: math.inf if a > 0.1 else 1.0 - a, 1.0, -1.0, 1.0, 0.01, 0.8, 60) == pytest.approx(
        0.8**11
    )
    assert backtrack(lambda a: math.nan, 1.0, -1.0, 1.0, 0.01, 0.8, 60) == 0.0


@pytest.mark.parametrize("first", [1e-3, 0.3, 4.0, 50.0])
@pytest.mark.parametrize(
    "function",
    [
        lambda a: (a - 3.0) ** 2 + torch.sin(5.0 * a),
        lambda a: (a + 0.004) ** 5 - 2.0 * (a + 0.004) ** 4,
        lambda a: torch.exp(3.0 * a) - 900.0 * a,
        lambda a: (a - 3.0) ** 4 + a,
    ],
    ids=["waves", "5.2", "exp", "fourth"],
)
def test_fewer_trials_are_the_first_of_more(function: Callable[[Tensor], Tensor], first: float) -> None:
    """And all that are allowed are made, however the search comes to its interval."""
    origin, every = phi(function)(0.0), list[float]()
    strong_wolfe(phi(function, every), origin, first, 1e-4, 1e-6, 60)
    assert 3 < len(every) < 60
    for most in range(1, len(every) + 2):
        tried: list[float] = []
        found = strong_wolfe(phi(function, tried), origin, first, 1e-4, 1e-6, most)
        assert tried == every[:most]
        lower = [a for a in tried if phi(function)(a).value <= origin.value + 1e-4 * a * origin.slope]
        assert found.value == pytest.approx(min((phi(function)(a).value for a in lower), default=origin.value), 1e-12)


def _steps(trials: list[tuple[float, float]], c1: float = 1e-4, c2: float = 1e-3, most: int = 2) -> list[float]:
    """Where a search from (1, -1) tries, first at 1, if it finds these values and slopes, whatever the step."""
    none, steps = torch.zeros(()), list[float]()

    def line(step: float) -> Trial:
        value, slope = trials[len(steps)]
        steps.append(step)
        return Trial(step, value, slope, none, none)

    strong_wolfe(line, Trial(0.0, 1.0, -1.0, none, none), 1.0, c1, c2, most)
    return steps


def _parabola(minimum: float, at: float) -> tuple[float, float]:
    """Value and slope of the one with value 1 and slope -1 at 0."""
    return 1.0 - at + 0.5 * at * at / minimum, at / minimum - 1.0


@pytest.mark.parametrize(("minimum", "second"), [(5.0, 5.0), (1.2, 2.0), (300.0, 10.0)])
def test_an_interval_is_looked_for_at_the_cubics_minimum_2_to_10_times_as_far(minimum: float, second: float) -> None:
    assert _steps([_parabola(minimum, 1.0), (0.0, 0.0)]) == [1.0, pytest.approx(second)]


def test_an_interval_is_looked_for_10_times_as_far_where_the_cubic_has_no_minimum() -> None:
    falling = [(1.0 - 2.0 / 3.0 * at, -1.0) for at in (1.0, 10.0, 100.0)]
    assert _steps(falling, most=3) == [1.0, 10.0, 100.0]


def test_a_first_trial_that_fulfils_both_conditions_is_the_last() -> None:
    assert _steps([_parabola(1.0, 1.0)], most=2) == [1.0]


@pytest.mark.parametrize(
    ("minimum", "c1", "second"),
    [
        (0.3, 1e-4, 0.3), (0.02, 1e-4, 0.1),  # no decrease at 1: the interval is from 0
        (0.97, 0.49, 0.9), (0.7, 0.49, 0.7),  # not enough of it for this c1
        (0.97, 1e-4, 0.9), (0.6, 1e-4, 0.6),  # enough, and the slope is upwards: from 1 to 0
    ],
)  # fmt: skip
def test_the_cubics_minimum_is_tried_a_tenth_of_the_interval_from_its_ends(
    minimum: float, c1: float, second: float
) -> None:
    assert _steps([_parabola(minimum, 1.0), (0.0, 0.0)], c1) == [1.0, pytest.approx(second)]


def test_the_middle_is_tried_where_the_cubic_has_no_minimum_and_a_tenth_where_the_value_is_no_number() -> None:
    assert _steps([(1.0 / 3.0, -1.0), (0.0, 0.0)], c1=0.9) == [1.0, 0.5]
    assert _steps([(math.inf, math.nan), (0.0, 0.0)]) == [1.0, pytest.approx(0.1)]


def test_a_trial_no_lower_than_the_last_ends_the_interval_however_flat_it_is() -> None:
    first, second, third = _steps([(0.5, -0.5), (0.6, -1e-4), (0.4, 0.0)], most=3)
    assert first < third < second


@pytest.mark.parametrize(("ulps", "higher"), [(3, False), (8, True)])
def test_of_values_that_differ_by_rounding_the_slope_decides(ulps: int, higher: bool) -> None:
    """The lowest is at 1, with its slope upwards; of an equal value between 0 and 1 the same slope leads to 0."""
    value = 0.5 * (1.0 + ulps * 2.0**-52)
    first, second, third = _steps([(0.5, 0.5), (value, 0.4), (0.2, 0.0)], most=3)
    assert (second < third < first) if higher else (0.0 < third < second)
