"""`edgeclf classify` measured: cores, Ray, memory, lost machines, kills, growth; and what a picture costs.

    python tools/bench_classify.py PART... --zip cifar10-jpeg.zip --photos FOLDER [--out results.json] [--rounds 3]

PART is one or more of:

- `cores`: the test pictures of the zip and the photos with 2 workers and with 1, in turns, against a bare loop of decode,
  resize and invoke on one core; without the start-up: each picture three times, and the second half of the job.
- `ray`: as many pictures as `--pictures` (the real ones again and again), Ray against the local engine, in turns.
- `memory`: `--inputs` inputs in a table, a tiny network; resident memory of all processes every second.
- `raylet`: a cluster of two raylets, one of which is killed half-way; the rows against those of an undisturbed run.
- `kills`: the command killed at random moments with SIGKILL and given again, `--kills` times; then every input once.
- `growth`: time a picture of jobs of 6,000, 20,000 and 60,000 pictures, without the start-up.

A part replaces its own section of the results file. CPU is of all processes of the command.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from pyarrow import dataset, parquet

from edgeclf.core.files import write_json
from edgeclf.core.image import decode, prepare
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.latency import this_machine

NETWORK, TINY = "compact-cifar10", "compact-digits"
STARTUP_PICTURES = 64
TIMES = 3  # that the pictures are classified, so that all processes are there for the second half
SECTIONS = "cores", "ray", "memory", "raylet", "kills", "growth"


@dataclass(frozen=True)
class Run:
    """One command: seconds on the clock, and of CPU in all its processes."""

    wall_s: float
    cpu_s: float

    def __sub__(self, other: Run) -> Run:
        return Run(self.wall_s - other.wall_s, self.cpu_s - other.cpu_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=SECTIONS)
    parser.add_argument("--zip", type=Path, required=True, help="cifar10-jpeg.zip")
    parser.add_argument("--photos", type=Path, help="a folder of photos")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=200_000)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = json.loads(given.out.read_text()) if given.out and given.out.exists() else {}
    found["machine"] = vars(this_machine())
    for part in given.parts:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            found[part] = globals()[f"measure_{part}"](given, Path(folder))
        print(json.dumps({part: found[part]}, indent=2), flush=True)
        if given.out:
            write_json(given.out, found)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "edgeclf", "classify", *map(str, arguments)]


def run(*arguments: object, out: Path) -> Run:
    """Classify into `out`, which is removed before."""
    shutil.rmtree(out, ignore_errors=True)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command(*arguments, "--out", out), check=True, stdout=subprocess.DEVNULL)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Run(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def rows_of(folder: Path) -> Any:
    """All answers, by path."""
    return dataset.dataset(folder, format="parquet").to_table().sort_by("path")


def only_test(archive: Path, out: Path, most: int | None = None) -> Path:
    """A zip of the test pictures alone."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        names = [name for name in old.namelist() if name.startswith("test/") and not name.endswith("/")]
        for name in names[:most]:
            new.writestr(name, old.read(name))
    return out


