"""Peak memory of ingest for the first tenth and for all pictures of an archive, each in a fresh process.

    python tools/bench_ingest.py ../shared/data/cifar10-jpeg.zip --out results.json

Peak is the process's own resident high-water mark; the bar is that ten times the pictures need no more memory.
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

CHILD = """
import json, sys, time
from pathlib import Path
from edgeclf.core.catalogue import scan
from edgeclf.core.image import ImageSpec
from edgeclf.host.data.dataset import ingest
from edgeclf.runtime.latency import peak_memory
began = time.perf_counter()
shards = ingest(scan(Path(sys.argv[1])), ImageSpec(32, 32))
seconds = time.perf_counter() - began
peak_mb = round(peak_memory() / 2**20, 1)
print(json.dumps({"pictures": len(shards.readable), "seconds": round(seconds, 2), "peak_mb": peak_mb}))
"""


def subset(archive: Path, share: float, target: Path) -> Path:
    """A zip with a random share of the entries, seeded."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as out:
        names = sorted(n for n in source.namelist() if not n.endswith("/"))
        for name in sorted(random.Random(1).sample(names, int(len(names) * share))):
            out.writestr(name, source.read(name))
    return target


def measured(archive: Path, cache: str) -> dict[str, float]:
    """Ingest in a fresh process with an empty cache."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(archive)],
        env={**os.environ, "EDGECLF_CACHE": cache},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(child.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        tenth = measured(subset(options.archive, 0.1, Path(scratch, "tenth.zip")), f"{scratch}/a")
        whole = measured(options.archive, f"{scratch}/b")
    ratio = round(whole["peak_mb"] / tenth["peak_mb"], 3)
    result = {"machine": vars(this_machine()), "tenth": tenth, "whole": whole, "memory_ratio": ratio}
    print(json.dumps(result, indent=2))
    if options.out:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
