"""Small ONNX classifiers, as exporters write them, with every trait that the reader has to tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CLASSES = 7
SIDE = 32
CHANNELS = 8


@dataclass
class Maker:
    """A convolution, a mean over the image and a dense layer; `build` gives the file's bytes."""

    batch: int | str = "n"
    layout: str = "nchw"
    dtype: int = TensorProto.FLOAT
    last: str = ""
    """An operator behind the logits."""
    scale: float | None = None
    """A division in front, by the deviations times this."""
    reshape: tuple[int, ...] | None = None
    """In place of Flatten."""
    side: int | str = SIDE
    mixes: bool = False
    """Whether every image's answer is less the mean over the batch."""

    def weights(self) -> dict[str, NDArray[Any]]:
        random = np.random.default_rng(0)
        return {
            "kernel": random.normal(0, 0.3, (CHANNELS, 3, 3, 3)).astype(np.float32),
            "dense": random.normal(0, 1, (CHANNELS, CLASSES)).astype(np.float32),
            "bias": random.normal(0, 1, CLASSES).astype(np.float32),
        }

    def model(self) -> onnx.ModelProto:
        weights, nodes, name = self.weights(), [], "image"
        if self.dtype != TensorProto.FLOAT:
            nodes.append(helper.make_node("Cast", [name], ["cast"], to=TensorProto.FLOAT))
            name = "cast"
        if self.scale is not None:
            axes = (1, 3, 1, 1) if self.layout == "nchw" else (1, 1, 1, 3)
            weights["mean"] = (np.array([0.4, 0.5, 0.6]) * self.scale).astype(np.float32).reshape(axes)
            weights["deviation"] = (np.array([0.2, 0.25, 0.3]) * self.scale).astype(np.float32).reshape(axes)
            nodes += [helper.make_node("Sub", [name, "mean"], ["centred"])]
            nodes += [helper.make_node("Div", ["centred", "deviation"], ["normalised"])]
            name = "normalised"
        if self.layout == "nhwc":
            nodes.append(helper.make_node("Transpose", [name], ["planes"], perm=[0, 3, 1, 2]))
            name = "planes"
        nodes.append(helper.make_node("Conv", [name, "kernel"], ["maps"], kernel_shape=[3, 3], strides=[2, 2]))
        nodes.append(helper.make_node("Relu", ["maps"], ["lit"]))
        nodes.append(helper.make_node("GlobalAveragePool", ["lit"], ["pooled"]))
        if self.reshape:
            weights["shape"] = np.array(self.reshape, np.int64)
            nodes.append(helper.make_node("Reshape", ["pooled", "shape"], ["flat"]))
        else:
            nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
        logits = "logits" if self.last or self.mixes else "scores"
        nodes.append(helper.make_node("Gemm", ["flat", "dense", "bias"], [logits]))
        if self.mixes:
            nodes.append(helper.make_node("ReduceMean", ["logits"], ["middle"], axes=[0], keepdims=1))
            nodes.append(helper.make_node("Sub", ["logits", "middle"], ["scores"]))
        elif self.last:
            options = {"axis": 1} if "ax" in self.last else {}
            nodes.append(helper.make_node(self.last, ["logits"], ["scores"], **options))
        shape = [self.batch, 3, self.side, self.side]
        if self.layout == "nhwc":
            shape = [self.batch, self.side, self.side, 3]
        graph = helper.make_graph(
            nodes,
            "classifier",
            [helper.make_tensor_value_info("image", self.dtype, shape)],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [self.batch, CLASSES])],
            [numpy_helper.from_array(values, name) for name, values in weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="test")

    def build(self) -> bytes:
        return bytes(self.model().SerializeToString())

    def logits(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """What the convolution and the dense layer answer for normalised `(N, 3, H, W)`, computed by torch."""
        import torch

        weights = {name: torch.from_numpy(values) for name, values in self.weights().items()}
        inputs = torch.from_numpy(np.ascontiguousarray(images, np.float32))
        maps = torch.nn.functional.conv2d(inputs, weights["kernel"], stride=2).relu().mean((2, 3))
        return np.asarray((maps @ weights["dense"] + weights["bias"]).numpy())


def behind(
    nodes: Sequence[onnx.NodeProto],
    outputs: Mapping[str, Sequence[int | str]] | None = None,
    maker: Maker | None = None,
    **constants: Any,
) -> onnx.ModelProto:
    """The graph of `maker` with `nodes` behind its value `logits`, and `outputs` by their names."""
    maker = maker or Maker()
    model = maker.model()
    model.graph.node[-1].output[0] = "logits"
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, getattr(value, "dtype", np.float32)), name)
        for name, value in constants.items()
    )
    model.graph.output.pop()
    for name, shape in (outputs or {"scores": [maker.batch, CLASSES]}).items():
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return model


def node(operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """A node whose inputs are words of a text."""
    return helper.make_node(operator, inputs.split(), [output], **attributes)


def with_data_beside(model: onnx.ModelProto, path: Path, data: str) -> None:
    """Write `model` to `path`, as torch.onnx.export does: its weights in the file `data` beside it."""
    onnx.save_model(model, path, save_as_external_data=True, location=data, size_threshold=0)
