"""ONNX files: examined in a process of their own, then served as they are by ONNX Runtime."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from app.backends import BackendOptions, create_backend
from app.checkpoints import Checkpoint, CheckpointFile, Contents, locate, read_checkpoint
from app.checkpoints.onnx_data import is_onnx
from app.errors import CheckpointError, SettingError
from app.settings import Settings
from app.types import Want
from tests.examined import examine
from tests.onnx_graphs import CHANNELS, CLASSES, SIDE, Maker

PIXELS = np.random.default_rng(1).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def write(folder: Path, maker: Maker | bytes) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(maker if isinstance(maker, bytes) else maker.build())
    return path


def checkpoint_of(path: Path, **settings: Any) -> Checkpoint:
    return examine(Settings(**settings), path).checkpoint


def planes(pixels: np.ndarray, mean: np.ndarray = MEAN, std: np.ndarray = STD) -> np.ndarray:
    """(N, 3, H, W), normalised in float64."""
    return ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)


@pytest.mark.parametrize(
    "maker",
    [
        Maker(),
        Maker(layout="nhwc"),
        Maker(batch=1),
        Maker(batch=2, layout="nhwc"),
        Maker(batch=4, reshape=(4, 8)),
        Maker(batch=1, reshape=(1, -1)),
        Maker(dtype=TensorProto.FLOAT16),
        Maker(last="Softmax"),
        Maker(last="LogSoftmax"),
    ],
    ids=repr,
)
def test_any_layout_and_batch_gives_the_networks_scores(tmp_path: Path, maker: Maker) -> None:
    """Whatever its layout, numbers and batch axis, a graph answers any number of images as torch does, within 1e-4."""
    checkpoint = checkpoint_of(write(tmp_path, maker))
    assert checkpoint.graph is not None
    assert checkpoint.graph.batch_size is None
    assert checkpoint.class_count == CLASSES
    backend = create_backend("auto", checkpoint, BackendOptions(threads=1))
    assert backend.name == "onnx"
    expected = maker.logits(planes(PIXELS))
    if maker.last:
        expected = torch.from_numpy(expected).softmax(1).numpy()
    tolerance = 1e-4 if maker.dtype == TensorProto.FLOAT else 5e-3
    for count in (1, 3, 5):
        outputs = backend.infer(PIXELS[:count], Want.SCORES)
        assert outputs.activation == ("none" if maker.last == "Softmax" else "softmax")
        scores = np.exp(outputs.scores) if maker.last == "LogSoftmax" else outputs.scores
        assert scores.dtype == np.float32
        assert np.abs(scores - expected[:count]).max() < tolerance
    backend.close()


def test_graph_that_takes_one_batch_size_is_padded(tmp_path: Path) -> None:
    """A batch axis that cannot be freed is kept: smaller batches are padded, larger ones not formed, and it is said."""
    maker = Maker(batch=4, reshape=(2, 2, 8))
    model = maker.model()
    model.graph.initializer.append(numpy_helper.from_array(np.array([4, 8], np.int64), "back"))
    model.graph.node[3].output[0] = "twos"
    model.graph.node.insert(4, helper.make_node("Reshape", ["twos", "back"], ["flat"]))
    path = write(tmp_path, bytes(model.SerializeToString()))
    contents = read_checkpoint(path)
    assert contents.graph is not None
    assert contents.graph.batch_size == 4
    assert any("answers 4 images at a time" in line for line in contents.notes)
    backend = create_backend("onnx", checkpoint_of(path), BackendOptions(threads=1))
    assert backend.max_batch_size == 4
    assert "batches of 4" in backend.device
    for count in (1, 3, 4):
        scores = backend.infer(PIXELS[:count], Want.SCORES).scores
        assert scores.shape == (count, CLASSES)
        assert np.abs(scores - maker.logits(planes(PIXELS[:count]))).max() < 1e-4


@pytest.mark.parametrize(
    ("maker", "scale", "mean", "std"),
    [
        (Maker(scale=1.0), "unit", 0.0, 1.0),
        (Maker(scale=255.0, layout="nhwc"), "levels", 0.0, 1 / 255),
        (Maker(scale=255.0, dtype=TensorProto.UINT8), "levels", 0.0, 1 / 255),
    ],
    ids=repr,
)
def test_graph_that_normalises_is_not_normalised_again(
    tmp_path: Path, maker: Maker, scale: str, mean: float, std: float
) -> None:
    """A mean and a deviation in front of a graph are its normalisation: it is given fractions or levels."""
    checkpoint = checkpoint_of(write(tmp_path, maker))
    assert checkpoint.graph is not None
    assert checkpoint.graph.scale == scale
    assert checkpoint.preprocessing.mean == (mean,) * 3
    assert checkpoint.preprocessing.std == (std,) * 3
    backend = create_backend("auto", checkpoint, BackendOptions(threads=1))
    expected = maker.logits(planes(PIXELS, np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.3])))
    assert np.abs(backend.infer(PIXELS, Want.SCORES).scores - expected).max() < 1e-4


def test_blue_first_is_given_blue_first(tmp_path: Path) -> None:
    """A preset with blue first swaps the channels, with the means in the network's order."""
    maker = Maker(side="side")
    backend = create_backend(
        "auto", checkpoint_of(write(tmp_path, maker), preprocessing="keras"), BackendOptions(threads=1)
    )
    pixels = np.random.default_rng(2).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    means = np.array([103.939, 116.779, 123.68])
    expected = maker.logits((pixels[..., ::-1] - means).transpose(0, 3, 1, 2))
    scores = backend.infer(pixels, Want.SCORES).scores
    assert np.abs(scores - expected).max() < 1e-4 * np.abs(expected).max()


