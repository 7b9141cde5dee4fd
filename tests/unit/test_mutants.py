"""`make mutants` breaks what it says, sees what is broken and only that; a seeded handful of its mutants is caught."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
SCRIPTS = PROJECT / "scripts"
RULE = '''
SPEC = Spec(defaults={"lr": 0.1}, factory=partial(Rule, nesterov=True))

def check(options: dict[str, int] = {}) -> int | None:
    if options["lr"] < 0:
        raise UserError(f"{-1.0}")

class Rule:
    momentum = 0.5

    def update(self, w, g, m):
        """Text + text - 1."""
        m.mul_(0.9).add_(g, alpha=1.0 - b)
        self.t += 1
        if -g > 0 and not done:
            w -= options["lr"] * m ** 2
'''
BROKEN = {
    ("", "constant", "False"),
    ("Rule", "constant", "1.0"),
    ("Rule.update", "deleted", "pass"),
    ("Rule.update", "arithmetic", "m.mul_(0.9).sub_(g, alpha=1.0 - b)"),
    ("Rule.update", "arithmetic", "m.div_(0.9)"),
    ("Rule.update", "sign", "m.mul_(0.9).add_(g, alpha=-(1.0 - b))"),
    ("Rule.update", "constant", "1.8"),
    ("Rule.update", "arithmetic", "1.0 + b"),
    ("Rule.update", "bias", "b"),
    ("Rule.update", "constant", "2.0"),
    ("Rule.update", "arithmetic", "self.t -= 1"),
    ("Rule.update", "constant", "2"),
    ("Rule.update", "comparison", "-g <= 0"),
    ("Rule.update", "comparison", "-g > 0 or not done"),
    ("Rule.update", "minus", "g"),
    ("Rule.update", "constant", "1"),
    ("Rule.update", "minus", "done"),
    ("Rule.update", "arithmetic", "w += options['lr'] * m ** 2"),
    ("Rule.update", "arithmetic", "options['lr'] / m ** 2"),
    ("Rule.update", "option", "1.0"),
    ("Rule.update", "power", "m"),
    ("Rule.update", "constant", "3"),
}
CAMPAIGN = """
import dataclasses, json, random
from mutants import all_mutants
from mutation_tests import baseline, try_mutant

base = baseline([f"tests/unit/test_optim_exam.py::test_exam[{name}-follows_its_rule]" for name in ("lion", "nadam")])
nadam = all_mutants(["nadam"])
known = next(m for m in nadam if m.was == "state['mus'] *= _mu(state['t'], options)".replace("'", '"'))
unharmed = dataclasses.replace(known, source=open("python/headrace/optim/nadam.py").read())
sample = random.Random(5).sample(all_mutants(["lion"]) + nadam, 4)
print(json.dumps([
    try_mutant(unharmed, base.of(known)), try_mutant(known, base.of(known)),
    {m.key: try_mutant(m, base.of(m)) for m in sample},
]))
"""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def test_every_operator_changes_what_it_says(scripts: Any) -> None:
    made = scripts("mutation").mutants("rule.py", RULE)
    assert {(m.function, m.operator, m.becomes) for m in made} == BROKEN
    assert len({m.key for m in made}) == len(made) == len(BROKEN) + 2  # deleted are three statements
    for mutant in made:
        compile(mutant.source, "rule.py", "exec")
        assert mutant.source != RULE and mutant.line in RULE
        assert (mutant.span == (0, 0)) == (mutant.function in ("", "Rule"))


def test_listed_equivalents_are_mutants_and_have_reasons(scripts: Any) -> None:
    mutants = scripts("mutants")
    files = {entry["file"] for entry in yaml.safe_load(mutants.EQUIVALENT.read_text(encoding="utf-8"))}
    every = mutants.all_mutants(sorted(files))
    assert all(len(reason) > 10 for reason in mutants.equivalents(every).values())


def test_the_unharmed_passes_and_a_handful_of_mutants_is_caught() -> None:
    env = {"PYTHONPATH": f"{SCRIPTS}:{PROJECT / 'python'}", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", CAMPAIGN]
    done = subprocess.run(command, cwd=PROJECT, env=env, text=True, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr
    unharmed, known, sample = json.loads(done.stdout.splitlines()[-1])
    assert unharmed == "" and "lion" not in known and "nadam-follows_its_rule" in known
    assert len(sample) == 4 and all(sample.values()), sample
