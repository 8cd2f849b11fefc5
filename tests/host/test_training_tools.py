"""What there is around training: schedules, averages, early stopping, balance, precision, attacks, batch search, workers."""

import errno
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from tiny_runs import flat_weights, tiny_recipe

from edgeclf.core.errors import ConfigError, EdgeclfError, StorageError
from edgeclf.core.recipe import AdversarialSection, TrainingSection
from edgeclf.host import architectures
from edgeclf.host.data.batches import class_weights, training_batches
from edgeclf.host.data.dataset import make_dataset, open_catalogue
from edgeclf.host.keras import tensorflow
from edgeclf.host.train import adversarial, batch_search, checkpoint, distribute, muon, objective, precision
from edgeclf.host.train import train as stage
from edgeclf.host.train.fitting import Options

SPLIT = {"seed": 1, "val": 0.1, "val_pictures": 2000, "test": 0.15}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Reddish against bluish noise, 12x12, three reds for each blue."""
    random = np.random.RandomState(0)
    x = random.randint(0, 200, (160, 12, 12, 3)).astype(np.uint8)
    y = (np.arange(160) % 4 == 0).astype(int)
    x[y == 0, :, :, 0] += 40
    x[y == 1, :, :, 2] += 40
    path = tmp_path_factory.mktemp("data") / "colours.npz"
    np.savez(path, x=x, y=y, labels=np.array(["red", "blue"]))
    return path


def _train(data, folder, **changes):
    return stage.train(stage.start(tiny_recipe(**changes), str(data), folder))


def _history(folder):
    lines = (folder / "history.csv").read_text().splitlines()
    return [dict(zip(lines[0].split(","), map(float, line.split(",")), strict=True)) for line in lines[1:]]


TOOLS = {
    "averaged, clipped, plateau, early stopping": {
        "training__ema": 0.9, "training__clip_norm": 0.5, "training__schedule": "plateau", "training__plateau_patience": 1,
        "training__early_stopping": 3, "training__optimizer": "rmsprop", "training__learning_rate": 0.001,
    },
    "mixed pictures, half precision, step": {
        "augmentation__mixup": 0.4, "augmentation__cutmix": 1.0, "training__label_smoothing": 0.1,
        "training__precision": "bfloat16", "training__schedule": "step", "training__step_at": [0.5],
    },
    "weighted, focal, attacked": {
        "training__class_balance": "weights", "training__focal_gamma": 2.0, "training__schedule": "constant",
        "adversarial__epsilon": 4.0, "adversarial__steps": 1,
    },
    "sampled, orthogonal momentum, dropout": {
        "training__class_balance": "sampling", "training__optimizer": "muon",
        "model__options": {"widths": [4, 8], "dropout": 0.3},
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", TOOLS.values(), ids=TOOLS)
def test_every_tool_trains_and_resumes_to_the_same_weights(data, tmp_path, changes):
    """Interrupted after two epochs and resumed: bit for bit what the undisturbed training gives."""

    def stop(row, epochs):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    whole = _train(data, tmp_path / "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        stage.train(stage.start(tiny_recipe(**changes), str(data), tmp_path / "run"), stop)
    resumed = stage.train(stage.resume(tmp_path / "run"))
    np.testing.assert_array_equal(flat_weights(resumed), flat_weights(whole))
    assert resumed.card.accuracy == whole.card.accuracy
    assert all(np.isfinite(list(row.values())).all() for row in _history(whole.folder))


def test_early_stopping_keeps_the_best_weights(data, tmp_path, monkeypatch):
    """The run's validation accuracy is the highest of the history, and epochs after the patience are not trained."""
    run = _train(data, tmp_path / "run", training__early_stopping=2, training__epochs=12, training__learning_rate=0.3)
    accuracies = [row["val_accuracy"] for row in _history(run.folder)]
    assert run.card.accuracy["model"]["val"]["top1"] == pytest.approx(max(accuracies))
    assert len(accuracies) == min(12, accuracies.index(max(accuracies)) + 3)


