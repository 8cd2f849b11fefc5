"""Write the tables of docs/scale.md from `tools/results/*.json`, so that no figure there is typed by hand.

    python tools/scale_figures.py

A table is arithmetic on measured rates and on the limits in LIMITS, which the document lists too: put in your own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeclf.core import files
from edgeclf.core.recipe import load_recipe
from edgeclf.runtime.bulk.job import EVERY, FEWEST, GROWTH, MOST
from edgeclf.runtime.bulk.on_ray import MOST_TASKS

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "tools" / "results"
DOCUMENT = REPOSITORY / "docs" / "scale.md"
BILLION, HUNDRED_MILLION = 10**9, 10**8
CORES_OF_A_MACHINE = 16
SHARD_BYTES = 128 << 20
TRAINING_CORES = 256
SHARDED = "compact"  # the recipe of tools/bench_shards.py, at 32 pixels


@dataclass(frozen=True)
class Limit:
    """What is not measured here but taken for granted: a value, its unit, and where it comes from."""

    value: float
    unit: str
    source: str


LIMITS = {
    "network of a machine": Limit(1250, "MB/s", "10 Gbit/s, which machines of 16 cores have"),
    "disk of a machine": Limit(500, "MB/s", "a SATA SSD; an old hard disk reads 150"),
    "requests of object storage": Limit(5500, "GET/s", "Amazon S3, for each prefix, as its documentation says"),
    "exchange between machines": Limit(1250, "MB/s", "10 Gbit/s again, for gradients"),
}
FROM = {  # where pictures lie, and what has no part in it
    "disks": ("network", "requests"), "single objects": ("disk",), "shards in object storage": ("disk", "requests"),
}  # fmt: skip
SETUPS = ((10**4, 2), (10**6, 2), (10**8, 16), (10**9, 256), (10**9, 4096))  # pictures, cores
SHOWN = "cifar10-jpeg.zip", "cats-dogs.zip", "cats-dogs.zip enlarged"  # each with the first of its networks


def tables(folder: Path = RESULTS) -> dict[str, str]:
    """Each table of the document, as Markdown."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    pictures = [Picture.of(one) for one in found["scale"]["classify"]]
    return {
        "machine": _machine(found["scale"]["machine"]),
        "picture": _one_picture(pictures),
        "efficiency": _efficiency(found),
        "billion": billion(pictures, found["scale"]["row_bytes"]),
        "limits": _markdown(("limit", "assumed", "from"), [(n, f"{v.value:,.0f} {v.unit}", v.source) for n, v in LIMITS.items()]),
        "bottlenecks": _bottlenecks(pictures, found),
        "sharded": _sharded(found),
        "training": _training(found, folder.parent.parent / "models"),
    }


def _machine(machine: dict[str, Any]) -> str:
    units = ", ".join(machine["vector_units"])
    return f"{machine['cpu']}, {units}, load {machine['load']:.0f} on {machine['cores']} cores meanwhile."


@dataclass(frozen=True)
class Picture:
    """A picture of that data through that file on one core: microseconds of CPU, and bytes."""

    data: str
    pixels: int
    file: str
    bytes: int
    decode: float
    resize: float
    invoke: float
    whole: float

    @classmethod
    def of(cls, one: dict[str, Any]) -> Picture:
        keys = "bytes", "decode_us", "resize_us", "invoke_us", "whole_us"
        return cls(one["data"], one["pixels"], one["file"].removesuffix(".tflite"), *(one[key] for key in keys))

    @property
    def name(self) -> str:
        """The data, and how large its pictures are."""
        return f"{self.data}, {self.pixels:,} pixels"

    @property
    def rate(self) -> float:
        """Pictures a second and core."""
        return 1e6 / self.whole

    @property
    def greatest(self) -> str:
        """The stage that takes most of a core."""
        stages = {"decode": self.decode, "resize": self.resize, "invoke": self.invoke}
        stages["rows"] = self.whole - sum(stages.values())
        return max(stages, key=lambda name: stages[name])


def _one_picture(pictures: Sequence[Picture]) -> str:
    head = "data", "network", "bytes", "decode, µs", "resize, µs", "invoke, µs", "all, µs", "a second and core", "MB/s a core"
    rows = [
        (p.name, f"`{p.file}`", f"{p.bytes:,}", *(f"{v:,.0f}" for v in (p.decode, p.resize, p.invoke, p.whole, p.rate)),
         f"{p.rate * p.bytes / 1e6:.1f}")
        for p in pictures
    ]  # fmt: skip
    return _markdown(head, rows)


