"""Rules that remember a gradient of every training row: SAG and SAGA.

    alpha_i = gradient of row i when it was last in a batch (at first: from one pass over all rows),  abar = their mean
    step:   c_i = grad_i(w) - alpha_i for rows i of batch B,   alpha_i <- grad_i(w),   abar <- abar + sum_B c_i / n

The table (see gradient_table) holds a row's gradient as one number an output where the model is linear, else in full
(see row_gradients); `table` "auto" looks at the first batch, "linear" and "full" say it. abar is kept in float64: it is
the sum of very many small changes. A row that comes twice in a batch is entered once; padding has no entry.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from headrace.errors import UserError
from headrace.optim.base import Params
from headrace.optim.context import Named, StepContext, check_finite, summed
from headrace.optim.gradient_table import PADDING_KEY, GlobalRows, GradientTable, Room, first_of_each, row_keys
from headrace.optim.row_gradients import RowGradients, full_rows, is_linear, linear_rows
from headrace.optim.variance_reduced import VarianceReduced, way_through

TABLES = ("auto", "linear", "full")


def table_bytes(param: Tensor, options: Mapping[str, Any]) -> int:
    """For OptimizerSpec.state_bytes: the mean, and the whole table for every tensor (how it is shared is not known)."""
    return 8 * param.numel() + int(options["table_bytes"])


class Tabled(VarianceReduced):
    """See the module's docstring. What is kept: "linear", "keys" [n], "entries" [n, C], "mean" by parameter."""

    def __init__(self, params: Params, model: nn.Module, **options: Any) -> None:
        super().__init__(params, model, **options)
        if options["table"] not in TABLES:
            raise UserError(f"optimizer option table must be one of {', '.join(TABLES)}, not {options['table']!r}")

    @abstractmethod
    def estimate(self, before: Tensor, after: Tensor, change: Tensor) -> Tensor:
        """The estimate, float64, of abar before and after the batch, and the batch's mean c_i."""

    def advance(self, ctx: StepContext) -> None:
        """See `VarianceReduced.advance`."""
        kept = self.kept
        if "keys" not in kept:
            self._begin(ctx)
        change, entered = self._enter(ctx)
        estimate: Named = {}
        for name, param in self.own.items():
            before = kept["mean"][name]
            after = before + entered[name].double() / len(kept["keys"])
            made = self.estimate(before, after, change[name].double() / max(1, ctx.rows))
            estimate[name], kept["mean"][name] = made.to(param.dtype), after
        self.move(estimate)

    def _begin(self, ctx: StepContext) -> None:
        """Fill table and mean by one pass."""
        kept, parts = self.kept, way_through(ctx, self.name)
        linear = self._linear(ctx)
        room = self._room(ctx, linear)
        sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in self.own.items()}
        keys: list[Tensor] = []
        entries: list[Tensor] = []
        for part in parts():
            own = row_keys(part, self.name)
            real = own != PADDING_KEY
            everyone = GlobalRows.of(own[real], ctx.collective)
            room.take(len(everyone.keys))
            rows = self._rows(part, linear)
            for name, total in rows.total(torch.where(real[:, None], rows.entries, 0.0)).items():
                sums[name] += total
            keys.append(everyone.keys)
            entries.append(everyone.gather(rows.entries[real]))
        table = GradientTable.of(keys, entries)
        totals = summed(list(sums.values()), ctx.collective)
        check_finite([*totals, table.entries], f"{self.name}: a gradient of the first pass")
        kept["linear"], kept["keys"], kept["entries"] = linear, table.keys, table.entries
        kept["mean"] = {name: total / len(table.keys) for name, total in zip(sums, totals, strict=True)}

    def _linear(self, ctx: StepContext) -> bool:
        table = self.param_groups[0]["table"]
        if table == "full":
            return False
        linear = is_linear(ctx, self.own, self.others)
        if table == "linear" and not linear:
            raise UserError(
                f"optimizer {self.name} was told that the model is linear, and its outputs are not affine in what it "
                "trains",
                "table auto",
            )
        return linear

    def _room(self, ctx: StepContext, linear: bool) -> Room:
        outputs = ctx.outputs_at(None)
        width, what = outputs.shape[1:].numel(), "numbers for the outputs"
        if not linear:
            width = sum(p.numel() for p in self.own.values())
            what = f"the gradient of {width:,} parameters, the model being not linear"
        return Room(self.param_groups[0]["table_bytes"], 8 + width * outputs.element_size(), what)

    def _rows(self, ctx: StepContext, linear: bool) -> RowGradients:
        return (linear_rows if linear else full_rows)(ctx, self.own)

    def _enter(self, ctx: StepContext) -> tuple[Named, Named]:
        """Enter the batch's rows; sums of c_i over its rows, and over its different rows, the same on all ranks."""
        own = row_keys(ctx, self.name)
        real = own != PADDING_KEY
        everyone = GlobalRows.of(own[real], ctx.collective)
        if len(everyone.keys) != ctx.rows:
            raise ValueError(f"a batch of {ctx.rows} rows came with {len(everyone.keys)} keys that are not padding's")
        table = GradientTable(self.kept["keys"], self.kept["entries"])
        places = table.places(everyone.keys)
        rows = self._rows(ctx, self.kept["linear"])
        changes = torch.zeros_like(rows.entries)
        changes[real] = rows.entries[real] - table.entries[places[everyone.own]]
        change = entered = self._summed(rows.total(changes), ctx)
        first = first_of_each(places)
        if not bool(first.all()):
            changes[real] *= first[everyone.own, None]
            entered = self._summed(rows.total(changes), ctx)
        made = everyone.gather(rows.entries[real])[first]
        check_finite([made, *change.values(), *entered.values()], f"{self.name}: a row's gradient")
        table.entries[places[first]] = made
        return change, entered

    def _summed(self, own: Named, ctx: StepContext) -> Named:
        return dict(zip(own, summed(list(own.values()), ctx.collective), strict=True))