def repeated(archive: Path, pictures: int, out: Path) -> Path:
    """A zip of that many pictures, those of `archive` again and again under new names."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        data = [old.read(name) for name in old.namelist() if not name.endswith("/")]
        for i in range(pictures):
            new.writestr(f"{i:08d}.jpg", data[i % len(data)])
    return out


def measure_cores(given: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    tests = only_test(given.zip, folder / "test.zip")
    found = _cores(given.rounds, _in_zip(tests), repeated(tests, TIMES * 10_000, folder / "tests.zip"), folder)
    results = [{"what": "10,000 test pictures of CIFAR-10 in a zip", **found}]
    if given.photos:
        for path in given.photos.rglob("*.jpg"):
            for i in range(TIMES):
                (folder / "photos" / str(i)).mkdir(parents=True, exist_ok=True)
                (folder / "photos" / str(i) / path.name).symlink_to(path.resolve())
        found = _cores(given.rounds, _in_folder(given.photos), folder / "photos", folder)
        results.append({"what": "4,000 photos in a folder", **found})
    return results


def _cores(rounds: int, pictures: Iterator[bytes], source: Path, folder: Path) -> dict[str, Any]:
    """`source` holds `pictures` TIMES over."""
    bares, ones, twos, data = [], [], [], list(pictures)
    for _ in range(rounds):
        bares.append(bare(iter(data)))
        ones.append(timed(source, 1, folder / "out"))
        twos.append(timed(source, 2, folder / "out"))
    middle = statistics.median
    bare_ms = {name: middle(found["ms"][name] for found in bares) for name in bares[0]["ms"]}
    one, two = (Run(middle(r.wall_s for r in runs), middle(r.cpu_s for r in runs)) for runs in (ones, twos))
    return {
        "pictures": bares[0]["pictures"],
        "bytes_per_picture": bares[0]["bytes"] // bares[0]["pictures"],
        "network": NETWORK,
        "bare_cpu_ms": {name: round(ms, 4) for name, ms in bare_ms.items()},
        "classify_cpu_ms": {"one_core": round(one.cpu_s * 1000, 4), "two_cores": round(two.cpu_s * 1000, 4)},
        "classify_wall_ms": {"one_core": round(one.wall_s * 1000, 4), "two_cores": round(two.wall_s * 1000, 4)},
        "two_cores_against_one": round(middle(a.wall_s / b.wall_s for a, b in zip(ones, twos, strict=True)), 3),
        "two_cores_against_one_best": round(min(r.wall_s for r in ones) / min(r.wall_s for r in twos), 3),
        "two_cores_against_one_by_cpu": round(2 * middle(a.cpu_s / b.cpu_s for a, b in zip(ones, twos, strict=True)), 3),
        "against_bare_by_cpu": round(
            middle(sum(b["ms"].values()) / (1000 * r.cpu_s) for b, r in zip(bares, ones, strict=True)), 3
        ),
        "pictures_per_cpu_second": round(1 / one.cpu_s),
        "pictures_per_second": round(1 / two.wall_s),
        "rounds": rounds,
    }


def timed(source: Path, workers: int, out: Path) -> Run:
    """Seconds a picture in a job of this process, in the second half of its pictures: without the start of any process."""
    from edgeclf.runtime.bulk.run import classify

    shutil.rmtree(out, ignore_errors=True)
    seen: list[tuple[int, float, float]] = []

    @contextmanager
    def watching(description: str) -> Iterator[Callable[[int, int], None]]:
        def report(done: int, total: int) -> None:
            if done >= total // 2:
                seen.append((done, time.monotonic(), _cpu_so_far()))

        yield report

    classify(NETWORK, [str(source)], str(out), workers=workers, bar=watching)
    (first, began, cpu), (last, ended, cpu_then) = seen[0], seen[-1]
    return Run((ended - began) / (last - first), (cpu_then - cpu) / (last - first))


def _cpu_so_far() -> float:
    """Of this process and its children that run, in seconds."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def bare(pictures: Iterator[bytes]) -> dict[str, Any]:
    """CPU milliseconds a picture of decode, resize and invoke, each summed over the pictures in a plain loop."""
    classifier = Classifier.load(NETWORK, 1)
    seconds, count, total = np.zeros(3), 0, 0
    clock = time.thread_time
    for data in pictures:
        t0 = clock()
        picture = decode(data)
        t1 = clock()
        ready = prepare(picture, classifier.card.image)[None]
        t2 = clock()
        classifier.engine.infer(ready)
        seconds += (t1 - t0, t2 - t1, clock() - t2)
        count, total = count + 1, total + len(data)
    ms = dict(zip(("decode", "resize", "invoke"), (seconds / count * 1000).tolist(), strict=True))
    return {"pictures": count, "bytes": total, "ms": ms}


def _in_zip(path: Path) -> Iterator[bytes]:
    with zipfile.ZipFile(path) as opened:
        yield from (opened.read(name) for name in opened.namelist())


def _in_folder(path: Path) -> Iterator[bytes]:
    yield from (picture.read_bytes() for picture in sorted(path.rglob("*.jpg")))