def test_validation_sees_the_averaged_weights_and_training_goes_on_with_its_own(data, tmp_path):
    """With an average that hardly moves, validation stays at chance while the training loss falls."""
    run = _train(data, tmp_path / "run", training__ema=0.9999, training__epochs=3)
    plain = _train(data, tmp_path / "plain", training__epochs=3)
    averaged, own = _history(run.folder), _history(plain.folder)
    assert [row["loss"] for row in averaged] == [row["loss"] for row in own]
    assert averaged[-1]["val_loss"] != own[-1]["val_loss"]
    assert np.abs(flat_weights(run) - flat_weights(plain)).max() > 1e-3


@pytest.mark.parametrize("shape", [(3, 3, 16, 32), (20, 50), (50, 20)])
def test_muon_makes_every_matrix_nearly_orthogonal(shape):
    """Singular values about one, but for the factor of wide matrices."""
    random = np.random.RandomState(0).randn(*shape).astype(np.float32)
    made = muon.orthogonal(tensorflow().constant(random)).numpy().reshape(-1, shape[-1])
    values = np.linalg.svd(made)[1] / max(1, made.shape[1] / made.shape[0]) ** 0.5
    assert 0.6 < values.min() <= values.max() < 1.3


def test_muon_treats_vectors_and_the_last_layer_plainly():
    """Only hidden kernels are matrices to it."""
    model = architectures.build(tiny_recipe(), 2)
    matrices = {v.name for v in model.trainable_variables if muon.is_hidden_matrix(v)}
    assert matrices == {v.name for v in model.trainable_variables if "kernel" in v.name and "logits" not in v.name}


def test_plateau_factor_falls_after_every_patience_without_a_new_low():
    """Four epochs without one at a patience of two: twice a tenth."""
    section = TrainingSection(schedule="plateau", plateau_patience=2, step_factor=0.1)
    assert objective.plateau_factor([3, 2, 1], section) == 1
    assert objective.plateau_factor([1, 2, 3], section) == pytest.approx(0.1)
    assert objective.plateau_factor([1, 2, 3, 4, 5], section) == pytest.approx(0.01)
    assert objective.plateau_factor([1, 2, 3, 0.5, 0.6], section) == pytest.approx(0.1)


def test_step_schedule_multiplies_at_each_share_of_the_epochs():
    """Warm-up apart: 1, a tenth, a hundredth."""
    section = TrainingSection(epochs=10, schedule="step", step_at=(0.5, 0.8), learning_rate=1.0, warmup_epochs=0)
    rate = objective.schedule(section, steps=10)
    assert [float(rate(step)) for step in (0, 49, 50, 79, 80)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_loss_is_the_same_for_classes_and_for_one_hot_targets():
    """Smoothing and focusing included; and focal loss is cross-entropy times (1 - p)^gamma."""
    tf = tensorflow()
    logits = tf.constant([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]])
    for section in (TrainingSection(), TrainingSection(label_smoothing=0.2), TrainingSection(focal_gamma=2.0)):
        loss = objective.loss(section, 3)
        np.testing.assert_allclose(loss(tf.constant([0, 1]), logits), loss(tf.one_hot([0, 1], 3), logits), rtol=1e-6)
    p = tf.nn.softmax(logits).numpy()[[0, 1], [0, 1]]
    focal = objective.loss(TrainingSection(focal_gamma=2.0), 3)(tf.constant([0, 1]), logits)
    np.testing.assert_allclose(focal, -((1 - p) ** 2) * np.log(p), rtol=1e-5)


