"""Small networks to quantize, one of them with a place where 8 bits do not suffice, and folders of photos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageEnhance

from app.checkpoints import Checkpoint
from app.images import DecodeLimits
from app.quantization import Options, Photos, Report, quantize, read_photos
from app.settings import Settings
from app.types import Pixels
from tests.examined import examine
from tests.images_made import photo
from tests.photos import LIMITS, encode

CLASSES = 5
SIDE = 32
CHANNELS = 12
CONVOLUTIONS = 6
OUTLIER_AFTER = 2
"""The convolution whose first channel is thousands of times as large as the others, and read by none."""


def network(outlier: bool = False) -> bytes:
    """An ONNX file: six convolutions of 1×1 and 3×3 with relus, a mean over the image, a dense layer."""
    random = np.random.default_rng(3)
    nodes, weights, name, channels = [], {}, "image", 3
    for number in range(CONVOLUTIONS):
        side = 3 if number % 2 == 0 else 1
        kernel = random.normal(0, np.sqrt(2 / (channels * side * side)), (CHANNELS, channels, side, side))
        bias = random.normal(0, 0.1, CHANNELS)
        if outlier and number == OUTLIER_AFTER:
            kernel[0], bias[0] = np.abs(kernel[0]) * 3000, 3000.0
        if outlier and number == OUTLIER_AFTER + 1:
            kernel[:, 0] = 0
        weights[f"kernel{number}"], weights[f"bias{number}"] = kernel.astype(np.float32), bias.astype(np.float32)
        nodes.append(
            helper.make_node(
                "Conv",
                [name, f"kernel{number}", f"bias{number}"],
                [f"maps{number}"],
                name=f"conv{number}",
                kernel_shape=[side, side],
                pads=[side // 2] * 4,
            )
        )
        nodes.append(helper.make_node("Relu", [f"maps{number}"], [f"lit{number}"], name=f"relu{number}"))
        name, channels = f"lit{number}", CHANNELS
    weights["dense"] = random.normal(0, 6, (CHANNELS, CLASSES)).astype(np.float32)
    weights["last"] = np.zeros(CLASSES, np.float32)
    nodes.append(helper.make_node("GlobalAveragePool", [name], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"))
    nodes.append(helper.make_node("Gemm", ["flat", "dense", "last"], ["scores"], name="dense"))
    # So that no class is everybody's: the scores of the photos below add up to nothing.
    scores = _run(_model(nodes, weights), _normalised(colours(64).pixels))
    weights["last"] = -scores.mean(axis=0)
    return _model(nodes, weights)


def _model(nodes: list[Any], weights: dict[str, NDArray[np.float32]]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


def _run(model: bytes, images: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images})[0])


def _normalised(pixels: Pixels) -> NDArray[np.float32]:
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((pixels / 255 - mean) / deviation).transpose(0, 3, 1, 2).astype(np.float32)


def write_network(folder: Path, outlier: bool = False) -> Checkpoint:
    """The network as a checkpoint that `examine` read from a file, which stays there."""
    path = folder / ("outlier.onnx" if outlier else "network.onnx")
    path.write_bytes(network(outlier))
    return examine(Settings(), path).checkpoint


def write_photos(folder: Path, count: int) -> Path:
    """`count` windows of a cat, a cup and a rocket, darker or brighter, as JPEGs in two folders."""
    names = ("chelsea", "coffee", "rocket")
    random = np.random.default_rng(1)
    for number in range(count):
        whole = photo(names[number % len(names)])
        width, height = (int(side * random.uniform(0.75, 1)) for side in whole.size)
        left, top = random.integers(0, whole.width - width + 1), random.integers(0, whole.height - height + 1)
        window = whole.crop((int(left), int(top), int(left) + width, int(top) + height))
        target = folder / ("even" if number % 2 == 0 else "odd") / f"photo{number:03}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encode(ImageEnhance.Brightness(window).enhance(random.uniform(0.7, 1.3)), quality=92))
    return folder


def colours(count: int) -> Photos:
    """Pixels at the small networks' size: noise over a colour, in which classes differ widely."""
    random = np.random.default_rng(5)
    base = random.integers(0, 256, (count, 1, 1, 3))
    pixels = np.clip(base + random.integers(-60, 61, (count, SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    return Photos(pixels, tuple(f"photo{number}" for number in range(count)), (), 0)


def made(checkpoint: Checkpoint, photos: Photos, options: Options | None = None) -> tuple[bytes, Report]:
    return quantize(checkpoint, photos, options or Options(), lambda what, done, total: None)


def read(
    folder: Path,
    checkpoint: Checkpoint,
    most: int = 1000,
    limits: DecodeLimits = LIMITS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Photos:
    return read_photos(folder, checkpoint.preprocessing, limits, most=most, threads=2, progress=progress)


def grey(folder: Path, name: str, level: int) -> None:
    Image.new("RGB", (64, 64), (level, level, level)).save(folder / name)
