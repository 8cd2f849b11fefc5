"""Run as a file: a model on prepared pictures, its raw outputs kept; on an emulated Pi, three invocations marked for the counter.

    python -P emulated_invoke.py MODEL.tflite PICTURES.npy OUTPUTS.npy

PICTURES is uint8 (pictures, height, width, channels), OUTPUTS gets the first output tensor's own values (pictures, …).
Only numpy and LiteRT are imported, so the host and the emulated board run the very same lines.
"""

from __future__ import annotations

import ctypes
import gc
import platform
import sys
from typing import Any

import numpy as np

SYS_GETPRIORITY, MARK = 141, 0xED6EC1F  # as in tools/emulated_pi/counter.c; the number is that of aarch64
WARM_UPS = 20
EMPTY_MARKS = 2
COUNTED_RUNS = 3


def as_input(pictures: Any, dtype: Any) -> Any:
    """Pixels as the input tensor wants them: uint8 as they are, int8 minus 128, float (pixel - 128) / 128."""
    if dtype == np.uint8:
        return pictures
    if dtype == np.int8:
        return (pictures.astype(np.int16) - 128).astype(np.int8)
    return ((pictures.astype(np.float32) - 128) / 128).astype(dtype)


def outputs_of(interpreter: Any, inputs: Any) -> Any:
    """The raw first output for every input."""
    wanted, given = interpreter.get_output_details()[0], interpreter.get_input_details()[0]
    rows = []
    for row in inputs:
        interpreter.set_tensor(given["index"], row[None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(wanted["index"])[0].copy())
    return np.stack(rows)


def count_invocations(interpreter: Any) -> None:
    """Mark nothing twice (what a mark itself costs), then each of three invocations on the input that is set.

    Python rewrites bytecode while it warms up and collects garbage when it likes; warm-ups and `gc.disable` keep both
    out of the counts.
    """
    call, invoke = ctypes.CDLL(None).syscall, interpreter.invoke
    call.argtypes = [ctypes.c_long] * 3
    gc.disable()
    for _ in range(WARM_UPS):
        invoke()
        call(SYS_GETPRIORITY, MARK, 0)
    call(SYS_GETPRIORITY, MARK, 1)
    call(SYS_GETPRIORITY, MARK, 2)
    invoke()
    call(SYS_GETPRIORITY, MARK, 3)
    invoke()
    call(SYS_GETPRIORITY, MARK, 4)
    invoke()
    call(SYS_GETPRIORITY, MARK, 5)


def main() -> None:
    from ai_edge_litert.interpreter import Interpreter

    model, pictures, outputs = sys.argv[1:]
    interpreter = Interpreter(model_path=model, num_threads=1)
    interpreter.allocate_tensors()
    inputs = as_input(np.load(pictures), interpreter.get_input_details()[0]["dtype"])
    np.save(outputs, outputs_of(interpreter, inputs))
    if platform.machine() == "aarch64":
        count_invocations(interpreter)


if __name__ == "__main__":
    main()
