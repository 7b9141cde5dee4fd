"""Learning-rate schedules as factors of the base rate.

    constant: min(1, (t + 1) / warmup)
    linear:   the same, then falling from 1 at the end of warm-up to 0 after the last step

Reference for warm-up: P. Goyal et al., "Accurate, large minibatch SGD", 2017.
"""

from __future__ import annotations

from headrace.errors import UserError

SCHEDULES = ("constant", "linear")


def factor(schedule: str, step: int, total: int, warmup: int = 0) -> float:
    """What the base learning rate is multiplied with in step `step` (from 0) of `total`.

    Raises:
        UserError: an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"there is no schedule {schedule!r}", f"one of {', '.join(SCHEDULES)}")
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    return max(0.0, (total - step) / max(1, total - warmup))
