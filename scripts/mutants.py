"""Break every optimizer rule in every place, one at a time, and see that its exam or its tests fail.

    python scripts/mutants.py --minutes 120                     all; what was run is not run again
    python scripts/mutants.py --sample 0.1 --seed 3             a tenth
    python scripts/mutants.py --only kfac,lbfgs                 modules whose names begin so
    python scripts/mutants.py --survivors --tests tests/unit/test_kfac.py      those that survived, against a new test

`mutation.py` says how a module is broken. First all tests run once, unharmed, and it is noted which run which lines of
headrace.optim; a mutant meets those that run its line, the exam's before others, quick ones first, until one fails. It
is compiled in memory, in a fork of a process that has imported torch and nothing of ours. A test that computes or
sleeps ten times as long as unharmed (and 30 s) hangs: that is a failure too; waiting for a core is not.

Results are lines of JSON, one a mutant, whose key is a hash of the broken module: a changed module is tried again, and
so is a survivor when tests have changed. Mutants that are no worse are listed with the reason, by function and text of
the line, in mutants_equivalent.yaml. Any other survivor makes the exit status 1.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from mutation import Mutant, mutants
from mutation_tests import EXAM, OPTIM, PROJECT, Baseline, baseline, try_mutant
from tqdm import tqdm

TESTS = (
    EXAM,
    *(
        f"tests/unit/test_{name}.py"
        for name in (
            "optim", "wrappers", "clipping", "schedules", "kfac", "shampoo", "large_batch", "elementwise", "precision",
            "whole_model_optim", "gradient_table", "optim_rare_paths", "name_patterns", "line_search",
            "kfac_damping", "matrix_roots", "optim_kfac_rare_paths",
        )
    ),
    "tests/convergence/test_variance_reduction.py",
)  # fmt: skip
NO_RULE = ("__init__.py", "spec.py")  # names and what is declared: no arithmetic
EQUIVALENT = Path(__file__).with_name("mutants_equivalent.yaml")
NO_TEST = "no test runs it"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a mutant; a line of the results."""

    key: str
    file: str
    function: str = ""
    operator: str
    line: str
    becomes: str
    result: str  # caught or survived
    by: str = ""  # the test that failed, and how
    tests: str = ""  # of a survivor: fingerprint of the tests it survived


def all_mutants(only: Sequence[str] = ()) -> list[Mutant]:
    """Of every module of headrace.optim that has a part in a rule."""
    files = [path for path in sorted(OPTIM.glob("*.py")) if path.name not in NO_RULE]
    return [
        mutant
        for path in files
        if not only or path.name.startswith(tuple(only))
        for mutant in mutants(path.name, path.read_text(encoding="utf-8"))
    ]


def equivalents(all_of_them: Sequence[Mutant]) -> dict[str, str]:
    """Reasons by the key of the mutant, from the list.

    An entry has file, function, operator, line (stripped text), reason and, where a line has several such, becomes.
    """
    found = {}
    for entry in yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8")) or []:
        place = (entry["file"], entry["function"], entry["operator"], entry["line"])
        named = [m for m in all_of_them if m.place == place and m.becomes == entry.get("becomes", m.becomes)]
        if not named:
            sys.exit(f"{EQUIVALENT.name}: there is no such mutant (any more): {place}")
        found.update({mutant.key: str(entry["reason"]) for mutant in named})
    return found


def rules_of() -> dict[str, list[str]]:
    """Rules and wrappers by the file of every module that they are made of."""
    imports = {path.name: _imports(path) for path in OPTIM.glob("*.py") if path.name != "__init__.py"}
    found: dict[str, list[str]] = {}
    for name in sorted(imports):
        if "\nSPEC = " not in (OPTIM / name).read_text(encoding="utf-8"):
            continue
        reached, ahead = set(), [name]
        while ahead:
            if (file := ahead.pop()) in imports and file not in reached:
                reached.add(file)
                ahead += imports[file]
        for file in reached:
            found.setdefault(file, []).append(Path(name).stem)
    return found


def _imports(path: Path) -> list[str]:
    nodes = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
    direct = [f"{n.module.rpartition('.')[2]}.py" for n in nodes if (n.module or "").startswith("headrace.optim.")]
    return direct + [f"{a.name}.py" for n in nodes if n.module == "headrace.optim" for a in n.names]


def known(results: Path, present: set[str]) -> dict[str, Result]:
    """Results so far of mutants that still exist; the others' lines are taken out of the file."""
    if not results.exists():
        return {}
    lines = [Result(**json.loads(line)) for line in results.read_text(encoding="utf-8").splitlines()]
    found = {line.key: line for line in lines if line.key in present}
    ordered = sorted(found.values(), key=lambda r: (r.file, r.function, r.operator, r.line, r.becomes, r.key))
    part = results.with_suffix(".part")
    part.write_text("".join(json.dumps(_plain(line)) + "\n" for line in ordered), encoding="utf-8")
    part.rename(results)
    return found


