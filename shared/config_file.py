"""Reads a frozen config struct from a TOML file and environment variables; whatever is wrong becomes one clear ConfigError.

Invariant: nothing is guessed. An unknown key, a value of another type, out of range, NaN or infinite is refused, and the message
names the setting, its value, where it was written and what is allowed.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from shared.errors import ConfigError

T = TypeVar("T")
Tree = dict[str, Any]

# PREFIX_CONFIG names the file itself (command line), it is no setting.
_RESERVED = ("CONFIG",)
_MAX_FILE_BYTES = 1_000_000


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One setting as the documentation and error messages show it."""

    key: str  # dotted path in the file
    allowed: str
    default: str
    description: str


def load(path: Path | None, type: type[T], env: Mapping[str, str], prefix: str) -> T:
    """A valid `type` from the file at `path` (None = defaults only), overridden by `PREFIX_SECTION_KEY` variables of `env`.

    Raises ConfigError for everything that is wrong with either.
    """
    return load_with_origins(path, type, env, prefix)[0]


def load_with_origins(path: Path | None, type: type[T], env: Mapping[str, str], prefix: str) -> tuple[T, dict[str, str]]:
    """As `load`, and where each setting that is not a default comes from: dotted key -> "file PATH" or "environment variable NAME"."""
    tree = _read(path) if path else {}
    known = {setting.key: setting for setting in settings(type)}
    _check_keys(tree, known, "", f"file {path}")
    origins: dict[str, str] = {}
    written = {key: f"file {path}" for key in known if _is_written(tree, key)}
    _apply_environment(tree, origins, type, env, prefix)
    _check_finite(tree, known, origins, "", f"file {path}")
    try:
        return msgspec.convert(tree, type), written | origins
    except msgspec.ValidationError as error:
        raise _explain(error, tree, known, origins, f"file {path}") from None


def settings(type: type) -> tuple[Setting, ...]:
    """Every setting of a config struct, in order of declaration, nested structs flattened to dotted keys."""
    return tuple(_flatten(_struct(type), ""))


def environment_name(prefix: str, key: str) -> str:
    """The variable that overrides the setting `key`: ("TIDEGATE_AGENT", "guard.step_timeout_s") -> TIDEGATE_AGENT_GUARD_STEP_TIMEOUT_S."""
    return f"{prefix}_{key.replace('.', '_').upper()}"


def _read(path: Path) -> Tree:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError(f"config file {path}: larger than {_MAX_FILE_BYTES} bytes")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config file {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, a number of thousands of digits, brackets without end
        raise ConfigError(f"config file {path}: not valid TOML: {error}") from None


def _check_keys(tree: Tree, known: Mapping[str, Setting], above: str, origin: str) -> None:
    for name, value in tree.items():
        key = f"{above}{name}"
        if key in known:
            if isinstance(value, dict):
                raise ConfigError(f"{key} = a table in {origin}: allowed is {known[key].allowed}")
            continue
        inside = f"{key}."
        if not any(candidate.startswith(inside) for candidate in known):
            raise ConfigError(f"unknown setting {key!r} in {origin}; the nearest valid one is {_nearest(key, known)!r}")
        if not isinstance(value, dict):
            raise ConfigError(f"{key} = {value!r} in {origin}: allowed is a table of settings, [{key}]")
        _check_keys(value, known, inside, origin)


def _is_written(tree: Tree, key: str) -> bool:
    value: Any = tree
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def _nearest(key: str, candidates: Mapping[str, Setting]) -> str:
    # the own section first: a typing error is likelier than a wrong section
    above = key.rpartition(".")[0]
    sections = {candidate.rpartition(".")[0] for candidate in candidates} - {""}
    names = [*candidates, *sections]
    siblings = [name for name in names if name.rpartition(".")[0] == above]
    close = difflib.get_close_matches(key, siblings, 1, 0.75) or difflib.get_close_matches(key, names, 1, 0.0)
    return close[0]


def _apply_environment(tree: Tree, origins: dict[str, str], type_: type, env: Mapping[str, str], prefix: str) -> None:
    names = {environment_name(prefix, key): (key, leaf) for key, leaf in _leaves(_struct(type_), "")}
    ignored = {f"{prefix}_{name}" for name in _RESERVED}
    for name, text in sorted(env.items()):
        if not name.startswith(f"{prefix}_") or name in ignored:
            continue
        if name not in names:
            nearest = difflib.get_close_matches(name, list(names), 1, 0.0)[0]
            raise ConfigError(f"unknown setting: environment variable {name}; the nearest valid one is {nearest}")
        key, leaf = names[name]
        *sections, last = key.split(".")
        table = tree
        for section in sections:
            table = table.setdefault(section, {})
        table[last] = _parse(text, _plain(leaf))
        origins[key] = f"environment variable {name}"


def _parse(text: str, leaf: inspect.Type) -> object:
    # what does not parse stays text and is refused with its allowed range like any other wrong type
    try:
        if isinstance(leaf, inspect.BoolType):
            return {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower(), text)
        if isinstance(leaf, inspect.IntType):
            return int(text)
        if isinstance(leaf, inspect.FloatType):
            return float(text)
    except ValueError:
        return text
    if isinstance(leaf, inspect.VarTupleType):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _check_finite(tree: Tree, known: Mapping[str, Setting], origins: Mapping[str, str], above: str, origin: str) -> None:
    for name, value in tree.items():
        key = f"{above}{name}"
        if isinstance(value, dict):
            _check_finite(value, known, origins, f"{key}.", origin)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key} = {value!r} in {origins.get(key, origin)}: allowed is {known[key].allowed}")


