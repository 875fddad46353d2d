"""A description's two realisations: the torch module is torchvision's or timm's, and the ONNX graph is the module."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.checkpoints import read_offline_demo
from app.checkpoints.offline_demo import ARCHITECTURE, PREPROCESSING
from app.errors import CheckpointError
from app.layers import Layer, LayerKind, ResNetSwitches
from app.networks import build_network, count_classes, describe_fitted, write_graph
from app.networks.alterations import complete, with_altered
from app.networks.build import module_of
from app.networks.described import DEEP_STEM_NETWORKS, describe
from app.networks.description import Chain, Description
from app.networks.onnx_graph import OPSET
from app.networks.resnet import RESNETS
from tests import torch_made as made
from tests.checkpoints_made import without_counters
from tests.lazy import Lazy, timm, torch, torchvision

torch_layers = Lazy("app.networks.torch_layers")

CLASSES = 5
WITH_TENSORS = ("convolution", "linear", "batch_norm", "layer_norm")


def original(architecture: str) -> Any:
    """The network as its own library has it."""
    library = timm.create_model if architecture in (*DEEP_STEM_NETWORKS, ARCHITECTURE) else torchvision.models.get_model
    return library(architecture, num_classes=CLASSES)


def arrays(network: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in without_counters(network.state_dict()).items()}


def run(description: Description, weights: dict[str, np.ndarray], images: torch.Tensor) -> np.ndarray:
    """What the ONNX graph of `description` answers."""
    _, _, height, width = images.shape
    model = b"".join(write_graph(description, weights, (height, width), None).pieces())
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"planes": images.numpy()})[0])


@pytest.mark.parametrize("architecture", [*RESNETS, ARCHITECTURE])
def test_a_description_has_the_tensors_of_its_library(architecture: str) -> None:
    """Every described network has the names and shapes of its library's, in their order."""
    with torch.device("meta"):
        state = without_counters(original(architecture).state_dict())
    shapes = describe(architecture, CLASSES).shapes()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes
    if architecture != ARCHITECTURE:
        assert list(state) == list(shapes)


@pytest.mark.parametrize(
    "architecture",
    ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "resnet50d", "resnet50s"],
)
def test_both_realisations_answer_as_the_library(architecture: str) -> None:
    """The torch module's logits are the library's to the last bit, and the graph's within 2e-6 of the largest."""
    network = made.discriminating(original(architecture))
    images = made.photos()[:2, :, :97, :128].contiguous()
    weights = arrays(network)
    expected = made.own_logits(network, images)
    assert np.array_equal(made.own_logits(build_network(architecture, weights).eval(), images), expected)
    found = run(describe_fitted(architecture, weights), weights, images)
    assert made.distance(found, expected) <= 2e-6 * np.abs(expected).max()
    assert made.distance(expected[0], expected[1]) > 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("size", [(224, 224), (97, 131)])
def test_the_offline_demo_is_timms(size: tuple[int, int]) -> None:
    """With its real weights the demo's module has timm's logits to the last bit, and its graph nearly, on any size."""
    weights, _, _ = read_offline_demo()
    network = timm.create_model(ARCHITECTURE).eval()
    network.load_state_dict(network.state_dict() | {name: torch.tensor(values) for name, values in weights.items()})
    images = torch.nn.functional.interpolate(made.photos()[:2], size)
    expected = made.own_logits(network, images)
    assert np.array_equal(made.own_logits(build_network(ARCHITECTURE, weights).eval(), images), expected)
    found = run(describe_fitted(ARCHITECTURE, weights), weights, images)
    assert made.distance(found, expected) <= 4e-6 * np.abs(expected).max()


def test_the_modules_results_are_not_the_callers_images() -> None:
    """The torch module, which reuses memory within, leaves its input as it was."""
    images = made.photos()[:1, :, :64, :64].contiguous()
    before = images.clone()
    layers = (Layer("conv1", "convolution", stride=(1, 1)), Layer("maxpool", "identity"))
    description = describe("resnet18", CLASSES, ResNetSwitches(altered=layers))
    weights = arrays(made.discriminating(torchvision.models.resnet18(num_classes=CLASSES)))
    made.own_logits(module_of(description, weights).eval(), images)
    assert torch.equal(images, before)


