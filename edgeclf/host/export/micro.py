"""TensorFlow Lite Micro, where its package is installed: whether it takes a model, and in how large an arena."""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from edgeclf.core import arena
from edgeclf.core.errors import QualityError
from edgeclf.core.tflite import read_model
from edgeclf.host.export import micro_child

CHILD = Path(micro_child.__file__)
SECONDS = 120.0


@dataclass(frozen=True)
class Arena:
    """Bytes of tensor arena; `measured` with `source`, or estimated by it."""

    arena_bytes: int
    measured: bool
    source: str


def arena_of(model: bytes, name: str) -> Arena:
    """The smallest arena that the interpreter of the package `tflite-micro` takes; without the package, an estimate.

    Raises QualityError, naming `name`, when that interpreter refuses the model.
    """
    guess = arena.estimate(read_model(model, name), name)
    estimated = Arena(guess, False, "the lifetimes of its tensors; edgeclf[micro] measures it")
    if importlib.util.find_spec("tflite_micro") is None:
        return estimated
    request = json.dumps({"path": sys.path, "guess": guess})
    command = [sys.executable, "-I", str(CHILD), request]  # -I: the modules beside the child are not meant
    try:
        done = subprocess.run(command, input=model, capture_output=True, timeout=SECONDS, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return estimated
    if done.returncode == micro_child.NOT_INSTALLED:  # a package that is there and does not load
        return estimated
    answer = _answer(done)
    if "error" in answer:
        raise QualityError(f"{name}: TensorFlow Lite Micro refuses it: {answer['error']}; the .tflite file stands")
    return Arena(int(answer["arena_bytes"]), True, f"tflite-micro {answer['version']} on {platform.machine()}")


def _answer(done: subprocess.CompletedProcess[bytes]) -> dict[str, str]:
    """What the child printed; where the model was refused, with the reason that the interpreter wrote beside it."""
    said = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    reason = "; ".join(said[-2:])[:200]
    if done.returncode:
        return {"error": f"its interpreter ended with exit code {done.returncode}{f' ({reason})' if reason else ''}"}
    answer: dict[str, str] = json.loads(done.stdout)
    return {**answer, "error": f"{answer['error']} ({reason})" if reason else answer["error"]} if "error" in answer else answer