def billion(pictures: Sequence[Picture], row_bytes: float) -> str:
    head = (
        "data", "network", "core-hours", "read", "written", "one object each: requests", f"shards of {SHARD_BYTES >> 20} MiB",
        "most of the CPU",
    )  # fmt: skip
    rows = [
        (p.name, f"`{p.file}`", f"{BILLION * p.whole / 3.6e9:,.0f}", f"{BILLION * p.bytes / 1e12:,.1f} TB",
         f"{BILLION * row_bytes / 1e9:,.0f} GB", f"{BILLION:,}", f"{math.ceil(BILLION * p.bytes / SHARD_BYTES):,}", p.greatest)
        for p in pictures
    ]  # fmt: skip
    return _markdown(head, rows)


def _efficiency(found: dict[str, Any]) -> str:
    """What the whole command makes of the bare stages, as tools/bench_classify.py measured it."""
    classify = found.get("classify", {})
    rows = []
    for one in classify.get("cores", []):
        rows += [
            (
                f"{one['what']}, one core, against bare decode, resize and invoke, by CPU time",
                f"{one['against_bare_by_cpu']} times",
            ),
            (f"{one['what']}, two cores against one", f"{one['two_cores_against_one']} times as fast"),
        ]
    if "ray" in classify:
        ray = classify["ray"]
        rows.append(
            (
                f"{ray['pictures']:,} pictures, Ray against the local engine, start-up apart",
                f"{ray['ray_against_local']} times as fast",
            )
        )
    if "growth" in classify:
        rows.append(("ten times the pictures take", f"{classify['growth']['ten_times_the_pictures_take']} times as long"))
    if "memory" in classify:
        memory = classify["memory"]
        sizes = memory["resident_mb"]["after_50,000"], memory["resident_mb"]["most_after"]
        what = f"resident memory of all processes over {memory['inputs']:,} inputs, after the first 50,000 and at most"
        rows.append((what, " and ".join(f"{size} MiB" for size in sizes)))
    scheduler = found["scale"].get("scheduler")
    if scheduler:
        rows.append(("one part, handed out by Ray Data: CPU time of the driver", f"{scheduler['driver_cpu_ms']} ms"))
    return _markdown(("measured", "found"), rows) if rows else "*Not measured yet.*"


def _bottlenecks(pictures: Sequence[Picture], found: dict[str, Any]) -> str:
    start = starts(found)
    head = ("data", "pictures", "cores", *seconds(pictures[0], 1, 1, found["scale"], start), *(f"from {place}" for place in FROM))
    rows = []
    for p in [next(one for one in pictures if one.data == data) for data in SHOWN]:
        for count, cores in SETUPS:
            busy = seconds(p, count, cores, found["scale"], start)
            names = (f"CPU: {p.greatest}" if name == "CPU" else name for name in (worst(busy, place) for place in FROM))
            rows.append((p.name, _power(count), f"{cores:,}", *map(_time, busy.values()), *(f"**{name}**" for name in names)))
    return _markdown(head, rows)


def worst(busy: dict[str, float], place: str) -> str:
    """What is busy longest when the pictures come from there."""
    return max((name for name in busy if name not in FROM[place]), key=lambda name: busy[name])


def starts(found: dict[str, Any]) -> dict[str, float]:
    """Seconds until an engine classifies, as tools/bench_classify.py saw it; of `edgeclf predict` where it did not."""
    measured: dict[str, float] = found.get("classify", {}).get("ray", {}).get("startup_s", {})
    local = found["startup"]["median_s"]["predict"]
    return {"local": local, "ray": found["scale"].get("scheduler", {}).get("start_s", local), **measured}


def seconds(p: Picture, count: int, cores: int, scale: dict[str, Any], start: dict[str, float]) -> dict[str, float]:
    """How long each resource is busy, alone: the greatest is the bottleneck, and the job takes at least that."""
    machines = math.ceil(cores / CORES_OF_A_MACHINE)
    mb = count * p.bytes / 1e6
    busy = {
        "start-up": start["local" if machines == 1 else "ray"],
        "CPU": count * p.whole / 1e6 / cores,
        "network": mb / LIMITS["network of a machine"].value / machines,
        "disk": mb / LIMITS["disk of a machine"].value / machines,
        "requests": count / LIMITS["requests of object storage"].value,
    }
    if "scheduler" in scale:
        tasks = min(parts(count), MOST_TASKS) if machines > 1 else 0
        busy["scheduler"] = tasks * scale["scheduler"]["driver_cpu_ms"] / 1e3
    return busy


