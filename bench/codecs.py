"""Row f': GB/s of float32 that a core encodes and decodes, for every entry of COMPRESSORS, beside a copy of memory.

    .venv/bin/python bench/codecs.py [--names int8,qsgd] [--numbers 1000000,25000000] [--rounds 7]

Codecs and a copy of the tensor into new memory take turns; so does a copy into memory that is there. Numbers are
normal, times a power of ten by rows of 1000, so that buckets differ. An encoding goes by `Codec.compress` and a
decoding by `Codec.decompress`, as a reducer calls them: each into new memory, which for 25M numbers the system clears
first. HEADRACE_KERNELS=off is without compiled kernels. One JSON line is appended to docs/results/codecs.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headrace.compress import COMPRESSORS, create, kernels

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "codecs.jsonl"
STEADY = {"dgc": {"warmup_turns": 0}}  # what most turns of a run are like: its first ones send a quarter of the numbers
SLOW_S = 10.0  # an entry whose first turn takes longer is measured in one round


class Clock:
    """Seconds by what was done, wall and of the process: others on the machine stretch the first more."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def run(self, what: str, work: Callable[[], Any]) -> Any:
        """The work's result."""
        start, used = time.perf_counter(), time.process_time()
        result = work()
        self.wall.setdefault(what, []).append(time.perf_counter() - start)
        self.cpu.setdefault(what, []).append(time.process_time() - used)
        return result


def gradient(n: int) -> Tensor:
    """float32 [n]."""
    draw = torch.Generator().manual_seed(7)
    sizes = 10.0 ** torch.empty(-(-n // 1000)).uniform_(-6, -1, generator=draw)
    return torch.randn(len(sizes), 1000, generator=draw).mul_(sizes[:, None]).view(-1)[:n].clone()


def contest(names: Sequence[str], n: int, rounds: int) -> dict[str, Any]:
    """Turns of all codecs and of the copies."""
    x = gradient(n)
    codecs = {name: create(name, **STEADY.get(name, {})) for name in names}
    states = {name: codec.init(x, key=1) for name, codec in codecs.items()}
    clocks = {name: Clock() for name in [*names, "copy"]}
    bits: dict[str, float] = {}
    there = torch.empty_like(x)
    for turn in range(rounds + 1):
        for name, codec in codecs.items():
            clock = clocks[name]
            if turn > 1 and sum(clock.wall["encode"][:1] + clock.wall["decode"][:1]) > SLOW_S:
                continue
            payload, states[name] = clock.run("encode", lambda c=codec, s=states[name]: c.compress(x, s))
            decoded = clock.run("decode", lambda c=codec, p=payload: c.decompress(p))
            assert decoded.shape == x.shape and bool(decoded.isfinite().all()), name
            bits[name] = 8 * payload.nbytes / n
            del payload, decoded
        clocks["copy"].run("new", x.clone)
        clocks["copy"].run("there", lambda: there.copy_(x))
    copies = clocks.pop("copy")
    found = {name: summary(clock, bits[name], n, copies.wall["new"][1:]) for name, clock in clocks.items()}
    return {"copy_GB_s": {what: speeds(t[1:], n) for what, t in copies.wall.items()}, "codecs": found}


def summary(clock: Clock, bits: float, n: int, copies: Sequence[float]) -> dict[str, Any]:
    """Figures of a codec; the first round is warming."""
    wall = {what: t[1:] for what, t in clock.wall.items()}
    cpu = {what: t[1:] for what, t in clock.cpu.items()}
    both = [a + b for a, b in zip(*wall.values(), strict=True)]
    return {
        "bits": round(bits, 3),
        "GB_s": speeds(both, n),
        "cpu_GB_s": speeds([a + b for a, b in zip(*cpu.values(), strict=True)], n),
        "encode_GB_s": speeds(wall["encode"], n),
        "decode_GB_s": speeds(wall["decode"], n),
        "share_of_copy": spread([c / t for c, t in zip(copies, both, strict=False)]),
    }


def spread(values: Sequence[float]) -> list[float]:
    """Median, least and greatest."""
    return [round(x, 3) for x in (statistics.median(values), min(values), max(values))]


def speeds(seconds: Sequence[float], n: int) -> list[float]:
    """GB of float32 a second."""
    return spread([4 * n / t / 1e9 for t in seconds])


def main() -> None:
    """See the module docstring."""
    args = arguments()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    print(kernels.found().said)
    runs = {}
    for n in args.numbers:
        runs[str(n)] = found = contest(args.names, n, args.rounds)
        copies = found["copy_GB_s"]
        print(f"\n{n} numbers; a copy {copies['new'][0]:.1f} GB/s into new memory, {copies['there'][0]:.1f} into old")
        print(f"{'':17} {'bits':>6} {'GB/s':>6} {'of CPU':>7} {'encode':>7} {'decode':>7} {'of a copy':>10}")
        for name, got in found["codecs"].items():
            keys = ("GB_s", "cpu_GB_s", "encode_GB_s", "decode_GB_s", "share_of_copy")
            a, b, c, d, e = (got[key][0] for key in keys)
            print(f"{name:17} {got['bits']:6.2f} {a:6.2f} {b:7.2f} {c:7.2f} {d:7.2f} {e:10.2f}")
    noisy = max(load, os.getloadavg()[0]) > 2.5
    print(f"\nload {load:.1f} before, {os.getloadavg()[0]:.1f} after{'; noisy' if noisy else ''}")
    record = {
        "bench": "codecs", "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "rounds": args.rounds,
        "numbers": runs, "load_before": load, "load_after": os.getloadavg()[0], "noisy": noisy,
        "cores": os.cpu_count(), "python": platform.python_version(), "versions": {"torch": str(torch.__version__)},
        "kernels": kernels.found().said.split(":")[0], "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE", "0"),
    }  # fmt: skip
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=lambda text: text.split(","), default=list(COMPRESSORS))
    parser.add_argument(
        "--numbers", type=lambda text: [int(n) for n in text.split(",")], default=[1_000_000, 25_000_000]
    )
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(COMPRESSORS))
    if unknown or args.rounds < 1:
        parser.error(
            f"unknown: {', '.join(unknown)}; there are {', '.join(COMPRESSORS)}" if unknown else "--rounds 1 up"
        )
    return args


if __name__ == "__main__":
    main()
