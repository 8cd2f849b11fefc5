"""The seam to Ray: joining and starting a cluster, what is said when that cannot be, and bulk classification on it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")
pytest.importorskip("pyarrow")

from pyarrow import dataset

from edgeclf.core.errors import ClusterError, ConfigError, MissingExtra, StorageError
from edgeclf.runtime import cluster
from edgeclf.runtime.bulk import job, on_ray
from edgeclf.runtime.bulk.run import classify
from edgeclf.runtime.cluster import connect

DEADLINE_S = 240.0  # a busy machine starts a worker in half a minute


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[Any, Any]]:
    """A cluster of two raylets with a core each, and the second of them."""
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="e-")  # sockets below it have short names
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**cluster.QUIET, "RAY_worker_niceness": "0", "RAY_TMPDIR": folder}.items():
            patch.setenv(name, value)
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        second = made.add_node(num_cpus=1)
        yield made, second
        made.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def model(fixtures_folder: Path) -> Path:
    return fixtures_folder / "tiny-int8.tflite"


@pytest.fixture
def photos(tmp_path: Path, fixtures_folder: Path) -> Path:
    """Twelve thousand pictures in a zip, the last broken."""
    picture = (fixtures_folder / "pictures" / "red-square.png").read_bytes()
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for i in range(11_999):
            archive.writestr(f"{i:05d}.png", picture)
        archive.writestr("11999.png", b"no picture")
    return tmp_path / "photos.zip"


def rows(out: Path) -> Any:
    return dataset.dataset(out, format="parquet").to_table().sort_by("path")


def refused(address: str) -> str:
    """The one line that is said of an address."""
    with pytest.raises(ClusterError) as raised, connect(address):
        pass
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("address", "shown"),
    [("6379", "6379"), ("host:", "host:"), ("host:99999", "host:99999"), ("ray://me:pw@host:1", "ray://host:1")],
)
def test_what_is_no_address_is_refused(address: str, shown: str) -> None:
    """Ray's client too, which Data, Tune and Train are not made for; without its password."""
    with pytest.raises(ConfigError, match=rf"^{shown}: expected HOST:PORT"), connect(address):
        pass


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 6."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'edgeclf\[cluster\]'"), connect(None):
        pass


def test_a_port_where_nothing_listens_is_told_at_once() -> None:
    """With the address and what to do."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        assert refused(address).startswith(f"{address}: no Ray cluster can be reached there (Connection refused); start its head")


def test_a_port_where_something_else_listens_is_told() -> None:
    """Ray itself would wait for a minute; here a server that says nothing is given up after five seconds."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert refused(address).startswith(f"{address}: no Ray cluster answers there")


def test_no_answer_within_ten_seconds_is_the_limit() -> None:
    """For the port, and for the cluster behind it."""
    assert cluster.CONNECT_S + cluster.ANSWER_S < 10


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (
            "RuntimeError: Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.11.7\n"
            "This process on node 10.0.0.1 was started with:\n    Ray: 2.9.0\n    Python: 3.12.1\n",
            "h:1: the cluster has Python 3.11.7, this machine Python 3.12.1; install the same versions everywhere",
        ),
        ("RuntimeError: No node info found matching", "this machine is no node of that cluster; make it one with: ray start"),
        ("ray.exceptions.AuthenticationError: RPC", "put that of its head into ~/.ray/auth_token and set RAY_AUTH_MODE=token"),
        ("Traceback\n\nConnectionError: lost s3://me:pw@x", "a cluster answers there, but cannot be joined (ConnectionError: lost s3://x)"),
    ],
)  # fmt: skip
def test_what_ray_says_becomes_one_line(said: str, says: str) -> None:
    """What differs, with both versions; or what to do."""
    assert says in cluster._refusal("h:1", said, True)


