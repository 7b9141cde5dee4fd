"""Dataclasses in; YAML files, environment variables and the command line over them.

Precedence, weakest first: defaults of the dataclass, environment (`HEADRACE_TRAIN__BATCH_SIZE`), `--config` files in
their order, dotted options. An unknown key is an error that names the nearest known one and where it stands.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import io
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from headrace.errors import UserError
from headrace.free_options import FreeOptions, free_dictionaries, merged

T = TypeVar("T")
ENV_PREFIX = "HEADRACE"
_ENV_CONFIG = f"{ENV_PREFIX}_CONFIG"
_TYPED = "_typed"  # beside a configuration's fields: no setting, not compared, lost in a copy
_BUILT_IN = {"config", "help", "print_config"}
_DOT = "\ue000"  # stands for a dot inside a free dictionary's key, which jsonargparse would take for nesting
_SECRET = re.compile(r"^secret:([\w.-]+)/([\w.-]+)$")


def parse(sections: Mapping[str, type], argv: Sequence[str], prog: str) -> dict[str, Any]:
    """Parse a command line into one instance a section.

    Args:
        sections: dataclass by key prefix; the key "" is the verb's own, its fields stand at the top level.
        argv: arguments after the verb.
        prog: what `--help` shows as the program.

    Returns:
        The filled dataclasses under the same keys.

    Raises:
        UserError: an unknown key, a missing or ill-typed value, an unreadable file.
        SystemExit: after `--help` and `--print_config`.
    """
    keys = dict(_all_keys(sections))
    free = FreeOptions(free_dictionaries(sections), keys)
    from_environment = os.environ.get(_ENV_CONFIG)
    args = _normalize(["--config", from_environment, *argv] if from_environment else argv, keys, free)
    named = _check_arguments(args, keys, free)
    sources = named | _check_files(args, keys, free)
    args = free.take(args, os.environ, ENV_PREFIX)
    parser = _parser(prog, tuple(sections.items()))
    vars(parser).pop("print_config", None)  # all that is left of a call that failed
    try:
        with _unset(_ENV_CONFIG):  # its file is among the arguments
            namespace = parser.instantiate(parser.parse_args(args))
    except UserError:  # a dataclass that checks itself
        raise
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise _in_the_users_words(error, sources, keys) from None
    except Exception as error:  # argparse.ArgumentError is no ValueError
        if type(error).__name__ != "ArgumentError":
            raise
        raise _in_the_users_words(error, sources, keys) from None
    made = {key: getattr(namespace, key) if key else _pick(cls, namespace) for key, cls in sections.items()}
    for key, config in made.items():
        _restore_dots(config)
        start = f"{key}." if key else ""
        vars(config)[_TYPED] = [name.removeprefix(start) for name in named if name.startswith(start)]
    return made


def typed(config: Any, name: str) -> bool:
    """Whether the command line named a setting of what `parse` made, or one below it: a default may be meant, too."""
    return any(f"{each}.".startswith(f"{name}.") for each in vars(config).get(_TYPED, ()))


@functools.cache  # to read the signatures takes longer than to parse
def _parser(prog: str, sections: tuple[tuple[str, type], ...]) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=prog, default_env=True, env_prefix=ENV_PREFIX, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of settings; may be given again, later ones win")
    for key, cls in sections:
        parser.add_class_arguments(cls, key or None)
    return parser


def to_yaml(config: Any) -> str:
    """The resolved configuration as YAML; secrets stay references (`secret:scope/key`)."""
    buffer = io.StringIO()
    yaml.safe_dump(_plain(merged(config)), buffer, sort_keys=False)
    return buffer.getvalue()


def secret(value: str) -> str:
    """Resolve `secret:scope/key`; any other text is returned as it is.

    Looked up in the environment as HEADRACE_SECRET__SCOPE__KEY, then in the file $HEADRACE_SECRETS/scope/key (as
    mounted by schedulers), then in Databricks' secret scopes. Only this function sees the clear text, so what is
    printed and saved shows the reference.
    """
    match = _SECRET.match(value)
    if match is None:
        return value
    scope, key = match.groups()
    name = "__".join(("HEADRACE_SECRET", scope, key)).upper().replace("-", "_").replace(".", "_")
    if name in os.environ:
        return os.environ[name]
    folder = os.environ.get("HEADRACE_SECRETS")
    if folder and (path := Path(folder) / scope / key).is_file():
        return path.read_text().rstrip("\n")
    if "DATABRICKS_RUNTIME_VERSION" in os.environ:
        from databricks.sdk.runtime import dbutils

        return str(dbutils.secrets.get(scope, key))
    raise UserError(f"the secret {value} is not set", f"export {name}=... or put it in $HEADRACE_SECRETS/{scope}/{key}")


def nearest(word: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    """`did you mean X?`, or an empty text where nothing is near (`cutoff` of difflib: 1 is equal)."""
    tails = {key.rsplit(".", 1)[-1]: key for key in known}
    close = difflib.get_close_matches(word, known, 1, cutoff)
    close = close or [tails[t] for t in difflib.get_close_matches(word.rsplit(".", 1)[-1], list(tails), 1, 0.7)]
    return f"did you mean {close[0]}?" if close else ""


def suggest(word: str, known: Sequence[str]) -> str:
    """`did you mean X?`, or the list of what is known."""
    return nearest(word, known, 0.5) or f"known: {', '.join(sorted(known))}"


@contextlib.contextmanager
def _unset(variable: str) -> Iterator[None]:
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


def _pick(cls: type[T], namespace: Any) -> T:
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    return cls(**{name: getattr(namespace, name) for name in names})


def _restore_dots(config: Any) -> None:
    """Give the keys of free dictionaries their dots back."""
    for name in (field.name for field in dataclasses.fields(config)):
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            _restore_dots(value)
        elif isinstance(value, dict) and any(_DOT in str(key) for key in value):
            setattr(config, name, {str(key).replace(_DOT, "."): element for key, element in value.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _all_keys(sections: Mapping[str, type]) -> Iterator[tuple[str, Any]]:
    for prefix, cls in sections.items():
        if prefix:
            yield prefix, cls
        yield from _keys(cls, f"{prefix}." if prefix else "")


def _keys(cls: type, prefix: str) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        yield prefix + field.name, hint
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _keys(hint, f"{prefix}{field.name}.")


def _known(key: str, keys: Mapping[str, Any]) -> bool:
    """Is the key a setting, an element of a free dictionary, or a list appended to (`hidden+`)?"""
    key = key.removesuffix("+")
    return key in keys or key in _BUILT_IN or bool(_dictionary(key, keys))


def _dictionary(key: str, keys: Mapping[str, Any]) -> str:
    """The free dictionary that an option is an element of, empty if it is none: session.conf of session.conf.a.b."""
    ends = (at for at, letter in enumerate(key) if letter == ".")
    return next((key[:at] for at in ends if "dict" in str(keys.get(key[:at], ""))), "")


def _normalize(argv: Sequence[str], keys: Mapping[str, Any], free: FreeOptions) -> list[str]:
    """Let `--batch-size` mean `--batch_size`, and a bare `--plan` mean `--plan true`; keep `a.b` of `--conf.a.b`."""
    args = []
    for i, arg in enumerate(argv):
        name, equals, value = arg.partition("=")
        plain = name[2:].replace("-", "_")
        if name.startswith("--") and (_known(plain, keys) or free.place(plain)[0]):
            name = "--" + plain
        if name.startswith("--") and not free.place(plain)[0] and (parent := _dictionary(name[2:], keys)):
            name = f"--{parent}." + name[len(parent) + 3 :].replace(".", _DOT)
        args.append(name + equals + value)
        if keys.get(name[2:]) is bool and not equals:
            following = argv[i + 1] if i + 1 < len(argv) else "--"
            if following.lower() not in ("true", "false", "yes", "no"):
                args.append("true")
    return args


def _check_arguments(args: Sequence[str], keys: Mapping[str, Any], free: FreeOptions) -> dict[str, str]:
    sources = {}
    for arg in args:
        if not arg.startswith("--") or arg == "--":
            continue
        key = arg[2:].partition("=")[0]
        if not _known(key, keys) and not free.place(key)[0]:
            raise UserError(f"unknown option --{key}", nearest(key, list(keys)) or "--help lists the options")
        sources[key] = "command line"
    return sources


def _check_files(args: Sequence[str], keys: Mapping[str, Any], free: FreeOptions) -> dict[str, str]:
    sources: dict[str, str] = {}
    for i, arg in enumerate(args):
        if arg == "--config" and i + 1 < len(args):
            sources |= _check_file(args[i + 1], keys, free)
        elif arg.startswith("--config="):
            sources |= _check_file(arg.partition("=")[2], keys, free)
    return sources


def _check_file(path: str, keys: Mapping[str, Any], free: FreeOptions) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8") as file:
            root = yaml.compose(file, Loader=yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"cannot read --config {path}: {error.strerror}", "give the path of a YAML file") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}", "mend the line it names") from None
    sources = {}
    for key, line in _nodes(root, "", path, keys):
        if not _known(key, keys) and not free.place(key)[0]:
            guess = nearest(key, list(keys))
            raise UserError(f"{path}:{line}: unknown setting {key}", guess or "--print_config lists the settings")
        sources[key] = f"{path}:{line}"
    return sources


def _nodes(node: Any, prefix: str, path: str, keys: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    if node is None:
        return
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path}:{node.start_mark.line + 1}: settings must be `key: value` lines")
    for key_node, value in node.value:
        key = prefix + str(key_node.value)
        yield key, key_node.start_mark.line + 1
        nested = any(other.startswith(key + ".") for other in keys)
        if nested and isinstance(value, yaml.MappingNode):
            yield from _nodes(value, key + ".", path, keys)


def _in_the_users_words(error: Exception, sources: Mapping[str, str], keys: Mapping[str, Any]) -> UserError:
    text = " ".join(str(error).split())
    inner = re.findall(r'Parser key "([\w.]+)"', text)
    match = re.search(r'Parser key "([\w.]+)": Unable to load config ([\'"])(.*?)\2', text)
    if match and match[1] == inner[-1]:
        key, value = match[1], match[3]
        like = f"did you mean --{key}.name {value}?" if f"{key}.name" in keys else f"--help lists --{key}.*"
        return UserError(f"{key}: {value} ({_where(key, sources)}), but {key} is a group of settings", like)
    if match := re.match(r"the following arguments are required: (.*)", text):
        names = [name.strip(" -") for name in match[1].split(",")]
        return UserError("missing: " + ", ".join(f"--{n}" for n in names), "give it on the command line or in --config")
    if match := re.search(r'(?:Parser key|key) "?([\w.]+)"?:? *(.*)', text):
        key, detail = match.groups()
        detail = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", detail)
        return UserError(f"{key}: {detail} ({_where(key, sources)})", "--help shows what it takes")
    return UserError(text, "--help lists the options")


def _where(key: str, sources: Mapping[str, str]) -> str:
    """Where a setting was given."""
    return sources.get(key) or f"environment variable {ENV_PREFIX}_{key.upper().replace('.', '__')}"