def test_preprocessing_is_assumed_at_the_graphs_size(tmp_path: Path) -> None:
    """Nothing in a graph tells its preprocessing: torchvision's is assumed, at the graph's size, and warned of."""
    examined = examine(Settings(), write(tmp_path, Maker()))
    preprocessing = examined.decisions.preprocessing
    assert preprocessing.is_assumed
    assert preprocessing.value.crop == (SIDE, SIDE)
    assert preprocessing.value.resize_short_side == 36
    (warning,) = examined.warnings
    assert "assuming torchvision's usual way" in warning
    assert "\n" not in warning
    assert examined.decisions.architecture.value == "onnx"
    assert examined.labels.value == tuple(str(index) for index in range(CLASSES))


def test_files_beside_a_graph_are_asked(tmp_path: Path) -> None:
    """A preprocessor_config.json and id2label beside an ONNX file are its preprocessing and labels."""
    path = write(tmp_path, Maker(side="side"))
    labels = ", ".join(f'"{index}": "kind {index}"' for index in range(CLASSES))
    (tmp_path / "config.json").write_text(f'{{"model_type": "resnet", "id2label": {{{labels}}}}}', encoding="utf-8")
    (tmp_path / "preprocessor_config.json").write_text('{"size": 224, "resample": 2}', encoding="utf-8")
    assert locate(None, tmp_path) == CheckpointFile(path)
    examined = examine(Settings(), path)
    assert examined.labels.value[0] == "kind 0"
    assert examined.decisions.preprocessing.source == "preprocessor_config.json"
    assert examined.warnings == ()


@pytest.mark.parametrize(
    ("settings", "options", "backend", "part"),
    [
        ({}, {}, "torch", "RESNET_BACKEND is torch, but"),
        ({}, {"device": "cuda"}, "onnx", "RESNET_DEVICE is cuda"),
        ({}, {"precision": "float16"}, "onnx", "RESNET_PRECISION is float16"),
        ({"preprocessing": "timm"}, {}, "onnx", "takes 32×32"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, settings: dict[str, str], options: dict[str, str], backend: str, part: str
) -> None:
    """A backend, device, precision or preprocessing that the graph cannot have is refused in one line."""
    checkpoint = checkpoint_of(write(tmp_path, Maker()), **settings)
    with pytest.raises(SettingError) as caught:
        create_backend(backend, checkpoint, BackendOptions(**options))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_checkpoints_are_not_served_by_onnx(tmp_path: Path) -> None:
    """RESNET_BACKEND=onnx with weights and no graph is refused in one line."""
    from app.backends import null_checkpoint

    with pytest.raises(SettingError, match="RESNET_BACKEND is onnx, which serves ONNX files"):
        create_backend("onnx", null_checkpoint(), BackendOptions())


def _domain(model: Any) -> None:
    model.graph.node[0].domain = "example.org"
    model.opset_import.append(helper.make_opsetid("example.org", 1))


def _argmax(model: Any) -> None:
    model.graph.node[-1].op_type = "ArgMax"


def _loop(model: Any) -> None:
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["never"], body=model.graph))


