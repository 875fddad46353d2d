"""What an ONNX graph's scores are, which of its outputs has them, and which of its axes are channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from app.backends import BackendOptions, create_backend
from app.checkpoints import Contents, decide_all
from app.checkpoints.base import Told
from app.checkpoints.onnx_scale import find_scale
from app.errors import CheckpointError, SettingError
from app.settings import Settings
from app.types import Want
from tests.examined import Examined, examine
from tests.onnx_graphs import CHANNELS, CLASSES, SIDE, Maker, behind, node

PIXELS = np.random.default_rng(1).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
IMAGES = ((PIXELS / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)


def examined(folder: Path, model: onnx.ModelProto, **settings: Any) -> Examined:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return examine(Settings(**settings), path)


def probabilities(found: Examined, pixels: NDArray[np.uint8] = PIXELS) -> NDArray[np.float32]:
    """What the service makes of the graph's answers."""
    backend = create_backend("auto", found.checkpoint, BackendOptions(threads=1))
    outputs = backend.infer(pixels, Want.SCORES)
    backend.close()
    scores = torch.from_numpy(outputs.scores)
    return np.asarray(
        {"softmax": scores.softmax(1), "sigmoid": scores.sigmoid(), "none": scores}[outputs.activation].numpy()
    )


def refusal(folder: Path, model: onnx.ModelProto, **settings: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        examined(folder, model, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def softmax(logits: torch.Tensor) -> torch.Tensor:
    return logits.softmax(1)


def own(model: onnx.ModelProto, images: NDArray[np.float32] = IMAGES) -> NDArray[np.float32]:
    """What ONNX Runtime answers for the file as it is."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0])


ROUNDED = [node("QuantizeLinear", "sharp step zero", "q"), node("DequantizeLinear", "q step zero", "scores")]
ROUNDING = {"step": np.float32(1 / 256), "zero": np.uint8(0)}
ENDINGS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], str, Callable[[torch.Tensor], torch.Tensor], float]] = {
    "softmax": ([node("Softmax", "logits", "scores", axis=1)], {}, "none", softmax, 1e-6),
    "softmax, rounded to 8 bits": (
        [node("Softmax", "logits", "sharp", axis=1), *ROUNDED],
        ROUNDING,
        "none",
        softmax,
        0.003,
    ),
    "softmax, cut off and multiplied by 1": (
        [node("Softmax", "logits", "p", axis=1), node("Clip", "p low high", "c"), node("Mul", "c one", "scores")],
        {"low": 1e-7, "high": 1.0, "one": 1.0},
        "none",
        softmax,
        1e-6,
    ),
    "softmax, written out": (
        [
            node("Exp", "logits", "e"),
            node("ReduceSum", "e axis", "sum", keepdims=1),
            node("Div", "e sum", "scores"),
        ],
        {"axis": np.array([1])},
        "none",
        softmax,
        1e-6,
    ),
    "logarithm of softmax": ([node("LogSoftmax", "logits", "scores", axis=1)], {}, "softmax", softmax, 1e-6),
    "sigmoid": ([node("Sigmoid", "logits", "scores")], {}, "none", torch.sigmoid, 1e-6),
    "sigmoid, rounded to 8 bits": (
        [node("Sigmoid", "logits", "sharp"), *ROUNDED],
        ROUNDING,
        "none",
        torch.sigmoid,
        0.005,
    ),
    "one minus sigmoid": (
        [node("Sigmoid", "logits", "s"), node("Sub", "one s", "scores")],
        {"one": 1.0},
        "none",
        lambda logits: 1 - logits.sigmoid(),
        1e-6,
    ),
    "sigmoid, written out": (
        [
            node("Neg", "logits", "n"),
            node("Exp", "n", "e"),
            node("Add", "one e", "a"),
            node("Div", "one a", "scores"),
        ],
        {"one": 1.0},
        "none",
        torch.sigmoid,
        1e-6,
    ),
    "nothing": ([node("Identity", "logits", "scores")], {}, "softmax", softmax, 1e-6),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_a_graph_ends_in_is_not_done_again(tmp_path: Path, ending: str) -> None:
    """However softmax or sigmoid is written in a graph, its probabilities are served as they are."""
    nodes, constants, activation, expected, tolerance = ENDINGS[ending]
    found = examined(tmp_path, behind(nodes, **constants))
    assert found.decisions.activation.value == activation
    logits = torch.from_numpy(Maker().logits(IMAGES))
    assert np.abs(probabilities(found) - expected(logits).numpy()).max() < tolerance
    assert [line for line in found.warnings if "how its images were prepared" not in line] == []


@pytest.mark.parametrize(
    ("last", "expected"),
    [("Identity", torch.sigmoid), ("Sigmoid", torch.sigmoid)],
)
def test_one_output_is_one_probability(
    tmp_path: Path, last: str, expected: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """A graph with one output answers its sigmoid, done here or in the graph; two labels would get both."""
    model = behind(
        [node("Gemm", "logits one_of", "raw"), node(last, "raw", "scores")],
        {"scores": ["n", 1]},
        one_of=np.random.default_rng(4).normal(0, 0.3, (CLASSES, 1)).astype(np.float32),
    )
    found = examined(tmp_path, model)
    assert found.class_count == 1
    assert found.decisions.activation.value == ("sigmoid" if last == "Identity" else "none")
    raw = torch.from_numpy(Maker().logits(IMAGES) @ numpy_helper.to_array(model.graph.initializer[-1]))
    assert np.abs(probabilities(found) - expected(raw).numpy()).max() < 1e-5


@pytest.mark.parametrize(
    ("nodes", "constants", "part"),
    [
        ([node("Softmax", "logits", "scores", axis=0)], {}, "do not add up to 1 but to 7: the softmax is over another"),
        (
            [node("Softmax", "logits", "p", axis=1), node("Mul", "p hundred", "scores")],
            {"hundred": 100.0},
            "do not add up to 1 but to 100",
        ),
        (
            [node("Sigmoid", "logits", "s"), node("Mul", "s hundred", "scores")],
            {"hundred": 100.0},
            "are changed after a sigmoid",
        ),
        (
            [node("Sigmoid", "logits", "s"), node("Mul", "s half", "scores")],
            {"half": 0.5},
            "are changed after a sigmoid",
        ),
        (
            [
                node("Exp", "logits", "e"),
                node("ReduceSum", "e axis", "sum", keepdims=1),
                node("Div", "e sum", "p"),
                node("Mul", "p hundred", "scores"),
            ],
            {"axis": np.array([1]), "hundred": 100.0},
            "its scores add up to 100 for every image",
        ),
    ],
)
def test_operators_and_answers_that_contradict_are_refused(
    tmp_path: Path, nodes: list[onnx.NodeProto], constants: dict[str, Any], part: str
) -> None:
    """Probabilities that are none any more, or are over another axis, are refused with what is wrong with them."""
    assert part in refusal(tmp_path, behind(nodes, **constants))


def test_softmax_of_one_output_is_refused(tmp_path: Path) -> None:
    """A softmax over one output is 1 for every image, which the refusal says."""
    model = behind(
        [node("Gemm", "logits one_of", "raw"), node("Softmax", "raw", "scores", axis=1)],
        {"scores": ["n", 1]},
        one_of=np.ones((CLASSES, 1), np.float32),
    )
    assert "softmax over its one output, which is 1 for every image" in refusal(tmp_path, model)


def test_scores_between_0_and_1_without_a_reason_are_warned_of(tmp_path: Path) -> None:
    """Scores that lie in 0…1 for every trial image though no operator keeps them there are served with a warning."""
    nodes = [node("Relu", "logits", "positive"), node("LpNormalization", "positive", "scores", axis=1, p=2)]
    found = examined(tmp_path, behind(nodes))
    assert found.decisions.activation.value == "softmax"
    assert any("set RESNET_ACTIVATION=none" in line for line in found.warnings)


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("end", ["Softmax", "written out"])
def test_quantised_graphs_answer_as_onnx_runtime_does(tmp_path: Path, form: str, end: str) -> None:
    """What ONNX Runtime's quantizer makes, also of its own operators, answers here what it answers there."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._images = iter([{"image": IMAGES[:1]}, {"image": IMAGES[1:2]}])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self._images, None)

    residual = [
        node("Conv", "image stem", "v1", kernel_shape=[3, 3], pads=[1] * 4),
        node("Relu", "v1", "v2"),
        node("Conv", "v2 middle", "v3", kernel_shape=[3, 3], pads=[1] * 4),
        node("Add", "v2 v3", "v4"),
        node("MaxPool", "v4", "v5", kernel_shape=[2, 2], strides=[2, 2]),
        node("LeakyRelu", "v5", "v6", alpha=0.1),
        node("Concat", "v5 v6", "v7", axis=1),
        node("GlobalAveragePool", "v7", "v8"),
        node("Flatten", "v8", "v9"),
        node("Gemm", "v9 last", "logits"),
    ]
    softmaxes = ENDINGS["softmax" if end == "Softmax" else "softmax, written out"]
    model = behind(softmaxes[0], **softmaxes[1])
    random = np.random.default_rng(2)
    del model.graph.node[:5]
    for each, value in (("stem", (8, 3, 3, 3)), ("middle", (8, 8, 3, 3)), ("last", (16, CLASSES))):
        values = random.normal(0, 0.3, value).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, each))
    ends = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*residual, *ends])
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    source.write_bytes(model.SerializeToString())
    quantize_static(source, target, Images(), quant_format=QuantFormat[form])
    made = onnx.load(target)
    assert form == "QDQ" or {"QLinearAdd", "QLinearGlobalAveragePool"} <= {each.op_type for each in made.graph.node}
    found = examined(tmp_path, made)
    assert found.decisions.activation.value == "none"
    assert found.contents.graph is not None
    assert found.contents.graph.computes_in == "int8"
    assert np.abs(probabilities(found) - own(made)).max() < 1e-6