def test_a_node_with_other_packages_is_named_with_both_versions(two: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked on the node itself, in a worker of its own."""
    there = metadata.version
    ours = there("edgeclf")
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.0" if name == "edgeclf" else there(name))
    assert refused(two[0].address).endswith(
        f"has edgeclf {ours}, this machine edgeclf 0.0.0; install the same versions everywhere"
    )


def test_another_tensorflow_counts_for_training_alone(two: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Classifying does without it."""
    there = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.0" if name == "tensorflow" else there(name))
    with cluster.connect(two[0].address):
        pass
    other = r"this machine TensorFlow 0\.0\.0; install the same versions everywhere"
    with (
        pytest.raises(ClusterError, match=other),
        cluster.connect(two[0].address, packages=cluster.TRAINING_PACKAGES),
    ):
        pass


def test_another_version_of_ray_is_named_with_both(two: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray finds it when this process joins."""
    import ray

    there = ray.__version__
    monkeypatch.setattr(ray, "__version__", "1.0.0")
    assert f"the cluster has Ray {there}, this machine Ray 1.0.0" in refused(two[0].address)


def test_a_connection_that_was_there_is_left_there(two: tuple[Any, Any], tmp_path: Path, model: Path, photos: Path) -> None:
    """And rows of a job on it are those of the local engine; a folder of another job is refused as there."""
    with connect(two[0].address) as ray:
        with connect(None) as again:
            assert again is ray
        assert ray.is_initialized()
        done = classify(model, [str(photos)], str(tmp_path / "ray"), engine="ray")
    assert not ray.is_initialized()
    assert (done.pictures, done.errors, done.answered) == (12_000, 1, 12_000)
    classify(model, [str(photos)], str(tmp_path / "local"))
    assert rows(tmp_path / "ray").equals(rows(tmp_path / "local"))
    again_done = classify(model, [str(photos)], str(tmp_path / "ray"), engine="local")
    assert again_done.answered == 0


def test_a_disk_that_refuses_an_actor_is_one_line(
    two: tuple[Any, Any], tmp_path: Path, model: Path, photos: Path, small_disk: Callable[..., Path]
) -> None:
    """No traceback of Ray's; what was written is kept."""
    disk = small_disk("240k")
    with pytest.raises(StorageError, match=r"part-\d+\.parquet: cannot write: No space left on device"):
        classify(model, [str(photos)], str(disk / "out"), engine="ray", address=two[0].address)
    assert (disk / "out" / "_manifest.json").exists()


def test_an_actor_that_cannot_see_the_output_folder_says_so(tmp_path: Path, model: Path) -> None:
    """As on a machine that does not share it."""
    from edgeclf.runtime.bulk.places import Place

    request = job.Request(str(model), "0", ("",), Place(str(tmp_path / "elsewhere")))
    answered = on_ray.Actor(request)._part(0, 1)
    assert answered[3] == "StorageError"
    assert "give an --out that every machine sees" in answered[4]


@pytest.mark.slow
def test_a_job_survives_the_loss_of_a_raylet(two: tuple[Any, Any], tmp_path: Path, model: Path, photos: Path) -> None:
    """Killed when some parts are written; the rows are those of an undisturbed run. The last test here: a raylet is gone."""
    made, second = two
    classify(model, [str(photos)], str(tmp_path / "local"))
    out = tmp_path / "ray"
    child = subprocess.Popen(
        [
            sys.executable, "-m", "edgeclf", "classify", str(model), str(photos), "--out", str(out), "--engine", "ray",
            "--address", made.address,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    watch = threading.Timer(DEADLINE_S, child.kill)
    watch.start()
    while child.poll() is None and not list(out.glob("part-*")):
        time.sleep(0.02)
    made.remove_node(second, allow_graceful=False)
    said, complained = child.communicate()
    watch.cancel()
    assert child.returncode == 0, said + complained
    assert rows(out).equals(rows(tmp_path / "local"))
    assert complained == ""


@pytest.mark.slow
def test_a_cluster_that_was_started_here_leaves_nothing_behind(tmp_path: Path) -> None:
    """After Ctrl-C too: no process, no folder."""
    code = (
        "import sys, time\nfrom edgeclf.runtime.cluster import connect\n"
        "with connect(None, cpus=1) as ray:\n    print(ray.get(ray.remote(lambda: 6 * 7).remote()), flush=True)\n"
        "    time.sleep(600)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(short := Path(tempfile.mkdtemp(prefix="e-")))},
    )  # fmt: skip
    watch = threading.Timer(DEADLINE_S, child.kill)
    watch.start()
    assert child.stdout is not None
    assert child.stdout.readline() == "42\n"
    child.send_signal(signal.SIGINT)
    _, said = child.communicate()
    watch.cancel()
    assert said.strip().endswith("KeyboardInterrupt")
    left = subprocess.run(["pgrep", "-f", str(short)], capture_output=True, text=True, check=False).stdout.split()
    assert (left, list(short.iterdir())) == ([], [])
    short.rmdir()
