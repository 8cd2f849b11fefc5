"""Training by Ray Train: two workers on shards, one of them killed on the way; and what is refused before Ray starts."""

import json
import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray")

from tiny_runs import flat_weights, tiny_recipe

from edgeclf.core.catalogue import from_arrays
from edgeclf.core.errors import ConfigError, DataError
from edgeclf.core.image import ImageSpec
from edgeclf.core.recipe import override
from edgeclf.host.data.shards.write import shard
from edgeclf.host.run import open_run
from edgeclf.host.train import train_ray
from edgeclf.host.train.fitting import Options
from edgeclf.host.train.train_ray import Scaling

EPOCHS = 6
RECIPE = override(tiny_recipe(), image__colour="rgb", training__epochs=EPOCHS, training__batch_size=8)
DEADLINE_S = 600


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Three colours with noise, 180 pictures in 4 shards."""
    random, folder = np.random.RandomState(0), tmp_path_factory.mktemp("data") / "shards"
    pictures, classes = random.randint(0, 90, (180, 12, 12, 3)), np.arange(180) % 3
    pictures[np.arange(180), :, :, classes] += 120
    source = from_arrays(folder, pictures.astype(np.uint8), classes, ("red", "green", "blue"))
    shard(source, ImageSpec(12, 12), RECIPE.split, str(folder), 4)
    return folder


@pytest.fixture(scope="module")
def ray():
    """A cluster of its own, its workers as eager as this process; the folder is short, for Ray puts sockets there."""
    import ray as found

    folder = tempfile.mkdtemp(prefix="edgeclf-test-")
    start = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False, "_node_ip_address": "127.0.0.1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        found.init(address="local", _temp_dir=folder, **start)
        yield found
        found.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def _train_workers():
    """Process ids of this test's own Ray Train workers."""
    parents = {p.name: (p / "stat").read_text().rpartition(")")[2].split()[1] for p in Path("/proc").iterdir() if _is_process(p)}
    own = {str(os.getpid())}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    return [int(pid) for pid in own if b"RayTrainWorker" in Path("/proc", pid, "cmdline").read_bytes()]


def _is_process(path):
    return path.name.isdecimal() and (path / "stat").exists()


def _kill_one_after_the_first_epoch(folder, killed):
    deadline = time.monotonic() + DEADLINE_S
    while not (folder / "checkpoint.npz").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in _train_workers()[:1]:
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)


def test_a_killed_worker_is_started_again_and_the_training_ends(ray, sharded, tmp_path):
    """All go on from the last checkpoint: each epoch stands in the history once, and all workers hold the same weights."""
    workers, told, killed = Scaling(2), [], []
    work = train_ray.prepared(RECIPE, str(sharded), tmp_path / "run", Options(), workers)
    killer = threading.Thread(target=_kill_one_after_the_first_epoch, args=(work.folder, killed))
    killer.start()
    run = train_ray.train(work, workers, lambda row, epochs: told.append((row["epoch"], epochs)))
    killer.join()
    assert len(killed) == 1
    assert told == [(epoch + 1, EPOCHS) for epoch in range(EPOCHS)]
    assert run.card.accuracy["model"]["test"]["top1"] > 0.9
    assert np.array_equal(flat_weights(run), flat_weights(open_run(tmp_path / "run.worker-1")))
    assert not (tmp_path / "run" / train_ray.SCRATCH).exists()
    assert json.loads((tmp_path / "run" / "started.json").read_text())["options"]["strategy"] == "multi-worker"
    with pytest.raises(ConfigError, match="is finished; nothing to resume"):
        train_ray.interrupted(tmp_path / "run", workers)


def test_more_workers_than_the_cluster_has_room_for(ray, sharded, tmp_path):
    """Ray itself would wait for them."""
    workers = Scaling(4)
    work = train_ray.prepared(RECIPE, str(sharded), tmp_path / "run", Options(), workers)
    with pytest.raises(ConfigError, match="--workers 4: this cluster has room for 2 of them, of 1 CPUs each"):
        train_ray.train(work, workers)


def test_bad_input_is_found_before_ray_starts(sharded, tmp_path):
    """Pictures of another size, a batch that cannot be divided, a folder that is taken or was started in another way."""
    with pytest.raises(DataError, match="are 12x12 stretch rgb, the network takes 32x32"):
        train_ray.prepared(override(RECIPE, image__size=32), str(sharded), tmp_path / "a", Options(), Scaling(2))
    with pytest.raises(ConfigError, match="batch size 8: cannot be divided among 3 workers"):
        train_ray.prepared(RECIPE, str(sharded), tmp_path / "a", Options(), Scaling(3))
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "started.json").write_text('{"data": "x", "fingerprint": "x", "split": {}}')
    with pytest.raises(ConfigError, match="already holds an interrupted run"):
        train_ray.prepared(RECIPE, str(sharded), tmp_path / "b", Options(), Scaling(2))
    with pytest.raises(ConfigError, match="was started on one machine; go on without --engine ray"):
        train_ray.interrupted(tmp_path / "b", Scaling(2))


def test_options_about_ray_need_the_engine(cli_here, sharded, tmp_path):
    """An option without effect is an error."""
    answer = cli_here("train", "compact", sharded, "--workers", "2", cwd=tmp_path)
    assert (answer.code, "--workers 2: is about Ray; give --engine ray too" in answer.stderr) == (2, True)
    answer = cli_here("train", "compact", sharded, "--engine", "ray", "--strategy", "mirrored", cwd=tmp_path)
    assert (answer.code, "--strategy mirrored: is about one machine" in answer.stderr) == (2, True)
