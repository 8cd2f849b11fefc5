"""Clips: the seconds around each change as a short video."""

from __future__ import annotations

import contextlib
import struct
import time
from collections import deque
from collections.abc import Callable, Collection
from itertools import pairwise
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from edgeclf.core.image import Pixels
from edgeclf.runtime.events import Event, Seen, SourceChanged, is_change
from edgeclf.runtime.sinks.keeping import Folder, stem
from edgeclf.runtime.sinks.sink import Paused
from edgeclf.runtime.sinks.snapshots import encoded

FPS = 10.0
QUALITY = 80
RING_BYTES = 16 << 20  # of JPEG, each source
LONGEST = 3  # times the length asked for, when the answer goes on changing
STEP = 3  # pictures written for each that comes, so that the past is caught up with and none is missed meanwhile
FINISH_S = 0.5  # for what is not written yet when the run ends


class Clips:
    """Writes an .avi (Motion JPEG) of half of `clip_s` seconds before and after each change; further changes make it longer.

    At most FPS frames a second of those that were classified are kept, as JPEG, in RING_BYTES a source. A clip that is being
    written when the run ends is closed early.
    """

    def __init__(
        self, folder: Folder, clip_s: float, labels: Collection[str] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`labels`: only changes to one of these; all when empty."""
        self._folder, self._labels, self._clock = folder, frozenset(labels), clock
        self._half_s = clip_s / 2
        self._taken_s: dict[str, float] = {}
        self._rings: dict[str, deque[tuple[float, bytes]]] = {}
        self._clips: dict[str, _Clip] = {}
        self._failed = False

    def wants(self, event: Event) -> bool:
        if isinstance(event, SourceChanged):
            return event.state != "live"
        if not isinstance(event, Seen):
            return False
        now = self._clock()
        due = now - self._taken_s.get(event.source, -1.0) >= 0.9 / FPS
        if due:
            self._taken_s[event.source] = now
        return due or is_change(event, self._labels)

    def write_picture(self, event: Event, image: Pixels | None) -> None:
        if isinstance(event, SourceChanged):
            self._finish(event.source)
        if not isinstance(event, Seen) or image is None:
            return
        now = self._clock()
        ring = self._remember(event.source, now, encoded(image, QUALITY))
        clip = self._clips.get(event.source)
        starts = is_change(event, self._labels)
        if clip:
            self._go_on(event.source, clip, now, starts)
        elif starts:
            self._begin(event, ring, now)
        elif self._failed:
            self._look_again()

    def close(self) -> None:
        limit = time.monotonic() + FINISH_S
        for source in list(self._clips):
            with contextlib.suppress(OSError):
                self._finish(source, limit)

    def _remember(self, source: str, now: float, jpeg: bytes) -> deque[tuple[float, bytes]]:
        ring = self._rings.setdefault(source, deque())
        ring.append((now, jpeg))
        while now - ring[0][0] > self._half_s or (len(ring) > 1 and sum(len(j) for _, j in ring) > RING_BYTES):
            ring.popleft()
        return ring

    def _begin(self, event: Seen, ring: deque[tuple[float, bytes]], now: float) -> None:
        self._failed = True  # until it went well
        self._folder.check(sum(len(jpeg) for _, jpeg in ring))
        apart = [later - earlier for (earlier, _), (later, _) in pairwise(ring)]
        rate = min(30.0, max(1.0, 1 / max(median(apart), 1e-3))) if apart else FPS
        name = stem(event.time_s, event.source, event.decision.stable)
        clip = _Clip(self._folder, f"{name}.avi", rate, now + self._half_s, now + self._half_s * (2 * LONGEST - 1))
        clip.waiting.extend(jpeg for _, jpeg in ring)
        self._clips[event.source] = clip
        self._failed = False

    def _go_on(self, source: str, clip: _Clip, now: float, changed: bool) -> None:
        if changed:
            clip.until_s = min(now + self._half_s, clip.latest_s)
        clip.waiting.append(self._rings[source][-1][1])
        if now >= clip.until_s:
            self._finish(source)
            return
        try:
            clip.step(STEP)
        except OSError:
            self._abandon(source)
            raise

    def _finish(self, source: str, limit_s: float = float("inf")) -> None:
        clip = self._clips.get(source)
        if clip is None:
            return
        try:
            while clip.waiting and time.monotonic() < limit_s:
                clip.step(1)
            clip.finish()
            del self._clips[source]
        except OSError:
            self._abandon(source)
            raise

    def _abandon(self, source: str) -> None:
        self._failed = True
        self._clips.pop(source).abandon()

    def _look_again(self) -> None:
        """Raise Paused while a clip could still not be written."""
        try:
            self._folder.check()
        except OSError as error:
            raise Paused(str(error)) from error
        self._failed = False


class _Clip:
    """A video being written; `waiting` holds the JPEGs that are not in it yet."""

    def __init__(self, folder: Folder, name: str, fps: float, until_s: float, latest_s: float) -> None:
        self.waiting: deque[bytes] = deque()
        self.until_s, self.latest_s = until_s, latest_s
        self._folder, self._name, self._fps = folder, name, fps
        self._part = folder.part(".avi")
        self._writer: cv2.VideoWriter | None = None
        self._size = 0, 0

    def step(self, count: int) -> None:
        """Write so many of those waiting. Raises OSError when the file cannot be opened."""
        for _ in range(min(count, len(self.waiting))):
            image = cv2.imdecode(np.frombuffer(self.waiting.popleft(), np.uint8), cv2.IMREAD_COLOR)
            if image is None:
                continue
            writer = self._writer or self._open(image.shape[1], image.shape[0])
            same = image.shape[1::-1] == self._size
            writer.write(image if same else cv2.resize(image, self._size, interpolation=cv2.INTER_AREA))

    def finish(self) -> None:
        """Close the video and give it its name. Raises OSError when it is not whole."""
        if self._writer is None:
            return
        self._writer.release()
        path = self._folder.path / self._part
        if not is_whole(path):
            raise OSError(f"{path.parent}: a clip could not be written completely; is the disk full?")
        self._folder.adopt(self._part, self._name)

    def abandon(self) -> None:
        if self._writer is not None:
            self._writer.release()
        self._folder.discard(self._part)

    def _open(self, width: int, height: int) -> cv2.VideoWriter:
        path = self._folder.path / self._part
        # OpenCV's own writer, the same in every build; FFmpeg's would not say when the disk is full.
        fourcc = cv2.VideoWriter.fourcc(*"MJPG")
        writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, fourcc, self._fps, (width, height))
        if not writer.isOpened():
            raise OSError(f"{path.parent}: a clip cannot be written there")
        self._writer, self._size = writer, (width, height)
        return writer


def is_whole(path: Path) -> bool:
    """Whether an AVI file is as long as its header says, and has an index at its end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
    return len(head) == 12 and head[:4] == b"RIFF" and struct.unpack("<I", head[4:8])[0] + 8 == size
