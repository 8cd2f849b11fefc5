"""Training input from shards: its rate beside the cache in memory, its memory as data grow, object storage, two workers.

Rounds alternate, so that a noisy machine disturbs both sides; rates are compared by wall time and by CPU time, which other work
on the machine does not lengthen. `rates` times batches with the recipe's augmentation, alone and with the network's step.
`memory` reads an epoch of 1, 4 and 10 times the shards, each in a process of its own. `storage` reads the same shards from a
folder and from a moto S3 server in a process of its own. `workers` trains one and two loopback workers on a part of the data.

    python tools/bench_shards.py ../shared/data/cifar10-jpeg.zip --out tools/results/shards.json
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from edgeclf.core.files import sha256, write_json
from edgeclf.core.recipe import load_recipe, override
from edgeclf.host import architectures
from edgeclf.host.data.batches import _batches, training_batches
from edgeclf.host.data.dataset import make_dataset, open_catalogue
from edgeclf.host.data.shards.index import INDEX, NAMES, PICTURES, RECORDS, read_index
from edgeclf.host.data.shards.place import place
from edgeclf.host.data.shards.write import shard
from edgeclf.host.train.fitting import _as_wanted
from edgeclf.host.train.objective import compile_model
from edgeclf.runtime.latency import this_machine

READER = """
import json, resource, sys, time
from edgeclf.core.recipe import load_recipe, override
from edgeclf.host.data.batches import _batches
from edgeclf.host.data.dataset import make_dataset, open_catalogue
recipe = override(load_recipe("compact"), image__size=32)
data = make_dataset(open_catalogue(sys.argv[1]), recipe, recipe.split)
steps = len(data.parts["train"]) // recipe.training.batch_size
drawn = _batches(data, recipe.training, 0)
for step in range(steps):
    next(drawn)
status = dict(line.split(":") for line in open("/proc/self/status") if ":" in line)
mb = {name: round(int(status[name].split()[0]) / 1024, 1) for name in ("VmHWM", "RssAnon", "RssFile")}
print(json.dumps({"pictures": len(data.catalogue), "read": steps * recipe.training.batch_size, **mb}))
"""


def timed(step, count):
    """(wall, CPU) microseconds of each of `count` pictures while `step` runs."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return (time.perf_counter() - wall) / count * 1e6, (time.process_time() - cpu) / count * 1e6


def compared(sides, count, rounds):
    """Microseconds a picture of each side, and how fast the second is beside the first; the median of alternating rounds."""
    for step in sides.values():
        step()
    times = [{name: timed(step, count) for name, step in sides.items()} for _ in range(rounds)]
    first, second = sides
    found = {
        name: {kind: round(statistics.median(t[name][i] for t in times), 2) for i, kind in enumerate(("wall_us", "cpu_us"))}
        for name in sides
    }
    for i, kind in enumerate(("wall", "cpu")):
        ratios = sorted(t[first][i] / t[second][i] for t in times)
        found[f"{second}_rate_by_{kind}"] = round(statistics.median(ratios), 3)
        found[f"{second}_rate_by_{kind}_quartiles"] = [round(float(np.quantile(ratios, q)), 3) for q in (0.25, 0.75)]
    return found


