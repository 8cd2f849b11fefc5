"""Clips: the seconds around each change as a short video."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from itertools import pairwise
from statistics import median
from typing import Any

import cv2

from edgeclf.core.image import Pixels
from edgeclf.runtime.events import Event, Seen, SourceChanged, is_change
from edgeclf.runtime.sinks.avi import Avi
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
        self._sizes: dict[str, tuple[int, int]] = {}  # width and height of what is in the ring
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
        clip = self._clips.get(event.source)
        ring = self._remember(event.source, now, fitted(image, clip.video.size) if clip else image)
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

    def _remember(self, source: str, now: float, image: Pixels) -> deque[tuple[float, bytes]]:
        """The past of the source, this picture included; a video has one size, so that of another is forgotten."""
        ring, (height, width) = self._rings.setdefault(source, deque()), image.shape[:2]
        if self._sizes.get(source) != (width, height):
            self._sizes[source] = width, height
            ring.clear()
        ring.append((now, encoded(image, QUALITY)))
        while now - ring[0][0] > self._half_s or (len(ring) > 1 and sum(len(j) for _, j in ring) > RING_BYTES):
            ring.popleft()
        return ring

    def _begin(self, event: Seen, ring: deque[tuple[float, bytes]], now: float) -> None:
        self._failed = True  # until it went well
        self._folder.check(sum(len(jpeg) for _, jpeg in ring))
        apart = [later - earlier for (earlier, _), (later, _) in pairwise(ring)]
        rate = min(30.0, max(1.0, 1 / max(median(apart), 1e-3))) if apart else FPS
        name = stem(event.time_s, event.source, event.decision.stable)
        until_s, latest_s = now + self._half_s, now + self._half_s * (2 * LONGEST - 1)
        clip = _Clip(self._folder, f"{name}.avi", self._sizes[event.source], rate, until_s, latest_s)
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

    def __init__(self, folder: Folder, name: str, size: tuple[int, int], fps: float, until_s: float, latest_s: float) -> None:
        """Raises OSError when the file cannot be opened."""
        self.waiting: deque[bytes] = deque()
        self.until_s, self.latest_s = until_s, latest_s
        self._folder, self._name, self._part = folder, name, folder.part(".avi")
        with self._told():
            self.video = Avi(folder.path / self._part, size, fps)

    def step(self, count: int) -> None:
        """Write so many of those waiting. Raises OSError."""
        with self._told():
            for _ in range(min(count, len(self.waiting))):
                self.video.write(self.waiting.popleft())

    def finish(self) -> None:
        """Close the video and give it its name. Raises OSError when it is not whole."""
        with self._told():
            self.video.finish()
        self._folder.adopt(self._part, self._name)

    def abandon(self) -> None:
        self.video.close()
        self._folder.discard(self._part)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Say of an error which folder it is about."""
        try:
            yield
        except OSError as error:
            raise OSError(f"{self._folder.path}: a clip cannot be written: {error.strerror or error}") from error


def fitted(image: Pixels, size: tuple[int, int]) -> Pixels:
    """The BGR picture in that (width, height)."""
    if image.shape[1::-1] == size:
        return image
    resized: Any = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return resized  # type: ignore[no-any-return]
