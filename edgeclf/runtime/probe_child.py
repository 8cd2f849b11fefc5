"""The child of probe.py, run as a file: one argument of JSON, the model on standard input, exit code 0 when it computes once.

It imports nothing of edgeclf, so that it starts in a blink and has no more memory to lose than it needs.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    """Load, allocate, compute; the reason of a failure is the last line on standard output."""
    request = json.loads(sys.argv[1])
    sys.path[:0] = [place for place in request["path"] if place]
    model = sys.stdin.buffer.read()
    runtime = importlib.import_module(request["module"])
    limit(request["memory"], int(request["seconds"]))
    try:
        if request["module"] == "onnxruntime":
            _run_onnx(runtime, model)
        else:
            _run_tflite(runtime, model)
    except MemoryError:
        print("it needs too much memory")
        return 1
    except Exception as error:  # whatever the runtime calls it, it is an answer
        print(plain(error))
        return 1
    return 0


def plain(error: Exception) -> str:
    """What a runtime complains of, in one line, without the place in its own source that ONNX Runtime puts before it."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (/\S+:\d+ .*?\) (?=[A-Z]))?", "", text)


def limit(memory: int, seconds: int) -> None:
    """Allow that many bytes more than are mapped now, that many seconds of CPU, and no core dump, where the system can."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))


def _run_tflite(runtime: Any, model: bytes) -> None:
    interpreter = runtime.Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.invoke()
    interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def _run_onnx(runtime: Any, model: bytes) -> None:
    import numpy as np

    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(uint8)": np.uint8, "tensor(int8)": np.int8}
    feed = {}
    for given in session.get_inputs():
        shape = [size if isinstance(size, int) and size > 0 else 1 for size in given.shape]
        feed[given.name] = np.zeros(shape, kinds.get(given.type, np.float32))
    session.run(None, feed)


if __name__ == "__main__":
    sys.exit(main())
