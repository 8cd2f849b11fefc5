"""Heap: freed memory goes back to the system, and what is there before a loop is left out of garbage collections."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys

import pytest

from edgeclf.runtime.device import heap
from edgeclf.runtime.device.vitals import resident_bytes

HOLES = """
import sys
from edgeclf.runtime.device import heap
from edgeclf.runtime.device.vitals import resident_bytes
blocks = [bytearray(60_000) for _ in range(1000)]
kept = blocks[::2]  # every other one stays, so that nothing but a trim gives the rest back
del blocks
before = resident_bytes()
with heap.settled():
    print(before - resident_bytes())
"""
SHARED = """
import sys, threading
from pathlib import Path
from edgeclf.runtime.device import heap
if sys.argv[1] == "share":
    heap.share()
kept = []
threads = [threading.Thread(target=lambda: kept.append(bytearray(60_000))) for _ in range(8)]
for thread in threads:
    thread.start()
    thread.join()
starts = [int(line.split("-")[0], 16) for line in Path("/proc/self/maps").read_text().splitlines()]
print(sum(start % (64 << 20) == 0 for start in starts))  # glibc begins each further heap at a multiple of 64 MB
"""
glibc = pytest.mark.skipif(not sys.platform.startswith("linux") or resident_bytes() is None, reason="needs glibc on Linux")


def said_by(script: str, *arguments: str) -> int:
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


@glibc
def test_what_was_freed_goes_back_to_the_system() -> None:
    """Half of 60 MB, in blocks that lie between others."""
    assert said_by(HOLES) > 15_000_000


@glibc
def test_threads_share_one_heap() -> None:
    """By themselves they get their own."""
    assert said_by(SHARED, "leave") > 0
    assert said_by(SHARED, "share") == 0


def test_garbage_of_the_loop_is_collected_and_nothing_stays_frozen() -> None:
    """What was there before is left out meanwhile, and looked at again afterwards, also after an error."""
    before = gc.get_freeze_count()
    with heap.settled():
        assert gc.get_freeze_count() > before
        ring: list[object] = []
        ring.append(ring)
        del ring
        assert gc.collect() >= 1
    assert gc.get_freeze_count() == 0
    with contextlib.suppress(ValueError), heap.settled():
        raise ValueError
    assert gc.get_freeze_count() == 0


def test_another_c_library_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without glibc's functions, or without a way to ask for them."""
    for missing in (lambda name: object(), lambda name: (_ for _ in ()).throw(OSError("no such library"))):
        monkeypatch.setattr(heap.ctypes, "CDLL", missing)
        heap.share()
        with heap.settled():
            pass