def rates(memory, shards, recipe, rounds, steps):
    """Input with augmentation alone, and with the network's step; after an epoch in which every shard was checked."""
    for _ in islice(_batches(shards, recipe.training, 0), len(shards.parts["train"]) // recipe.training.batch_size):
        pass
    size = recipe.training.batch_size
    drawn = {name: iter(_as_wanted(training_batches(d, recipe, 1))) for name, d in (("memory", memory), ("shards", shards))}

    def alone(batches):
        return lambda: [next(batches) for _ in range(steps)]

    model = architectures.build(recipe, len(memory.labels))
    compile_model(model, recipe.training, 1000)

    def trained(batches):
        return lambda: [model.train_on_batch(*next(batches)) for _ in range(steps // 5)]

    return {
        "input alone": compared({name: alone(b) for name, b in drawn.items()}, steps * size, rounds),
        "with the step": compared({name: trained(b) for name, b in drawn.items()}, steps // 5 * size, rounds),
    }


def repeated(folder, times, out):
    """The data set `times` over, its shards linked under further names."""
    index = read_index(place(str(folder)))
    out.mkdir()
    count, rows, names = len(index.pictures), len(index.records), (folder / NAMES).read_bytes()
    shards = []
    for k in range(times):
        for s in index.header.shards:
            name = f"{s.part}-{k:02d}-{s.file}"
            os.link(folder / s.file, out / name)
            shards.append(replace(s, file=name))
    records, pictures = np.tile(index.records, times), np.tile(index.pictures, times)
    records["picture"] += np.repeat(np.arange(times) * count, rows).astype(np.uint64)
    pictures["row"] += np.repeat(np.arange(times) * rows, count)
    pictures["name"] += np.repeat(np.arange(times) * len(names), count).astype(np.uint64)
    np.save(out / RECORDS, records)
    np.save(out / PICTURES, pictures)
    (out / NAMES).write_bytes(names * times)
    sums = {name: sha256(out / name) for name in (RECORDS, PICTURES, NAMES)}
    (out / INDEX).write_bytes(replace(index.header, shards=tuple(shards), files=sums).to_json())
    return out


def memory_of(folder, scratch):
    """Resident memory of a process that reads an epoch, for 1, 4 and 10 times the data."""
    found = {}
    for times in (1, 4, 10):
        data = repeated(folder, times, scratch / f"times-{times}")
        found[f"{times}x"] = json.loads(
            subprocess.run([sys.executable, "-c", READER, data], capture_output=True, check=True).stdout
        )
    found["ratio"] = round(found["10x"]["VmHWM"] / found["1x"]["VmHWM"], 3)
    return found


def storage(folder, recipe, rounds, steps):
    """The rate of bare batches from an S3 server of this machine beside that from the folder."""
    import boto3

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1", AWS_EC2_METADATA_DISABLED="true",
    )  # fmt: skip
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.2)
        client = boto3.client("s3")
        client.create_bucket(Bucket="bench")
        for path in folder.iterdir():
            client.upload_file(str(path), "bench", f"shards/{path.name}")
        drawn = {
            name: _batches(make_dataset(open_catalogue(where), recipe, recipe.split), recipe.training, 0)
            for name, where in (("folder", str(folder)), ("s3", "s3://bench/shards"))
        }
        sides = {name: (lambda b=b: [next(b) for _ in range(steps)]) for name, b in drawn.items()}
        return compared(sides, steps * recipe.training.batch_size, rounds)
    finally:
        server.terminate()
        server.wait()


SEEDS = 1, 2, 3


def workers(archive, scratch, epochs, batch):
    """Losses of one worker and of two over loopback, with the same global batch and seeds, on a tenth of the pictures."""
    small, scratch = scratch / "small.zip", scratch / f"batch-{batch}"
    scratch.mkdir()
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(small, "w") as out:
        for name in sorted(n for n in source.namelist() if not n.endswith("/"))[::10]:
            out.writestr(name, source.read(name))
    model = "compact-digits"
    words = [sys.executable, "-m", "edgeclf"]
    run = {"capture_output": True, "check": True}
    size = ["--set", "image.colour=rgb", "--image-size", "16"]
    subprocess.run([*words, "data", "shard", small, "--out", scratch / "small", "--model", model, "--shards", "8", *size], **run)
    train = [*words, "train", model, scratch / "small", *size, "--epochs", str(epochs), "--batch-size", str(batch)]
    curves = {"one": [], "two": []}
    for seed in SEEDS:
        seeded = [*train, "--seed", str(seed)]
        subprocess.run([*seeded, "--out", scratch / f"one-{seed}"], **run)
        two_over_loopback([*seeded, "--out", scratch / f"two-{seed}", "--strategy", "multi-worker"])
        for name, found in curves.items():
            found.append(curve(scratch / f"{name}-{seed}"))
    one, two = (np.array([found["loss"] for found in curves[name]]) for name in ("one", "two"))
    return {
        "pictures": 6000,
        "global_batch": batch,
        "seeds": SEEDS,
        **curves,
        "difference_of_mean_loss": [round(float(value), 4) for value in (two.mean(0) - one.mean(0)) / one.mean(0)],
        "spread_of_one_between_seeds": [round(float(value), 4) for value in np.ptp(one, 0) / one.mean(0)],
    }


def two_over_loopback(command):
    """Run `command` as both workers of a cluster on this machine."""
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports.append(f"127.0.0.1:{free.getsockname()[1]}")
    children = [
        subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "TF_CONFIG": json.dumps({"cluster": {"worker": ports}, "task": {"type": "worker", "index": i}})},
        )
        for i in range(2)
    ]  # fmt: skip
    ended = [child.wait() for child in children]
    if any(ended):
        raise SystemExit("a worker failed")


def curve(run):
    """The history of a training and its end on the test part."""
    with (run / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    top1 = json.loads((run / "card.json").read_text())["accuracy"]["model"]["test"]["top1"]
    return {
        **{key: [round(float(row[key]), 4) for row in rows] for key in ("loss", "val_loss", "val_accuracy")},
        "test_top1": top1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--only", choices=("rates", "memory", "storage", "workers"))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=8, help="of each training with workers")
    parser.add_argument("--global-batch", type=int, nargs="+", default=[64, 256], help="of trainings with workers")
    parser.add_argument("--out", type=Path, help="results file; what is measured replaces what stood there of it")
    options = parser.parse_args()
    recipe = override(load_recipe("compact"), image__size=32)
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        top = Path(scratch)
        if options.only != "workers":
            catalogue, folder = open_catalogue(str(options.archive)), top / "shards"
            wall, cpu = time.perf_counter(), time.process_time()
            index = shard(catalogue, recipe.image.spec(), recipe.split, str(folder))
            files = sum(p.stat().st_size for p in folder.iterdir())
            found["sharding"] = {
                "pictures": len(catalogue),
                "pictures_per_cpu_second": round(len(catalogue) / (time.process_time() - cpu)),
                "pictures_per_second": round(len(catalogue) / (time.perf_counter() - wall)),
                "bytes_per_picture": round(sum(s.bytes for s in index.header.shards) / len(index.records), 1),
                "index_bytes_per_picture": round((files - sum(s.bytes for s in index.header.shards)) / len(catalogue), 1),
                "pixels": index.header.image.shape,
            }
        if options.only in (None, "rates"):
            datasets = [make_dataset(open_catalogue(str(d)), recipe, recipe.split) for d in (options.archive, folder)]
            found["rates"] = rates(*datasets, recipe, options.rounds, options.steps)
        if options.only in (None, "memory"):
            found["memory"] = memory_of(folder, top)
        if options.only in (None, "storage"):
            found["storage"] = storage(folder, recipe, options.rounds, options.steps)
        if options.only in (None, "workers"):
            found["workers"] = [workers(options.archive, top, options.epochs, batch) for batch in options.global_batch]
    found["machine"] = vars(this_machine())
    print(json.dumps(found, indent=2))
    if options.out:
        known = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
        write_json(options.out, {**known, **found})


if __name__ == "__main__":
    main()
