"""Features, feature maps and tensors as inputs: what the backends compute beside scores for pixels, and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from app.artifacts.build import build
from app.backends import BackendOptions, create_backend, null_checkpoint, onnx_forms
from app.backends.null import NullBackend
from app.backends.onnx import OnnxBackend
from app.backends.torch import DevicePlan, TorchBackend
from app.checkpoints import Checkpoint, Graph
from app.errors import FeaturesNotAvailable, TensorsNotAvailable
from app.images import decode
from app.settings import Settings
from app.types import InputSpec, Interpolation, Preprocessing, Want
from tests.examined import examine
from tests.lazy import torch, torchvision
from tests.onnx_graphs import SIDE, Maker
from tests.photos import LIMITS
from tests.recording_device import RecordingDevice
from tests.torch_made import discriminating

EVERYTHING = Want.SCORES | Want.FEATURES | Want.FEATURE_MAPS
PIXELS = np.random.default_rng(1).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESSING = Preprocessing(None, (SIDE, SIDE), Interpolation.BILINEAR, MEAN, STD)
# Of the largest value.
TOLERANCE = 1e-4


def tensor_of(pixels: NDArray[np.uint8], mean: Any = MEAN, std: Any = STD) -> NDArray[np.float32]:
    planes = ((pixels / 255 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(planes, np.float32)


def maps_of(maker: Maker, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    """The convolution and its ReLU, by torch."""
    kernel = torch.from_numpy(maker.weights()["kernel"])
    return torch.nn.functional.conv2d(torch.from_numpy(tensor), kernel, stride=2).relu().numpy()


def assert_near(found: NDArray[Any] | None, expected: NDArray[Any], tolerance: float = TOLERANCE) -> None:
    assert found is not None
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def served(folder: Path, model: onnx.ModelProto | bytes) -> OnnxBackend:
    """The backend of an ONNX file."""
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    backend = create_backend("onnx", examine(Settings(), path).checkpoint, BackendOptions(threads=1))
    assert isinstance(backend, OnnxBackend)
    return backend


def with_pool(operator: str, maker: Maker | None = None, **attributes: Any) -> onnx.ModelProto:
    """`Maker`'s graph with another operator in the place of its global pool."""
    model = (maker or Maker()).model()
    (pool,) = [node for node in model.graph.node if node.op_type == "GlobalAveragePool"]
    pool.op_type = operator
    pool.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return model


def nhwc_pool() -> onnx.ModelProto:
    """As Keras's exporters write it: maps with their channels last, and their mean over the axes between."""
    model = with_pool("ReduceMean", axes=[1, 2], keepdims=0)
    (pool,) = [node for node in model.graph.node if node.op_type == "ReduceMean"]
    position = list(model.graph.node).index(pool)
    model.graph.node.insert(position, helper.make_node("Transpose", ["lit"], ["channels last"], perm=[0, 2, 3, 1]))
    pool.input[0] = "channels last"
    return model


# --- feature maps of ONNX graphs


@pytest.mark.parametrize(
    "model",
    [
        Maker().model(),
        Maker(layout="nhwc").model(),
        Maker(batch=1).model(),
        Maker(reshape=(0, 8)).model(),
        Maker(last="Softmax").model(),
        Maker(dtype=TensorProto.FLOAT16).model(),
        with_pool("ReduceMean", axes=[2, 3]),
        with_pool("ReduceMean", axes=[-1, -2], keepdims=0),
        with_pool("AveragePool", kernel_shape=[15, 15]),
        nhwc_pool(),
    ],
    ids=lambda model: "-".join(node.op_type for node in model.graph.node)[:60],
)
def test_features_of_a_graph_are_torchs(tmp_path: Path, model: onnx.ModelProto) -> None:
    """However a graph writes its global pool, maps and their means are torch's within 1e-4, with the same scores."""
    backend = served(tmp_path, model)
    plain = backend.infer(PIXELS, Want.SCORES)
    assert plain.features is None
    assert plain.feature_maps is None
    assert backend.wants == EVERYTHING
    tolerance = 2e-3 if model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16 else TOLERANCE
    expected = maps_of(Maker(), tensor_of(PIXELS))
    for count in (1, 3):
        found = backend.infer(PIXELS[:count], EVERYTHING)
        assert_near(found.scores, plain.scores[:count])
        assert_near(found.feature_maps, expected[:count], tolerance)
        assert_near(found.features, expected[:count].mean((2, 3)), tolerance)
    only = backend.infer(PIXELS, Want.SCORES | Want.FEATURES)
    assert only.feature_maps is None
    assert_near(only.features, expected.mean((2, 3)), tolerance)
    assert backend.infer(PIXELS, Want.SCORES | Want.FEATURE_MAPS).features is None