@pytest.mark.parametrize(("level", "is_served"), [("EXTENDED", True), ("ALL", False)])
def test_graphs_that_onnx_runtime_optimised(tmp_path: Path, level: str, is_served: bool) -> None:
    """Fused operators are served; a layout for one kind of CPU, wrong on another, is refused with the way out."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    model = Maker(last="Softmax").model()
    # As many channels as the layout for a CPU needs.
    for name, axis in (("kernel", 0), ("dense", 0)):
        (tensor,) = (each for each in model.graph.initializer if each.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).repeat(4, axis), name))
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx")
    if is_served:
        assert "FusedConv" in {each.op_type for each in optimised.graph.node}
        assert np.abs(probabilities(examined(tmp_path, optimised)) - own(model)).max() < 1e-5
    else:
        assert "ORT_ENABLE_EXTENDED" in refusal(tmp_path, optimised)


PROBS = [node("Softmax", "logits", "probs", axis=1)]


@pytest.mark.parametrize(
    ("nodes", "outputs", "chosen", "activation"),
    [
        (PROBS, {"probs": ["n", CLASSES], "logits": ["n", CLASSES]}, "probs", "none"),
        ([], {"logits": ["n", CLASSES], "flat": ["n", CHANNELS]}, "logits", "softmax"),
        ([], {"lit": ["n", CHANNELS, 15, 15], "logits": ["n", CLASSES]}, "logits", "softmax"),
        (
            [*PROBS, node("Identity", "logits", "copy")],
            {"flat": ["n", CHANNELS], "copy": ["n", CLASSES], "probs": ["n", CLASSES]},
            "probs",
            "none",
        ),
    ],
)
def test_of_several_outputs_the_scores_are_found(
    tmp_path: Path, nodes: list[onnx.NodeProto], outputs: dict[str, list[int | str]], chosen: str, activation: str
) -> None:
    """Of features, feature maps, logits and probabilities the last scores are served, alone, and a note says so."""
    found = examined(tmp_path, behind(nodes, outputs))
    assert found.contents.graph is not None
    assert found.contents.graph.output_name == chosen
    assert found.decisions.activation.value == activation
    assert any(f"of its outputs {chosen} is taken for the scores" in line for line in found.notes)
    assert [value.name for value in onnx.load_model_from_string(found.contents.graph.model).graph.output] == [chosen]
    expected = torch.from_numpy(Maker().logits(IMAGES)).softmax(1).numpy()
    assert np.abs(probabilities(found) - expected).max() < 1e-5


def test_outputs_that_nothing_tells_apart_are_named_by_the_setting(tmp_path: Path) -> None:
    """Of two outputs like one another the refusal lists names and shapes; the setting names one, which runs alone."""
    twice = np.random.default_rng(5).normal(0, 1, (CHANNELS, CLASSES)).astype(np.float32)
    model = behind(
        [node("Gemm", "flat twice", "auxiliary"), node("ArgMax", "logits", "best", axis=1)],
        {"logits": ["n", CLASSES], "auxiliary": ["n", CLASSES]},
        twice=twice,
    )
    model.graph.output.append(onnx.helper.make_tensor_value_info("best", TensorProto.INT64, ["n", 1]))
    message = refusal(tmp_path, model)
    assert "logits (N, 7), auxiliary (N, 7), best (N, 1); set RESNET_ONNX_OUTPUT to the name of that one" in message
    assert "it has no output of that name" in refusal(tmp_path, model, onnx_output="other")
    for name, expected in (("logits", 0), ("auxiliary", 1)):
        found = examined(tmp_path, model, onnx_output=name)
        assert found.contents.graph is not None
        assert found.contents.graph.output_name == name
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        scores = torch.from_numpy(session.run(None, {"image": IMAGES})[expected])
        assert np.abs(probabilities(found) - scores.softmax(1).numpy()).max() < 1e-5


def test_setting_of_an_output_is_no_other_formats() -> None:
    """RESNET_ONNX_OUTPUT with a checkpoint of another format is refused, for it would change nothing."""
    contents = Contents(
        path=Path("made"), weights={}, sha256="", container="safetensors", family="torchvision", told=Told()
    )
    with pytest.raises(SettingError, match="RESNET_ONNX_OUTPUT is a setting of an ONNX file"):
        decide_all(Settings(onnx_output="logits"), contents)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_axes_without_sizes_are_told_by_trial(tmp_path: Path, layout: str) -> None:
    """Where every axis is symbolic, images go in as the graph runs with them, at the preprocessing's size."""
    model = Maker(layout=layout).model()
    for axis, name in zip(model.graph.input[0].type.tensor_type.shape.dim, "bcde", strict=True):
        axis.dim_param = name
    found = examined(tmp_path, model)
    assert found.contents.graph is not None
    assert found.contents.graph.layout == layout
    assert found.decisions.preprocessing.value.crop == (224, 224)
    expected = torch.from_numpy(Maker().logits(IMAGES)).softmax(1).numpy()
    assert np.abs(probabilities(found) - expected).max() < 1e-5