def _plain(result: Result) -> dict[str, str]:
    return {name: value for name, value in asdict(result).items() if value}


def campaign(todo: list[Mutant], base: Baseline, results: Path, seconds: float) -> Iterator[Result]:
    """Try mutants until time is over; every result is written before the next mutant."""
    end = time.monotonic() + seconds
    results.parent.mkdir(parents=True, exist_ok=True)
    for mutant in tqdm(todo, "mutants", mininterval=1.0 if sys.stderr.isatty() else 60.0):
        if time.monotonic() > end:
            return
        tests = base.of(mutant)
        by = try_mutant(mutant, tests) if tests else NO_TEST
        survived = not by or by == NO_TEST
        result = Result(
            key=mutant.key, file=mutant.file, function=mutant.function, operator=mutant.operator, line=mutant.line,
            becomes=mutant.becomes, result="survived" if survived else "caught", by=by,
            tests=base.fingerprint if survived else "",
        )  # fmt: skip
        with results.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(_plain(result)) + "\n")
        yield result


def table(chosen: list[Mutant], found: dict[str, Result], listed: dict[str, str]) -> str:
    """Counts by module."""
    rules, counts = rules_of(), Counter[tuple[str, str]]()
    for mutant in chosen:
        counts[mutant.file, "mutants"] += 1
        if mutant.key in listed:
            counts[mutant.file, "equivalent"] += 1
        else:
            counts[mutant.file, found[mutant.key].result if mutant.key in found else "not run"] += 1
    columns = ("mutants", "caught", "equivalent", "survived", "not run")
    lines = [f"{'module':24}" + "".join(f"{column:>12}" for column in columns) + "  part of"]
    for file in sorted({mutant.file for mutant in chosen}):
        of = rules.get(file, [])
        words = ", ".join(of[:6]) + (f" and {len(of) - 6} more" if len(of) > 6 else "")
        lines.append(f"{file:24}" + "".join(f"{counts[file, column]:12}" for column in columns) + f"  {words}")
    sums = [sum(n for (_, name), n in counts.items() if name == column) for column in columns]
    return "\n".join([*lines, f"{'all':24}" + "".join(f"{total:12}" for total in sums)])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0, help="of the order and of the sample")
    parser.add_argument("--sample", type=float, default=1.0, help="this share of all mutants")
    parser.add_argument("--only", default="", help="modules whose names begin so, with commas between")
    parser.add_argument("--survivors", action="store_true", help="only those whose last result is that they survived")
    parser.add_argument("--results", type=Path, default=PROJECT / "docs" / "results" / "mutants.jsonl")
    parser.add_argument("--tests", nargs="*", default=TESTS, help="pytest's names of the tests to meet")
    return parser.parse_args()


def main() -> int:
    """Run, print the table and the survivors."""
    asked = arguments()
    os.chdir(PROJECT)
    sys.path.insert(0, str(PROJECT / "python"))
    every = all_mutants()
    listed = equivalents(every)
    found = known(asked.results, {mutant.key for mutant in every})
    chosen = all_mutants([name for name in asked.only.split(",") if name])
    if asked.survivors:
        chosen = [m for m in chosen if m.key in found and found[m.key].result == "survived"]
    rng = random.Random(asked.seed)
    chosen = rng.sample(chosen, round(asked.sample * len(chosen)))
    base = baseline(asked.tests)
    todo = [m for m in chosen if m.key not in listed and _open(found.get(m.key), base)]
    todo.sort(key=lambda mutant: sum(test.seconds for test in base.of(mutant)))  # most mutants in the time given
    for result in campaign(todo, base, asked.results, 60.0 * asked.minutes):
        found[result.key] = result
        if result.result == "survived":
            tqdm.write(
                f"survived: {result.file} {result.function}, {result.operator}: {result.line} -> {result.becomes}"
            )
    print(table(chosen, found, listed))
    alive = [m for m in chosen if m.key not in listed and m.key in found and found[m.key].result == "survived"]
    for mutant in alive:
        print(f"survived: {mutant.file} {mutant.function}: {mutant.line}: {mutant.was} -> {mutant.becomes}")
    return 1 if alive else 0


def _open(result: Result | None, base: Baseline) -> bool:
    """Whether there is no result that still holds."""
    return result is None or (result.result == "survived" and result.tests != base.fingerprint)


if __name__ == "__main__":
    sys.exit(main())
