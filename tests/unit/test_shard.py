"""The server's state machine against its slow reference, over interleavings of messages of any kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.server_world import SHAPES, TABLE, World, start

from headrace.comm.base import CollectiveError
from headrace.compress import PayloadError
from headrace.strategies.server_options import ServerOptions
from headrace.strategies.shard_layout import deal

pytestmark = pytest.mark.usefixtures("one_thread")


def played(world: World, choices: list[int]) -> World:
    for choice in choices:
        actions = world.actions()
        assert actions, "nobody can go on"
        world.act(*actions[choice % len(actions)])
    return world


SETTINGS = st.fixed_dictionaries(
    {
        "bound": st.sampled_from([-1, 0, 1, 2, 5]),
        "compensation": st.sampled_from(["none", "constant", "adaptive"]),
        "rates": st.sampled_from(["none", "staleness"]),
    }
)


@given(
    chosen=SETTINGS, workers=st.integers(1, 4), servers=st.integers(1, 3),
    choices=st.lists(st.integers(0, 11), min_size=30, max_size=60),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_servers_do_what_the_papers_say(chosen: dict[str, Any], workers: int, servers: int, choices: list[int]) -> None:
    """Parameters, who is answered when, and staleness, are those of the reference; staleness is within its bound."""
    world = played(World(workers, servers, ServerOptions(**chosen)), choices)
    for shard, reference in zip(world.shards, world.references, strict=True):
        for name, value in shard.part.held.items():
            np.testing.assert_allclose(value.detach().numpy(), reference.w[name], rtol=2e-5, atol=2e-6, err_msg=name)
        if chosen["bound"] >= 0:
            assert max(reference.clocks) - min(reference.clocks) <= chosen["bound"] + 1
    if chosen["bound"] >= 0:
        assert max(world.staleness, default=0) <= (2 * chosen["bound"] + 1) * (workers - 1)


@given(choices=st.lists(st.integers(0, 11), min_size=20, max_size=60), bound=st.sampled_from([-1, 0, 3]))
@settings(max_examples=15, deadline=None)
def test_a_worker_that_is_told_holds_what_the_servers_hold(choices: list[int], bound: int) -> None:
    """Only rows that changed are sent, and none is missed."""
    world = World(3, 2, ServerOptions(bound=bound))
    for choice in choices:
        actions = world.actions()
        world.act(*actions[choice % len(actions)])
    for m in sorted(world.ready):
        for k, shard in enumerate(world.shards):
            (letter,) = shard.handle(_pull(m))
            world._take(m, k, letter)
            for name, value in world.layout.part(k, world.params[m]).items():
                assert torch.equal(value, shard.part.held[name].detach()), (m, k, name)
            (letter,) = shard.handle(_pull(m))
            assert letter.head["rows"] == [0], "nothing is told twice"


def _pull(m: int) -> Any:
    from headrace.comm.mailbox import NO_BYTES, Message

    return Message(m, "pull", None, NO_BYTES)


def test_bound_0_is_lockstep() -> None:
    """All that wait are answered at once, with the same parameters."""
    world = World(3, 1, ServerOptions(bound=0))
    for m in range(3):
        world.act("step", m, 0)
    for m in (2, 0):
        world.act("deliver", m, 0)
    assert not world.ready
    world.act("deliver", 1, 0)
    assert world.ready == {0, 1, 2}
    for name in SHAPES:
        assert all(torch.equal(world.params[0][name], params[name]) for params in world.params)


def test_a_worker_that_leaves_is_not_waited_for() -> None:
    world = World(2, 1, ServerOptions(bound=0))
    world.act("step", 0, 0)
    world.act("deliver", 0, 0)
    assert world.ready == {1}
    from headrace.comm.mailbox import NO_BYTES, Message

    (letter,) = world.shards[0].handle(Message(1, "leave", None, NO_BYTES))
    assert letter.to == 0


def test_all_are_told_where_to_meet_before_they_begin_that_step() -> None:
    """One asks while another is far ahead and a third far behind: nobody has begun the step that is named."""
    world = World(3, 2, ServerOptions(bound=-1))
    for m, steps in ((0, 7), (1, 2)):
        for _ in range(steps):
            world.act("step", m, 0)
            for k in range(2):
                world.act("deliver", m, k)
    world.act("step", 0, 0)  # under way
    world.act("step", 2, 0)
    for k in range(2):
        message, grads = world.links[2, k].popleft()
        world.links[2, k].append((message._replace(head=message.head | {"stop": True}), grads))
        world.act("deliver", 2, k)
    assert world.meet_at[2] == 9
    for k in range(2):
        world.act("deliver", 0, k)
    assert world.meet_at[0] == 9 and world.made[0] == 8
    while world.made[1] < 8:
        world.act("step", 1, 0)
        for k in range(2):
            world.act("deliver", 1, k)
    assert world.meet_at[1] == 9


def test_a_push_that_is_missing_or_comes_twice_is_refused() -> None:
    world = World(2, 1, ServerOptions())
    world.act("step", 0, 0)
    message, _ = world.links[0, 0][0]
    world.act("deliver", 0, 0)
    with pytest.raises(CollectiveError, match="push 1 of rank 0 was to come, and push 0 came"):
        world.shards[0].handle(message)


@pytest.mark.parametrize("cut", [1, 8])
def test_a_body_that_is_no_gradient_is_refused(cut: int) -> None:
    world = World(1, 1, ServerOptions())
    world.act("step", 0, 0)
    message, _ = world.links[0, 0].popleft()
    with pytest.raises(PayloadError):
        world.shards[0].handle(message._replace(body=message.body[:-cut]))
    spoiled = message.body.clone()
    entry = next(e for e in message.head["entries"] if e[2] >= 0)
    assert entry is message.head["entries"][0], "the table comes first here"
    spoiled[7] = 1  # the highest byte of the first row number
    with pytest.raises(PayloadError, match="outside"):
        world.shards[0].handle(message._replace(body=spoiled))


def test_parameters_are_dealt_whole_and_evenly_and_rows_in_turn() -> None:
    params = start() | {f"layer{i}": torch.zeros(10 * i + 1) for i in range(6)}
    layout = deal(params, [TABLE], 3)
    parts = [layout.part(k, params) for k in range(3)]
    for name, param in params.items():
        if name == TABLE:
            assert torch.equal(torch.stack([parts[i % 3][name][i // 3] for i in range(len(param))]), param)
        else:
            assert [k for k in range(3) if name in parts[k]] == [layout.owners[name]]
    sizes = [sum(v.numel() for n, v in part.items() if n != TABLE) for part in parts]
    assert max(sizes) - min(sizes) <= 51, sizes
    assert [list(part) for part in parts] == [[n for n in params if n in part] for part in parts]
    assert deal({"one": torch.zeros(2)}, [], 4).servers == 1, "no server without parameters"
