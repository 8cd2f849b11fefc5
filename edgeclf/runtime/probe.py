"""A model file that this machine has never opened is opened in a child process first: a hostile one can crash its runtime."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from edgeclf.core.errors import ModelError, StorageError
from edgeclf.core.files import cache_folder, write_json

CHILD = Path(__file__).with_name("probe_child.py")
SECONDS = 30.0
GRACE_SECONDS = 5.0  # to start; the limit on CPU time should end it first
MEMORY_BYTES = 512 << 20  # besides eight times the file, on top of what Python and the runtime take
SCHEMA = 1


def check(model: bytes, name: str, module: str, runtime: str, seconds: float = SECONDS) -> None:
    """Load `model`, allocate and compute once in a child process with limits on memory and time.

    `module` is the runtime's module, `runtime` its name and version. A file that passed is remembered by its SHA-256, so
    this costs a hash from then on; one that failed is tried again, since the cause may have been a busy machine. Raises
    ModelError, naming `name`, when it crashes, hangs or fails.
    """
    remembered = cache_folder() / "probes" / f"{hashlib.sha256(model).hexdigest()}.json"
    passed = {"schema": SCHEMA, "runtime": runtime, "machine": os.uname().machine if hasattr(os, "uname") else ""}
    if _read(remembered) == passed or not sys.executable:
        return
    _open_in_child(model, name, module, seconds)
    with contextlib.suppress(StorageError):  # a read-only device probes each time
        write_json(remembered, passed)


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _open_in_child(model: bytes, name: str, module: str, seconds: float) -> None:
    request = {"module": module, "path": sys.path, "memory": MEMORY_BYTES + 8 * len(model), "seconds": seconds}
    # Neither site nor user settings: half the start, and the child imports nothing but the runtime.
    command = [sys.executable, "-I", "-S", str(CHILD), json.dumps(request)]
    # Threads of a linear algebra library would only take address space.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, input=model, capture_output=True, timeout=seconds + GRACE_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(_refusal(name, f"computes for more than {seconds:.0f} s")) from error
    except OSError as error:
        raise ModelError(f"{name}: a child process to try it in cannot be started: {error.strerror}") from error
    if done.returncode < 0:
        raise ModelError(_refusal(name, signal_reason(-done.returncode, seconds)))
    if done.returncode:
        raise ModelError(f"{name}: the runtime cannot run it: {_last_line(done.stdout or done.stderr)}")


def _refusal(name: str, what: str) -> str:
    return f"{name}: refused, because in a trial in another process it {what}; export it again or take another file"


def signal_reason(number: int, seconds: float) -> str:
    """Why the system ended a child with that signal, in words that follow "it"."""
    if number in (signal.SIGXCPU, signal.SIGKILL):
        return f"computes for more than {seconds:.0f} s or needs too much memory"
    with contextlib.suppress(ValueError):
        return f"crashes the runtime ({signal.Signals(number).name})"
    return f"crashes the runtime (signal {number})"


def _last_line(output: bytes) -> str:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines else "it ended without a word"
