"""Comparing: opens a second model for the same frames, and keeps frames on which the two disagree."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np

from edgeclf.core import files
from edgeclf.core.errors import ConfigError, EdgeclfError, ModelError, StorageError
from edgeclf.core.image import Pixels
from edgeclf.core.live_settings import CompareSection, DecideSection
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.decision import UNKNOWN, Rules, asked_rules, card_rules
from edgeclf.runtime.events import Seen, record
from edgeclf.runtime.live import Comparison, Summary
from edgeclf.runtime.scoring import scorer

QUEUE = 8  # frames that may wait to be written; more are not kept
CLOSE_S = 1.0
PAUSE_S = 30.0  # after a write that failed
QUALITY = 95
NAME_LETTERS = 40


@contextlib.contextmanager
def comparing(
    section: CompareSection, decide: DecideSection, first: Classifier, threads: int | None, warn: Callable[[str], None]
) -> Iterator[tuple[Comparison | None, Keeper | None]]:
    """The comparison that the settings ask for, and what keeps its frames; (None, None) when they ask for none.

    Raises ConfigError for settings that do not fit together, ModelError for a second file that cannot be used or has other
    labels than the first, StorageError when the folder cannot be written to. Nothing is being written any more at the end.
    """
    if not section.file:
        if section.folder:
            raise ConfigError(
                f"{section.folder}: frames on which two models disagree need a second model; give it with --compare FILE"
            )
        yield None, None
        return
    other = Classifier.load(section.file, threads)
    check_labels(first.labels, other.labels, section.file)
    other.probabilities(np.zeros((*other.card.image.shape[:2], 3), np.uint8))  # the first answer is slow
    name, rules, own = Path(section.file).name, rules_beside(other, decide), asked_rules(first.card, decide)
    if rules.limited != own.limited:
        warn(
            f"{name} and the first model differ in that one alone has limits for '{UNKNOWN}', so each '{UNKNOWN}' counts as a "
            "disagreement; run edgeclf calibrate on both alike, or give a --threshold"
        )
    comparison = Comparison(scorer(other), other.labels, rules, name=name)
    if not section.folder:
        yield comparison, None
        return
    keeper = Keeper(Path(section.folder), section, name, warn)
    try:
        yield replace(comparison, disagreed=keeper.keep), keeper
    finally:
        keeper.close()


def check_labels(own: tuple[str, ...], others: tuple[str, ...], file: str) -> None:
    """Raises ModelError unless both know the same labels, in any order."""
    unknown, absent = [x for x in others if x not in own], [x for x in own if x not in others]
    if unknown or absent:
        parts = [f"{_few(unknown)} unknown to the first model"] * bool(unknown) + [f"lacks {_few(absent)}"] * bool(absent)
        raise ModelError(f"{file}: cannot be compared, its labels are others: {', '.join(parts)}")


def rules_beside(other: Classifier, decide: DecideSection) -> Rules:
    """How the second model's scores become answers: by its own card, but by a threshold that was given where that means the
    same to every model, as that of a probability or a margin does and that of an energy does not."""
    if decide.threshold is not None and decide.unknown_by != "energy":
        return asked_rules(other.card, replace(decide, smooth=0.0, votes=1, of=1))
    return card_rules(other.card)


def with_saved(summary: Summary, keeper: Keeper | None) -> Summary:
    """The summary with how many frames were kept, which is known when the keeper has closed."""
    if keeper is None or summary.compared is None:
        return summary
    return replace(summary, compared=replace(summary.compared, saved=keeper.saved))


@dataclass(frozen=True, eq=False)
class _Kept:
    seen: Seen
    view: Pixels


class Keeper:
    """Writes frames into a folder from a thread of its own, each as a JPEG and a JSON of the same name.

    At most `per_minute`, by the monotonic clock, evenly apart; none once the folder holds `most`, while the disk has less
    than `min_free_mb` left, after a write that failed until PAUSE_S have passed, or when the folder has gone: each is told
    once to `warn`. `saved` counts what this run wrote.
    """

    def __init__(
        self,
        folder: Path,
        section: CompareSection,
        other: str,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        """Raises StorageError when the folder cannot be made or written to."""
        self.saved = 0
        self._folder, self._section, self._other, self._warn = folder, section, other, warn
        self._clock, self._free_bytes = clock, free_bytes
        self._apart_s = 60 / section.per_minute
        self._next_s = self._paused_until_s = -float("inf")
        self._told = ""
        self._device = _prepare(folder)
        self._there = sum(1 for _ in folder.glob("*.jpg"))
        self._waiting: deque[_Kept] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="edgeclf-disagreements", daemon=True)
        self._thread.start()

    def keep(self, seen: Seen, view: Pixels) -> None:
        """Have the frame written, unless it comes too soon or too many wait; returns at once."""
        now = self._clock()
        if now < self._next_s or now < self._paused_until_s:
            return
        with self._changed:
            if self._closed or len(self._waiting) >= QUEUE:
                return
            self._next_s = now + self._apart_s
            self._waiting.append(_Kept(seen, view))
            self._changed.notify_all()

    def close(self) -> bool:
        """Write what waits, for at most CLOSE_S. False when a write still blocks."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(CLOSE_S)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                kept = self._waiting.popleft()
            try:
                self._write(kept)
            except (EdgeclfError, OSError, cv2.error) as error:
                self._pause(f"{error}; trying again in {PAUSE_S:.0f} s")

    def _write(self, kept: _Kept) -> None:
        if self._there >= self._section.most:
            self._pause(f"{self._folder}: holds {self._there} frames, as many as may be; no more are kept", float("inf"))
            return
        if not self._folder.is_dir() or self._folder.stat().st_dev != self._device:
            raise StorageError(f"{self._folder}: is not there any more, or on another disk")
        if self._free_bytes(self._folder) < self._section.min_free_mb << 20:
            raise StorageError(f"{self._folder}: less than {self._section.min_free_mb} MB of the disk are free")
        written, encoded = cv2.imencode(".jpg", kept.view, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        if not written:
            raise StorageError(f"{self._folder}: a frame of shape {kept.view.shape} cannot be encoded")
        name = self._folder / name_of(kept.seen)
        table = {**record(kept.seen), "picture": f"{name.name}.jpg", "compared_with": self._other}
        files.write_bytes(name.with_name(f"{name.name}.jpg"), encoded.tobytes())
        try:
            files.write_text(name.with_name(f"{name.name}.json"), json.dumps(table, indent=1, allow_nan=False) + "\n")
        except StorageError:
            name.with_name(f"{name.name}.jpg").unlink(missing_ok=True)
            raise
        self.saved, self._there, self._told = self.saved + 1, self._there + 1, ""

    def _pause(self, message: str, seconds: float = PAUSE_S) -> None:
        self._paused_until_s = self._clock() + seconds
        if message != self._told:
            self._warn(f"disagreements: {message}")
        self._told = message


def name_of(seen: Seen) -> str:
    """A file's name without its ending: when, from which source, which frame; letters, digits, - and _ alone."""
    moment = datetime.fromtimestamp(seen.time_s, UTC).strftime("%Y%m%dT%H%M%S") + f"{int(seen.time_s % 1 * 1000):03d}Z"
    source = re.sub(r"[^A-Za-z0-9_-]+", "-", seen.source).strip("-")[-NAME_LETTERS:]
    return f"{moment}-{source}-{seen.frame}"


def _prepare(folder: Path) -> int:
    """Make the folder, try it, and say on which device it lies."""
    trial = folder / ".edgeclf-trial"
    try:
        files.write_bytes(trial, b"")
        trial.unlink()
        return folder.stat().st_dev
    except (StorageError, OSError) as error:
        cause = error.__cause__ if isinstance(error, StorageError) else error
        raise StorageError(f"{folder}: cannot write: {getattr(cause, 'strerror', None) or error}") from error


def _few(labels: list[str], most: int = 5) -> str:
    return ", ".join(map(repr, labels[:most])) + (f" and {len(labels) - most} more" if len(labels) > most else "")