def _power(count: int) -> str:
    exponent = round(math.log10(count))
    return "10" + "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(exponent))


def parts(count: int) -> int:
    """The parts that `classify` cuts so many pictures into."""
    number = 0
    while count > 0:
        count -= min(MOST, FEWEST * GROWTH ** min(number // EVERY, 8))
        number += 1
    return number


def _training(found: dict[str, Any], models: Path) -> str:
    """An epoch of 10⁸ pictures, on workers of CORES_OF_A_MACHINE cores with the recipe's batch each."""
    head = (
        "network", "a second and core", "core-hours an epoch", f"hours an epoch, {TRAINING_CORES} cores", "shards",
        "MB/s a worker reads", "a step", "exchange of gradients", "bottleneck",
    )  # fmt: skip
    rows = []
    sharding = found.get("shards", {}).get("sharding")
    beside = sharding["bytes_per_picture"] - math.prod(sharding["pixels"]) if sharding else 0
    for recipe, rate in _training_rates(found).items():
        loaded = load_recipe(recipe)
        parameters = json.loads((models / f"{recipe}.results.json").read_text(encoding="utf-8"))["parameters"]
        picture = loaded.image.size**2 * 3 + beside
        step = loaded.training.batch_size / rate / CORES_OF_A_MACHINE
        exchange = 2 * 4 * parameters / 1e6 / LIMITS["exchange between machines"].value
        reads = rate * CORES_OF_A_MACHINE * picture / 1e6
        seconds = {
            "CPU": step,
            "network": step * reads / LIMITS["network of a machine"].value,
            "exchange": exchange,
        }
        worst = max(seconds, key=lambda name: seconds[name])
        hours = HUNDRED_MILLION / rate / 3600
        rows.append((
            f"`{recipe}`", f"{rate:,.0f}", f"{hours:,.1f}", f"{hours / TRAINING_CORES:,.2g}",
            f"{HUNDRED_MILLION * picture / 1e9:,.0f} GB in {math.ceil(HUNDRED_MILLION * picture / SHARD_BYTES):,}",
            f"{reads:.0f}", f"{step * 1e3:.3g} ms", f"{exchange * 1e3:.2g} ms", f"**{worst}**",
        ))  # fmt: skip
    return _markdown(head, rows)


def _training_rates(found: dict[str, Any]) -> dict[str, float]:
    """Pictures a second and core of a recipe's training step with its input."""
    training, rates = found["training"], found.get("shards", {}).get("rates")
    found_rates = {training["recipe"]: training["pictures_per_second"] / training["machine"]["cores"]}
    if rates:
        found_rates[SHARDED] = 1e6 / rates["with the step"]["shards"]["cpu_us"]
    return found_rates


def _sharded(found: dict[str, Any]) -> str:
    """What sharding costs, and what reading shards costs beside pictures in memory."""
    shards = found.get("shards", {})
    if "sharding" not in shards:
        return "*Not measured yet: `tools/bench_shards.py` was not run to its end. Bytes below are those of the pixels alone.*"
    sharding, rates = shards["sharding"], shards.get("rates", {})
    rows = [
        (
            f"sharding {HUNDRED_MILLION:,} such pictures ({sharding['pixels'][0]} pixels a side), decode included",
            f"{HUNDRED_MILLION / sharding['pictures_per_cpu_second'] / 3600:,.1f} core-hours",
        ),
        (
            "a picture in a shard",
            f"{sharding['bytes_per_picture']:,.0f} bytes, {sharding['index_bytes_per_picture']} more in the index",
        ),
    ]
    for name, one in rates.items():
        rows.append((f"from shards against from memory, {name}, by CPU time", f"{one['shards_rate_by_cpu']} times as fast"))
    return _markdown(("measured", "found"), rows)


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return (
        f"{seconds / 60:.3g} min"
        if seconds < 6000
        else f"{seconds / 3600:,.3g} h"
        if seconds < 3.6e5
        else f"{seconds / 3600:,.0f} h"
    )


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def written(text: str, wanted: dict[str, str]) -> str:
    """The document with those tables between their marks."""
    for name, table in wanted.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"
    return text


def main() -> None:
    files.write_text(DOCUMENT, written(DOCUMENT.read_text(encoding="utf-8"), tables()))


if __name__ == "__main__":
    main()