def measure_ray(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    source = repeated(given.zip, given.pictures, folder / "many.zip")
    few = only_test(given.zip, folder / "few.zip", STARTUP_PICTURES)
    local, ray = [], []
    for _ in range(given.rounds):
        for runs, engine in ((local, "local"), (ray, "ray")):
            start = run(NETWORK, few, "--engine", engine, "--workers", 2, out=folder / f"few-{engine}")
            runs.append((run(NETWORK, source, "--engine", engine, "--workers", 2, out=folder / engine) - start, start))
    same = rows_of(folder / "local").equals(rows_of(folder / "ray"))
    return {
        "pictures": given.pictures,
        "workers": 2,
        "rounds": given.rounds,
        "local_s": round(statistics.median(r.wall_s for r, _ in local), 1),
        "ray_s": round(statistics.median(r.wall_s for r, _ in ray), 1),
        "startup_s": {
            "local": round(statistics.median(s.wall_s for _, s in local), 1),
            "ray": round(statistics.median(s.wall_s for _, s in ray), 1),
        },
        "ray_against_local": round(statistics.median(a.wall_s / b.wall_s for (a, _), (b, _) in zip(local, ray, strict=True)), 3),
        "same_rows": same,
    }


def measure_memory(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    table = folder / "inputs.parquet"
    write_synthetic(table, given.inputs)
    child = subprocess.Popen(command(TINY, table, "--out", folder / "out"), stdout=subprocess.DEVNULL)
    seen: list[tuple[int, list[int]]] = []
    began = time.monotonic()
    while child.poll() is None:
        seen.append((written(folder / "out"), resident_kb(child.pid)))
        time.sleep(1)
    if child.returncode:
        raise SystemExit("the command failed")
    after = [sum(kb) for pictures, kb in seen if pictures >= 50_000]
    parents = [kb[0] for pictures, kb in seen if pictures >= 50_000]
    first = statistics.median(after[:20])
    return {
        "inputs": given.inputs,
        "seconds": round(time.monotonic() - began, 1),
        "resident_mb": {
            "after_50,000": round(first / 1024, 1),
            "most_after": round(max(after) / 1024, 1),
            "last_fifth": round(statistics.median(after[-len(after) // 5 :]) / 1024, 1),
        },
        "of_them_the_parent_mb": {"first": round(parents[0] / 1024, 1), "most": round(max(parents) / 1024, 1)},
        "most_against_after_50,000": round(max(after) / first, 3),
        "rows": rows_of(folder / "out").num_rows,
    }


def write_synthetic(path: Path, inputs: int) -> None:
    """A table of small grey PNGs."""
    dice = np.random.RandomState(0)
    data = [cv2.imencode(".png", dice.randint(0, 256, (8, 8)).astype(np.uint8))[1].tobytes() for _ in range(1000)]
    schema = pa.schema([("image", pa.binary())])
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, inputs, 50_000):
            chunk = [data[i % 1000] for i in range(start, min(start + 50_000, inputs))]
            writer.write_table(pa.table({"image": pa.array(chunk, pa.binary())}, schema=schema))


def written(out: Path) -> int:
    """Pictures in whole parts, from their number (edgeclf.runtime.bulk.job)."""
    from edgeclf.runtime.bulk.job import _room

    return sum(_room(number) for number in range(len(list(out.glob("part-*.parquet")))))


def resident_kb(parent: int) -> list[int]:
    """Of a process and each of its children, with its own share of what it shares (PSS)."""
    pids = [str(parent), *Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    found = []
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        found.append(sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")))
    return found or [0]


@contextmanager
def two_raylets(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """A head and a second raylet of one CPU each; yields the address and what kills the second."""
    import ray
    from ray.cluster_utils import Cluster

    temporary = tempfile.mkdtemp(prefix="e-")  # sockets below it have short names
    os.environ.update(RAY_TMPDIR=temporary, RAY_worker_niceness="0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    try:
        yield cluster.address, lambda: cluster.remove_node(second, allow_graceful=False)
    finally:
        cluster.shutdown()
        ray.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)


def measure_raylet(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    source = repeated(given.zip, min(given.pictures, 60_000), folder / "many.zip")
    undisturbed = run(NETWORK, source, out=folder / "local")
    wanted, half = rows_of(folder / "local"), len(list((folder / "local").glob("part-*"))) // 2
    with two_raylets(folder) as (address, kill):
        child = subprocess.Popen(
            command(NETWORK, source, "--engine", "ray", "--address", address, "--out", folder / "ray"),
            stdout=subprocess.DEVNULL,
        )
        while len(list((folder / "ray").glob("part-*"))) < half and child.poll() is None:
            time.sleep(0.05)
        at = len(list((folder / "ray").glob("part-*")))
        kill()
        code = child.wait()
    return {
        "pictures": wanted.num_rows,
        "parts_when_killed": at,
        "parts": half * 2,
        "exit_code": code,
        "same_rows": rows_of(folder / "ray").equals(wanted),
        "undisturbed_local_s": round(undisturbed.wall_s, 1),
    }


def measure_kills(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    source, out = repeated(given.zip, 60_000, folder / "many.zip"), folder / "out"
    whole = run(NETWORK, source, out=folder / "whole").wall_s
    wanted, dice, moments = rows_of(folder / "whole"), random.Random(0), []
    for _ in range(given.kills):
        child = subprocess.Popen(command(NETWORK, source, "--out", out), stdout=subprocess.DEVNULL, start_new_session=True)
        moment = dice.random() * whole * 0.7
        time.sleep(moment)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        moments.append({"after_s": round(moment, 2), "parts": len(list(out.glob("part-*.parquet")))})
    subprocess.run(command(NETWORK, source, "--out", out), check=True, stdout=subprocess.DEVNULL)
    found = rows_of(out)
    return {
        "kills": given.kills,
        "moments": moments,
        "inputs": wanted.num_rows,
        "lost": len(set(wanted["path"].to_pylist()) - set(found["path"].to_pylist())),
        "twice": found.num_rows - len(set(found["path"].to_pylist())),
        "same_rows": found.equals(wanted),
        "unfinished_files_left": len([path for path in out.iterdir() if path.name.startswith(".")]),
    }


def measure_growth(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    sizes = 6_000, 20_000, 60_000
    sources = {size: repeated(given.zip, size, folder / f"{size}.zip") for size in sizes}
    rounds = [{size: timed(source, 2, folder / "out") for size, source in sources.items()} for _ in range(given.rounds)]
    wall = {size: statistics.median(found[size].wall_s for found in rounds) for size in sizes}
    cpu = {size: statistics.median(found[size].cpu_s for found in rounds) for size in sizes}
    return {
        "ms_per_picture": {str(size): round(wall[size] * 1000, 4) for size in sizes},
        "cpu_ms_per_picture": {str(size): round(cpu[size] * 1000, 4) for size in sizes},
        "ten_times_the_pictures_take": round(10 * wall[60_000] / wall[6_000], 2),
        "ten_times_the_pictures_take_cpu": round(10 * cpu[60_000] / cpu[6_000], 2),
        "rounds": given.rounds,
    }


if __name__ == "__main__":
    main()
