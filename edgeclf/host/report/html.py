"""A comparison as one self-contained HTML page and as Markdown: text only, no measuring."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edgeclf.core.errors import MissingExtra
from edgeclf.core.image import Colour, Pixels
from edgeclf.core.results import Interval
from edgeclf.host import plots
from edgeclf.host.plots import History, Point
from edgeclf.host.report import devices as report_devices
from edgeclf.host.report import tables as report_tables
from edgeclf.host.report.comparison import Comparison, Model
from edgeclf.host.report.tables import Table
from edgeclf.host.report.verdict import smallest_excludable
from edgeclf.host.wording import at_most

TEMPLATE = "report.html.j2"
MOST_FLIPS = 24
THUMBNAIL = 96


@dataclass(frozen=True)
class Thumbnail:
    """A picture as the network saw it, as a data URI, and what was said of it."""

    uri: str
    name: str
    truth: str
    answer: str
    confidence: float


def thumbnails(comparison: Comparison, pictures: Pixels, colour: Colour) -> tuple[Thumbnail, ...]:
    """The first negative flips of the variant in focus; `pictures` are theirs, prepared: uint8 (n, height, width, channels)."""
    found = []
    for flip, picture in zip(comparison.focus().against.flips, pictures, strict=False):
        answer = comparison.labels[flip.after] if flip.after >= 0 else "nothing"
        truth = comparison.labels[flip.truth]
        found.append(Thumbnail(data_uri(picture, colour), comparison.names[flip.row], truth, answer, flip.confidence))
    return tuple(found)


def data_uri(picture: Pixels, colour: Colour) -> str:
    """One prepared picture as a PNG, or as a JPEG when it is large, in a `data:` address."""
    bgr: npt.NDArray[Any] = picture[:, :, ::-1] if colour == "rgb" else picture
    longest = max(bgr.shape[:2])
    if longest > THUMBNAIL:
        scale = THUMBNAIL / longest
        bgr = cv2.resize(np.ascontiguousarray(bgr), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    kind, suffix = ("jpeg", ".jpg") if longest > THUMBNAIL else ("png", ".png")
    _, encoded = cv2.imencode(suffix, np.ascontiguousarray(bgr))
    return f"data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode()}"


def render_html(comparison: Comparison, thumbs: tuple[Thumbnail, ...], history: History | None) -> str:
    """The page: no script, no outside file, every text escaped. Raises MissingExtra when jinja2 is not installed."""
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtra.for_extra("train", "jinja2 is not installed") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name(TEMPLATE).read_text(encoding="utf-8"))
    exclude = at_most(smallest_excludable(comparison.pictures), comparison.pictures)
    figures = {name: Markup(svg) for name, svg in _figures(comparison, history).items()}
    return template.render(
        c=comparison, focus=comparison.focus(), tables=_tables(comparison), figures=figures, thumbs=thumbs,
        many=len(comparison.labels) > plots.MATRIX_CLASSES, exclude=exclude, machine=_machine(comparison),
        boards=_boards(comparison), board_machines=report_devices.machines(comparison),
    )  # fmt: skip


def render_markdown(comparison: Comparison) -> str:
    """The same findings without the figures and pictures."""
    c = comparison
    lines = [f"# {_md(c.run)}: what compression cost", "", f"**{_md(c.verdict.sentence)}**", ""]
    lines += [f"- {_md(remark)}" for remark in c.verdict.remarks] + [""] * bool(c.verdict.remarks)
    where = f"measured on {_md(_machine(c)['processor'])}; {c.created}."
    lines += [f"{c.pictures:,} test pictures of {_md(c.data)}, {len(c.labels)} classes; {where}", ""]
    titles = {
        "glance": "At a glance",
        "accuracy": "Accuracy",
        "speed": "Speed",
        "sizes": "Size and precision",
        "inside": "Inside the files",
        "classes": "Recall by class",
    }
    for name, title in titles.items():
        lines += [f"## {title}", "", *_md_table(_tables(c)[name]), ""]
    lines += _md_boards(c)
    lines += [
        "Change of top-1 is against the full model on the same pictures, with its 95% interval (Bonett and Price 2012); "
        "p is McNemar's exact test. Latency: one prepared picture to scores, all models interleaved in rounds in one run. "
        "Peak memory: largest resident size of a fresh process that opens the model and answers one picture; in brackets, what "
        "of that came after the runtime was imported."
        + (" Instructions: of one inference on one thread under QEMU, a count and no latency." if c.emulated else ""),
        "",
    ]
    return "\n".join(lines)


def _tables(comparison: Comparison) -> dict[str, Table]:
    makers = (
        report_tables.glance, report_tables.accuracy, report_tables.speed, report_tables.sizes, report_tables.inside,
        report_tables.classes, report_tables.confused_pairs,
    )  # fmt: skip
    return {make.__name__: make(comparison) for make in makers}


def _boards(comparison: Comparison) -> dict[str, Table]:
    return {"compared": report_devices.compared(comparison), "stages": report_devices.stages(comparison)}


def _md_boards(comparison: Comparison) -> list[str]:
    if not comparison.boards:
        return []
    tables = _boards(comparison)
    slowed = [f"- **{_md(board.slowed)}**" for board in comparison.boards if board.slowed]
    where = [f"- {_md(name)}: {_md(words)}" for name, words in report_devices.machines(comparison).items()]
    return [
        "## On the boards", "", *slowed, *[""] * bool(slowed), *_md_table(tables["compared"]), "", "Stages of a frame:", "",
        *_md_table(tables["stages"]), "", "In a cell: p50, in brackets p90 and p99.", "", *where, "",
    ]  # fmt: skip


def _figures(comparison: Comparison, history: History | None) -> dict[str, str]:
    figures = {
        "latency": plots.cost_svg(*_latency_points(comparison), "one picture, p50, ms", "latency"),
        "size": plots.cost_svg(*_size_points(comparison), "file, kB", "size"),
    }
    if history:
        figures["curves"] = plots.curves_svg(history)
    if len(comparison.labels) <= plots.MATRIX_CLASSES:
        focus = comparison.focus()
        for name, model in (("confusion_full", comparison.full), ("confusion_small", focus.model)):
            figures[name] = plots.confusion_svg(model.accuracy.confusion, comparison.labels, name)
    return figures


def _latency_points(comparison: Comparison) -> tuple[Point, list[Point]]:
    def point(model: Model, interval: Interval) -> Point:
        timing = model.timing
        return Point(model.name, timing.latency.p50_ms, model.accuracy.top1, interval, timing.p25_ms, timing.p75_ms)

    return _points(comparison, point)


def _size_points(comparison: Comparison) -> tuple[Point, list[Point]]:
    return _points(comparison, lambda m, interval: Point(m.name, m.size.file_bytes / 1000, m.accuracy.top1, interval))


def _points(comparison: Comparison, point: Any) -> tuple[Point, list[Point]]:
    """Each variant with the interval of its paired difference, laid about the full model's accuracy: sharper than its own."""
    top1 = comparison.full.accuracy.top1
    drops = [v.against.drop.interval for v in comparison.variants]
    variants = [point(v.model, Interval(top1 - d.high, top1 - d.low)) for v, d in zip(comparison.variants, drops, strict=True)]
    return point(comparison.full, Interval(top1, top1)), variants


def _machine(comparison: Comparison) -> dict[str, str]:
    found = comparison.machine
    busy = f"load {found.load:.1f} before the measurement" if found.load >= 0 else "unknown"
    processor = ", ".join([found.cpu, f"{found.cores} cores", *found.vector_units])
    return {"processor": processor, "system": found.system, "Python": found.python, "other work": busy}


def _md(text: str) -> str:
    """Text that stays text in Markdown and in a table cell."""
    flat = " ".join(str(text).split())
    for sign in "\\`*_[]<>|#":
        flat = flat.replace(sign, f"\\{sign}")
    return flat


def _md_table(table: Table) -> list[str]:
    lines = ["| " + " | ".join(map(_md, table.head)) + " |", "|" + "---|" * len(table.head)]
    for number, row in enumerate(table.rows):
        cells = [_md(f"{cell.text} ({cell.note})" if cell.note else cell.text) for cell in row]
        if number == table.chosen:
            cells[0] = f"**{cells[0]}**"
        lines.append("| " + " | ".join(cells) + " |")
    return lines
