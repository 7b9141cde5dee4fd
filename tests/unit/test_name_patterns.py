"""Parameters by patterns of their names; base rates by layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headrace import optim
from headrace.errors import UserError
from headrace.optim.layer_decay import like_groups
from headrace.optim.name_patterns import check_patterns, named_by
from headrace.optim.schedules import Rates, set_rates

NAMES = ("top.0.weight", "top.0.bias", "top.4.weight", "top.4.bias", "table")


def test_patterns_choose_as_the_shell_does() -> None:
    assert [name for name in NAMES if named_by(("top.4.*", "*.bias"), name)] == [
        "top.0.bias", "top.4.weight", "top.4.bias",
    ]  # fmt: skip
    assert not named_by((), "table") and not named_by(("Table",), "table")


def test_a_pattern_of_no_parameter_is_told_with_the_nearest_names() -> None:
    check_patterns("exclude", ("top.*", "table"), NAMES)  # some names are enough
    with pytest.raises(UserError) as told:
        check_patterns("exclude", ("top.*", "tabel"), NAMES)
    assert str(told.value).splitlines()[0] == "--exclude 'tabel' is the name of no parameter"
    assert "there are table" in str(told.value) and "top" not in str(told.value).splitlines()[1]
    with pytest.raises(UserError, match=r"there are top\.4\.weight, top\.0\.weight, top\.\d\.bias$"):
        check_patterns("exclude", ("top.4.weigth",), NAMES)  # three, of four that are near
    with pytest.raises(UserError, match="there are " + ", ".join(NAMES).replace(".", r"\.")):
        check_patterns("exclude", ("zzz",), NAMES)  # none is near: all


def test_a_part_of_the_parameters_has_the_base_rates_of_the_whole() -> None:
    """Also after rates were scheduled."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    whole = optim.create("sgd", model, lr=0.8, layer_decay=0.5)
    set_rates(whole, Rates(0.1))
    part = optim.create("sgd", list(model.named_parameters())[2:4], lr=0.8)
    assert [group["lr"] for group in like_groups(part, whole).param_groups] == [0.4]
    fresh = optim.create("sgd", model, lr=0.8, layer_decay=0.5)
    both = torch.optim.SGD(
        [{"params": [p], "param_names": [n]} for n, p in model.named_parameters() if n.endswith("weight")], lr=1.0
    )
    like_groups(both, fresh)  # type: ignore[arg-type]
    assert [group["lr"] for group in both.param_groups] == [0.2, 0.4, 0.8]
