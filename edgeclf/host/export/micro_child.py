"""The child of micro.py, run as a file: the smallest arena in which TensorFlow Lite Micro takes the model on standard input.

One argument of JSON: `path` of modules, `guess` in bytes. Prints JSON: {"arena_bytes", "version"}, or {"error"}. A process of
its own, because the interpreter writes to standard error below Python and a model can crash it.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any

STEP = 16  # bytes; what the arena is aligned to
MOST_BYTES = 256 << 20
NOT_INSTALLED = 3  # the exit code


def main() -> int:
    request = json.loads(sys.argv[1])
    sys.path[:0] = [place for place in request["path"] if place]
    try:
        from tflite_micro.python.tflite_micro import runtime
    except ImportError:
        return NOT_INSTALLED
    model = sys.stdin.buffer.read()
    try:
        answer: dict[str, Any] = {"arena_bytes": smallest(runtime.Interpreter, model, request["guess"])}
    except (RuntimeError, ValueError) as error:
        answer = {"error": " ".join(str(error).split())}
    print(json.dumps({**answer, "version": version("tflite-micro")}))
    return 0


def smallest(interpreter: Any, model: bytes, guess: int) -> int:
    """Bytes; found by halving between what is too little and what is enough. Raises RuntimeError when nothing is enough."""
    enough = -(-guess // STEP)
    while not fits(interpreter, model, enough * STEP):
        enough *= 2
        if enough * STEP > MOST_BYTES:
            interpreter.from_bytes(model, arena_size=MOST_BYTES)  # raises, and says why
            break
    little = 0
    while enough - little > 1:
        middle = (enough + little) // 2
        if fits(interpreter, model, middle * STEP):
            enough = middle
        else:
            little = middle
    return enough * STEP


def fits(interpreter: Any, model: bytes, size: int) -> bool:
    try:
        interpreter.from_bytes(model, arena_size=size)
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
