"""A ResNet-50 and a small ONNX network whose answers to a folder of photos are known, with facts that can be hidden."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from app.checkpoints import Decision
from app.evaluation import Evaluation, Options, evaluate, find_photos
from app.images import decode
from app.layers import ResNetSwitches
from app.networks import build_network
from app.settings import Settings
from app.types import Interpolation, Pixels, Preprocessing
from tests.checkpoints_made import make_network, without_counters
from tests.examined import Examined, examine
from tests.images_made import photo
from tests.lazy import torch
from tests.photos import LIMITS, encode

SIDE = 48
LABELS = ("robin", "heron", "newt", "adder", "otter")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PREPARED = Preprocessing(55, (SIDE, SIDE), Interpolation.BILINEAR, *IMAGENET)
"""What is assumed: torchvision's first, at a small size."""


def write_windows(folder: Path, count: int) -> list[Path]:
    """`count` windows of real photos, each another, as JPEGs."""
    random = np.random.default_rng(2)
    names = ("chelsea", "coffee", "astronaut", "rocket", "immunohistochemistry")
    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        whole = photo(names[number % len(names)])
        width, height = int(random.integers(90, 200)), int(random.integers(90, 200))
        left, top = random.integers(0, whole.width - width), random.integers(0, whole.height - height)
        window = whole.crop((int(left), int(top), int(left) + width, int(top) + height))
        paths.append(folder / f"photo{number:03}.jpg")
        paths[-1].write_bytes(encode(window, quality=92))
    return paths


def write_table(folder: Path, paths: Sequence[Path], labels: Sequence[str]) -> Path:
    table = folder / "labels.csv"
    rows = [f"{os.path.relpath(path, folder)},{label}" for path, label in zip(paths, labels, strict=True)]
    table.write_text("\n".join(["file,label", *rows]) + "\n")
    return table


def pixels_of(paths: Sequence[Path], preprocessing: Preprocessing) -> Pixels:
    return np.stack([decode(path.read_bytes(), preprocessing, LIMITS) for path in paths])


def normalised(paths: Sequence[Path], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """`(N, 3, H, W)`: as the definition in `Preprocessing` says."""
    pixels = pixels_of(paths, preprocessing)
    channels = pixels[..., ::-1] if preprocessing.is_bgr else pixels
    values = (channels / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32)


@dataclass(frozen=True)
class Case:
    """A checkpoint that says nothing of its facts, and photos that it classifies right under the true ones."""

    examined: Examined
    paths: list[Path]
    logits: NDArray[np.float32]
    """Under the true facts."""
    table: Path
    assumed: Preprocessing
    """What it is evaluated with."""

    @property
    def answers(self) -> NDArray[np.int64]:
        return np.asarray(self.logits.argmax(axis=1))

    def evaluate(self, *only: str, table: Path | None = None, **changes: Any) -> Evaluation:
        """With `changes` of the checkpoint, of which all is taken to be assumed."""
        checkpoint = replace(self.examined.checkpoint, preprocessing=self.assumed, **changes)
        assumed = replace(
            self.examined.decisions, preprocessing=Decision(checkpoint.preprocessing, "assumed", is_assumed=True)
        )
        options = Options(LIMITS, only=only)
        return evaluate(checkpoint, assumed, find_photos(table or self.table), options, told_nothing)


def told_nothing(what: str, done: int, total: int, detail: str = "") -> None:
    assert 0 <= done <= total


def centred(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the classifier's bias loses, so that no class is everybody's."""
    return np.asarray(logits.mean(axis=0), np.float32)


@cache
def resnet_state() -> dict[str, torch.Tensor]:
    return without_counters(make_network("resnet50", classes=len(LABELS)).state_dict())


def resnet_case(folder: Path, paths: list[Path], switches: ResNetSwitches, preprocessing: Preprocessing) -> Case:
    """A state dict of torchvision's names for a network of other facts."""
    state = dict(resnet_state())
    network = build_network("resnet50", {name: tensor.numpy() for name, tensor in state.items()}, switches).eval()
    with torch.inference_mode():
        logits = network(torch.from_numpy(normalised(paths, preprocessing))).numpy()
    state["fc.bias"] = state["fc.bias"] - torch.from_numpy(centred(logits))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "weights.pth")
    (folder / "labels.txt").write_text("\n".join(LABELS))
    logits = logits - centred(logits)
    table = write_table(folder, paths, [LABELS[at] for at in logits.argmax(axis=1)])
    return Case(examine(Settings(), folder / "weights.pth"), paths, logits, table, PREPARED)


GRAPH_SIDE = 32
GRAPH_PREPARED = Preprocessing(37, (GRAPH_SIDE, GRAPH_SIDE), Interpolation.BILINEAR, *IMAGENET)


def graph_case(folder: Path, paths: list[Path], preprocessing: Preprocessing, last: str = "") -> Case:
    """A small ONNX file: a convolution and a dense layer over all of its map, which sees every pixel's place."""
    random = np.random.default_rng(0)
    side = GRAPH_SIDE // 4
    kernel = random.normal(0, 0.2, (8, 3, 4, 4)).astype(np.float32)
    dense = random.normal(0, 0.2, (8 * side * side, len(LABELS))).astype(np.float32)
    images = torch.from_numpy(normalised(paths, preprocessing))
    maps = torch.nn.functional.conv2d(images, torch.from_numpy(kernel), stride=4).relu().flatten(1)
    logits = np.asarray((maps @ torch.from_numpy(dense)).numpy())
    weights = {"kernel": kernel, "dense": dense, "bias": -centred(logits)}
    scores = "logits" if last else "scores"
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["maps"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Relu", ["maps"], ["lit"]),
        helper.make_node("Flatten", ["lit"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense", "bias"], [scores]),
        *([helper.make_node(last, ["logits"], ["scores"])] if last else []),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, GRAPH_SIDE, GRAPH_SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", len(LABELS)])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(bytes(model.SerializeToString()))
    (folder / "labels.txt").write_text("\n".join(LABELS))
    logits = logits - centred(logits)
    table = write_table(folder, paths, [LABELS[at] for at in logits.argmax(axis=1)])
    return Case(examine(Settings(), folder / "model.onnx"), paths, logits, table, GRAPH_PREPARED)