# --- layers


def around(layer: Layer) -> tuple[Description, dict[str, np.ndarray]]:
    """A convolution, `layer`, and a dense layer over what it gives of an image of 13×17; with weights."""
    chain = Chain()
    chain.convolution("conv", 3, 4, 3, padding=1, bias=True)
    chain.layer(layer)
    module = torch_layers.create_module(chain.description().steps[-1], is_flat=False, is_in_place=False)
    chain.classifier("fc", module(torch.zeros(1, 4, 13, 17)).numel(), 3)
    random = np.random.default_rng(0)
    shapes = chain.description().shapes()
    return chain.description(), {name: random.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}


def assert_alike(layer: Layer) -> None:
    description, weights = around(layer)
    images = made.photos()[:2, :, 100:113, 100:117].contiguous()
    expected = made.own_logits(module_of(description, weights).eval(), images)
    assert made.distance(run(description, weights, images), expected) <= 2e-6 * max(1, np.abs(expected).max())


KINDS: list[LayerKind] = [
    kind
    for kind in get_args(LayerKind)
    if kind not in WITH_TENSORS and not kind.endswith("pool") and kind != "identity"
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_activation_is_torchs(kind: LayerKind) -> None:
    """Each activation that a checkpoint may state computes the same in both realisations, with a number of its own."""
    assert_alike(Layer("layer", kind))
    if kind in ("leaky_relu", "elu"):
        assert_alike(Layer("layer", kind, value=0.7))


def pairs(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["max_pool", "average_pool"]),
    kernel=pairs(1, 5),
    stride=pairs(1, 4),
    data=st.data(),
    dilation=pairs(1, 2),
    ceil_mode=st.booleans(),
    is_counted=st.booleans(),
)
def test_every_pool_is_torchs(
    kind: LayerKind,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    data: st.DataObject,
    dilation: tuple[int, int],
    ceil_mode: bool,
    is_counted: bool,
) -> None:
    """Whatever hangs over an edge, by padding, stride, dilation or ceil mode, both realisations pool alike."""
    # torch takes no more padding than half a kernel.
    padding = data.draw(st.tuples(*(st.integers(0, size // 2) for size in kernel)))
    layer = Layer("layer", kind, kernel, stride, padding, dilation, ceil_mode, count_include_pad=is_counted)
    assert_alike(complete(layer))


@settings(deadline=None, max_examples=30)
@given(kind=st.sampled_from(["adaptive_max_pool", "adaptive_average_pool"]), points=pairs(1, 20))
def test_every_adaptive_pool_is_torchs(kind: LayerKind, points: tuple[int, int]) -> None:
    """A pool to any number of points, also one that the map's sides are no multiples of, takes the same windows."""
    assert_alike(Layer("layer", kind, points))


@pytest.mark.parametrize(
    ("head", "epsilon"),
    [
        (("batch_norm", "linear"), None),
        (("linear", "batch_norm", "silu", "linear"), 0.3),
        (("layer_norm", "linear", "relu", "layer_norm", "linear"), 0.2),
    ],
)
def test_every_head_is_torchs(head: tuple[LayerKind, ...], epsilon: float | None) -> None:
    """Normalisations of a head compute the same in both realisations, before a dense layer and behind one."""
    layers = tuple(Layer(str(number), kind, value=epsilon) for number, kind in enumerate(head))
    weights = arrays(made.discriminating(torchvision.models.resnet18()))
    del weights["fc.weight"], weights["fc.bias"]
    random = np.random.default_rng(0)
    width = 512
    for number, kind in enumerate(head):
        outputs = 6 if kind == "linear" else width
        shapes = {"weight": (outputs, width) if kind == "linear" else (width,), "bias": (outputs,)}
        shapes |= {"running_mean": (width,), "running_var": (width,)} if kind == "batch_norm" else {}
        if kind in WITH_TENSORS:
            weights |= {
                f"fc.{number}.{leaf}": random.uniform(0.1, 1, shape).astype(np.float32)
                for leaf, shape in shapes.items()
            }
            width = outputs
    switches = ResNetSwitches(head=layers)
    assert count_classes("resnet18", weights, switches) == 6
    images = made.photos()[:2, :, :64, :64].contiguous()
    expected = made.own_logits(build_network("resnet18", weights, switches).eval(), images)
    found = run(describe_fitted("resnet18", weights, switches), weights, images)
    assert made.distance(found, expected) <= 5e-6 * np.abs(expected).max()


# --- what a graph refuses


def thin_weights(description: Description) -> dict[str, np.ndarray]:
    return {name: np.ones(shape, np.float32) for name, shape in description.shapes().items()}


@pytest.mark.parametrize(
    ("layers", "size", "expected"),
    [
        ((Layer("avgpool", "identity"),), (224, 224), r"fc takes 512 numbers, and the layer before it gives 25,088"),
        ((Layer("maxpool", "max_pool", (9, 9), (9, 9)),), (12, 12), r"maxpool cannot take 6×6 points"),
        (
            (Layer("layer2.0.conv1", "convolution", stride=(1, 1)),),
            (64, 64),
            r"layer2\.0 has two branches of different shapes, 128×16×16 and 128×8×8, for images of 64×64",
        ),
    ],
)
def test_layers_that_do_not_go_together_are_refused(
    layers: tuple[Layer, ...], size: tuple[int, int], expected: str
) -> None:
    """A layer that cannot take what the one before gives is named, with what it takes, before any graph is written."""
    description = with_altered(describe("resnet18", CLASSES), layers)
    with pytest.raises(CheckpointError, match=expected) as refusal:
        write_graph(description, thin_weights(description), size, None)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "layer",
    [
        Layer("layer9.0.relu", "relu"),
        Layer("layer1.0.conv9", "convolution"),
        Layer("conv1", "relu"),
        Layer("relu", "convolution"),
        Layer("layer1.0.sum", "relu"),
    ],
    ids=lambda layer: f"{layer.name} {layer.kind}",
)
def test_a_layer_without_a_place_is_refused(layer: Layer) -> None:
    """A stated layer that the network does not have, or has as another kind with tensors, is named."""
    with pytest.raises(CheckpointError, match=rf"states a layer {layer.name} \(.*\) that its network does not have"):
        describe("resnet50", CLASSES, ResNetSwitches(altered=(layer,)))


def test_a_graph_is_written_with_the_memory_of_a_layer() -> None:
    """Tensors are made when their turn comes: none lives on behind the piece that has it."""
    description = describe("resnet18", CLASSES)
    weights = thin_weights(description)
    file = write_graph(description, weights, (64, 64), None)
    largest = max(values.nbytes for values in weights.values())
    sizes = [len(piece) for piece in file.pieces()]
    assert max(sizes) == largest
    assert file.size_bytes() < sum(sizes) < file.size_bytes() + 100_000


def test_images_of_a_network_that_takes_blue_first_are_not_turned() -> None:
    """A graph for BGR turns the first kernel, once, in the place of each image."""
    weights, _, _ = read_offline_demo()
    description = describe_fitted(ARCHITECTURE, weights)
    rgb = replace(PREPROCESSING, mean=(0.1, 0.2, 0.3))
    bgr = replace(rgb, is_bgr=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    network = build_network(ARCHITECTURE, weights).eval()
    for preprocessing in (rgb, bgr):
        model = onnx.load_from_string(b"".join(write_graph(description, weights, (224, 224), preprocessing).pieces()))
        assert [node.op_type for node in model.graph.node][:5] == ["Transpose", "Cast", "Mul", "Add", "Conv"]
        assert model.opset_import[0].version == OPSET
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        ordered = pixels[..., ::-1] if preprocessing.is_bgr else pixels
        inputs = (ordered / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
        expected = made.own_logits(network, torch.from_numpy(inputs.transpose(0, 3, 1, 2).astype(np.float32)))
        (found,) = session.run(["logits"], {"pixels": pixels})
        assert made.distance(found, expected) <= 4e-6 * np.abs(expected).max()
