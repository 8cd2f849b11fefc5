"""Open altered model files as a user would, and see that this process stays alive and every refusal is one clear line.

    python tools/fuzz_models.py [FILE...] [--count 1000] [--seed 0] [--out tools/results/fuzz.json]

Each is a deployable file cut short, with bits flipped, bytes overwritten, pieces swapped or doubled, half of them without
model card and metadata, as a foreign file is, for the card's checksum would find any change. What opens classifies one
frame. The files default to the shipped models. Exits with 1 when anything but a label or an error of edgeclf's own came of
one; the file is then kept.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeclf.core.bundle import read_bundle
from edgeclf.core.errors import EdgeclfError
from edgeclf.core.files import write_json
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.latency import noise_frame, this_machine

HEAD = 4096  # a flatbuffer's tables are near its ends, and these are what a reader follows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=sorted(Path("models").glob("*.tflite")))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    result = {"machine": vars(this_machine()), "seed": given.seed, **fuzz(given.files, given.count, given.seed)}
    print(json.dumps(result, indent=2))
    if given.out:
        write_json(given.out, result)
    if result["unforeseen"]:
        raise SystemExit(1)


def fuzz(files: list[Path], count: int, seed: int) -> dict[str, object]:
    """Outcomes counted, by what was done to the file."""
    random = np.random.RandomState(seed)
    outcomes: dict[str, Counter[str]] = {}
    unforeseen: list[str] = []
    began, descriptors = time.monotonic(), open_files()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EDGECLF_CACHE"] = folder
        for i in range(count):
            source = files[i % len(files)]
            bundle = read_bundle(source)
            bare = bool(i // len(files) % 2)
            name, change = CHANGES[random.randint(len(CHANGES))]
            path = Path(folder) / f"altered-{i}.tflite"
            path.write_bytes(change(foreign(bundle.model) if bare else source.read_bytes(), random))
            outcome = open_one(path, bundle.card.labels if bare else None)
            outcomes.setdefault(name, Counter())[outcome] += 1
            if outcome.startswith("unforeseen"):
                kept = Path(f"fuzz-{seed}-{i}.tflite").absolute()
                kept.write_bytes(path.read_bytes())
                unforeseen.append(f"{kept.name}: {outcome}")
            path.unlink()
    return {
        "opened": count,
        "outcomes": {name: dict(sorted(found.items())) for name, found in sorted(outcomes.items())},
        "unforeseen": unforeseen,
        "descriptors_left": open_files() - descriptors,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "seconds": round(time.monotonic() - began),
    }


def foreign(model: bytes) -> bytes:
    """The model with its metadata under a name that nobody looks for."""
    return model.replace(b"TFLITE_METADATA", b"NOTHING_AT_ALL_")


def open_one(path: Path, labels: tuple[str, ...] | None) -> str:
    """A word for what came of opening the file and classifying a frame with it."""
    try:
        Classifier.load(path, 1, labels).probabilities(noise_frame())
    except EdgeclfError as error:
        return f"refused, exit {error.exit_code}" if "\n" not in str(error) else "unforeseen: a message of several lines"
    except Exception as error:
        return f"unforeseen: {type(error).__name__}: {error}"
    return "classifies"


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def place(data: bytes, random: np.random.RandomState) -> int:
    """A byte's place, half of the time near an end."""
    edges = min(HEAD, len(data))
    return int(
        (random.randint(len(data)), random.randint(edges), len(data) - 1 - random.randint(edges))[
            random.choice(3, p=[0.5, 0.25, 0.25])
        ]
    )


def cut(data: bytes, random: np.random.RandomState) -> bytes:
    return data[: random.randint(len(data))]


def flip(data: bytes, random: np.random.RandomState) -> bytes:
    altered = bytearray(data)
    for _ in range(random.choice([1, 4, 64])):
        altered[place(data, random)] ^= 1 << random.randint(8)
    return bytes(altered)


def overwrite(data: bytes, random: np.random.RandomState) -> bytes:
    start, length = place(data, random), int(random.choice([4, 16, 256]))
    filler = (b"\xff" * length, b"\0" * length, random.bytes(length))[random.randint(3)]
    return data[:start] + filler[: len(data) - start] + data[start + length :]


def swap(data: bytes, random: np.random.RandomState) -> bytes:
    first, second = sorted((place(data, random), place(data, random)))
    length = min(64, second - first)
    return (
        data[:first]
        + data[second : second + length]
        + data[first + length : second]
        + data[first : first + length]
        + data[second + length :]
    )


def double(data: bytes, random: np.random.RandomState) -> bytes:
    start = place(data, random)
    return data[:start] + data[start : start + 512] + data[start:]


def shorten(data: bytes, random: np.random.RandomState) -> bytes:
    start = place(data, random)
    return data[:start] + data[start + int(random.choice([1, 4, 100])) :]


CHANGES: list[tuple[str, Callable[[bytes, np.random.RandomState], bytes]]] = [
    (change.__name__, change) for change in (cut, flip, overwrite, swap, double, shorten)
]

if __name__ == "__main__":
    main()
