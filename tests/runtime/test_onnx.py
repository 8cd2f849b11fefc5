"""ONNX Runtime behind the same seam, on a graph that is small enough to compute by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeclf
from edgeclf.core.bundle import attach_onnx
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, ModelError
from edgeclf.core.image import ImageSpec

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

# The three outputs are the mean of each channel, as the network sees it.
BLUE = np.zeros((6, 6, 3), np.uint8)
BLUE[..., 0] = 255


def write(path: Path, shape: list[int], softmax: bool = False, card: ModelCard | None = None, inputs: int = 1) -> Path:
    """A classifier that averages each channel: float input of `shape`, channels first or last."""
    helper, kinds = onnx.helper, onnx.TensorProto
    axes = [2, 3] if shape[1] == 3 else [1, 2]
    nodes = [helper.make_node("ReduceMean", ["x0"], ["means"], axes=axes, keepdims=0)]
    nodes.append(helper.make_node("Softmax" if softmax else "Identity", ["means"], ["scores"]))
    given = [helper.make_tensor_value_info(f"x{i}", kinds.FLOAT, shape) for i in range(inputs)]
    graph = helper.make_graph(nodes, "g", given, [helper.make_tensor_value_info("scores", kinds.FLOAT, [1, 3])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if card is not None:
        helper.set_model_props(model, {"edgeclf.json": card.to_json()})
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("shape", [[1, 4, 4, 3], [1, 3, 4, 4]])
def test_channels_first_and_last_give_the_same(shape: list[int], tmp_path: Path) -> None:
    """RGB order, (pixel - mean) / std."""
    classifier = edgeclf.load(write(tmp_path / "x.onnx", shape), labels=("red", "green", "blue"), normalize=(127.5, 127.5))
    assert np.allclose(classifier.logits(BLUE), [-1, -1, 1])
    assert classifier.classify(BLUE)[0].label == "blue"
    assert classifier.engine.runtime.startswith("onnxruntime ")
    assert (classifier.another(1).logits(BLUE) == classifier.logits(BLUE)).all()


def test_a_softmax_at_the_end_is_not_applied_twice(tmp_path: Path) -> None:
    """The probabilities are those of the file."""
    plain = edgeclf.load(write(tmp_path / "a.onnx", [1, 4, 4, 3]), normalize=(0.0, 255.0))
    soft = edgeclf.load(write(tmp_path / "b.onnx", [1, 4, 4, 3], softmax=True), normalize=(0.0, 255.0))
    assert np.allclose(plain.probabilities(BLUE), soft.probabilities(BLUE), atol=1e-6)


def test_a_card_in_the_metadata_is_followed(tmp_path: Path) -> None:
    """And not overridden."""
    card = ModelCard("x", ("r", "g", "b"), ImageSpec(4, 4, mean=0.0, std=255.0), outputs="logits")
    path = write(tmp_path / "x.onnx", [1, 4, 4, 3], card=card)
    classifier = edgeclf.load(path)
    assert (classifier.card, classifier.own) == (card, True)
    with pytest.raises(ConfigError, match="leave out --labels"):
        edgeclf.load(path, labels=("x", "y", "z"))


def test_logits_are_what_stands_before_the_softmax(tmp_path: Path) -> None:
    """To the bit, and not the logarithm of rounded probabilities; inputs that saturate a softmax keep their distance."""
    card = ModelCard("x", ("r", "g", "b"), ImageSpec(4, 4, mean=0.0, std=1.0))
    soft = edgeclf.load(write(tmp_path / "x.onnx", [1, 4, 4, 3], softmax=True, card=card))
    assert soft.logits(BLUE).tolist() == [0.0, 0.0, 255.0]


def test_an_altered_file_and_one_of_another_size_than_its_card_are_refused(tmp_path: Path) -> None:
    """As a TFLite file: before any runtime sees it, or when its input shows."""
    model = write(tmp_path / "x.onnx", [1, 4, 4, 3], softmax=True).read_bytes()
    data = attach_onnx(model, ModelCard("x", ("r", "g", "b"), ImageSpec(4, 4)))
    (tmp_path / "a.onnx").write_bytes(data.replace(b"means", b"moans"))
    with pytest.raises(ModelError, match=r"a\.onnx: the model was altered after its export"):
        edgeclf.load(tmp_path / "a.onnx")
    (tmp_path / "b.onnx").write_bytes(attach_onnx(model, ModelCard("x", ("r", "g", "b"), ImageSpec(8, 8))))
    with pytest.raises(ModelError, match=r"its input is \(4, 4, 3\), its model card says \(8, 8, 3\)"):
        edgeclf.load(tmp_path / "b.onnx")


def test_an_operator_set_that_the_runtime_does_not_know_is_refused_in_one_line(tmp_path: Path) -> None:
    """Its own words say up to which it goes."""
    tree = onnx.load_model(write(tmp_path / "x.onnx", [1, 4, 4, 3], softmax=True))
    tree.opset_import[0].version = 99
    (tmp_path / "x.onnx").write_bytes(tree.SerializeToString())
    with pytest.raises(ModelError, match=r"x\.onnx: .*99") as refused:
        edgeclf.load(tmp_path / "x.onnx", normalize=(0.0, 1.0))
    assert "\n" not in str(refused.value)


def test_what_cannot_be_used_is_explained(tmp_path: Path) -> None:
    """Missing normalisation, two inputs, another rank, no ONNX at all."""
    with pytest.raises(ModelError, match="--normalize MEAN,STD"):
        edgeclf.load(write(tmp_path / "a.onnx", [1, 4, 4, 3]))
    with pytest.raises(ModelError, match="takes 2 inputs"):
        edgeclf.load(write(tmp_path / "b.onnx", [1, 4, 4, 3], inputs=2), normalize=(0.0, 1.0))
    with pytest.raises(ModelError, match="2 labels for 3 outputs"):
        edgeclf.load(write(tmp_path / "c.onnx", [1, 4, 4, 3]), labels=("a", "b"), normalize=(0.0, 1.0))
    (tmp_path / "d.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"d\.onnx: "):
        edgeclf.load(tmp_path / "d.onnx")


def test_inspect_shows_the_card_and_the_graph_of_an_onnx_file(tmp_path: Path, cli_here: Any) -> None:
    """A checksum is claimed where the card has one, and only there."""
    card = ModelCard("x", ("r", "g", "b"), ImageSpec(4, 4, mean=0.0, std=255.0), outputs="logits")
    path = write(tmp_path / "x.onnx", [1, 4, 4, 3], card=card)
    found = json.loads(cli_here("inspect", path, "--json").stdout)
    assert (found["runs_here"], found["labels"], found["card"]["name"]) == (True, ["r", "g", "b"], "x")
    assert (found["opset"], found["input"]["shape"], found["operators"]["ReduceMean"]) == (13, [1, 4, 4, 3], 1)
    assert "sha256" not in found
    path.write_bytes(attach_onnx(path.read_bytes(), card))
    assert json.loads(cli_here("inspect", path, "--json").stdout)["sha256"] == "matches the card"


def test_a_device_reads_the_card_without_the_package_onnx(tmp_path: Path) -> None:
    """In a fresh interpreter that has ONNX Runtime and cannot import onnx."""
    path = write(tmp_path / "x.onnx", [1, 4, 4, 3], softmax=True)
    path.write_bytes(attach_onnx(path.read_bytes(), ModelCard("x", ("r", "g", "b"), ImageSpec(4, 4))))
    code = "import sys; sys.modules['onnx'] = None; import edgeclf; print(edgeclf.load(sys.argv[1]).labels)"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "('r', 'g', 'b')", done.stderr
