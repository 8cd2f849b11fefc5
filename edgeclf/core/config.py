"""TOML to frozen dataclasses, strictly; and finding a recipe or a device profile by name or by path."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from edgeclf.core.errors import ConfigError

T = TypeVar("T")

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped(kind: str) -> Path:
    """The folder of shipped `models` or `devices`: inside the wheel, or beside the package in a checkout."""
    for base in (_PACKAGE, _PACKAGE.parent):
        if any((base / kind).glob("*.toml")):
            return base / kind
    raise ConfigError(f"the folder {kind!r} is missing from this installation; reinstall edgeclf")


def names(kind: str) -> list[str]:
    """Names of everything shipped of that kind, sorted."""
    return sorted(path.stem for path in shipped(kind).glob("*.toml"))


def find(kind: str, name: str) -> Path:
    """The TOML file of a shipped name, or `name` itself when it is a path to one. Raises ConfigError."""
    if name.endswith(".toml"):
        path = Path(name)
        if path.is_file():
            return path
        raise ConfigError(f"{name}: no such file")
    path = shipped(kind) / f"{name}.toml"
    if "/" not in name and path.is_file():
        return path
    singular = kind.removesuffix("s")
    raise ConfigError(f"unknown {singular} {name!r}{_nearest(name, names(kind))}; or give the path of a .toml file")


def read(path: Path) -> dict[str, Any]:
    """The table in a TOML file; raises ConfigError naming the file, and the line when it does not parse."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def build(cls: type[T], table: dict[str, Any], where: str) -> T:
    """Build the frozen dataclass `cls` from `table`; `where` names the file and the section in messages.

    Nested dataclasses come from nested tables, tuples from arrays. Unknown keys, missing keys and wrong types raise
    ConfigError with the key and, for an unknown key, the nearest known one.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}{_nearest(key, list(fields))}")
    values = {}
    for name, field in fields.items():
        if name in table:
            values[name] = _convert(hints[name], table[name], f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: missing key {name!r}")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def to_table(value: Any) -> dict[str, Any]:
    """The frozen dataclass as the nested table that `build` reads back to an equal value."""
    table: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(value)))  # tuples become lists
    return table


def changed(value: T, **changes: Any) -> T:
    """A copy of a frozen dataclass with single values replaced, `key=value` or `section__key=value`; None changes nothing.

    Raises ConfigError.
    """
    wanted = {key: new for key, new in changes.items() if new is not None}
    table = without_none(to_table(value))
    for key, new in wanted.items():
        *path, name = key.split("__")
        section = table
        for part in path:
            section = section[part]
        section[name] = new
    return build(type(value), table, "options") if wanted else value


def changed_by_text(value: T, assignments: Sequence[str]) -> T:
    """A copy with each `section.key=value` applied, values written as in TOML; text needs no quotes. Raises ConfigError."""
    table = without_none(to_table(value))
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        *path, name = key.strip().split(".")
        if not equals or not path or not name:
            raise ConfigError(f"--set {assignment}: expected SECTION.KEY=VALUE, as in {_example(table)}")
        section = table
        for i, part in enumerate(path):
            if not isinstance(section.get(part), dict):
                raise ConfigError(f"--set {assignment}: no section {'.'.join(path[: i + 1])!r} (known: {_sections(table)})")
            section = section[part]
        section[name] = value_of(text.strip())
    return build(type(value), table, "--set") if assignments else value


def without_none(value: Any) -> Any:
    """The table without its keys of None, at any depth: TOML has no null, and None is what nobody said."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list) else value


def _sections(table: dict[str, Any]) -> str:
    return ", ".join(key for key, value in table.items() if isinstance(value, dict))


def _example(table: dict[str, Any]) -> str:
    return next(f"{s}.{k}={_literal(v)}" for s, t in table.items() if isinstance(t, dict) for k, v in t.items())


def value_of(text: str) -> Any:
    """`text` as a TOML value; as a string where it is none."""
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if len(table) == 1 else text


def to_toml(value: Any, section: str = "") -> str:
    """The frozen dataclass as TOML that `build` reads back to an equal value (plain keys first, then sections).

    `section` is the dotted name of the section that `value` stands in.
    """
    plain, sections = [], []
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        name = f"{section}.{field.name}".lstrip(".")
        if dataclasses.is_dataclass(item):
            sections.append(f"\n[{name}]\n{to_toml(item, name)}")
        elif isinstance(item, dict):
            sections.append(f"\n[{name}]\n" + "".join(f"{k} = {_literal(v)}\n" for k, v in item.items()))
        elif item is not None:
            plain.append(f"{field.name} = {_literal(item)}\n")
    return "".join(plain + sections)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_literal(v) for v in value) + "]"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a section, got {value!r}")
        return build(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return tuple(_convert(typing.get_args(hint)[0], v, where) for v in value)
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ConfigError(f"{where}: {value!r} is not one of: {', '.join(map(str, choices))}")
        return value
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(hint) if a is not type(None)]
        return _convert(inner[0], value, where)
    if origin is dict and not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a section, got {value!r}")
    if origin is dict or hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(f"{where}: the number is too large") from error
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(sorted(known))})"