def _two_inputs(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))


def _huge_pad(model: Any) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("pads", [100_000] * 4))


def _claim(model: Any) -> None:
    model.graph.initializer[1].dims[:] = [1 << 20, 1 << 20]


def _nan(model: Any) -> None:
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.full(CLASSES, np.nan, np.float32), "bias"))


def _text_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING


def _grey(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1


def _maps(model: Any) -> None:
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("lit", TensorProto.FLOAT, ["n", CHANNELS, 15, 15]))


def _unknown_input(model: Any) -> None:
    model.graph.node[0].input[0] = "nowhere"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_domain, "uses Conv of the domain example.org"),
        (_argmax, "uses ArgMax, which is not run here"),
        (_loop, "holds a graph, a type or a sparse tensor"),
        (_two_inputs, "2 inputs where one image was expected"),
        (_huge_pad, "MB at a time for the input that it was exported for"),
        (_claim, "claims shape [1048576, 1048576]"),
        (_nan, "bias has values that are not finite"),
        (_text_input, "neither float32, float16 nor uint8"),
        (_grey, "where (N, 3, H, W) or (N, H, W, 3) was expected"),
        (_maps, "not with scores for classes"),
        (_unknown_input, "is a damaged ONNX file"),
    ],
)
def test_graphs_that_are_not_run_are_refused(tmp_path: Path, change: Any, part: str) -> None:
    """What reaches out of the file, runs without bound or is no classifier is refused in one line that names it."""
    model = Maker().model()
    change(model)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(write(tmp_path, bytes(model.SerializeToString())))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_answers_that_depend_on_the_batch_are_refused(tmp_path: Path) -> None:
    """A graph whose answer for an image depends on its neighbours is not served."""
    with pytest.raises(CheckpointError, match="depends on the images beside it"):
        read_checkpoint(write(tmp_path, Maker(batch=2, mixes=True)))


def test_crash_of_the_examiner_is_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the process that examines dies, the service does not: the file is refused in one line."""
    monkeypatch.setattr("app.checkpoints.onnx_file._ask", lambda *asked: b"")
    with pytest.raises(CheckpointError, match="ONNX Runtime crashed on it") as caught:
        read_checkpoint(write(tmp_path, Maker()))
    assert "\n" not in str(caught.value)


def test_damaged_files_are_refused_or_served(tmp_path: Path) -> None:
    """Files cut short or with other bytes in them are refused in one line, or are graphs as good as any."""
    whole = Maker().build()
    choose = random.Random(0)
    damaged = [whole[:size] for size in (3, 40, len(whole) // 2, len(whole) - 1)]
    for _ in range(8):
        data = bytearray(whole)
        data[choose.randrange(3, 400)] = choose.randrange(256)
        damaged.append(bytes(data))
    refusals = 0
    for data in damaged:
        found: Contents | None = None
        message = ""
        try:
            found = read_checkpoint(write(tmp_path, data))
        except CheckpointError as error:
            message = str(error)
            refusals += 1
        assert (found is not None and found.graph is not None) or "ONNX" in message or "cannot be served" in message
        assert "\n" not in message
    assert refusals >= 4


def test_onnx_is_told_from_its_likes() -> None:
    """A SavedModel's protobuf, a zip, JSON and nothing are not ONNX."""
    assert is_onnx(Maker().build()[:64], b"")
    for head in (b"\x08\x01\x12\xf0", b"PK\x03\x04", b'{"a": 1}', b"", b"\x08"):
        assert not is_onnx(head, b"")
