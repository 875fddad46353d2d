"""TF2's checkpoints and SavedModels, whose variables are named by a graph of objects, answer here as in Keras.

The layouts and logits under tests/parity/fixtures/objects were written by tests/parity/make_objects.py.
"""

from __future__ import annotations

import contextlib
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.checkpoints import CheckpointFile, decide_all, home_of, locate, read_checkpoint
from app.checkpoints.object_graph import read_object_graph
from app.checkpoints.presets import PRESETS
from app.checkpoints.saved_model import with_graph
from app.errors import CheckpointError
from app.networks import build_network, count_classes
from app.settings import Settings
from tests.parity.patterns import FIXTURES, inputs

# A variable with its key and name, an attribute that is no value, and an object without attributes.
GRAPH = bytes.fromhex("0a1d121b0a0e5641524941424c455f56414c55451206636f6e762f6b1a016b0a0512030a01780a00")


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("objects")
    with tarfile.open(FIXTURES / "objects" / "layouts.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("layout", "container"),
    [
        ("training/ckpt-1.index", "TensorFlow checkpoint"),
        ("keras-2", "SavedModel (TensorFlow checkpoint)"),
        ("keras-3", "SavedModel (TensorFlow checkpoint)"),
    ],
)
def test_logits_are_those_of_keras(layouts: Path, layout: str, container: str) -> None:
    """A training's checkpoint with its optimizer and SavedModels of Keras 2 and 3 give Keras's logits within 1e-4."""
    contents = read_checkpoint(layouts / layout)
    assert (contents.container, contents.family) == (container, "Keras ResNet50")
    assert count_classes("resnet50", contents.weights) == 40
    decisions = decide_all(Settings(), contents)
    network = build_network("resnet50", contents.weights, decisions.switches).eval()
    with torch.inference_mode():
        logits = network(torch.from_numpy(inputs().transpose(0, 3, 1, 2).copy())).numpy()
    assert np.abs(logits - np.load(FIXTURES / "objects" / "logits.npy")).max() < 1e-4


def test_saved_model_is_found_by_its_folder(layouts: Path, tmp_path: Path) -> None:
    """A SavedModel is its folder, named or alone in model_weights/, and its .index belongs to that folder."""
    folder = layouts / "keras-2"
    assert locate(str(folder)) == CheckpointFile(folder)
    (tmp_path / "pets").symlink_to(folder)
    assert locate(None, tmp_path) == CheckpointFile(tmp_path / "pets")
    assert home_of(folder / "variables" / "variables.index") == folder


def test_saved_model_without_variables_says_what_is_missing(tmp_path: Path) -> None:
    """A saved_model.pb alone is refused with what belongs beside it."""
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    with pytest.raises(CheckpointError, match=r"a SavedModel without weights\. .*variables/variables\.index"):
        read_checkpoint(tmp_path)


def test_links_out_of_variables_are_refused(layouts: Path, tmp_path: Path) -> None:
    """A SavedModel's variables that are a link to elsewhere are refused."""
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    (tmp_path / "variables").mkdir()
    for name in ("variables.index", "variables.data-00000-of-00001"):
        (tmp_path / "variables" / name).symlink_to(layouts / "keras-2" / "variables" / name)
    for path in (tmp_path, tmp_path / "variables" / "variables.index"):
        with pytest.raises(CheckpointError, match="is a link that leads out of its folder"):
            read_checkpoint(path)


def test_damaged_data_is_refused_in_one_line(layouts: Path, tmp_path: Path) -> None:
    """A data file that was cut short, before its graph of objects, is a damaged checkpoint."""
    for path in (layouts / "keras-2" / "variables").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="is a damaged TensorFlow checkpoint") as caught:
        read_checkpoint(tmp_path / "variables.index")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands beside the variables of SavedModels, by tests/parity/make_keras_variants.py."""
    folder = tmp_path_factory.mktemp("graphs")
    with tarfile.open(FIXTURES / "keras-variants" / "graphs.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


# Names are all that is read of these.
BODY = {"conv2_block1_1_conv/kernel": np.zeros(1, np.float32)}


def test_a_saved_model_of_keras_2_tells_its_layers(graphs: Path) -> None:
    """Head, activation and preprocessing come from keras_metadata.pb, as from a configuration in a file."""
    (graphs / "mlp_2" / "saved_model.pb").touch()
    told = with_graph(BODY, graphs / "mlp_2").told
    assert told.head is not None
    assert told.activation is not None
    assert ([layer.kind for layer in told.head.value], told.activation.value) == (
        ["linear", "relu", "linear"],
        "softmax",
    )
    prepared = with_graph(BODY, graphs / "caffe_2").told.preprocessing
    assert prepared is not None
    assert prepared.value.is_bgr
    assert prepared.value.mean == pytest.approx(PRESETS["keras"].mean)
    assert prepared.value.std == pytest.approx(PRESETS["keras"].std)


def test_the_graph_of_an_export_tells_its_activation_or_what_it_has_more(graphs: Path, tmp_path: Path) -> None:
    """Keras 3's export is refused by the operations that no plain ResNet-50 has; of a plain one the end is read."""
    activation = with_graph(BODY, graphs / "multi_label").told.activation
    assert activation is not None
    assert (activation.value, activation.source) == ("sigmoid", "the SavedModel's graph")
    for name, words in (
        ("caffe", "BiasAdd ×1, StridedSlice ×3, Pack ×1"),
        ("undivided", "4 convolutions with strides"),
    ):
        with pytest.raises(CheckpointError, match=words) as caught:
            with_graph(BODY, graphs / name)
        assert "tf2onnx" in str(caught.value)
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    (warning,) = with_graph(BODY, tmp_path).warnings
    assert "in parts that are not read" in warning


def test_object_graph_tells_names() -> None:
    """Keys become the names of their variables; what is no variable's value is left out."""
    assert read_object_graph(GRAPH) == {"k": "conv/k"}


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GRAPH) - 1), st.binary(max_size=4))
@example(0, b"")
def test_damaged_object_graphs_raise_what_the_reader_expects(position: int, bytes_there: bytes) -> None:
    """A graph with other bytes anywhere gives names, or one of the errors that become a CheckpointError."""
    damaged = GRAPH[:position] + bytes_there + GRAPH[position + 1 :]
    names: dict[str, str] = {}
    with contextlib.suppress(ValueError, IndexError):
        names = read_object_graph(damaged)
    assert len(names) <= 2
