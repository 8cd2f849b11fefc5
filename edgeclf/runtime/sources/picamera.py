"""CSI cameras through picamera2, in a process of its own: it can hang, and loses memory each time a camera is opened."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.core.devices import CameraSection
from edgeclf.core.errors import DataError, SourceError
from edgeclf.core.text import printable
from edgeclf.runtime.sources.picamera_child import HEAD_BYTES
from edgeclf.runtime.sources.pipes import SILENCE_S, Child, ChildReader, Pipe, python
from edgeclf.runtime.sources.source import Picture

CHILD = Path(__file__).with_name("picamera_child.py")
MAX_SIDE = 16384


def open_picamera(index: int, name: str, wanted: CameraSection, silence_s: float = SILENCE_S) -> ChildReader:
    """The CSI camera with that index. Raises SourceError when no process can be started; its first `read` raises the others."""
    asked = {"index": index, "width": wanted.width, "height": wanted.height, "fps": wanted.fps}
    child = Child(python(str(CHILD), json.dumps(asked)), name)
    return ChildReader(child, _Frames(child.pipe, name).read, wanted, silence_s)


class _Frames:
    """The pictures that picamera_child.py writes."""

    def __init__(self, pipe: Pipe, name: str) -> None:
        self._pipe, self._name = pipe, name

    def read(self, limit_s: float | None) -> Picture | None:
        """The next picture; None at the end. Raises SourceError with what the child complains of, DataError and Hung."""
        head = self._head(limit_s)
        if head is None:
            return None
        if "error" in head:
            raise SourceError(f"{self._name}: {_complaint(printable(str(head['error'])), head.get('kind') == 'import')}")
        try:
            shape = int(head["height"]), int(head["width"]), int(head["channels"])
            taken_s = float(head["taken_s"])
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(f"{self._name}: its process does not say what it sends") from error
        if not (all(1 <= side <= MAX_SIDE for side in shape[:2]) and shape[2] in (1, 3, 4) and math.isfinite(taken_s)):
            raise SourceError(f"{self._name}: its process sends pictures of {shape}")
        image = np.empty(shape, np.uint8)
        if self._pipe.fill(image.data.cast("B"), limit_s) < image.size:
            raise DataError(f"{self._name}: a picture is cut short")
        return Picture(image, taken_s=taken_s)

    def _head(self, limit_s: float | None) -> dict[str, Any] | None:
        data = bytearray(HEAD_BYTES)
        if self._pipe.fill(memoryview(data), limit_s) < HEAD_BYTES:
            return None
        try:
            head = json.loads(data)
        except ValueError as error:
            raise SourceError(f"{self._name}: its process sends no pictures") from error
        return head if isinstance(head, dict) else {}


def _complaint(text: str, on_import: bool) -> str:
    if not on_import:
        return text
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return (
        f"picamera2 cannot be imported by {version} ({text}); install it with: sudo apt install python3-picamera2, and make "
        "the environment with the system's own Python: python3 -m venv --system-site-packages ENV"
    )
