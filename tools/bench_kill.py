"""Kill a process that writes files again and again, and look at what it left: nothing may be torn, the next start is clean.

    python tools/bench_kill.py [--kills 200] [--out FILE.json]

Each round a child process writes JSON lines, CSV, SQLite, snapshots and clips through the sinks of `edgeclf run`, into the
files that the rounds before left, as fast as they take it; SIGKILL comes after a random part of `--longest` seconds. Then
every file is read: a JSON line may be cut short only as the last of its round, a CSV row as the last of the file; the
database passes SQLite's own check and has rows in order; every picture and clip decodes, every picture has its record.
Exit code 1 when one does not.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgeclf.core.files import write_json
from edgeclf.core.live_settings import FilesSection, LiveSettings, SnapshotsSection
from edgeclf.runtime.decision import Decision
from edgeclf.runtime.events import Seen, Stages
from edgeclf.runtime.latency import this_machine
from edgeclf.runtime.live import Stop
from edgeclf.runtime.sinks.files import file_sinks
from edgeclf.runtime.sinks.keeping import Folder

LABELS = ("Käfer", "猫", "say \"no\", please")  # fmt: skip
CLIP_S = 0.02  # so that clips begin and end all the time
BURST, PAUSE_S = 200, 0.05  # events at once, so that what is written in one go is long


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--longest", type=float, default=0.6)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    dice = random.Random(0)
    found: Counter[str] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(given.kills):
            kill_a_writer(folder, dice.random() * given.longest)
            found.update(look_at(folder))
        found["records_alone"] = records_alone(folder / "kept")
        Folder(folder / "kept")
        found["left_after_a_clean_start"] = sum(path.name.startswith(".") for path in (folder / "kept").iterdir())
        totals = amounts(folder)
    torn = {key: found[key] for key in ("lines", "rows", "databases", "records", "pictures", "clips", "pictures_alone")}
    result: dict[str, Any] = {
        "machine": vars(this_machine()),
        "kills": given.kills,
        "seconds": round(time.monotonic() - began, 1),
        "torn": torn,
        "last_lines_cut_short": found["last_lines"],
        "last_rows_cut_short": found["last_rows"],
        "records_without_a_picture": found["records_alone"],
        "half_written_files_swept": found["parts"],
        "left_after_a_clean_start": found["left_after_a_clean_start"],
        "written": totals,
    }
    print(json.dumps(result, indent=2))
    if given.out:
        write_json(given.out, result)
    sys.exit(any(torn.values()) or bool(result["left_after_a_clean_start"]))


def kill_a_writer(folder: Path, after_s: float) -> None:
    """Fork a child that writes, and kill it so long after its first event; no thread of this process is running."""
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        try:
            write_for_ever(folder, tell)
        finally:
            os._exit(70)
    os.close(tell)
    if not os.read(ready, 1):
        raise SystemExit("the writing process ended by itself")
    os.close(ready)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        raise SystemExit("the writing process ended by itself")


def write_for_ever(folder: Path, tell: int) -> None:
    rows = LiveSettings(files=FilesSection(str(folder / "seen.jsonl"), str(folder / "seen.csv"), str(folder / "seen.db")))
    pictures = LiveSettings(snapshots=SnapshotsSection(str(folder / "kept"), clip_s=CLIP_S, min_free_mb=0, max_mb=8))
    sinks = [
        make()
        for settings, lossless in ((rows, True), (pictures, False))
        for make in file_sinks(settings, LABELS, lossless, Stop(), lambda message: print(message, file=sys.stderr))
    ]
    for sink in sinks:
        sink._apart_s = 0.0  # transactions as fast as they come, for more of them to be hit
    image = np.random.RandomState(os.getpid()).randint(0, 256, (120, 160, 3)).astype(np.uint8)
    frame = 0
    while True:
        label = LABELS[frame // 10 % len(LABELS)]
        decision = Decision(label, 0.9, label, frame % 10 == 0, ((label, 0.9),))
        event = Seen(time.time(), "cam", frame, decision, Stages(0.1, 0.2, 0.3, 0.4, 0.5), 30.0)
        for sink in sinks:
            sink.emit(event, image)
        if not frame:
            os.write(tell, b".")
        frame += 1
        if frame % BURST == 0:
            time.sleep(PAUSE_S)


def look_at(folder: Path) -> Counter[str]:
    """What is torn, and what a kill may leave."""
    found: Counter[str] = Counter()
    found.update(look_at_lines(folder / "seen.jsonl"))
    found.update(look_at_rows(folder / "seen.csv"))
    found["databases"] += not is_sound(folder / "seen.db")
    for path in (folder / "kept").iterdir():
        if path.name.startswith("."):
            found["parts"] += 1
        elif path.suffix == ".json":
            found["records"] += not is_json(path.read_bytes())
        elif path.suffix == ".jpg":
            found["pictures"] += cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR) is None
            found["pictures_alone"] += not path.with_suffix(".json").exists()
        else:
            found["clips"] += not plays(path)
    return found


def look_at_lines(path: Path) -> Counter[str]:
    """A line that a kill cut short stays alone on its line: it is the last of its round, and the next begins with frame 0."""
    *lines, end = path.read_bytes().split(b"\n")
    found = Counter(last_lines=bool(end))
    for line, following in zip(lines, [*lines[1:], None], strict=True):
        if not is_json(line) and not (following and json.loads(following)["frame"] == 0):
            found["lines"] += 1
    return found


def look_at_rows(path: Path) -> Counter[str]:
    whole, _, end = path.read_bytes().rpartition(b"\n")
    table = list(csv.reader(whole.decode().splitlines(), strict=True))
    wrong = sum(len(row) != len(table[0]) for row in table)
    return Counter(rows=wrong, last_rows=bool(end))


def records_alone(folder: Path) -> int:
    return sum(not path.with_suffix(".jpg").exists() for path in folder.glob("*.json"))


def is_sound(path: Path) -> bool:
    """Whether SQLite finds nothing wrong, and every round's frames are there without a gap."""
    with closing(sqlite3.connect(path)) as connection:
        if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            return False
        frames = [frame for (frame,) in connection.execute("SELECT frame FROM events ORDER BY id")]
    return all(after in (before + 1, 0) for before, after in pairwise(frames))


def is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def plays(path: Path) -> bool:
    video = cv2.VideoCapture(str(path))
    count, frames = int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 0
    while video.read()[0]:
        frames += 1
    return frames == count > 0


def amounts(folder: Path) -> dict[str, int]:
    """How much was written and stands there at the end."""
    with closing(sqlite3.connect(folder / "seen.db")) as connection:
        (rows,) = connection.execute("SELECT count(*) FROM events").fetchone()
    kept = Counter(path.suffix for path in (folder / "kept").iterdir())
    return {
        "json_lines": (folder / "seen.jsonl").read_bytes().count(b"\n"),
        "csv_rows": (folder / "seen.csv").read_bytes().count(b"\n"),
        "database_rows": rows,
        "pictures_kept": kept[".jpg"],
        "clips_kept": kept[".avi"],
    }


if __name__ == "__main__":
    main()
