"""Peak memory of calibration on a tenth and on all pictures of an archive, each in a fresh process.

    python tools/bench_calibration.py ../shared/data/cifar10-jpeg.zip --out results.json

`export` measures what `edgeclf export` does, with the recipe's 500 pictures; `every` feeds all pictures, which no default
does. Peak is the process's own resident high-water mark, mapped pictures included; the bar is a ratio of at most 1.15.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from edgeclf.core.files import write_json
from edgeclf.runtime.latency import this_machine

MAKE_MODEL = """
import sys
from pathlib import Path
from edgeclf.core.recipe import load_recipe
from edgeclf.host import architectures
from edgeclf.host.export import quantize
model = quantize.with_softmax(architectures.build(load_recipe("resnet8"), 10))
Path(sys.argv[1]).write_bytes(quantize.to_float32(model))
"""

CALIBRATE = """
import json, sys, time
from pathlib import Path
import numpy as np
from edgeclf.core.recipe import load_recipe
from edgeclf.host.data import calibration
from edgeclf.host.export import activations, quantize
from edgeclf.host.data.dataset import make_dataset, open_catalogue
from edgeclf.runtime.latency import peak_memory
float32, count = Path(sys.argv[1]).read_bytes(), int(sys.argv[3])
split = {"seed": 1, "val": 0.001, "val_pictures": 10, "test": 0.001}
dataset = make_dataset(open_catalogue(sys.argv[2]), load_recipe("resnet8"), split)
chosen = calibration.draw(dataset, count, 1)
began = time.perf_counter()
ranges = activations.record_ranges(float32, chosen.batches())
quantize.quantize(float32, "int8", ranges)
seconds = time.perf_counter() - began
peak = peak_memory() / 2**20
counts = {"pictures": len(dataset.catalogue), "calibrated": ranges.pictures}
print(json.dumps({**counts, "seconds": round(seconds, 2), "peak_mb": round(peak, 1)}))
"""


def subset(archive: Path, share: float, target: Path) -> Path:
    """A zip with a random share of the entries, seeded; all of them in the training part."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as out:
        names = sorted(n for n in source.namelist() if not n.endswith("/"))
        for name in sorted(random.Random(1).sample(names, int(len(names) * share))):
            out.writestr("/".join(name.split("/")[-2:]).replace("/", f"/{name.split('/')[0]}-"), source.read(name))
    return target


def child(code: str, cache: Path, *arguments: object) -> str:
    """Run `code` in a fresh process that keeps its pictures in `cache`; returns its standard output."""
    environment = {**os.environ, "EDGECLF_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result: dict[str, object] = {"machine": vars(this_machine())}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        child(MAKE_MODEL, folder, folder / "model.tflite")
        archives = {share: subset(options.archive, share, folder / f"{share}.zip") for share in (0.1, 1.0)}
        for archive in archives.values():
            child(CALIBRATE, folder, folder / "model.tflite", archive, 50)  # fills the cache of pictures
        for name, count in (("export", 500), ("every", 10**9)):
            tenth, whole = (json.loads(child(CALIBRATE, folder, folder / "model.tflite", a, count)) for a in archives.values())
            result[name] = {"tenth": tenth, "whole": whole, "memory_ratio": round(whole["peak_mb"] / tenth["peak_mb"], 3)}
    print(json.dumps(result, indent=2))
    if options.out:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
