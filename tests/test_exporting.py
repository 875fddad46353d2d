"""The exported graph is held to torch float32 eager, on photos: every switch of a ResNet-50, and other networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from app.artifacts import exporting
from app.artifacts.exporting import export_graph, trace
from app.checkpoints import Checkpoint, Graph, read_offline_demo
from app.checkpoints.offline_demo import ARCHITECTURE, PREPROCESSING
from app.checkpoints.presets import PRESETS
from app.errors import ExportFailed
from app.layers import ResNetSwitches
from app.networks import build_network
from app.networks.described import describe
from app.types import Pixels, Preprocessing, Scores
from tests.checkpoints_made import without_counters
from tests.images_made import photo
from tests.lazy import Lazy, torch, torchvision
from tests.torch_made import discriminating

torch_module = Lazy("app.networks.torch_module")

# Of the largest logit: float32 has 6e-8, and a ResNet-50 adds up some 10⁴ products to a number, 50 times over.
TOLERANCE = 2e-6
CLASSES = 10


def pixels_of(size: tuple[int, int]) -> Pixels:
    """Three photos, squashed."""
    photos = [photo(name).resize((size[1], size[0])) for name in ("chelsea", "coffee", "astronaut")]
    return np.stack([np.asarray(each) for each in photos])


def checkpoint_of(
    architecture: str, preprocessing: Preprocessing, switches: ResNetSwitches | None = None
) -> Checkpoint:
    """Seeded weights among whose logits a wrong stride, padding, epsilon or scaling shows."""
    if architecture in torchvision.models.list_models():
        skeleton = torchvision.models.get_model(architecture, weights=None, num_classes=CLASSES)
    else:
        skeleton = torch_module.DescribedNetwork(describe(architecture, CLASSES))
    state = without_counters(discriminating(skeleton).state_dict())
    weights = {name: tensor.numpy() for name, tensor in state.items()}
    return Checkpoint(weights, architecture, CLASSES, preprocessing, (), "0" * 64, "made", switches=switches)


def eager(checkpoint: Checkpoint, pixels: Pixels) -> Scores:
    """The reference: torch on float32, normalised as `Preprocessing` says in so many words."""
    preprocessing = checkpoint.preprocessing
    ordered = pixels[..., ::-1] if preprocessing.is_bgr else pixels
    inputs = (ordered / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    network = build_network(checkpoint.architecture, checkpoint.weights, checkpoint.switches).eval()
    with torch.inference_mode():
        return network(torch.from_numpy(inputs.transpose(0, 3, 1, 2).astype(np.float32))).numpy()


def run(model: bytes, pixels: Pixels) -> Scores:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (answer,) = session.run(["logits"], {"pixels": pixels})
    return np.asarray(answer)


def assert_same(checkpoint: Checkpoint, model: bytes) -> None:
    pixels = pixels_of(checkpoint.preprocessing.crop)
    expected = eager(checkpoint, pixels)
    apart = np.abs(expected[:, None] - expected[None]).max(2)[~np.eye(3, dtype=bool)].min()
    largest = np.abs(expected).max()
    assert apart > 1e3 * TOLERANCE * largest
    for count in (1, 3):
        found = run(model, pixels[:count])
        assert found.dtype == np.float32
        assert np.abs(found - expected[:count]).max() <= TOLERANCE * largest


@pytest.mark.parametrize(
    ("architecture", "preset", "switches"),
    [
        ("resnet50", "torchvision-v2", ResNetSwitches()),
        ("resnet50", "keras", ResNetSwitches("1x1", "symmetric", "symmetric", 1.001e-5)),
        ("resnet50", "tf-slim", ResNetSwitches("3x3", "same", "ceil", 1e-3)),
        ("resnet50", "timm-tv2", ResNetSwitches("1x1", "symmetric", "valid", 1e-4)),
        ("resnet50v2", "keras-v2", None),
        ("resnet50d", "timm", None),
        ("resnet18", "timm-half", None),
        ("regnet_x_400mf", "torchvision-v1", None),
        ("densenet121", "torchvision-v1", None),
    ],
)
def test_exported_graph_answers_as_torch_does(architecture: str, preset: str, switches: ResNetSwitches | None) -> None:
    """One image or three, the graph's logits are torch's within 2e-6 of the largest, in every variant."""
    # Smaller than the preset's, for time, and not square.
    checkpoint = checkpoint_of(architecture, replace(PRESETS[preset], crop=(96, 128)), switches)
    model = export_graph(checkpoint)
    assert_same(checkpoint, model)
    document = onnx.load_from_string(model)
    operators = [node.op_type for node in document.graph.node]
    assert "Identity" not in operators
    if architecture in ("resnet50", "resnet50d", "resnet18"):
        assert "BatchNormalization" not in operators
    (pixels,), (logits,) = document.graph.input, document.graph.output
    shape = [each.dim_param or each.dim_value for each in pixels.type.tensor_type.shape.dim]
    assert (pixels.name, shape) == ("pixels", ["N", *checkpoint.preprocessing.crop, 3])
    assert pixels.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert (logits.name, logits.type.tensor_type.elem_type) == ("logits", onnx.TensorProto.FLOAT)


def test_the_offline_demo_is_exported_with_its_real_weights() -> None:
    """A trained network's graph too answers as torch does, and equal tensors are stored once."""
    weights, sha256, path = read_offline_demo()
    checkpoint = Checkpoint(weights, ARCHITECTURE, 1000, PREPROCESSING, (), sha256, str(path))
    model = export_graph(checkpoint)
    assert_same(checkpoint, model)
    assert len(model) < 20_000_000


def test_what_cannot_be_exported_is_said_in_one_line() -> None:
    """An operator that ONNX does not have, and a checkpoint that is ONNX already, end in a typed error."""

    class Odd(torch.nn.Module):
        def forward(self, planes: torch.Tensor) -> Any:
            return torch.linalg.svd(planes)[1].sum((1, 2))

    checkpoint = checkpoint_of("resnet18", PRESETS["torchvision-v1"])
    with pytest.raises(ExportFailed, match=r"^resnet18 cannot be written as ONNX: .*linalg_svd") as caught:
        trace(Odd(), checkpoint)
    assert "\n" not in str(caught.value)
    graph = Graph(b"", "image", "scores", "float32", "nchw", None, None, CLASSES)
    with pytest.raises(ExportFailed, match="made is an ONNX file, which is served as it is"):
        export_graph(Checkpoint({}, "onnx", CLASSES, PRESETS["torchvision-v1"], (), "0" * 64, "made", graph=graph))


def test_exporting_is_not_done_with_gradients_or_in_training() -> None:
    """A network in training mode is exported for inference: dropout and batch statistics are not in the graph."""
    checkpoint = checkpoint_of("mobilenet_v3_small", PRESETS["torchvision-v1"])
    network = build_network(checkpoint.architecture, checkpoint.weights).train()
    document = onnx.load_from_string(trace(network, checkpoint))
    assert "Dropout" not in {node.op_type for node in document.graph.node}
    assert document.opset_import[0].version == exporting.OPSET
