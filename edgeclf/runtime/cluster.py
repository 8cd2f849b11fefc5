"""The seam to Ray: start a cluster here or join one, quietly, say in one line why that cannot be, and leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any, TypeAlias

from edgeclf.core.errors import ClusterError, ConfigError, MissingExtra
from edgeclf.core.text import one_line, printable, redacted

AUTO = "auto"
CONNECT_S = 4.0  # for the port to answer
ANSWER_S = 5.0  # for a cluster behind the port; together below ten seconds
JOIN_S = 60.0  # on a busy machine it takes a while, once the cluster answers
NODE_S = 60.0  # for a node to start a worker
PASS_ON_S = 1.0  # for the last lines on standard error
RAY_LINE = re.compile(rb"\[\d{4}-\d\d-\d\d [\d:,]+ [DIWE] \d+ \d+\] [^\n]*\n")
ABSENT = "none"
# Where these differ, nodes could answer differently, or cannot read each other's data.
PACKAGES = {
    "edgeclf": ("edgeclf",), "NumPy": ("numpy",), "pyarrow": ("pyarrow",), "LiteRT": ("ai-edge-litert",),
    "OpenCV": ("opencv-python", "opencv-python-headless"), "ONNX Runtime": ("onnxruntime",),
}  # fmt: skip
TRAINING_PACKAGES = {**PACKAGES, "TensorFlow": ("tensorflow",), "tf-keras": ("tf-keras",)}
Packages: TypeAlias = Mapping[str, tuple[str, ...]]
# Read when Ray is imported or starts a process: no statistics to its makers, no advice on the terminal.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}
# Joined in a child first: Ray waits for a minute, cannot be told to stop, and writes to standard error below Python.
TRIAL = (
    "import json, sys\n"
    "sys.path[:] = json.loads(sys.argv[2])\n"
    "import ray\n"
    "from ray._raylet import GcsClient\n"
    "print('imported', flush=True)\n"
    "sys.argv[1] == 'auto' or GcsClient(address=sys.argv[1])\n"
    "print('answers', flush=True)\n"
    "ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')\n"
    "ray.shutdown()\n"
    "print('joined', flush=True)\n"
)


@contextlib.contextmanager
def connect(address: str | None, *, cpus: float | None = None, packages: Packages = PACKAGES) -> Iterator[Any]:
    """Yield the module `ray`, connected; what was started here is stopped at the end.

    `address` None starts a cluster on this machine with `cpus` of its cores (None: all). HOST:PORT joins a running cluster
    that this machine is a node of, `auto` the one that runs here; `cpus` does not apply to it. In a process that is
    connected already, that connection is used and left as it is.

    Raises MissingExtra without Ray, ConfigError for an address that is none, and ClusterError when no cluster answers there
    (within ten seconds), when a node's Python, Ray or `packages` are not those of this process, or when none can be started.
    """
    ray = _ray()
    if ray.is_initialized():
        yield ray
    elif address is None:
        with _started(ray, cpus):
            yield ray
    else:
        with _joined(ray, address, packages):
            yield ray


def _ray() -> Any:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise MissingExtra.for_extra("cluster", "Ray is not installed") from error
    return ray


@contextlib.contextmanager
def _started(ray: Any, cpus: float | None) -> Iterator[None]:
    """A cluster of one node, in a temporary folder of its own."""
    try:
        folder = tempfile.mkdtemp(prefix="edgeclf-ray-")
    except OSError as error:
        raise ClusterError(f"{tempfile.gettempdir()}: Ray needs a folder for temporary files: {error.strerror}") from error
    try:
        start = {"address": "local", "num_cpus": cpus, "include_dashboard": False, "_temp_dir": folder}
        with _connected(ray, lambda said: f"a Ray cluster cannot be started here: {one_line(said)}", **start):
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _joined(ray: Any, address: str, packages: Packages) -> Iterator[None]:
    if address != AUTO:
        _try_port(address)
    _try_joining(address)
    with _connected(ray, lambda said: _refusal(address, said, True), address=address):
        _check_nodes(ray, address, packages)
        yield


@contextlib.contextmanager
def _connected(ray: Any, refusal: Callable[[str], str], **how: Any) -> Iterator[None]:
    """`refusal` makes a message of what Ray says."""
    try:
        with _hushed():
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **how)
            except Exception as error:  # Ray raises what it likes, and nothing of its own kind
                raise ClusterError(refusal(f"{type(error).__name__}: {error}")) from error
            with _silent():
                yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Pass on what is written to standard error but for lines that Ray writes there below Python, which no option silences.

    They are in the files of its session too, and tell of what Ray mends by itself, or what it does wrong itself.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    out, into = os.pipe()
    os.dup2(into, 2)
    os.close(into)
    passing = threading.Thread(target=_pass_on, args=(out, kept), daemon=True)
    passing.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        passing.join(PASS_ON_S)  # a process that Ray has not ended yet may hold the pipe open
        if not passing.is_alive():
            os.close(out)
            os.close(kept)


def _pass_on(out: int, to: int) -> None:
    while data := os.read(out, 65_536):
        with contextlib.suppress(OSError):
            os.write(to, RAY_LINE.sub(b"", data))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep Ray from telling of lost workers on standard output, where answers go; no option of its own does."""
    from ray._private import worker

    told = worker.print_to_stdstream
    worker.print_to_stdstream = lambda data, ignore_prefix: None
    try:
        yield
    finally:
        worker.print_to_stdstream = told


