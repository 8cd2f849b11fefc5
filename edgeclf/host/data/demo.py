"""A short video of held-out pictures, for showing the live loop where there is no camera."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from edgeclf.core.errors import ConfigError, StorageError
from edgeclf.core.files import writing
from edgeclf.core.image import Pixels

WIDTH, HEIGHT = 640, 480
FPS, SECONDS, PICTURE_S = 30, 6.0, 0.5


def render_video(
    path: Path,
    pictures: Sequence[Pixels],
    labels: Sequence[str],
    fps: int = FPS,
    seconds: float = SECONDS,
    picture_s: float = PICTURE_S,
) -> list[str]:
    """Write a Motion-JPEG .avi of 640x480 to `path`, whole or not at all; returns the label of each frame, in order.

    `pictures` are uint8 (height, width, 3) RGB, or (height, width[, 1]) grey, as shards hold them; `labels` their classes.
    Each fills the frame for `picture_s` seconds, so a classifier that stretches a frame to its input sees the picture;
    they start over when there are too few for `seconds`.
    Raises ConfigError for a wrong argument, StorageError when the file cannot be written.
    """
    if path.suffix.lower() != ".avi":
        raise ConfigError(f"{path}: the demo video is Motion-JPEG; its name must end in .avi")
    if not len(pictures) or len(pictures) != len(labels):
        raise ConfigError(
            f"a demo video needs one label a picture, and at least one: {len(pictures)} pictures, {len(labels)} labels"
        )
    each, total = max(1, round(picture_s * fps)), max(1, round(seconds * fps))
    shown = [i // each % len(pictures) for i in range(total)]
    with writing(path) as temporary:
        writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"MJPG"), fps, (WIDTH, HEIGHT))
        if not writer.isOpened():
            raise StorageError(f"{path}: OpenCV cannot write Motion-JPEG there")
        try:
            for i in shown:
                writer.write(enlarged(pictures[i]))
        finally:
            writer.release()
    return [labels[i] for i in shown]


def enlarged(picture: Pixels) -> Pixels:
    """The RGB or grey picture as a BGR frame of 640x480, stretched; cubic, because that survives the way back best
    (digits at 32x32: mean difference 1.0 grey levels, nearest neighbour 1.9)."""
    grey = picture.ndim == 2 or picture.shape[2] == 1
    large = cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return np.asarray(cv2.cvtColor(large, cv2.COLOR_GRAY2BGR if grey else cv2.COLOR_RGB2BGR), np.uint8)
