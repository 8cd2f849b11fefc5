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
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.core.bundle import Bundle, read_bundle
from edgeclf.core.card import golden_inputs
from edgeclf.core.tflite import logits_view, read_model, scheme

sys.path.insert(0, str(Path(__file__).resolve().parent / "emulated_pi"))
from build import BOARDS, default_home
from invoke import COUNTED_RUNS, EMPTY_MARKS
from run import command, environment

INVOKE = Path(__file__).resolve().parent / "emulated_pi" / "invoke.py"
DEFAULT_SEED, DEFAULT_PICTURES = 1, 4
DELEGATE_SAYS = "XNNPACK delegate"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("models", nargs="+", type=Path, metavar="MODEL.tflite")
    options.add_argument("--device", choices=BOARDS, nargs="+", required=True)
    options.add_argument("--home", type=Path, default=default_home(), help="default: %(default)s")
    options.add_argument("--brief", action="store_true", help="print {device: {file name: instructions}} alone")
    asked = options.parse_args()
    results = [measure(path, device, asked.home.resolve()) for device in asked.device for path in asked.models]
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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, pictures = folder / "model.tflite", folder / "pictures.npy"
        model.write_bytes(logits_view(bundle.model))
        np.save(pictures, golden_pictures(bundle, path))
        here, there = folder / "here.npy", folder / "there.npy"
        _run([sys.executable, str(INVOKE), str(model), str(pictures), str(here)])
        guest = command(home, device, [str(INVOKE), str(model), str(pictures), str(there)], counted=True)
        said = _run(guest, env=environment(home))
        counts, logits = counts_in(said), (np.load(here), np.load(there))
    integer = bool(np.issubdtype(logits[0].dtype, np.integer))
    return {
        "model": path.name,
        "sha256": hashlib.sha256(bundle.model).hexdigest(),
        "scheme": scheme(read_model(bundle.model, str(path))),
        "device": device,
        "threads": 1,
        "xnnpack_delegate_created": DELEGATE_SAYS in said,
        **counts[0],
        "runs": [count["instructions"] for count in counts],
        "runs_equal": all(count == counts[0] for count in counts),
        "golden_pictures": len(logits[0]),
        "integer": integer,
        "logits_identical": bool(np.array_equal(*logits)),
        "largest_difference": float(np.max(np.abs(logits[0].astype(np.float64) - logits[1]))),
    }


def golden_pictures(bundle: Bundle, path: Path) -> Any:
    """The self-test inputs of the card, or four of seed 1 for a file without a card; uint8 (pictures, h, w, c)."""
    test = bundle.card.self_test if bundle.card else None
    if bundle.card and test:
        return golden_inputs(test.seed, len(test.outputs), bundle.card.image.shape)
    model = read_model(bundle.model, str(path))
    height, width, channels = model.tensors[model.inputs[0]].shape[1:]
    return golden_inputs(DEFAULT_SEED, DEFAULT_PICTURES, (height, width, channels))


def counts_in(said: str) -> list[dict[str, int]]:
    """Counts of each marked invocation, the cost of a mark taken off, from the counter's lines in `said`."""
    totals: dict[int, dict[str, int]] = {}
    for line in said.splitlines():
        words = line.split()
        if len(words) > 2 and words[0] == "counter":
            totals[int(words[1])] = {k: int(v) for k, _, v in (word.partition("=") for word in words[2:])}
    if len(totals) != EMPTY_MARKS + 1 + COUNTED_RUNS:
        raise SystemExit(f"the counter gave {len(totals)} marks; it needs a dynamic qemu-user between 7.2 and 8.2:\n{said}")
    mark = {kind: totals[EMPTY_MARKS][kind] - totals[EMPTY_MARKS - 1][kind] for kind in totals[0]}
    return [
        {kind: totals[tag][kind] - totals[tag - 1][kind] - mark[kind] for kind in mark}
        for tag in range(EMPTY_MARKS + 1, EMPTY_MARKS + 1 + COUNTED_RUNS)
    ]


def _run(words: list[str], env: dict[str, str] | None = None) -> str:
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr}")
    return done.stderr


if __name__ == "__main__":
    main()
