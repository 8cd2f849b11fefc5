"""Fit and resize pictures of many sizes as the device does, and print a checksum of each result.

    python prepare.py [COUNT]

Only numpy, OpenCV and `edgeclf.core.image` are imported, so the host and the emulated board run the very same lines;
tools/check_preprocessing.py compares what they print.
"""

from __future__ import annotations

import hashlib
import sys
from typing import get_args

import numpy as np

from edgeclf.core.image import Colour, Fit, ImageSpec, prepare

SEED, PICTURES = 7, 300
# Of cameras and of networks, so that halvings, plain copies and enlargements occur besides the random sizes.
FRAMES = (640, 480), (1280, 720), (320, 240), (224, 224), (33, 17), (1, 1), (3, 700)
SIDES = 16, 28, 32, 96, 128, 160, 224


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else PICTURES
    random = np.random.RandomState(SEED)  # the frozen generator: the same stream in every NumPy
    for number in range(count):
        print(line(random, number))


def line(random: np.random.RandomState, number: int) -> str:
    """What was asked of one random picture, and the SHA-256 of the prepared bytes."""
    width, height = FRAMES[number % len(FRAMES)] if number % 2 else (int(random.randint(1, 900)), int(random.randint(1, 700)))
    channels = int(random.choice([1, 3, 3, 3, 4]))
    side = [int(random.choice([*SIDES, random.randint(1, 300)])) for _ in "wh"]
    fit, colour = get_args(Fit)[random.randint(3)], get_args(Colour)[random.randint(3)]
    frame = random.randint(0, 256, (height, width, channels), dtype=np.uint8)
    digest = hashlib.sha256(prepare(frame, ImageSpec(*side, fit, colour)).tobytes()).hexdigest()
    return f"{width}x{height}x{channels} -> {side[0]}x{side[1]} {fit} {colour} {digest}"


if __name__ == "__main__":
    main()
