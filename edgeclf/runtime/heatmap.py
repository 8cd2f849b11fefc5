"""Heatmaps as pictures: a map over a network's input, laid over the picture that it came from; panels with titles, in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from edgeclf.core.image import ImageSpec, Pixels, placement
from edgeclf.core.text import printable
from edgeclf.runtime.occlusion import Heat

LEAST_SIDE, MOST_SIDE = 320, 640  # pixels of the longer side of a drawn picture
LEAST_WIDTH = 260  # of a panel, so that its title can be read
PAPER, INK = (255, 255, 255), (51, 41, 31)
FOR_BGR, AGAINST_BGR = (0, 94, 213), (178, 114, 0)  # Okabe and Ito's (2008) vermilion and blue
STRONGEST = 0.85  # how much of the picture the strongest colour hides
UNSEEN = 0.35  # the brightness left to what the network does not see
GAP, LINE, TEXT = 10, 24, 17


@dataclass(frozen=True, eq=False)
class Panel:
    """A BGR picture with lines of text above it."""

    picture: Pixels
    lines: tuple[str, ...]


def over_picture(heat: Heat, rows: int, columns: int, spec: ImageSpec, scale: float = 1.0) -> Heat:
    """A map over the input, float32 (spec.height, spec.width), as a map over a picture of (rows, columns) times `scale`.

    `prepare`'s fit is undone: a stretch is stretched back, the borders of a pad are left out, and what a crop cut off, which
    the network never saw, is NaN. Bilinear; right to a pixel of the input, for resizing drops odd last rows and columns.
    """
    seen, filled = placement(rows, columns, spec)
    height, width = max(1, round(rows * scale)), max(1, round(columns * scale))
    x_step, y_step = columns / width, rows / height  # pixels of the picture in one of the drawing
    x_share, y_share = filled.width / seen.width, filled.height / seen.height
    inner = heat[filled.top : filled.top + filled.height, filled.left : filled.left + filled.width].astype(np.float32)
    # Centres of pixels lie at a half: inner = (picture - seen) * share, all counted from the corner.
    back = np.array([
        [x_step * x_share, 0, (x_step / 2 - seen.left) * x_share - 0.5],
        [0, y_step * y_share, (y_step / 2 - seen.top) * y_share - 0.5],
    ])  # fmt: skip
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    drawn: Any = cv2.warpAffine(inner, back, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    x, y = (np.arange(width) + 0.5) * x_step, (np.arange(height) + 0.5) * y_step
    drawn[(y < seen.top) | (y > seen.top + seen.height)] = np.nan
    drawn[:, (x < seen.left) | (x > seen.left + seen.width)] = np.nan
    return drawn  # type: ignore[no-any-return]


def peak(heat: Heat, rows: int, columns: int, spec: ImageSpec) -> tuple[int, int]:
    """(x, y) of the pixel of the picture that counts most for the class."""
    drawn = over_picture(heat, rows, columns, spec)
    y, x = np.unravel_index(int(np.nanargmax(drawn)), drawn.shape)
    return int(x), int(y)


def drawing_scale(rows: int, columns: int) -> float:
    """By what a picture is enlarged or reduced to be drawn: small ones by a whole number, so that their pixels stay square."""
    longer = max(rows, columns)
    if longer >= LEAST_SIDE:
        return min(1.0, MOST_SIDE / longer)
    return -(-LEAST_SIDE // longer)


def drawn_picture(frame_bgr: Pixels) -> Pixels:
    """The picture in the size in which it is drawn."""
    rows, columns = frame_bgr.shape[:2]
    scale = drawing_scale(rows, columns)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    drawn: Any = cv2.resize(frame_bgr, size, interpolation=cv2.INTER_NEAREST if scale >= 1 else cv2.INTER_AREA)
    return drawn  # type: ignore[no-any-return]


def overlay(frame_bgr: Pixels, heat: Heat, spec: ImageSpec) -> Pixels:
    """The picture in grey, with what speaks for the class in vermilion and what speaks against it in blue.

    Colours are as strong as the map, measured by its own largest value; what the network did not see is dark.
    """
    rows, columns = frame_bgr.shape[:2]
    drawn = over_picture(heat, rows, columns, spec, drawing_scale(rows, columns))
    grey: Any = cv2.cvtColor(drawn_picture(frame_bgr), cv2.COLOR_BGR2GRAY)
    unseen = np.isnan(drawn)
    drawn = np.nan_to_num(drawn)
    strength = (np.abs(drawn) / max(float(np.abs(drawn).max()), 1e-12) * STRONGEST)[:, :, None]
    colour = np.where(drawn[:, :, None] > 0, np.array(FOR_BGR), np.array(AGAINST_BGR))
    mixed = grey[:, :, None] * (1 - strength) + colour * strength
    mixed[unseen] *= UNSEEN
    painted: Pixels = np.rint(mixed).astype(np.uint8)
    return painted


def row(panels: Sequence[Panel]) -> Pixels:
    """The panels beside each other on white paper, uint8 BGR."""
    high = max(panel.picture.shape[0] for panel in panels)
    head = GAP + LINE * max(len(panel.lines) for panel in panels)
    widths = [max(LEAST_WIDTH, panel.picture.shape[1]) for panel in panels]
    sheet = np.full((head + high + GAP, GAP + sum(width + GAP for width in widths), 3), PAPER, np.uint8)
    left = GAP
    for panel, width in zip(panels, widths, strict=True):
        for number, line in enumerate(panel.lines, 1):
            write(sheet, line, (left, LINE * number), width)
        rows, columns = panel.picture.shape[:2]
        sheet[head : head + rows, left : left + columns] = panel.picture
        left += width + GAP
    return sheet


def write(sheet: Pixels, text: str, place: tuple[int, int], width: int) -> None:
    """Write one line with its baseline at `place` (x, y), cut to `width` pixels; before OpenCV 5 in ASCII alone."""
    text = printable(text)
    while _text_width(text) > width and len(text) > 2:
        text = text[:-2] + "…"
    if hasattr(cv2, "FontFace"):
        cv2.putText(sheet, text, place, INK, cv2.FontFace("sans"), TEXT, 400)  # type: ignore[call-overload]
    else:
        ascii_text = text.replace("…", "~").encode("ascii", "replace").decode()
        cv2.putText(sheet, ascii_text, place, cv2.FONT_HERSHEY_SIMPLEX, TEXT / 34, INK, 1, cv2.LINE_AA)


def _text_width(text: str) -> int:
    if hasattr(cv2, "FontFace"):
        return int(cv2.getTextSize((1, 1), text, (0, 0), cv2.FontFace("sans"), TEXT, 400)[2])  # type: ignore[call-overload]
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, TEXT / 34, 1)[0][0])
