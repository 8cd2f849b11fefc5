"""Instructions that a model's `invoke` executes on an emulated Raspberry Pi 4 or 5, as JSON; and whether it computes the same.

    python tools/count_instructions.py MODEL.tflite... --device pi4 pi5 [--home DIR] [--brief]

Each model is counted three times on one thread, and the counts must be equal. Between builds of the emulated board they
differ by some tens of instructions, which are Python's. They rank variants and catch regressions; they are not latency.

The logits of the golden inputs (the model card's, or four from seed 1) are
compared with those of this host: an int8 file must give the same bits, so exit code 1 says that one did not.
`--home` is what tools/emulated_pi/build.py built; `--brief` prints what tools/record_results.py reads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from edgeclf.core.bundle import read_bundle
from edgeclf.core.errors import EdgeclfError
from edgeclf.core.tflite import scheme
from edgeclf.host.report import emulate


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("models", nargs="+", type=Path, metavar="MODEL.tflite")
    options.add_argument("--device", choices=emulate.QEMU_CPUS, nargs="+", required=True)
    options.add_argument("--home", type=Path, default=emulate.default_home(), help="default: %(default)s")
    options.add_argument("--brief", action="store_true", help="print {device: {file name: instructions}} alone")
    asked = options.parse_args()
    try:
        results = [measure(path, device, asked.home.resolve()) for device in asked.device for path in asked.models]
    except EdgeclfError as error:
        raise SystemExit(str(error)) from error
    print(json.dumps(brief(results) if asked.brief else results, indent=2))
    sys.exit(0 if all(r["runs_equal"] and (r["logits_identical"] or not r["integer"]) for r in results) else 1)


def brief(results: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Device → file name → instructions."""
    devices: dict[str, dict[str, int]] = {result["device"]: {} for result in results}
    for result in results:
        devices[result["device"]][result["model"]] = result["instructions"]
    return devices


def measure(path: Path, device: str, home: Path) -> dict[str, Any]:
    """Count one model file and compare its logits with this host's."""
    bundle = read_bundle(path)
    found = emulate.count(bundle, device, home)
    return {
        "model": path.name,
        "sha256": hashlib.sha256(bundle.model).hexdigest(),
        "scheme": scheme(bundle.structure),
        "device": device,
        "threads": 1,
        "xnnpack_delegate_created": found.xnnpack,
        "instructions": found.instructions,
        **found.kinds,
        "runs": list(found.runs),
        "runs_equal": found.runs_equal,
        "golden_pictures": found.pictures,
        "integer": found.integer,
        "logits_identical": found.identical,
        "largest_difference": found.largest_difference,
    }


if __name__ == "__main__":
    main()
