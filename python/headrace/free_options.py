"""Settings whose names are not known to the command line: options of a rule that another setting names.

A dictionary field marked `field(metadata=FREE)` takes every key that stands beside it and is no setting:
`--optimizer.dense.betas [0.9,0.99]` is `optimizer.dense.options["betas"]`, `--optimizer.dense.sam.rho 0.1` is
`options["sam"]["rho"]`; the same in files and in the environment. Whoever knows the rule checks names and types.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

FREE = {"free": True}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def free_dictionaries(sections: Mapping[str, type]) -> dict[str, str]:
    """Name of the free dictionary by the prefix of its settings: {"optimizer.dense": "options"}."""
    found: dict[str, str] = {}
    for prefix, cls in sections.items():
        found |= dict(_below(cls, prefix))
    return found


def _below(cls: type, prefix: str) -> Iterator[tuple[str, str]]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.metadata.get("free"):
            yield prefix, field.name
        hint = hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _below(hint, f"{prefix}.{field.name}".lstrip("."))


class FreeOptions:
    """Takes free options out of arguments, files and the environment, the later over the earlier.

    Args:
        free: see `free_dictionaries`.
        keys: all settings.
    """

    def __init__(self, free: Mapping[str, str], keys: Mapping[str, Any]) -> None:
        self._free, self._keys = free, keys
        self._values: dict[str, dict[str, Any]] = {}

    def place(self, key: str) -> tuple[str, str]:
        """Prefix and name of a free option, or two empty texts where `key` is none."""
        for prefix, dictionary in self._free.items():
            own = f"{prefix}.{dictionary}"
            if key == own or key.startswith(own + "."):
                return prefix, key[len(own) + 1 :]
            rest = key[len(prefix) + 1 :] if key.startswith(prefix + ".") else ""
            if rest and f"{prefix}.{rest.split('.')[0].removesuffix('+')}" not in self._keys:
                return prefix, rest
        return "", ""

    def take(self, args: Sequence[str], environment: Mapping[str, str] = os.environ, env: str = "") -> list[str]:
        """Arguments and files without free options; one JSON argument a dictionary stands for all of them, last."""
        self._take_environment(environment, env)
        left, at = [], 0
        while at < len(args):
            name, equals, value = args[at].partition("=")
            paired = not equals and at + 1 < len(args)
            given = value if equals else args[at + 1] if paired else ""
            prefix, rest = self.place(name[2:]) if name.startswith("--") else ("", "")
            if prefix:
                self._set(prefix, rest, parsed(given))
            elif name == "--config":
                left += ["--config", self._take_file(given)] if equals or paired else [name]
            else:
                left += [args[at]]
                paired = False
            at += 2 if paired else 1
        for prefix, values in self._values.items():
            left += [f"--{prefix}.{self._free[prefix]}", json.dumps(values)]
        return left

    def _set(self, prefix: str, rest: str, value: Any) -> None:
        held = self._values.setdefault(prefix, {})
        *path, last = rest.split(".") if rest else [""]
        for name in path:
            below = held.setdefault(name, {})
            held[name] = held = below if isinstance(below, dict) else {}
        if last:
            held[last] = value
        elif isinstance(value, Mapping):
            held.update(value)

    def _take_environment(self, environment: Mapping[str, str], env: str) -> None:
        for prefix in self._free:
            start = f"{env}_{prefix.replace('.', '__')}__".upper()
            for name in sorted(n for n in environment if n.startswith(start)):
                key = f"{prefix}.{name[len(start) :].lower().replace('__', '.')}"
                if self.place(key)[0] == prefix:
                    self._set(prefix, self.place(key)[1], parsed(environment[name]))

    def _take_file(self, path: str) -> str:
        """The path, or the file's text without its free options."""
        with open(path, encoding="utf-8") as file:
            root = yaml.compose(file, Loader=yaml.SafeLoader)
        taken = [self._take_nodes(root, prefix) for prefix in self._free]
        return yaml.serialize(root, Dumper=yaml.SafeDumper) if any(taken) else path

    def _take_nodes(self, root: Any, prefix: str) -> bool:
        node = root
        for name in prefix.split("."):
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            node = next((value for key, value in pairs if key.value == name), None)
        if not isinstance(node, yaml.MappingNode):
            return False
        free = [pair for pair in node.value if self.place(f"{prefix}.{pair[0].value}")[0] == prefix]
        for key, value in free:
            given = yaml.safe_load(yaml.serialize(value, Dumper=yaml.SafeDumper))
            self._set(prefix, self.place(f"{prefix}.{key.value}")[1], _numbers(given))
        node.value = [pair for pair in node.value if pair not in free]
        return bool(free)


def parsed(text: str) -> Any:
    """A value as YAML has it, with 1e-3 a number."""
    try:
        return _numbers(yaml.safe_load(text))
    except yaml.YAMLError:
        return text


def _numbers(value: Any) -> Any:
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value) else value
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    return {str(k): _numbers(v) for k, v in value.items()} if isinstance(value, dict) else value


def merged(config: Any) -> dict[str, Any]:
    """A configuration as nested dictionaries, free options where they were typed: beside the settings."""
    made: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("free"):
            made |= value
        else:
            made[field.name] = merged(value) if dataclasses.is_dataclass(value) else value
    return made
