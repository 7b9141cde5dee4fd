"""YAML with line numbers: every node knows its file and line, unknown keys name the nearest known one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from headrace.config import suggest
from headrace.errors import UserError

_MAX_BYTES = 1 << 20  # a catalog entry is a page of text; more is a mistake or an attack


@dataclass(frozen=True)
class At:
    """A YAML value and the place it came from."""

    value: Any  # str, bool, None, list[At] or dict[str, At]
    where: str  # "file:line"

    def error(self, problem: str, remedy: str = "") -> UserError:
        """An error that names this place."""
        return UserError(f"{self.where}: {problem}", remedy)

    def mapping(self, *known: str, required: tuple[str, ...] = ()) -> dict[str, At]:
        """This value as a mapping with no other keys than `known` (any, if none is given).

        Raises:
            UserError: not a mapping, an unknown key (the nearest known one is named), a required key is missing.
        """
        if not isinstance(self.value, dict):
            raise self.error(f"expected `key: value` lines, found {_kind(self.value)}")
        for key, at in self.value.items():
            if known and key not in known:
                raise at.error(f"unknown key {key!r}", suggest(key, known))
        for key in required:
            if key not in self.value:
                raise self.error(f"key {key!r} is missing", f"add `{key}: ...`")
        return self.value

    def items(self) -> Iterator[At]:
        """The elements of a list; a single value counts as a list of one."""
        if isinstance(self.value, list):
            yield from self.value
        elif self.value is not None:
            yield self

    def text(self) -> str:
        """This value as text, blanks at the ends removed."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.error(f"expected text, found {_kind(self.value)}")
        return self.value.strip()

    def flag(self) -> bool:
        """This value as true or false."""
        if self.value not in ("true", "false"):
            raise self.error(f"expected true or false, found {_kind(self.value)}")
        return bool(self.value == "true")


def load(file: Path) -> At:
    """Read one YAML file; scalars stay text, so `1e3`, `no` and `2020-01-01` mean what they look like.

    Raises:
        UserError: unreadable, too large, not YAML, a key given twice, an alias.
    """
    try:
        with file.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise UserError(f"{file}: larger than {_MAX_BYTES:,} bytes", "a catalog entry is a page of text")
        node = yaml.compose(raw.decode("utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{file}:{line}: not YAML: {error.problem}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: {error}") from error
    if node is None:
        raise UserError(f"{file}: empty", "see docs/catalog.md for what an entry holds")
    return _convert(node, str(file), frozenset())


def _convert(node: yaml.Node, file: str, parents: frozenset[int]) -> At:
    where = f"{file}:{node.start_mark.line + 1}"
    if id(node) in parents:
        raise UserError(f"{where}: an alias that contains itself")
    inside = parents | {id(node)}
    if isinstance(node, yaml.ScalarNode):
        return At(None if node.tag.endswith(":null") else node.value, where)
    if isinstance(node, yaml.SequenceNode):
        return At([_convert(child, file, inside) for child in node.value], where)
    found: dict[str, At] = {}
    for key_node, value_node in node.value:
        line = f"{file}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{line}: a key must be text")
        if key_node.value in found:
            raise UserError(f"{line}: key {key_node.value!r} is given twice")
        found[key_node.value] = At(_convert(value_node, file, inside).value, line)
    return At(found, where)


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else repr(value)
