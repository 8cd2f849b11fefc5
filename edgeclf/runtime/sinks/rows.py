"""An event as one row of a table: what CSV and SQLite have in common."""

from __future__ import annotations

import json
from typing import Any

from edgeclf.runtime.events import Event, record

COLUMNS = {
    "time": "TEXT",
    "event": "TEXT",
    "source": "TEXT",
    "frame": "INTEGER",
    "name": "TEXT",
    "label": "TEXT",
    "score": "REAL",
    "stable": "TEXT",
    "changed": "INTEGER",
    "top": "TEXT",
    "decode_ms": "REAL",
    "resize_ms": "REAL",
    "invoke_ms": "REAL",
    "decide_ms": "REAL",
    "age_ms": "REAL",
    "other_label": "TEXT",
    "other_score": "REAL",
    "other_agrees": "INTEGER",
    "state": "TEXT",
    "detail": "TEXT",
    "temperature_c": "REAL",
    "clock_mhz": "REAL",
    "memory_bytes": "INTEGER",
    "cpu_share": "REAL",
    "throttled": "TEXT",
}
"""Each column and its type in SQLite. `detail` is why a source changed or a frame was skipped, or a health warning."""


def row(event: Event) -> tuple[Any, ...]:
    """The event's value in each of COLUMNS, None where it has none; truth as 0 or 1, `top` as JSON."""
    values = record(event)
    other = values.get("other") or {}
    values |= {f"other_{key}": value for key, value in other.items()}
    values["detail"] = values.get("detail") or values.get("reason") or values.get("warning") or None
    values["throttled"] = " ".join(values.get("throttled") or ()) or None
    if "top" in values:
        values["top"] = json.dumps({entry["label"]: entry["score"] for entry in values["top"]}, ensure_ascii=False)
    return tuple(int(value) if isinstance(value := values.get(name), bool) else value for name in COLUMNS)
