"""ONNX Runtime behind the same seam, on a graph that is small enough to compute by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeclf
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


def test_inspect_shows_the_card_of_an_onnx_file(tmp_path: Path, cli_here: Any) -> None:
    """It lies in the metadata, which only the open model shows; no checksum of it is compared, and none is claimed."""
    card = ModelCard("x", ("r", "g", "b"), ImageSpec(4, 4, mean=0.0, std=255.0), outputs="logits")
    found = json.loads(cli_here("inspect", write(tmp_path / "x.onnx", [1, 4, 4, 3], card=card), "--json").stdout)
    assert (found["runs_here"], found["labels"], found["card"]["name"]) == (True, ["r", "g", "b"], "x")
    assert "sha256" not in found
