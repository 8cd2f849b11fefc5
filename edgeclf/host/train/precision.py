"""The number format that a training computes in: which one suits this machine, and Keras set to it for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from edgeclf.core.errors import ConfigError
from edgeclf.host.keras import keras, tensorflow

CPU_FLAGS = {"avx512_bf16", "amx_bf16"}  # without these a CPU imitates bfloat16, slowly
TENSOR_CORES, TENSOR_CORES_BFLOAT16 = (7, 0), (8, 0)  # NVIDIA's compute capability


def fastest() -> str:
    """float32, bfloat16 or float16: what the GPU, or else the CPU, has units for."""
    gpus = tensorflow().config.list_physical_devices("GPU")
    if not gpus:
        return "bfloat16" if CPU_FLAGS & _cpu_flags() else "float32"
    capability = tensorflow().config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
    if capability >= TENSOR_CORES_BFLOAT16:
        return "bfloat16"
    return "float16" if capability >= TENSOR_CORES else "float32"


def _cpu_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    """What Linux says of the first core; nothing elsewhere."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


@contextlib.contextmanager
def computing_in(name: str) -> Iterator[None]:
    """Layers made inside compute in `name`, their weights are float32; "auto" is the fastest here.

    Raises ConfigError for float16 without a GPU.
    """
    name = fastest() if name == "auto" else name
    if name == "float16" and not tensorflow().config.list_physical_devices("GPU"):
        raise ConfigError("precision float16 needs a GPU; on a CPU use bfloat16, float32 or auto")
    policy = keras().mixed_precision
    before = policy.global_policy()
    policy.set_global_policy(name if name == "float32" else f"mixed_{name}")
    try:
        yield
    finally:
        policy.set_global_policy(before)