class Noise(CalibrationDataReader):
    def __init__(self) -> None:
        self._left = [{"image": tensor_of(PIXELS)}]

    def get_next(self) -> Any:
        return self._left.pop() if self._left else None


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_features_in_8_bits(tmp_path: Path, form: QuantFormat) -> None:
    """Graphs in 8 bits, with operators that round or rounded operators, give their maps in float32."""
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    source.write_bytes(Maker().build())
    quantize_static(source, target, Noise(), quant_format=form, activation_type=QuantType.QUInt8)
    backend = served(tmp_path, target.read_bytes())
    found = backend.infer(PIXELS, EVERYTHING)
    expected = maps_of(Maker(), tensor_of(PIXELS))
    # The quantum of 8 bits, and of the weights' as well.
    assert_near(found.feature_maps, expected, 0.03)
    assert_near(found.features, expected.mean((2, 3)), 0.03)
    assert_near(found.scores, backend.infer(PIXELS, Want.SCORES).scores, 0.02)


def _part(model: onnx.ModelProto) -> None:
    """A pool over a part of the map."""
    pool = next(node for node in model.graph.node if node.op_type == "GlobalAveragePool")
    pool.op_type = "AveragePool"
    pool.attribute.append(helper.make_attribute("kernel_shape", [8, 8]))
    pool.attribute.append(helper.make_attribute("strides", [8, 8]))


def _around(model: onnx.ModelProto) -> None:
    """Squeeze and excitation in front of a largest value: the mean is a factor, and other paths lead around it."""
    position = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Flatten")
    model.graph.node.insert(position, helper.make_node("Mul", ["lit", "pooled"], ["excited"]))
    model.graph.node.insert(position + 1, helper.make_node("GlobalMaxPool", ["excited"], ["largest"]))
    model.graph.node[position + 2].input[0] = "largest"


@pytest.mark.parametrize("change", [_part, _around])
def test_graphs_without_a_global_mean_have_no_features(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    """Where no mean of whole maps leads to the scores, features are refused by a typed error and scores are not."""
    model = Maker().model()
    change(model)
    backend = served(tmp_path, model)
    assert backend.wants == Want.SCORES
    for _ in range(2):
        with pytest.raises(FeaturesNotAvailable, match="not available for this model"):
            backend.prepare(InputSpec.PIXELS_U8, EVERYTHING)
    with pytest.raises(FeaturesNotAvailable):
        backend.infer(PIXELS, Want.SCORES | Want.FEATURES)
    assert np.isfinite(backend.infer(PIXELS, Want.SCORES).scores).all()


def test_scores_alone_open_no_further_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels → scores never makes another form of the graph, and each form is made once."""
    backend = served(tmp_path, Maker().model())
    opened = []
    real = onnx_forms.open_session
    monkeypatch.setattr(onnx_forms, "open_session", lambda *given: opened.append(given) or real(*given))
    backend.warm_up(2)
    backend.prepare(InputSpec.PIXELS_U8, Want.SCORES)
    backend.infer(PIXELS, Want.SCORES)
    assert opened == []
    for _ in range(3):
        backend.infer(PIXELS, EVERYTHING)
        backend.infer(PIXELS, Want.SCORES | Want.FEATURES)
    assert len(opened) == 1


# --- exported networks, and torch's own


def checkpoint_of(architecture: str, network: torch.nn.Module, classes: int) -> Checkpoint:
    weights = {name: value.numpy() for name, value in network.state_dict().items() if "num_batches" not in name}
    return replace(
        null_checkpoint(),
        weights=weights,
        architecture=architecture,
        class_count=classes,
        labels=tuple(map(str, range(classes))),
        preprocessing=replace(PREPROCESSING, crop=(64, 64), is_bgr=architecture == "resnet18"),
    )


def reference(network: torch.nn.Module, tensor: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits, and the network's last feature maps: the input of its pool, or what its last block makes."""
    seen = []
    pools = [each for each in network.modules() if isinstance(each, torch.nn.AdaptiveAvgPool2d)]
    if pools:
        hook = pools[-1].register_forward_hook(lambda module, given, made: seen.append(given[0]))
    else:
        hook = network.get_submodule("conv5").register_forward_hook(lambda module, given, made: seen.append(made))
    with torch.inference_mode():
        logits = network(torch.from_numpy(tensor)).numpy()
    hook.remove()
    return logits, seen[-1].numpy()


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "resnet50"])
def test_exported_and_torch_features_are_the_networks(architecture: str, example_jpeg: bytes) -> None:
    """Of a photo, both backends give the hooked network's maps within 1e-4, from pixels and from the tensor."""
    network = discriminating(torchvision.models.get_model(architecture, weights=None, num_classes=7))
    checkpoint = checkpoint_of(architecture, network, 7)
    pixels = decode(example_jpeg, checkpoint.preprocessing, LIMITS)[None]
    order = pixels[..., ::-1] if checkpoint.preprocessing.is_bgr else pixels
    tensor = tensor_of(order)
    logits, maps = reference(network, tensor)
    onnx_backend = create_backend("onnx", build(checkpoint, 1), BackendOptions(threads=1))
    torch_backend = create_backend("torch", checkpoint, BackendOptions("cpu", threads=1))
    for backend in (onnx_backend, torch_backend):
        assert backend.wants == EVERYTHING
        assert backend.input_specs == set(InputSpec)
        plain = backend.infer(pixels, Want.SCORES)
        assert_near(plain.scores, logits)
        for batch in (pixels, tensor):
            found = backend.infer(batch, EVERYTHING)
            assert_near(found.scores, plain.scores, 1e-5)
            assert_near(found.feature_maps, maps)
            assert_near(found.features, maps.mean((2, 3)))
            assert_near(backend.infer(batch, Want.SCORES).scores, plain.scores, 1e-5)
        backend.close()


