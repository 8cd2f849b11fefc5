"""Events as rows of an SQLite database, which other programs can read while it is being written."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from edgeclf.core.errors import ConfigError, StorageError
from edgeclf.runtime.events import Event
from edgeclf.runtime.sinks.rows import COLUMNS, row

VERSION = 1
BUSY_S = 0.5  # for a lock that another program holds; less than a sink has for closing
APART_S = 1.0  # between transactions: each writes whole pages, and a memory card wears
_INSERT = f"INSERT INTO events ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"


class Database:
    """Writes one row an event into the table `events`, all that are waiting in one transaction.

    `time` is text, UTC, as 2026-11-26T05:41:34.123Z, and has an index. The journal is a write-ahead log, so readers neither
    wait nor hold anything up. A transaction survives a kill at any moment; a power cut may cost the last ones (SQLite's
    `synchronous = NORMAL`). A file that is removed or replaced while the program runs is begun anew, on the same disk only.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigError for a file that is no database of edgeclf's, StorageError when it cannot be written."""
        self._path = path
        try:
            self._disk = path.parent.stat().st_dev
        except OSError as error:
            raise StorageError(f"{path}: cannot write: {error.strerror}") from error
        self._open()

    def write(self, events: Sequence[Event]) -> None:
        self._follow()
        with self._connection:
            self._connection.executemany(_INSERT, [row(event) for event in events])

    def close(self) -> None:
        self._connection.close()

    def _open(self) -> None:
        try:
            # Made by one thread and used by another, never by two at once.
            self._connection = sqlite3.connect(self._path, timeout=BUSY_S, check_same_thread=False)
            try:
                self._set_up()
            except BaseException:
                self._connection.close()
                raise
            there = self._path.stat()
        except sqlite3.OperationalError as error:
            raise StorageError(f"{self._path}: cannot write: {error}") from error
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{self._path}: not a database that can be used: {error}; name another") from error
        except OSError as error:
            raise StorageError(f"{self._path}: cannot write: {error.strerror}") from error
        self._identity = there.st_dev, there.st_ino

    def _set_up(self) -> None:
        connection = self._connection
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if version > VERSION:
            raise ConfigError(f"{self._path}: made by a newer edgeclf (version {version}, known {VERSION}); name another")
        if version == 0 and tables:
            raise ConfigError(f"{self._path}: belongs to another program (it holds the table {tables[0]!r}); name another")
        known = {name for _, name, *_ in connection.execute("PRAGMA table_info(events)")}
        if known and (missing := [name for name in COLUMNS if name not in known]):
            raise ConfigError(f"{self._path}: its table 'events' has no column {missing[0]!r}; name another file")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        with connection:
            connection.execute("BEGIN IMMEDIATE")  # finds a disk that cannot be written now and not at the first event
            connection.execute(f"CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, {columns})")
            connection.execute("CREATE INDEX IF NOT EXISTS events_by_time ON events (time)")
            connection.execute(f"PRAGMA user_version = {VERSION}")

    def _follow(self) -> None:
        """Open the path again when another file or none stands there."""
        try:
            there = self._path.stat()
            if (there.st_dev, there.st_ino) == self._identity:
                return
        except FileNotFoundError:
            pass
        if self._path.parent.stat().st_dev != self._disk:
            raise OSError(f"{self._path.parent} is not on the same disk as before")
        self._connection.close()
        self._open()