def test_row_of_one_number_an_image(tmp_path: Path) -> None:
    """A squeezed output, one number for each image, is one output."""
    model = behind(
        [node("Gemm", "logits one_of", "raw"), node("Squeeze", "raw axis", "scores")],
        {"scores": ["n"]},
        one_of=np.full((CLASSES, 1), 0.2, np.float32),
        axis=np.array([1]),
    )
    found = examined(tmp_path, model)
    assert found.class_count == 1
    raw = Maker().logits(IMAGES).sum(1, keepdims=True) * 0.2
    assert np.abs(probabilities(found) - 1 / (1 + np.exp(-raw))).max() < 1e-5


NORMALISED: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], str]] = {
    "batch normalisation that saw fractions": (
        [node("BatchNormalization", "image gamma beta mean var", "normal", epsilon=1e-9)],
        {"gamma": np.ones(3), "beta": np.zeros(3), "mean": MEAN, "var": STD**2},
        "unit",
    ),
    "batch normalisation that saw levels": (
        [node("BatchNormalization", "image gamma beta mean var", "normal", epsilon=1e-9)],
        {"gamma": np.ones(3), "beta": np.zeros(3), "mean": MEAN * 255, "var": (STD * 255) ** 2},
        "levels",
    ),
    "a product and a sum": (
        [node("Mul", "image slope", "product"), node("Add", "product shift", "normal")],
        {"slope": (1 / STD / 255).reshape(1, 3, 1, 1), "shift": (-MEAN / STD).reshape(1, 3, 1, 1)},
        "levels",
    ),
    "means and swapped channels": (
        [node("Gather", "image swap", "blue", axis=1), node("Sub", "blue mean", "centred"),
         node("Gather", "centred swap", "red", axis=1), node("Div", "red std", "normal")],
        {
            "swap": np.array([2, 1, 0]),
            "mean": (MEAN[::-1] * 255).reshape(1, 3, 1, 1),
            "std": (STD * 255).reshape(1, 3, 1, 1),
        },
        "levels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", NORMALISED)
def test_normalisation_in_other_forms_is_not_done_again(tmp_path: Path, form: str) -> None:
    """A mean and a deviation in a graph are found as batch normalisation, products and sums, or behind a swap."""
    nodes, constants, scale = NORMALISED[form]
    model = Maker().model()
    model.graph.node[0].input[0] = "normal"
    for each in reversed(nodes):
        model.graph.node.insert(0, each)
    for name, value in constants.items():
        kept = value if value.dtype == np.int64 else value.astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(kept, name))
    found = examined(tmp_path, model)
    assert found.contents.graph is not None
    assert found.contents.graph.scale == scale
    expected = torch.from_numpy(Maker().logits(IMAGES)).softmax(1).numpy()
    assert np.abs(probabilities(found) - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("mean", "deviation", "shift", "scale"),
    [
        ([103.9, 116.8, 123.7], 1.0, 0.0, "levels"),
        ([0.0], 255.0, 0.0, "levels"),
        ([0.0], 127.5, -1.0, "levels"),
        ([0.5], 0.5, 0.0, "unit"),
        ([0.0], 1.0, 0.0, None),
        ([-1.0], 2.0, 0.0, "unclear"),
    ],
)
def test_what_a_graph_takes_is_told_by_what_it_turns_to_nothing(
    mean: list[float], deviation: float, shift: float, scale: str | None
) -> None:
    """Means alone are levels, as are divisions by 255; what is neither levels nor fractions is warned of."""
    model = Maker().model()
    model.graph.node[0].input[0] = "normal"
    nodes = [node("Sub", "image mean", "a"), node("Div", "a deviation", "b"), node("Add", "b shift", "normal")]
    for each in reversed(nodes):
        model.graph.node.insert(0, each)
    for name, value in (("mean", np.array(mean).reshape(1, -1, 1, 1)), ("deviation", deviation), ("shift", shift)):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    found = find_scale(model, "image", "float32")
    assert found.takes == (None if scale == "unclear" else scale)
    assert bool(found.warning) == (scale == "unclear")
