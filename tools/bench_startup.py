"""How long the whole process takes: `edgeclf --help`, and `edgeclf predict` on one picture, against the bare imports.

    python tools/bench_startup.py FILE PICTURE [--rounds 15] [--out results.json]

Every command is started once in each round, in turns; medians are printed as JSON. `predict_first` is a file that this
machine has never opened: it is tried in a child process first. That none of them imports TensorFlow is checked.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgeclf.core.files import write_json
from edgeclf.runtime.latency import this_machine

BARE = "import typer, numpy, cv2; from ai_edge_litert.interpreter import Interpreter"
PROGRAM = "import sys; from edgeclf.__main__ import main; sys.exit(main())"
CHECKED = """
import sys
from edgeclf.__main__ import main
try:
    main()
finally:
    heavy = {"tensorflow", "tf_keras", "sklearn", "matplotlib"} & set(sys.modules)
    if heavy:
        raise SystemExit(f"imported: {sorted(heavy)}")
"""
BARS_S = {"help": 0.25, "predict": 0.5, "predict_first": 0.5}


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("file", type=Path)
    options.add_argument("picture", type=Path)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--out", type=Path, help="write the JSON here too")
    given = options.parse_args()
    predict = ["predict", str(given.file), str(given.picture)]
    for arguments in (["--help"], predict):
        run(CHECKED, arguments, None)
    times: dict[str, list[float]] = {name: [] for name in ("python", "bare_imports", *BARS_S)}
    for _ in range(given.rounds):
        times["python"].append(run("pass", [], None))
        times["bare_imports"].append(run(BARE, [], None))
        times["help"].append(run(PROGRAM, ["--help"], None))
        times["predict"].append(run(PROGRAM, predict, None))
        with tempfile.TemporaryDirectory() as cache:
            times["predict_first"].append(run(PROGRAM, predict, cache))
    medians = {name: round(statistics.median(column), 3) for name, column in times.items()}
    result = {
        "machine": vars(this_machine()),
        "median_s": medians,
        "fastest_s": {name: round(min(column), 3) for name, column in times.items()},
        "bars_s": BARS_S,
        "holds": {name: medians[name] <= bar for name, bar in BARS_S.items()},
        "imports_tensorflow": False,
    }
    print(json.dumps(result, indent=2))
    if given.out:
        write_json(given.out, result)


def run(code: str, arguments: list[str], cache: str | None) -> float:
    """Seconds of one whole process. Raises SystemExit when it fails."""
    environment = {**os.environ, **({"EDGECLF_CACHE": cache} if cache else {})}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr.strip()}")
    return seconds


if __name__ == "__main__":
    main()
