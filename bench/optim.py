"""Row e: nanoseconds a parameter of an optimizer's step, for every entry of OPTIMIZERS, beside torch and other peers.

    .venv/bin/python bench/optim.py [--names lars,lamb] [--loads one,many,tables,model] [--rounds 7] [--threads 2]

Loads: one tensor of 10M numbers; 200 tensors of 64 to 256 Ki numbers, half of them vectors; 26 embedding tables and an
MLP, the tables' gradients row-sparse where the rule accepts them (then a parameter is one that has a gradient). Rules
that need more than gradients step on a small net of 'model' and are told in gradients' time, too.

An entry, its peers and a copy of memory take turns; gradients are written anew before every step, untimed. Where a
peer's rule is ours, 3 steps are proved equal before its time counts. The limit is copying as many bytes as the entry's
declared cost says ("7 numbers moved a parameter"). Peers that are not installed are named and left out. One JSON line
is appended to docs/results/optim.jsonl.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import platform
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headrace.optim import OPTIMIZERS, Optimizer, StepContext, create
from headrace.optim.spec import ACCEPTS_SPARSE, NEEDS_CLOSURE, NEEDS_FULL_PASS, NEEDS_KEYS, NEEDS_MODEL, NEEDS_OUTPUTS
from headrace.testing.problems import perceptron

sys.path.insert(0, str(Path(__file__).resolve().parent))

from optim_peers import PEERS, Peer

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "optim.jsonl"
NEEDS_MORE = {NEEDS_CLOSURE, NEEDS_OUTPUTS, NEEDS_KEYS, NEEDS_FULL_PASS, NEEDS_MODEL}
SLOW_S = 5.0  # an entry whose first step takes longer is measured in one round
WIDTHS = (256, 512, 256, 16)


class Load:
    """Weights and gradients that contestants are given copies of."""

    def __init__(self, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        self.weights, self.grads = list(weights), list(grads)
        self.sparse = any(g.is_sparse for g in grads)

    @property
    def numel(self) -> int:
        """Numbers that have a gradient."""
        return sum(g.values().numel() if g.is_sparse else g.numel() for g in self.grads)

    def copies(self) -> list[nn.Parameter]:
        """Parameters of a contestant's own."""
        return [nn.Parameter(w.clone()) for w in self.weights]

    def give(self, params: Sequence[nn.Parameter]) -> None:
        """Gradients as backward leaves them."""
        for param, grad in zip(params, self.grads, strict=True):
            if param.grad is None or grad.is_sparse:
                param.grad = grad.clone()
            else:
                param.grad.copy_(grad)