def test_uneven_classes_are_weighed_or_drawn_evenly(data):
    """Weights average one over the pictures; balanced sampling gives every class its share of an epoch."""
    recipe = tiny_recipe(training__class_balance="sampling", training__batch_size=8)
    dataset = make_dataset(open_catalogue(str(data)), recipe, SPLIT)
    truth, weights = dataset.classes_of("train"), class_weights(dataset)
    assert weights[1] > 2.5 * weights[0]
    assert weights[truth].mean() == pytest.approx(1)
    batches = training_batches(dataset, recipe).take(len(truth) // 8)
    drawn = np.concatenate([classes.numpy() for _, classes in batches])
    assert abs(np.bincount(drawn)[0] - np.bincount(drawn)[1]) <= 8


def test_attack_stays_within_epsilon_and_raises_the_loss(data):
    """Projected into the cube and into the range of pixels."""
    tf, section = tensorflow(), AdversarialSection(epsilon=8, step=2, steps=4)
    model = architectures.build(tiny_recipe(), 2)
    pictures = tf.random.stateless_uniform([6, 12, 12, 3], [0, 1], -1, 127 / 128)
    truth = tf.constant([0, 1, 0, 1, 0, 1])
    changed = adversarial.attack(model, pictures, truth, section, tf.constant([1, 2]))
    assert float(tf.reduce_max(tf.abs(changed - pictures))) <= 8 / 128 + 1e-6
    assert float(tf.reduce_max(changed)) <= 127 / 128
    before, after = (float(tf.reduce_mean(adversarial._cross_entropy(truth, model(x)))) for x in (pictures, changed))
    assert after > before


def test_robust_accuracy_is_measured_and_kept_in_the_card(data, tmp_path):
    """Attacked pictures are never easier, and the attack is written beside the figure."""
    run = _train(data, tmp_path / "run", adversarial__epsilon=16.0, adversarial__steps=3, training__epochs=2)
    accuracy = run.card.accuracy["model"]
    assert accuracy["test_attacked"]["epsilon"] == 16
    assert accuracy["test_attacked"]["top1"] <= accuracy["test"]["top1"]


def test_evaluate_attacks_a_run_when_asked(data, tmp_path, cli_here):
    """The same figures of attacked pictures; a file has no gradient to follow."""
    run = _train(data, tmp_path / "run", training__epochs=2)
    plain, attacked = (
        json.loads(cli_here("evaluate", run.folder, "--json", *more).stdout)
        for more in ((), ("--adversarial", "--epsilon", "24"))
    )
    assert attacked["accuracy"]["top1"] < plain["accuracy"]["top1"]
    assert "epsilon 24 of 255" in attacked["pictures"]
    answer = cli_here("evaluate", run.folder / "model.keras", data, "--adversarial")
    assert (answer.code, "give the run folder" in answer.stderr) == (2, True)


def test_batch_size_zero_is_found_and_written_down(data, tmp_path):
    """The recipe of the run holds the number, so resuming needs no second search."""
    job = stage.start(tiny_recipe(training__batch_size=0), str(data), tmp_path / "run")
    assert job.recipe.training.batch_size in batch_search.SIZES
    assert stage.resume(tmp_path / "run").recipe == job.recipe


def test_batch_size_is_the_smallest_that_no_larger_one_clearly_beats():
    """Ten percent more speed is worth a larger batch, less is not."""
    assert batch_search.chosen({16: 100, 32: 150, 64: 160, 128: 155}) == 32
    assert batch_search.chosen({16: 100, 32: 80}) == 16
    assert batch_search.chosen({16: 100, 32: 105, 64: 120}) == 64


def test_loss_that_is_no_number_names_the_batch(data, tmp_path):
    """And the history holds the epochs before."""
    with pytest.raises(EdgeclfError, match=r"in batch \d+ of epoch \d+"):
        _train(data, tmp_path / "run", training__learning_rate=1e30)


def test_full_disk_during_a_checkpoint_keeps_the_one_before(data, tmp_path, monkeypatch):
    """StorageError names the file; the epoch before can be resumed."""
    calls, save = [], np.savez

    def full(file, **arrays):
        calls.append(file)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file, **arrays)

    monkeypatch.setattr(checkpoint.np, "savez", full)
    with pytest.raises(StorageError, match=r"checkpoint\.npz: cannot write: No space"):
        _train(data, tmp_path / "run")
    assert len(stage.train(stage.resume(tmp_path / "run")).card.provenance["versions"]) > 1
    assert len(_history(tmp_path / "run")) == 4


def test_precision_auto_is_settled_when_a_training_starts(data, tmp_path, monkeypatch):
    """The recipe of the run says which, so resuming elsewhere goes on in the same."""
    monkeypatch.setattr(precision, "fastest", lambda: "bfloat16")
    job = stage.start(tiny_recipe(training__precision="auto"), str(data), tmp_path / "run")
    assert job.recipe.training.precision == "bfloat16"