@pytest.mark.parametrize("architecture", ["resnet50d", "resnet50v2", "swin_t", "squeezenet1_1", "alexnet"])
def test_networks_of_other_shapes(architecture: str) -> None:
    """A pool is found however it is written; where scores are pooled, or the map is kept, there are no features."""
    from app.networks.described import describe, is_described
    from app.networks.torch_module import DescribedNetwork

    torch.manual_seed(0)
    network = (
        DescribedNetwork(describe(architecture, 5)).eval()
        if is_described(architecture)
        else torchvision.models.get_model(architecture, weights=None, num_classes=5).eval()
    )
    backend = TorchBackend(network, replace(PREPROCESSING, crop=(64, 64)), cpu_plan())
    batch = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    plain = backend.infer(batch, Want.SCORES)
    if architecture in ("squeezenet1_1", "alexnet"):
        assert backend.wants == Want.SCORES
        with pytest.raises(FeaturesNotAvailable):
            backend.infer(batch, EVERYTHING)
    else:
        found = backend.infer(batch, EVERYTHING)
        assert np.array_equal(found.scores, plain.scores)
        assert found.features is not None
        assert found.feature_maps is not None
        assert_near(found.features, found.feature_maps.mean((2, 3)))
        assert found.feature_maps.shape[:2] == found.features.shape
    assert np.array_equal(backend.infer(batch, Want.SCORES).scores, plain.scores)


def cpu_plan(staged: bool = False, slots: int = 1) -> DevicePlan:
    return DevicePlan(torch.device("cpu"), torch.float32, slots, staged=staged)


def test_slots_give_features_and_capture_nothing_for_them() -> None:
    """With buffers and captured programs, features are those without, and no program is captured for them."""
    from tests.own_modules import Small

    network = discriminating(Small())
    plain = TorchBackend(network, PREPROCESSING, cpu_plan())
    device = RecordingDevice()
    staged = TorchBackend(device.watched(network), PREPROCESSING, cpu_plan(staged=True, slots=2), device)
    staged.warm_up(4)
    captured = len(device.captures)
    assert captured > 0
    for batch in (PIXELS, tensor_of(PIXELS)):
        expected, found = plain.infer(batch, EVERYTHING), staged.infer(batch, EVERYTHING)
        assert_near(found.scores, expected.scores, 1e-6)
        assert expected.features is not None
        assert expected.feature_maps is not None
        assert expected.features.min() < 0, "the head's first layer changed them"
        assert_near(found.features, expected.features, 1e-6)
        assert_near(found.feature_maps, expected.feature_maps, 1e-6)
        assert_near(expected.features, expected.feature_maps.mean((2, 3)))
    assert len(device.captures) == captured


# --- tensors


def from_pixels(fold: str, is_bgr: bool = False) -> tuple[bytes, Preprocessing]:
    """A graph that takes pixels, with its normalisation in operators or in the first convolution's weights."""
    preprocessing = replace(PREPROCESSING, is_bgr=is_bgr)
    model = Maker().model()
    nodes = [
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["levels"], to=TensorProto.FLOAT),
    ]
    if is_bgr:
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
        nodes.append(helper.make_node("Gather", ["levels", "order"], ["ordered"], axis=1))
    scale, shift = (each.reshape(1, 3, 1, 1) for each in preprocessing.scale_and_shift())
    last = nodes[-1].output[0]
    if fold == "operators":
        model.graph.initializer.append(numpy_helper.from_array(scale, "scale"))
        model.graph.initializer.append(numpy_helper.from_array(shift, "shift"))
        nodes.append(helper.make_node("Mul", [last, "scale"], ["scaled"]))
        nodes.append(helper.make_node("Add", ["scaled", "shift"], ["image"]))
    else:
        nodes[-1].output[0] = "image"
        kernel = Maker().weights()["kernel"]
        stored = next(each for each in model.graph.initializer if each.name == "kernel")
        stored.CopyFrom(numpy_helper.from_array(kernel * scale, "kernel"))
        bias = (kernel * shift).sum((1, 2, 3)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(bias, "folded"))
        next(node for node in model.graph.node if node.op_type == "Conv").input.append("folded")
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *copies])
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", SIDE, SIDE, 3]))
    return model.SerializeToString(), preprocessing


