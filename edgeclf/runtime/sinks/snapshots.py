"""Snapshots: the picture of each change, and what was said of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import cv2

from edgeclf.core.image import Pixels
from edgeclf.runtime.events import Event, Seen, is_change, record
from edgeclf.runtime.sinks.keeping import Folder, stem

QUALITY = 90


class Snapshots:
    """Keeps a JPEG of each frame that changed the answer, and its record as JSON under the same name.

    The JSON appears first, so every picture has one.
    """

    def __init__(self, folder: Folder, labels: Collection[str] = ()) -> None:
        """`labels`: only changes to one of these; all when empty."""
        self._folder, self._labels = folder, frozenset(labels)

    def wants(self, event: Event) -> bool:
        return is_change(event, self._labels)

    def write_picture(self, event: Event, image: Pixels | None) -> None:
        if not isinstance(event, Seen) or image is None:
            return
        keep_picture(self._folder, stem(event.time_s, event.source, event.decision.stable), record(event), image, QUALITY)


def keep_picture(folder: Folder, name: str, values: Mapping[str, Any], image: Pixels, quality: int) -> None:
    """Keep the BGR picture as JPEG and `values` as JSON under that name. Raises OSError, and then neither is there."""
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    folder.keep({f"{name}.json": text.encode(), f"{name}.jpg": encoded(image, quality)})


def encoded(image: Pixels, quality: int) -> bytes:
    """The BGR picture as JPEG."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
