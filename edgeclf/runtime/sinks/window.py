"""A window that shows the newest frame and its label. OpenCV wants it in the main thread, so the loop runs beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import cv2

from edgeclf.core.errors import ConfigError
from edgeclf.core.image import Pixels
from edgeclf.runtime.events import Event, Seen

T = TypeVar("T")

TITLE = "edgeclf"
ESCAPE = 27
NAP_S = 0.03
PROBE_S = 20
_PROBE = f"import cv2; cv2.namedWindow({TITLE!r}); cv2.waitKey(1)"


def need_display(environment: Mapping[str, str] | None = None) -> None:
    """Raise ConfigError unless a window can be opened here.

    It is tried in a child process, because OpenCV ends the whole process when the display does not answer.
    """
    environment = os.environ if environment is None else environment
    if sys.platform.startswith("linux") and not (environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY")):
        raise ConfigError("--window needs a display, and neither DISPLAY nor WAYLAND_DISPLAY is set; leave --window out")
    try:
        probe = subprocess.run([sys.executable, "-c", _PROBE], env=dict(environment), capture_output=True, timeout=PROBE_S)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"--window: the display did not answer within {PROBE_S} s; leave --window out") from error
    if b"not implemented" in probe.stderr:
        raise ConfigError(
            "--window: this OpenCV cannot open windows; pip uninstall opencv-python-headless, pip install opencv-python"
        )
    if probe.returncode:
        raise ConfigError("--window: the display cannot be opened (is DISPLAY right, is access allowed?); leave --window out")


class Window:
    """A sink that shows the newest frame; q, Esc or closing the window calls `on_close`."""

    def __init__(self, on_close: Callable[[], None], gui: Any = cv2) -> None:
        self._on_close, self._gui = on_close, gui
        self._changed = threading.Condition()
        self._latest: tuple[Seen, Pixels] | None = None

    def emit(self, event: Event, image: Pixels | None = None) -> None:
        if isinstance(event, Seen) and image is not None:
            with self._changed:
                self._latest = event, image
                self._changed.notify_all()

    def close(self) -> bool:
        """The window goes when `host` returns."""
        return True

    def host(self, work: Callable[[], T]) -> T:
        """Do `work` in a thread, show the window in this one until it is done; returns or raises what `work` did."""
        with ThreadPoolExecutor(1, "edgeclf-loop") as pool:
            future = pool.submit(work)
            try:
                self._serve(future.done)
            except BaseException:
                self._on_close()  # or the pool would wait for work that nobody ends
                raise
            return future.result()

    def _serve(self, done: Callable[[], bool]) -> None:
        shown = closing = False
        while not done():
            with self._changed:
                if self._latest is None:
                    self._changed.wait(NAP_S)
                latest, self._latest = self._latest, None
            if latest is not None and not closing:
                self._gui.imshow(TITLE, labelled(*latest))
                shown = True
            key = self._gui.waitKey(1) if shown else -1
            if (
                shown
                and not closing
                and (key in (ord("q"), ESCAPE) or self._gui.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1)
            ):
                closing = True
                self._on_close()
        if shown:
            self._gui.destroyAllWindows()


def labelled(seen: Seen, image: Pixels) -> Pixels:
    """A copy of the BGR `image` with label, score, rate and age on a dark band along its top."""
    picture = image.copy() if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    scale = max(0.4, picture.shape[1] / 800)
    height = int(34 * scale)
    picture[:height] //= 4
    answer = seen.decision
    text = f"{answer.label} {answer.score:.0%}   {seen.fps:.1f} fps   {seen.stages.age_ms:.0f} ms"
    # OpenCV's own font has ASCII only.
    ascii_text = text.encode("ascii", "replace").decode()
    cv2.putText(
        picture, ascii_text, (8, int(height * 0.72)), cv2.FONT_HERSHEY_SIMPLEX, scale * 0.8, (255, 255, 255), 1, cv2.LINE_AA
    )
    return picture  # type: ignore[return-value]
