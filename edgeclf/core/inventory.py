"""Inventory: the boards of a fleet, how ssh reaches each, and the groups they belong to; one TOML file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeclf.core import config
from edgeclf.core.errors import ConfigError
from edgeclf.core.text import nearest, printable

MOST_BYTES = 1 << 20  # of the file
MOST_BOARDS = 1000


@dataclass(frozen=True)
class BoardEntry:
    """One `[[boards]]`: `host` as ssh knows it, `profile` a name as 'edgeclf devices' lists it.

    What is left out here comes from the options of `edgeclf deploy`. `ssh_options` are words for ssh, as `-i`, `key`; the
    paths `config`, `secrets` and `wheelhouse` are relative to the inventory's folder.
    """

    host: str
    user: str = ""
    port: int | None = None
    profile: str = ""
    groups: tuple[str, ...] = ()
    service: bool | None = None
    config: str = ""
    secrets: str = ""
    wheelhouse: str = ""
    extras: tuple[str, ...] = ()
    python: str = ""
    ssh_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.host or "@" in self.host:
            raise ConfigError(f"host = {self.host!r}: expected the name of a board; the user stands in 'user'")
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ConfigError(f"port = {self.port}: must lie between 1 and 65535")
        for group in self.groups:
            if not group or not group.isprintable() or "," in group:
                raise ConfigError(f"groups: {printable(group)!r}: expected a name without a comma")

    @property
    def target(self) -> str:
        """What ssh is told."""
        return f"{self.user}@{self.host}" if self.user else self.host


@dataclass(frozen=True)
class Inventory:
    """The boards of a file, in its order, each under a name of its own: the host, with its port where that is said twice."""

    path: Path
    boards: dict[str, BoardEntry]

    def chosen(self, groups: Iterable[str] = (), only: Iterable[str] = ()) -> dict[str, BoardEntry]:
        """The boards in any of `groups` (all without one) that `only` names (all without one).

        Raises ConfigError for a group or a name that the file does not know, and for a name outside the groups.
        """
        groups, only = list(groups), list(only)
        for group in groups:
            self._check("group", group, sorted({name for board in self.boards.values() for name in board.groups}))
        found = {name: board for name, board in self.boards.items() if not groups or set(groups) & set(board.groups)}
        for name in only:
            self._check("board", name, list(self.boards))
            if name not in found:
                raise ConfigError(f"{self.path}: {name} is not in {' or '.join(groups)}")
        return {name: board for name, board in found.items() if not only or name in only}

    def _check(self, kind: str, name: str, known: Sequence[str]) -> None:
        if name not in known:
            what = nearest(name, known) if known else f"; no board there names a {kind}"
            raise ConfigError(f"{self.path}: no {kind} {printable(name)!r}{what}")


def read(path: Path) -> Inventory:
    """The boards in that TOML file. Raises ConfigError, naming the file, the board and the key."""
    if path.is_file() and path.stat().st_size > MOST_BYTES:
        raise ConfigError(f"{path}: larger than {MOST_BYTES >> 20} MB, so it is no inventory")
    table = config.read(path)
    for key in table:
        if key != "boards":
            raise ConfigError(f"{path}: unknown key {printable(key)!r}{nearest(key, ['boards'])}")
    entries = table.get("boards", [])
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{path}: expected a section [[boards]] with a host for each board")
    if len(entries) > MOST_BOARDS:
        raise ConfigError(f"{path}: {len(entries)} boards; {MOST_BOARDS} are possible")
    boards = [config.build(BoardEntry, entry, _where(path, number, entry)) for number, entry in enumerate(entries, 1)]
    return Inventory(path, _named(path, boards))


def _where(path: Path, number: int, entry: dict[str, object]) -> str:
    host = entry.get("host")
    return f"{path}: board {number}{f' ({printable(host)})' if isinstance(host, str) and host else ''}"


def _named(path: Path, boards: list[BoardEntry]) -> dict[str, BoardEntry]:
    hosts = [board.host for board in boards]
    named: dict[str, BoardEntry] = {}
    for number, board in enumerate(boards, 1):
        again = hosts.count(board.host) > 1 and board.port is not None
        name = f"{board.host}:{board.port}" if again else board.host
        if name in named:
            raise ConfigError(f"{path}: board {number}: {name} is there already; two boards on one host differ in their port")
        named[name] = board
    return named


def words(texts: Iterable[str]) -> list[str]:
    """The names in options that may be given several times and hold several, with commas between."""
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]
