"""Instructions of one inference on an emulated Raspberry Pi 4 or 5: qemu-user and a plugin that counts, never a latency.

The board is what tools/emulated_pi/build.py of a checkout unpacked: Debian's aarch64 Python, the wheels that a board would
install, files from which CPU detection concludes what board it is, and the plugin.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.core.bundle import Bundle
from edgeclf.core.card import golden_inputs
from edgeclf.core.errors import ConfigError, MissingExtra, ModelError
from edgeclf.core.files import cache_folder
from edgeclf.core.image import Pixels
from edgeclf.core.tflite import logits_view
from edgeclf.host.report import emulated_invoke
from edgeclf.host.report.emulated_invoke import COUNTED_RUNS, EMPTY_MARKS

INVOKE = Path(emulated_invoke.__file__)
QEMU, QEMU_CPUS = "qemu-aarch64", {"pi4": "cortex-a72", "pi5": "cortex-a76"}
NAMES = {"pi4": "Raspberry Pi 4", "pi5": "Raspberry Pi 5"}
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}  # of the Debian releases that can be unpacked
DEFAULT_SEED, DEFAULT_PICTURES = 1, 4
DELEGATE_SAYS = "XNNPACK delegate"
SECONDS = 600.0


@dataclass(frozen=True)
class Count:
    """Of one inference on one thread, each of `runs` counted by itself; `kinds` are instructions of which sort.

    `identical` says whether the logits of `pictures` golden inputs have the same bits as on this host,
    `largest_difference` how far they are apart in the model's own type, which is `integer` or not.
    """

    device: str
    instructions: int
    kinds: dict[str, int]
    runs: tuple[int, ...]
    runs_equal: bool
    xnnpack: bool
    pictures: int
    integer: bool
    identical: bool
    largest_difference: float

    def to_json(self) -> dict[str, Any]:
        """What `edgeclf bench --json` says of it."""
        return {
            "device": self.device, "instructions": self.instructions, "kinds": self.kinds, "threads": 1,
            "what": "a count under qemu-user, not a latency", "runs_equal": self.runs_equal,
            "logits_identical": self.identical, "largest_difference": self.largest_difference,
        }  # fmt: skip


def default_home() -> Path:
    """Where build.py puts the boards, and where they are looked for."""
    return cache_folder() / "emulated-pi"


def need(home: Path) -> None:
    """Raise MissingExtra, saying how to build it, where there is no emulated board."""
    if shutil.which(QEMU) is None or not (home / "suite").is_file():
        missing = f"{home}: no emulated Pi here" if shutil.which(QEMU) else f"{QEMU} is not installed"
        raise MissingExtra(
            f"{missing}; in a checkout of edgeclf, with qemu-user, mmdebstrap and a C compiler: python tools/emulated_pi/build.py"
        )


def command(home: Path, device: str, arguments: Sequence[str], counted: bool = False) -> list[str]:
    """The command line that runs `python arguments…` in the user space of `device`; `counted` loads the counter.

    Raises MissingExtra when `home` was not built or qemu-aarch64 is missing.
    """
    need(home)
    root = home / device
    python = root / "usr/bin" / f"python{PYTHONS[(home / 'suite').read_text().strip()]}"
    plugin = ["-plugin", str(home / "counter.so")] if counted else []
    return [shutil.which(QEMU) or QEMU, "-cpu", QEMU_CPUS[device], "-L", str(root), *plugin, str(python), *arguments]


def environment(home: Path, *places: Path) -> dict[str, str]:
    """The guest's environment: its wheels and `places` on the path, and nothing random."""
    path = os.pathsep.join(map(str, (home / "site", *places)))
    return {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1"}


def count(bundle: Bundle, device: str, home: Path) -> Count:
    """Count `bundle` on `device` and compare its logits with this host's.

    Raises MissingExtra when there is no emulated board, ConfigError for an ONNX file, ModelError when the model does not
    run there or QEMU does not count.
    """
    if bundle.name.lower().endswith(".onnx"):
        raise ConfigError(f"{bundle.name}: instructions are counted of .tflite files alone")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, pictures, here, there = (folder / part for part in ("model.tflite", "pictures.npy", "here.npy", "there.npy"))
        model.write_bytes(logits_view(bundle.model))
        np.save(pictures, golden_pictures(bundle))
        # -P, for the folder of the script holds modules of other names that Python must not find there
        script = ["-P", str(INVOKE), str(model), str(pictures)]
        guest = command(home, device, [*script, str(there)], counted=True)
        _run([sys.executable, *script, str(here)], bundle.name)
        said = _run(guest, bundle.name, environment(home))
        counts, logits = counts_in(said, bundle.name), (np.load(here), np.load(there))
    return Count(
        device, counts[0]["instructions"], {kind: n for kind, n in counts[0].items() if kind != "instructions"},
        tuple(c["instructions"] for c in counts), all(c == counts[0] for c in counts), DELEGATE_SAYS in said,
        len(logits[0]), bool(np.issubdtype(logits[0].dtype, np.integer)), bool(np.array_equal(*logits)),
        float(np.max(np.abs(logits[0].astype(np.float64) - logits[1]))),
    )  # fmt: skip


def golden_pictures(bundle: Bundle) -> Pixels:
    """The self-test inputs of the card, or four of seed 1 for a file without one; uint8 (pictures, h, w, c)."""
    test = bundle.card.self_test if bundle.card else None
    if bundle.card and test:
        return golden_inputs(test.seed, len(test.outputs), bundle.card.image.shape)
    height, width, channels = bundle.structure.input.shape[1:]
    return golden_inputs(DEFAULT_SEED, DEFAULT_PICTURES, (height, width, channels))


def counts_in(said: str, where: str) -> list[dict[str, int]]:
    """Counts of each marked invocation, the cost of a mark taken off, from the counter's lines in `said`. Raises ModelError."""
    totals: dict[int, dict[str, int]] = {}
    for line in said.splitlines():
        words = line.split()
        if len(words) > 2 and words[0] == "counter":
            totals[int(words[1])] = {k: int(v) for k, _, v in (word.partition("=") for word in words[2:])}
    if len(totals) != EMPTY_MARKS + 1 + COUNTED_RUNS:
        raise ModelError(f"{where}: the counter gave {len(totals)} marks; it needs a dynamic qemu-user between 7.2 and 8.2")
    mark = {kind: totals[EMPTY_MARKS][kind] - totals[EMPTY_MARKS - 1][kind] for kind in totals[0]}
    return [
        {kind: totals[tag][kind] - totals[tag - 1][kind] - mark[kind] for kind in mark}
        for tag in range(EMPTY_MARKS + 1, EMPTY_MARKS + 1 + COUNTED_RUNS)
    ]


def _run(words: list[str], where: str, env: dict[str, str] | None = None) -> str:
    """Standard error of a command that must succeed."""
    try:
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (subprocess.TimeoutExpired, OSError) as error:
        raise ModelError(f"{where}: {Path(words[0]).name} could not run it: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
        raise ModelError(f"{where}: {Path(words[0]).name} ended with exit code {done.returncode}: {last}")
    return done.stderr