def load_of(name: str, numel: int, sparse: bool) -> Load:
    """One of the module docstring's loads; `numel` is for the load of one tensor."""
    draw = torch.Generator().manual_seed(7)
    if name == "one":
        shapes: list[tuple[int, ...]] = [(numel // 1000, 1000)]
    elif name == "many":
        sides = torch.logspace(3, 9, 200, base=2.0).round().int().tolist()
        shapes = [(n, n) if i % 2 else (8 * n,) for i, n in enumerate(sides)]
    else:
        rows = torch.logspace(1, 5, 26, base=10.0).int().tolist()
        pairs = [(13, 512), (512, 256), (256, 16), (383, 512), (512, 256), (256, 1)]
        shapes = [(n, 16) for n in rows] + [shape for a, b in pairs for shape in ((b, a), (b,))]
    weights = [torch.randn(shape, generator=draw) * 0.1 for shape in shapes]
    grads = [torch.randn(shape, generator=draw) * 0.01 for shape in shapes]
    if name == "tables" and sparse:
        for i in range(26):
            ids = torch.randint(0, shapes[i][0], (2048,), generator=draw).unique()
            grads[i] = torch.sparse_coo_tensor(
                ids[None], grads[i][ids], shapes[i], is_coalesced=True, check_invariants=True
            )
    return Load(weights, grads)


def make_ours(name: str, params: Any, load: Load, **options: Any) -> Optimizer:
    """Our entry."""
    return create(name, params, row_sparse=load.sparse, **options)


def make_peer(name: str, peer: Peer, params: Any, load: Load) -> torch.optim.Optimizer:
    """The peer, with our entry's values of the options that both have."""
    factory = getattr(importlib.import_module(peer.module), peer.factory)
    known = inspect.signature(factory).parameters
    shared = {key: value for key, value in OPTIMIZERS[name].defaults.items() if key in known}
    chosen = {**shared, **peer.options}
    if load.sparse:  # torch has neither form for row-sparse gradients
        chosen = {key: value for key, value in chosen.items() if key not in ("foreach", "fused")}
    return factory(params, **chosen)


def differs(name: str, peer: Peer) -> str:
    """What 3 steps of ours and of the peer disagree in; nothing where they agree."""
    load = load_of("many", 0, sparse=False)
    load = Load(load.weights[:120:7], load.grads[:120:7])
    ours, theirs = load.copies(), load.copies()
    a = make_ours(name, ours, load, **peer.ours)
    b = make_peer(name, peer, theirs, load)
    for _ in range(3):
        load.give(ours)
        load.give(theirs)
        a.step()
        b.step()
    moved = max(float((p.detach() - w).abs().max()) for p, w in zip(ours, load.weights, strict=True))
    apart = max(float((p - q).detach().abs().max()) for p, q in zip(ours, theirs, strict=True))
    return "" if apart <= 1e-4 * moved else f"3 steps end {apart:.2g} apart after a way of {moved:.2g}"


def bytes_a_parameter(cost: str) -> float | None:
    """From "7 numbers moved a parameter" or "3 numbers and 4 bytes moved a parameter"; None: it is no such rule."""
    found = re.match(r"(\d+) numbers(?: and (\d+) bytes)? moved a parameter", cost)
    return 4.0 * int(found[1]) + int(found[2] or 0) if found else None


def contest(name: str, load: Load, rounds: int) -> dict[str, Any]:
    """Turns of ours, the peers that are there, and a copy of memory; seconds of every round."""
    peers = PEERS.get(name, {})
    if load.sparse and peers:
        peers = {"torch": next(iter(peers.values()))}
    contestants: dict[str, tuple[list[nn.Parameter], torch.optim.Optimizer]] = {}
    left_out: dict[str, str] = {}
    ours_options = next((peer.ours for peer in peers.values() if peer.ours), {})
    params = load.copies()
    contestants["ours"] = (params, make_ours(name, params, load, **ours_options))
    for who, peer in peers.items():
        try:
            importlib.import_module(peer.module)
        except ImportError:
            left_out[who] = f"{peer.module} is not installed"
            continue
        if peer.side and (side := max(max(w.shape) for w in load.weights)) > peer.side:
            left_out[who] = f"a tensor has a side of {side}: beyond {peer.side} a step takes minutes"
            continue
        why = differs(name, peer) if peer.same and not load.sparse else ""
        if why:
            left_out[who] = why
            continue
        params = load.copies()
        contestants[who] = (params, make_peer(name, peer, params, load))
    source, target = torch.randn(10_000_000), torch.empty(10_000_000)
    seconds: dict[str, list[float]] = {who: [] for who in [*contestants, "memcpy"]}
    cpu: dict[str, list[float]] = {who: [] for who in seconds}
    for turn in range(rounds + 1):
        for who, (own, optimizer) in contestants.items():
            load.give(own)
            _timed(optimizer.step, seconds[who], cpu[who])
        _timed(lambda: target.copy_(source), seconds["memcpy"], cpu["memcpy"])
        if turn == 1 and seconds["ours"][0] > SLOW_S:
            break
    moved = bytes_a_parameter(OPTIMIZERS[name].cost)
    found = summary(load.numel, seconds, moved) | {"left_out": left_out, "options_of_ours": str(dict(ours_options))}
    busy = summary(load.numel, cpu, moved)
    return found | {"cpu": {key: busy[key] for key in ("ns_a_parameter", "speed_of_ours_over")}}


def _timed(step: Callable[[], Any], seconds: list[float], cpu: list[float]) -> None:
    """Wall seconds, and CPU seconds of the process: others on the machine stretch the first more than the second."""
    start, used = time.perf_counter(), time.process_time()
    step()
    seconds.append(time.perf_counter() - start)
    cpu.append(time.process_time() - used)


def spread(values: Sequence[float]) -> list[float]:
    """Median, least and greatest."""
    return [round(x, 3) for x in (statistics.median(values), min(values), max(values))]


def summary(numel: int, seconds: Mapping[str, list[float]], moved: float | None) -> dict[str, Any]:
    """Figures of a contest; the first round is warming."""
    warm = {who: times[1:] for who, times in seconds.items()}
    ours, copies = warm["ours"], warm["memcpy"]
    found: dict[str, Any] = {
        "parameters": numel,
        "ns_a_parameter": {
            who: spread([t / numel * 1e9 for t in times]) for who, times in warm.items() if who != "memcpy"
        },
        "memcpy_GB_s": spread([2 * 4 * 10_000_000 / t / 1e9 for t in copies]),
        "speed_of_ours_over": {
            who: spread([t / mine for t, mine in zip(times, ours, strict=True)])
            for who, times in warm.items() if who not in ("ours", "memcpy")
        },
    }  # fmt: skip
    if moved is not None:
        limits = [t * moved * numel / (2 * 4 * 10_000_000) for t in copies]
        found["bytes_a_parameter"] = moved
        found["share_of_memcpy"] = spread([limit / mine for limit, mine in zip(limits, ours, strict=True)])
    return found


class Timed(Optimizer):
    """Seconds of every step of another."""

    def __init__(self, inner: Optimizer) -> None:
        torch.optim.Optimizer.__init__(self, [{"params": g["params"]} for g in inner.param_groups], {})
        self.inner, self.seconds = inner, list[float]()

    def step(self, ctx: StepContext | None = None) -> None:
        start = time.perf_counter()
        self.inner.step(ctx)
        self.seconds.append(time.perf_counter() - start)


def on_a_model(name: str, rounds: int) -> dict[str, Any]:
    """Steps of a rule that needs a context on a small net, beside the time of the batch's gradient."""
    problem = perceptron(WIDTHS, rows=1024, dtype=torch.float32)
    # A gradient of every training row is over the default bound by a fiftieth.
    more = {"table_bytes": 2 << 30} if "table_bytes" in OPTIMIZERS[name].defaults else {}
    timed = Timed(create(name, problem.model, **more))
    gradients, whole = [], list[float]()
    for turn, ids in enumerate(problem.batches(256, rounds + 1)):
        start = time.perf_counter()
        problem.step(timed, ids)
        whole.append(time.perf_counter() - start)
        gradients.append(whole[-1] - timed.seconds[-1])
        if turn == 1 and whole[0] > SLOW_S:
            break
    numel = sum(p.numel() for p in problem.model.parameters())
    return {
        "parameters": numel,
        "ns_a_parameter": {"ours": spread([t / numel * 1e9 for t in timed.seconds[1:]])},
        "gradients_of_the_batch": spread([t / g for t, g in zip(timed.seconds[1:], gradients[1:], strict=True)]),
    }


def line(name: str, load: str, found: Mapping[str, Any]) -> str:
    """What is printed of a contest."""
    times = "  ".join(f"{who} {t[0]:.2f} ns" for who, t in found.get("ns_a_parameter", {}).items())
    ratios = "  ".join(
        f"{r[0]:.2f} x {who} ({r[1]:.2f}-{r[2]:.2f})" for who, r in found.get("speed_of_ours_over", {}).items()
    )
    busy = [f"{r[0]:.2f} x {who}" for who, r in found.get("cpu", {}).get("speed_of_ours_over", {}).items()]
    ratios += f"  by CPU {', '.join(busy)}" if busy else ""
    share = f"  {found['share_of_memcpy'][0]:.2f} of memcpy" if "share_of_memcpy" in found else ""
    share += f"  {found['gradients_of_the_batch'][0]:.1f} gradients" if "gradients_of_the_batch" in found else ""
    return f"{name:<16} {load:<7} {times}  {ratios}{share}  {found.get('left_out') or ''} {found.get('failed', '')}"


def main() -> None:
    """Measure and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", default=",".join(OPTIMIZERS))
    parser.add_argument("--loads", default="one,many,tables,model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--numel", type=int, default=10_000_000)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message="Sparse invariant checks")
    before = os.getloadavg()[0]
    results: dict[str, dict[str, Any]] = {}
    for name in args.names.split(","):
        results[name] = {}
        for load in applicable(name, args.loads.split(",")):
            results[name][load] = found = measured(name, load, args)
            print(line(name, load, found), flush=True)
    record = {
        "what": "optim",
        "command": " ".join(["bench/optim.py", *sys.argv[1:]]),
        "threads": args.threads,
        "results": results,
        "load_before": before,
        "noisy": before > 2.5,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {"torch": version("torch")} | installed("pytorch-optimizer"),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps(record))


def applicable(name: str, loads: Sequence[str]) -> list[str]:
    """Rules that need more than gradients step on a model, the others on tensors."""
    more = bool(OPTIMIZERS[name].traits & NEEDS_MORE)
    return [load for load in loads if (load == "model") == more]


def measured(name: str, load: str, args: argparse.Namespace) -> dict[str, Any]:
    """One contest; an entry that cannot take the load says why and does not end the run."""
    run: Callable[[], dict[str, Any]] = lambda: (  # noqa: E731
        on_a_model(name, args.rounds)
        if load == "model"
        else contest(name, load_of(load, args.numel, ACCEPTS_SPARSE in OPTIMIZERS[name].traits), args.rounds)
    )
    try:
        return run()
    except Exception as error:  # the others' figures are still wanted
        return {"failed": f"{type(error).__name__}: {error}"}


def installed(package: str) -> dict[str, str]:
    """The version of a peer, if it is there."""
    try:
        return {package: version(package)}
    except importlib.metadata.PackageNotFoundError:
        return {}


if __name__ == "__main__":
    main()