def graph_of(model: bytes) -> Graph:
    return Graph(
        model, "pixels", "scores", "uint8", "nhwc", (SIDE, SIDE), None, 7, takes_pixels=True, computes_in="float32"
    )


@pytest.mark.parametrize("fold", ["operators", "convolution"])
@pytest.mark.parametrize("is_bgr", [False, True])
def test_tensor_is_put_behind_the_normalisation(fold: str, is_bgr: bool) -> None:
    """Where a graph takes pixels, its tensor's scores and maps are the pixels', wherever its normalisation is."""
    model, preprocessing = from_pixels(fold, is_bgr)
    backend = OnnxBackend(graph_of(model), preprocessing, "softmax", BackendOptions(threads=1))
    tensor = tensor_of(PIXELS[..., ::-1] if is_bgr else PIXELS)
    plain = backend.infer(PIXELS, Want.SCORES)
    assert_near(plain.scores, Maker().logits(tensor))
    assert backend.input_specs == set(InputSpec)
    found = backend.infer(tensor, EVERYTHING)
    assert_near(found.scores, plain.scores, 1e-5)
    assert_near(found.feature_maps, maps_of(Maker(), tensor))
    assert_near(backend.infer(tensor, Want.SCORES).scores, plain.scores, 1e-5)


def test_tensors_of_a_graph_that_mixes_its_pixels_are_refused() -> None:
    """Where the pixels are read twice before they are normalised, no single value stands for the image."""
    model = onnx.load_from_string(from_pixels("operators")[0])
    position = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Mul")
    model.graph.node[position].input[0] = "both"
    for node in (
        helper.make_node("Add", ["levels", "levels again"], ["both"]),
        helper.make_node("Cast", ["planes again"], ["levels again"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes again"], perm=[0, 3, 1, 2]),
    ):
        model.graph.node.insert(position, node)
    backend = OnnxBackend(graph_of(model.SerializeToString()), PREPROCESSING, "softmax", BackendOptions(threads=1))
    assert backend.infer(PIXELS, Want.SCORES).scores.shape == (3, 7)
    assert backend.input_specs == {InputSpec.PIXELS_U8}
    with pytest.raises(TensorsNotAvailable, match="not available"):
        backend.infer(tensor_of(PIXELS), Want.SCORES)


@pytest.mark.parametrize(
    ("maker", "mean", "std"),
    [
        (Maker(), MEAN, STD),
        (Maker(layout="nhwc"), MEAN, STD),
        (Maker(batch=1, dtype=TensorProto.FLOAT16), MEAN, STD),
        (Maker(scale=1.0), (0.0,) * 3, (1.0,) * 3),
        (Maker(scale=255.0, dtype=TensorProto.UINT8), (0.0,) * 3, (1 / 255,) * 3),
    ],
    ids=repr,
)
def test_tensor_of_an_onnx_file_is_its_own_input(tmp_path: Path, maker: Maker, mean: Any, std: Any) -> None:
    """A tensor is the file's own input, normalised as its preprocessing says, in planes and float32."""
    backend = served(tmp_path, maker.model())
    plain = backend.infer(PIXELS, Want.SCORES).scores
    found = backend.infer(tensor_of(PIXELS, mean, std), EVERYTHING)
    assert_near(found.scores, plain, 5e-3 if maker.dtype == TensorProto.FLOAT16 else TOLERANCE)
    assert found.features is not None


def test_null_features_are_fixed() -> None:
    """Without a network, features are the means of a sample of the image, the same for each copy of it."""
    backend = NullBackend(null_checkpoint())
    found = backend.infer(np.concatenate([PIXELS, PIXELS]), EVERYTHING)
    assert found.features is not None
    assert found.feature_maps is not None
    assert found.feature_maps.shape == (6, 3, 7, 7)
    assert np.array_equal(found.features[:3], found.features[3:])
    assert len({row.tobytes() for row in found.features}) == 3
    assert_near(found.features, found.feature_maps.mean((2, 3)))
    assert backend.infer(tensor_of(PIXELS), EVERYTHING).features is not None
