"""Whether to compress, by what is measured, on links that are slow, fast, even, noisy, or change."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from headrace.strategies.switch import MARGIN, MOST, WINDOW, Compared, Switch, median

PERIOD = 20
Seconds = Callable[[int, bool], float]


def run(seconds: Seconds, turns: int, switch: Switch | None = None) -> tuple[Switch, list[bool], dict[int, Compared]]:
    """Turns of two ranks of which one ends early, then the other; the ways they took, and what comparisons said."""
    switch = switch or Switch(PERIOD)
    ways, found = [], {}
    for turn in range(turns):
        ways.append(switch.engaged)
        switch.turn(seconds(turn, switch.engaged))
        if switch.due:
            early = [s + 0.25 * (-1) ** k for k, s in enumerate(switch.recent)]
            late = [s - 0.25 * (-1) ** k for k, s in enumerate(switch.recent)]
            if (said := switch.agreed(median([early, late]))) is not None:
                found[turn] = said
    return switch, ways, found


def link(compressed: float, as_is: float, noise: float = 0.0, seed: int = 0) -> Seconds:
    rng = np.random.default_rng(seed)
    return lambda turn, engaged: (compressed if engaged else as_is) * float(rng.uniform(1 - noise, 1 + noise))


def test_a_slow_link_stays_compressed_and_a_fast_one_does_not() -> None:
    for compressed, as_is in ((1.0, 3.0), (1.0, 0.5)):
        switch, ways, found = run(link(compressed, as_is), 2000)
        assert switch.compress == (as_is > compressed)
        assert [c.changed for c in found.values()].count(True) == (as_is < compressed)
        assert all((c.compressed, c.as_is) == (compressed, as_is) for c in found.values())
        other = ways[100:].count(not switch.compress)
        assert other == (WINDOW + 1) * sum(turn >= 100 for turn in found)
        assert len(found) < 12 and max(np.diff(list(found))) <= MOST * PERIOD + WINDOW + 1


def test_equal_ways_never_change_whatever_the_noise_within_the_margin() -> None:
    for seed in range(20):
        for ratio in (0.95, 1.0, 1.05):
            _, _, found = run(link(1.0, ratio, noise=0.02, seed=seed), 1500)
            assert not any(c.changed for c in found.values())
    assert MARGIN > 0.05 + 2 * 0.02


@pytest.mark.parametrize("seed", range(5))
def test_a_link_that_changes_is_followed_and_nothing_else(seed: int) -> None:
    slow, fast = link(1.0, 4.0, 0.05, seed), link(0.8, 0.4, 0.05, seed + 50)
    pace = [slow, fast, slow, fast]
    _, _, found = run(lambda turn, engaged: pace[turn // 800](turn, engaged), 3200)
    changes = {turn: c.compress for turn, c in found.items() if c.changed}
    assert list(changes.values()) == [False, True, False]
    assert [turn // 800 for turn in changes] == [1, 2, 3]
    # A link that gets slow is felt at once where nothing is compressed.
    assert list(changes)[1] - 1600 <= 2 * PERIOD + WINDOW + 1


def test_what_it_knows_goes_into_a_checkpoint_at_any_turn() -> None:
    pace = link(1.0, 0.5)
    _, whole, said = run(pace, 300)
    for cut in (2, 7, 11, 40, 130):
        switch, ways, before = run(pace, cut)
        kept = json.loads(json.dumps(switch.state_dict()))
        resumed = Switch(PERIOD)
        resumed.load_state_dict(kept)
        _, rest, after = run(pace, 300 - cut, resumed)
        assert ways + rest == whole
        assert before | {turn + cut: c for turn, c in after.items()} == said
