"""From settings to the sinks that write files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from edgeclf.core.live_settings import LiveSettings, SnapshotsSection
from edgeclf.runtime.decision import check_answers
from edgeclf.runtime.events import Event, Seen
from edgeclf.runtime.sinks.jsonl import JsonLines
from edgeclf.runtime.sinks.sink import Background, Writer

TO_STDOUT = "-"


def file_sinks(
    settings: LiveSettings, labels: Sequence[str], lossless: bool, stop: threading.Event, warn: Callable[[str], None]
) -> Iterator[Callable[[], Background]]:
    """What makes each sink that the settings ask for; standard output is left out. `labels` are those of the model.

    Raises ConfigError, or StorageError, when a file or folder cannot be used; what was made before is then to be closed.
    What is not asked for is not imported, as in `outward`.
    """
    background = partial(Background, lossless=lossless, stop=stop, on_trouble=warn)
    files, pictures = settings.files, settings.snapshots

    def writing(writer: Writer) -> Writer:
        return Changes(writer) if files.changes_only else writer

    if files.jsonl and files.jsonl != TO_STDOUT:
        yield lambda: background(writing(JsonLines(Path(files.jsonl))), "jsonl")
    if files.csv:
        from edgeclf.runtime.sinks.csv_sink import CsvLines

        yield lambda: background(writing(CsvLines(Path(files.csv))), "csv")
    if files.sqlite:
        from edgeclf.runtime.sinks.sqlite_sink import APART_S, Database

        yield lambda: background(writing(Database(Path(files.sqlite))), "sqlite", apart_s=APART_S)
    if pictures.folder:
        from edgeclf.runtime.sinks.keeping import Folder
        from edgeclf.runtime.sinks.snapshots import Snapshots

        check_labels(pictures, labels)
        folder = Folder(Path(pictures.folder), pictures.min_free_mb, pictures.max_mb)
        yield lambda: background(Snapshots(folder, pictures.labels), "snapshots")
        if pictures.clip_s:
            from edgeclf.runtime.sinks.clips import Clips

            yield lambda: background(Clips(folder, pictures.clip_s, pictures.labels), "clips")


def check_labels(pictures: SnapshotsSection, labels: Sequence[str]) -> None:
    """Raise ConfigError for a label that the model never gives."""
    check_answers(pictures.labels, "snapshots.labels: the model has no class", labels)


class Changes:
    """Hands on to a writer what is not just one more frame with the same answer."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def write(self, events: Sequence[Event]) -> None:
        if kept := [event for event in events if not isinstance(event, Seen) or event.decision.changed]:
            self._writer.write(kept)

    def close(self) -> None:
        close = getattr(self._writer, "close", None)
        if close:
            close()
