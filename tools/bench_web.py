"""Measure what watchers of the preview page cost the live loop: its rate with 0 and with 20 of them, in turns in one run.

    python tools/bench_web.py FILE [--clients 20] [--rounds 20] [--fps 30 200] [--out tools/results/web.json]

`edgeclf run FILE --source synthetic --web` runs as a child process. Watchers are another child process, as urgent as the
first, which reads `/api/stream` as the page does, on as many connections, and throws away what it reads. A round is one
stretch without and one with them, in an order that changes; its rate is frames by time, from `/api/status`. With a high
`--fps` the loop works as fast as it can, so whatever the page takes is missing; at 30 it has the rate of a camera. The
ratio is the median over the rounds, and its middle half is told.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeclf.core.files import write_json
from edgeclf.runtime.latency import this_machine

SETTLE_S = 0.5
START_S = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--stretch", type=float, default=2.0, help="seconds of one measurement")
    parser.add_argument("--fps", type=int, nargs="+", default=[30, 200])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = {
        "file": given.file.name,
        "machine": vars(this_machine()),
        "load_before": round(os.getloadavg()[0], 2),
        "clients": given.clients,
        "threads": given.threads,
        "at": {},
    }
    for fps in given.fps:
        with served(given.file, fps, given.threads, given.clients) as (address, process):
            result["at"][f"{fps} fps asked"] = measured(address, process, given.clients, given.rounds, given.stretch)
    print(json.dumps(result, indent=2))
    if given.out:
        write_json(given.out, result)


@contextlib.contextmanager
def served(file: Path, fps: int, threads: int, clients: int) -> Iterator[tuple[str, int]]:
    """The address of a running page, and the number of its process."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "edgeclf", "run", str(file), "-s", "synthetic", "--fps", str(fps), "--threads", str(threads)]
    command += ["--web", f"127.0.0.1:{port}", "--set", f"web.clients={2 * clients}", "--json"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    address = f"http://127.0.0.1:{port}"
    try:
        ends = time.monotonic() + START_S
        while True:
            try:
                if status(address)["frames"] > 0:
                    break
            except OSError:
                if child.poll() is not None or time.monotonic() > ends:
                    raise SystemExit("the page did not come up") from None
            time.sleep(0.2)
        yield address, child.pid
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(20)


def status(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}/api/status", timeout=5) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def measured(address: str, process: int, clients: int, rounds: int, stretch_s: float) -> dict[str, Any]:
    alone, watched, pictures = [], [], []
    for number in range(rounds):
        for with_them in (False, True) if number % 2 == 0 else (True, False):
            if with_them:
                with watchers(address, clients) as child:
                    time.sleep(SETTLE_S)
                    watched.append(stretch(address, process, stretch_s))
                pictures.append(json.loads(child.stdout.read())["pictures_per_s"])  # type: ignore[union-attr]
            else:
                time.sleep(SETTLE_S)
                alone.append(stretch(address, process, stretch_s))
    ratios = [w.rate / a.rate for a, w in zip(alone, watched, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "fps_alone": round(statistics.median(a.rate for a in alone), 2),
        "fps_watched": round(statistics.median(w.rate for w in watched), 2),
        "ratio": round(middle, 4),
        "ratio_middle_half": [round(low, 4), round(high, 4)],
        "core_share_alone": round(statistics.median(a.core_share for a in alone), 4),
        "core_share_watched": round(statistics.median(w.core_share for w in watched), 4),
        "server_core_share_watched": round(statistics.median(w.server_share for w in watched), 4),
        "pictures_per_s_and_client": round(statistics.median(pictures), 2),
        "rounds": rounds,
        "stretch_s": stretch_s,
        "memory_mb": _memory(status(address)),
    }


def _memory(said: dict[str, Any]) -> int | None:
    used = (said["health"] or {}).get("memory_bytes")
    return used and used >> 20


@dataclass(frozen=True)
class Stretch:
    """Classified frames a second, and shares of a core: of the whole process, and of its thread that serves the page."""

    rate: float
    core_share: float
    server_share: float


def stretch(address: str, process: int, seconds: float) -> Stretch:
    """Watch the process for that time."""
    server = server_thread(process)
    before, used, serving, began = status(address)["frames"], used_s(process), used_s(process, server), time.monotonic()
    time.sleep(seconds)
    after, lasted = status(address)["frames"], time.monotonic() - began
    shares = (used_s(process) - used) / lasted, (used_s(process, server) - serving) / lasted
    return Stretch((after - before) / lasted, *shares)


def server_thread(process: int) -> int:
    """The thread that holds the event loop: the one that sleeps in epoll."""
    ends = time.monotonic() + START_S
    while time.monotonic() < ends:
        for task in Path(f"/proc/{process}/task").iterdir():
            if "epoll" in (task / "wchan").read_text():
                return int(task.name)
        time.sleep(0.01)
    raise SystemExit("the thread of the server was not found")


def used_s(process: int, thread: int | None = None) -> float:
    """Processor time so far."""
    place = Path(f"/proc/{process}") / (f"task/{thread}" if thread else ".")
    fields = (place / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def watchers(address: str, clients: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds so many streams open."""
    port = address.rpartition(":")[2]
    child = subprocess.Popen([sys.executable, __file__, "--watch", port, str(clients)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()  # every stream has begun
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(20)


class Ended(Exception):
    """SIGTERM came."""


def watch(port: int, clients: int) -> None:
    """Read that many streams until SIGTERM; prints an empty line when all have begun, then pictures a second of each."""

    def end(number: int, frame: object) -> None:
        raise Ended

    signal.signal(signal.SIGTERM, end)
    chosen, pictures, begun, began = selectors.DefaultSelector(), 0, set[int](), time.monotonic()
    for _ in range(clients):
        stream = socket.create_connection(("127.0.0.1", port))
        stream.sendall(b"GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        stream.setblocking(False)
        chosen.register(stream, selectors.EVENT_READ)
    try:
        while True:
            for key, _ in chosen.select():
                data = key.fileobj.recv(1 << 17)  # type: ignore[union-attr]
                pictures += data.count(b'"type":"picture"')
                if not data:
                    raise SystemExit("the page closed a stream")
                if len(begun) < clients:
                    begun.add(key.fd)
                    if len(begun) == clients:
                        print(flush=True)
                        pictures, began = 0, time.monotonic()
    except Ended:
        print(json.dumps({"pictures_per_s": pictures / clients / (time.monotonic() - began)}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watch"]:
        watch(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