@pytest.mark.parametrize(("flags", "found"), [("sse avx512_bf16", "bfloat16"), ("sse avx2", "float32"), ("", "float32")])
def test_a_cpu_computes_in_half_precision_only_where_it_has_units_for_it(tmp_path, monkeypatch, flags, found):
    """Others imitate it, at a fraction of the speed."""
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    read = precision._cpu_flags
    monkeypatch.setattr(precision, "_cpu_flags", lambda: read(tmp_path / "cpuinfo"))
    monkeypatch.setattr(tensorflow().config, "list_physical_devices", lambda kind: [])
    assert precision.fastest() == found


def test_float16_needs_a_gpu(data, tmp_path):
    """One line that names what a CPU can do."""
    if tensorflow().config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="bfloat16"):
        _train(data, tmp_path / "run", training__precision="float16")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "needs TF_CONFIG"),
        ("{", "JSONDecodeError"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 3}}', "no worker 3"),
    ],
)
def test_bad_tf_config_is_one_line(monkeypatch, config, says):
    """The form of a good one stands in the message."""
    if config is None:
        monkeypatch.delenv("TF_CONFIG", raising=False)
    else:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(ConfigError, match=says):
        distribute.worker("multi-worker")


def test_workers_are_counted_with_a_chief(monkeypatch):
    """A chief is worker 0, and workers come after it."""
    cluster = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 1}}))
    assert distribute.worker("multi-worker") == distribute.Worker(2, 3)


def _ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return found


CHILD = """
import sys
from edgeclf.host.keras import tensorflow
tf = tensorflow()
if sys.argv[1] == "mirrored":
    cpu, half = tf.config.list_physical_devices("CPU")[0], tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpu, [half, half])
sys.argv = ["edgeclf", *sys.argv[2:]]
from edgeclf.cli.main import main
main()
"""


def _child(strategy, data, folder, **environment):
    recipe = folder.parent / "recipe.toml"
    from edgeclf.core import config

    recipe.write_text(config.to_toml(tiny_recipe(training__epochs=2)))
    words = ["train", str(recipe), str(data), "--out", str(folder), "--strategy", strategy]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, strategy, *words], env={**os.environ, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_logical_cpus_train_as_one(data, tmp_path):
    """`--strategy mirrored` divides each batch and ends close to what one device reaches."""
    child = _child("mirrored", data, tmp_path / "run")
    err = child.communicate(timeout=300)[1]
    assert child.returncode == 0, err
    alone = _train(data, tmp_path / "alone", training__epochs=2)
    assert _history(tmp_path / "run")[0]["loss"] == pytest.approx(_history(alone.folder)[0]["loss"], rel=0.25)
    assert len(_history(tmp_path / "run")) == 2


def test_two_processes_train_over_loopback_and_agree(data, tmp_path):
    """With a real TF_CONFIG: the chief writes the run, the other beside it, and both hold the same weights."""
    from edgeclf.host.run import open_run

    cluster = {"worker": [f"127.0.0.1:{port}" for port in _ports(2)]}
    children = [
        _child(
            "multi-worker", data, tmp_path / "run",
            TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}}),
        )
        for i in range(2)
    ]  # fmt: skip
    ends = [child.communicate(timeout=300) for child in children]
    assert [child.returncode for child in children] == [0, 0], ends
    chief, other = open_run(tmp_path / "run"), open_run(tmp_path / "run.worker-1")
    np.testing.assert_array_equal(flat_weights(chief), flat_weights(other))


def test_options_are_kept_for_resuming(data, tmp_path):
    """What is not in the recipe stands in started.json."""
    options = Options(deterministic=False, weights="")
    job = stage.start(tiny_recipe(), str(data), tmp_path / "run", options=options)
    assert stage.resume(tmp_path / "run").options == job.options == options


def test_a_password_on_the_command_line_is_not_kept(data, tmp_path, monkeypatch):
    """The command goes into started.json and the card; secrets in addresses do not."""
    monkeypatch.setattr(sys, "argv", ["edgeclf", "train", "--mlflow", "https://ann:secret@tracking.test/"])
    stage.start(tiny_recipe(), str(data), tmp_path / "run")
    assert "secret" not in (tmp_path / "run" / "started.json").read_text()
    assert "tracking.test" in (tmp_path / "run" / "started.json").read_text()