def _try_port(address: str) -> None:
    """Raise ConfigError or ClusterError unless something listens there."""
    host, _, port = address.rpartition(":")
    if "://" in address:  # Ray's own advice: its client is not for Data, Tune and Train
        raise ConfigError(f"{_shown(address)}: expected HOST:PORT of a cluster's head; run this on a machine of the cluster")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigError(f"{_shown(address)}: expected HOST:PORT of a cluster's head, such as 192.168.0.7:6379, or {AUTO}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        reason = error.strerror or "no answer"
        raise ClusterError(
            f"{_shown(address)}: no Ray cluster can be reached there ({reason}); start its head with: ray start --head"
        ) from error


def _try_joining(address: str) -> None:
    """Join in a child process, and raise ClusterError with the reason when that fails or takes too long."""
    command = [sys.executable, "-c", TRIAL, address, json.dumps([place for place in sys.path if place])]
    reached = [""]
    with (
        tempfile.TemporaryFile("w+", errors="replace") as said,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, text=True) as child,
    ):
        try:
            for seconds in (JOIN_S, ANSWER_S, JOIN_S):  # to import, to answer, to join
                reached.append(_line_within(child, seconds))
        finally:
            child.kill()
        said.seek(0)
        if "joined" not in reached:
            raise ClusterError(_refusal(address, said.read(), "answers" in reached))


def _line_within(child: subprocess.Popen[str], seconds: float) -> str:
    """The next line of a child that is killed when it takes longer; empty when it ended."""
    alarm = threading.Timer(seconds, child.kill)
    alarm.start()
    try:
        return (child.stdout.readline() if child.stdout else "").strip()
    finally:
        alarm.cancel()


def _refusal(address: str, said: str, answered: bool) -> str:
    """What a child that could not join came to, from what it wrote."""
    shown = _shown(address)
    versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", said)
    if len(versions) >= 2:
        theirs, ours = versions[-2:]
        return _mismatch(shown, "the cluster", {"Ray": theirs[0], "Python": theirs[1]}, {"Ray": ours[0], "Python": ours[1]})
    if "AuthenticationError" in said:
        return (
            f"{shown}: the cluster wants another token than this machine shows; put that of its head into ~/.ray/auth_token "
            "and set RAY_AUTH_MODE=token"
        )
    if address == AUTO:
        return f"{shown}: no Ray cluster runs on this machine; start one with: ray start --head"
    if "No node info found" in said or "Failed to get node info" in said:
        return f"{shown}: this machine is no node of that cluster; make it one with: ray start --address={shown}"
    lines = [line for line in said.strip().splitlines() if re.match(r"[\w.]+(Error|Exception)\b", line)]
    trouble = "a cluster answers there, but cannot be joined" if answered else "no Ray cluster answers there"
    return f"{shown}: {trouble}{f' ({one_line(lines[-1])})' if lines else ''}; see: ray status --address={shown}"


def _check_nodes(ray: Any, address: str, packages: Packages) -> None:
    """Raise ClusterError for the first node whose packages are not those of this process."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ours, this_module = installed(packages), sys.modules[__name__]
    nodes = [node for node in ray.nodes() if node["Alive"]]
    ray.cloudpickle.register_pickle_by_value(this_module)  # so that a node without edgeclf can run it, and say so
    try:
        asking = ray.remote(num_cpus=0, max_retries=0)(installed)
        answers = [
            asking.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(packages)
            for node in nodes
        ]
    finally:
        ray.cloudpickle.unregister_pickle_by_value(this_module)
    for node, answer in zip(nodes, answers, strict=True):
        where = f"its node {node['NodeManagerAddress']}"
        try:
            theirs = ray.get(answer, timeout=NODE_S)
        except ray.exceptions.GetTimeoutError as error:
            raise ClusterError(f"{_shown(address)}: {where} starts no worker within {NODE_S:.0f} s; see: ray status") from error
        except ray.exceptions.RayTaskError as error:
            lines = str(error).strip().splitlines()
            raise ClusterError(f"{_shown(address)}: {where} cannot say what it has installed: {one_line(lines[-1])}") from error
        except ray.exceptions.RayError:
            continue  # lost meanwhile, which a cluster is for
        if theirs != ours:
            raise ClusterError(_mismatch(_shown(address), where, theirs, ours))


def installed(packages: Packages = PACKAGES) -> dict[str, str]:
    """Versions of `packages` in this process, ABSENT for those that are not there."""
    found = dict.fromkeys(packages, ABSENT)
    for name, distributions in packages.items():
        for distribution in distributions:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(distribution)
    return found


def _mismatch(cluster: str, who: str, theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    names = [name for name in ours if ours[name] != theirs[name]] or list(ours)
    has = [", ".join(f"{name} {versions[name]}" for name in names) for versions in (theirs, ours)]
    return f"{cluster}: {who} has {has[0]}, this machine {has[1]}; install the same versions everywhere"


def _shown(address: str) -> str:
    return printable(redacted(address))