def _explain(
    error: msgspec.ValidationError, tree: Tree, known: Mapping[str, Setting], origins: Mapping[str, str], origin: str
) -> ConfigError:
    text, _, path = str(error).partition(" - at `$")
    parts = re.findall(r"[^.\[\]`]+", re.sub(r"\[[^\]]*\]", "", path))
    key = ".".join(parts)
    if key not in known:
        # a rule over several settings: its own text names them
        return ConfigError(f"{text} (in {origin if tree else 'the defaults'})")
    value: Any = tree
    for part in parts:
        value = value[part]
    return ConfigError(f"{key} = {value!r} in {origins.get(key, origin)}: allowed is {known[key].allowed}")


@functools.cache
def _struct(type_: type) -> inspect.StructType:
    info = inspect.type_info(type_)
    assert isinstance(info, inspect.StructType), f"{type_!r} is no struct"
    return info


def _leaves(info: inspect.StructType, above: str) -> list[tuple[str, inspect.Type]]:
    found: list[tuple[str, inspect.Type]] = []
    for field in info.fields:
        plain = _plain(field.type)
        if isinstance(plain, inspect.StructType):
            found += _leaves(plain, f"{above}{field.name}.")
        else:
            found.append((f"{above}{field.name}", field.type))
    return found


def _flatten(info: inspect.StructType, above: str, defaults: object = None, note: str = "") -> list[Setting]:
    rows: list[Setting] = []
    for field in info.fields:
        plain = _plain(field.type)
        default = getattr(defaults, field.name) if defaults is not None else field.default
        description = _description(field.type)
        key = f"{above}{field.name}"
        if isinstance(plain, inspect.StructType):
            # a section may say what it is for; its settings repeat that
            rows += _flatten(plain, f"{key}.", None if default is msgspec.NODEFAULT else default, description)
            continue
        if field.default_factory is not msgspec.NODEFAULT:
            default = msgspec.UNSET
        text = f"{note}: {description}" if note else description
        rows.append(Setting(key=key, allowed=_allowed(field.type), default=_show(default), description=text))
    return rows


def _plain(kind: inspect.Type) -> inspect.Type:
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    return kind


def _description(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.Metadata) and kind.extra_json_schema:
        return str(kind.extra_json_schema.get("description", ""))
    return ""


def _show(default: object) -> str:
    if default is msgspec.UNSET:
        return "the machine's host name"
    if isinstance(default, str):
        return str(default) or "empty"
    if isinstance(default, tuple):
        return ", ".join(map(str, default)) or "empty"
    return str(default).lower() if isinstance(default, bool) else str(default)


def _allowed(kind: inspect.Type) -> str:
    """What a value may be, in words: "an integer from 1 to 60"."""
    plain = _plain(kind)
    match plain:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType(ge=low, le=high):
            return f"an integer from {low} to {high}"
        case inspect.FloatType(ge=low, le=high):
            return f"a number from {low} to {high}"
        case inspect.LiteralType(values=values):
            return "one of " + ", ".join(map(str, values))
        case inspect.EnumType(cls=cls):
            return "one of " + ", ".join(str(member.value) for member in cls)
        case inspect.VarTupleType(item_type=item, max_length=most):
            return f"a list of at most {most}, each {_allowed(item)}"
        case inspect.StrType(pattern=pattern, max_length=most):
            length = f" of at most {most} characters" if most else ""
            return f"text{length}" + (f" matching {pattern}" if pattern else "")
        case _:
            raise AssertionError(f"no words for {plain!r}")
