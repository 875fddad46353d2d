"""The process that examines ONNX files: `python onnx_process.py`, and the file on standard input.

It stands alone, because onnx's checker and ONNX Runtime can crash on a hostile graph; `limited_process` keeps it to
limited time and memory. The graph is checked first, then run on noise: what it answers for two images at once must be
what it answers for each. It answers on standard output with a line of JSON, and the model behind it where that was
changed:

    {"input": name, "output": name, "dtype": "float32", "layout": "nchw", "size": [224, 224] or null,
     "batch": 8 or null, "classes": 1000, "kind": "softmax", "scale": null or "unit" or "levels", "note": clause,
     "changed": true, "record": null or text, "graph_sha256": null or hex, "quantized": false}
    {"refused": sentence}     what the graph does is not done here
    {"damaged": reason}

"batch" is the only size that the graph takes, or null where it takes any. "record" is what `quantize` wrote into the
file's metadata, as it stands there, and "graph_sha256" the digest of the graph beside it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

MAX_NODES = 20_000
MAX_SIDE = 1024
MAX_BATCH = 64
MAX_ELEMENTS = 1 << 27
MAX_SHAPE_NUMBERS = 1024
DEFAULT_SIDE = 224
DEFAULT_DOMAINS = ("", "ai.onnx")
TOLERANCE = 1e-4
# Where numbers are rounded to 8 bits, a difference in the last digit of a float can become one of a whole level.
QUANTIZED_TOLERANCE = 5e-2
QUANTIZERS = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"})
RECORD_KEY = "resnet_serve"
MAX_RECORD_BYTES = 64 << 20

# What networks that classify images are made of. No loops, branches, sequences, strings or random numbers: what runs
# here has a size and a time that its shapes tell.
OPERATORS = frozenset(
    {
        *("Conv", "ConvInteger", "QLinearConv", "Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"),
        *("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "LRN"),
        *("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"),
        *("Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "LogSoftmax", "Mish", "PRelu", "Relu"),
        *("Selu", "Sigmoid", "Softmax", "Softplus", "Tanh"),
        *("Abs", "Add", "Ceil", "Div", "Exp", "Floor", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Sqrt", "Sub"),
        *("Sum", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum"),
        *("And", "Equal", "Greater", "Less", "Not", "Where"),
        *("Cast", "CastLike", "Concat", "Constant", "ConstantOfShape", "Dropout", "Expand", "Flatten", "Gather"),
        *("Identity", "Pad", "Range", "Reshape", "Resize", "Shape", "Slice", "Split", "Squeeze", "Tile", "Transpose"),
        "Unsqueeze",
        *("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"),
    }
)
# Between a Softmax and the output they leave every number what it is.
SHAPERS = frozenset({"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Dropout", "Transpose"})


class Refused(Exception):
    """What the graph does and what is not done here, as a clause."""


@dataclass
class Entrance:
    """The one input."""

    name: str
    dtype: str
    layout: str
    size: tuple[int, int] | None
    batch: int | None

    def shape(self, count: int) -> tuple[int, ...]:
        height, width = self.size or (DEFAULT_SIDE, DEFAULT_SIDE)
        return (count, 3, height, width) if self.layout == "nchw" else (count, height, width, 3)


def examine(data: bytes, answer: BinaryIO) -> None:
    """Write the answer for a graph that is as it should be. Raises `Refused`, or whatever the libraries meet."""
    import onnx

    model = onnx.load_model_from_string(data)
    check_contents(model)
    onnx.checker.check_model(data)
    entrance = find_entrance(model)
    if len(model.graph.output) != 1:
        raise Refused(f"it has {len(model.graph.output)} outputs where the classes' scores alone were expected")
    check_sizes(model, entrance)
    kind, note = kind_of(model)
    record = record_of(model)
    trial = Trial(model, data, entrance)
    answer.write(
        json.dumps(
            {
                "input": entrance.name,
                "output": model.graph.output[0].name,
                "dtype": entrance.dtype,
                "layout": entrance.layout,
                "size": entrance.size,
                "batch": trial.batch,
                "classes": trial.classes,
                "kind": kind,
                "scale": scale_of(model, entrance),
                "note": note or trial.note,
                "changed": trial.changed is not None,
                "record": record,
                "graph_sha256": None if record is None else graph_digest(model),
                "quantized": is_quantized(model),
            }
        ).encode()
        + b"\n"
    )
    if trial.changed is not None:
        answer.write(trial.changed)


def check_contents(model: Any) -> None:
    """Refuse what could reach out of the file or run long: other domains, functions, subgraphs, external data."""
    graph = model.graph
    if len(graph.node) > MAX_NODES:
        raise Refused(f"it has over {MAX_NODES:,} nodes, which no classifier here has")
    if model.functions:
        raise Refused("it defines functions of its own; export it with them inlined (onnx.inliner)")
    for node in graph.node:
        if node.domain not in DEFAULT_DOMAINS:
            raise Refused(f"it uses {node.op_type[:40]} of the domain {node.domain[:60]}, and only ONNX's own is run")
        if node.op_type not in OPERATORS:
            raise Refused(f"it uses {node.op_type[:40]}, which is not run here")
    if graph.sparse_initializer:
        raise Refused("it has sparse weights")
    for tensor in tensors_of(graph):
        check_tensor(tensor)


def tensors_of(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs or attribute.HasField("sparse_tensor"):
                raise Refused(f"{node.op_type[:40]} holds a graph or a sparse tensor, which is not run here")
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def check_tensor(tensor: Any) -> None:
    import numpy as np
    import onnx

    name = tensor.name[:80] or "a constant"
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise Refused(f"{name} keeps its numbers in another file, and none is opened; save the model as one file")
    if tensor.data_type in (onnx.TensorProto.STRING, onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
        raise Refused(f"{name} is text or complex")
    if any(side < 0 for side in tensor.dims) or prod(tensor.dims) > 8 * max(1, tensor.ByteSize()):
        raise Refused(f"{name} claims shape {list(tensor.dims)} but the file stores fewer values")
    values = onnx.numpy_helper.to_array(tensor)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise Refused(f"{name} has values that are not finite")


def find_entrance(model: Any) -> Entrance:
    """The one input that is no weight: four axes, three of them channels."""
    import onnx

    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise Refused(f"it has {len(inputs)} inputs where one image was expected")
    kinds = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.UINT8: "uint8"}
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type not in kinds:
        raise Refused("its input is neither float32, float16 nor uint8")
    # 0 for an axis that takes any size.
    sides = [max(0, axis.dim_value) for axis in tensor.shape.dim]
    if len(sides) != 4 or 3 not in (sides[1], sides[3]):
        raise Refused(f"its input has the shape {sides} where (N, 3, H, W) or (N, H, W, 3) was expected")
    layout = "nchw" if sides[1] == 3 else "nhwc"
    height, width = sides[2:] if layout == "nchw" else sides[1:3]
    if max(height, width) > MAX_SIDE or sides[0] > MAX_BATCH:
        raise Refused(f"its input of {sides} is over the limit of {MAX_BATCH} images of {MAX_SIDE} pixels a side")
    size = (height, width) if height and width else None
    return Entrance(inputs[0].name, kinds[tensor.elem_type], layout, size, sides[0] or None)


def check_sizes(model: Any, entrance: Entrance) -> None:
    """Refuse a graph with a value that would not fit: its shapes are told before anything runs."""
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    # Shapes depend on small constants alone; large weights are told as inputs, so that they are not written out again.
    del fixed.graph.initializer[:]
    known = {value.name for value in fixed.graph.input}
    for tensor in model.graph.initializer:
        if prod(tensor.dims) <= MAX_SHAPE_NUMBERS:
            fixed.graph.initializer.append(tensor)
        elif tensor.name not in known:
            fixed.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    for value in fixed.graph.input:
        if value.name == entrance.name:
            for axis, side in zip(value.type.tensor_type.shape.dim, entrance.shape(entrance.batch or 1), strict=True):
                axis.dim_value = side
    inferred = onnx.shape_inference.infer_shapes(fixed, check_type=True, strict_mode=False, data_prop=True)
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        sides = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        if prod(max(1, side) for side in sides) > MAX_ELEMENTS:
            raise Refused(f"its value {value.name[:80]} has the shape {sides}, over {MAX_ELEMENTS:,} numbers")


def record_of(model: Any) -> str | None:
    """What `quantize` wrote into the metadata, if it did."""
    for entry in model.metadata_props:
        if entry.key == RECORD_KEY:
            if len(entry.value) > MAX_RECORD_BYTES:
                raise Refused(f"its record has over {MAX_RECORD_BYTES:,} characters")
            return str(entry.value)
    return None


def graph_digest(model: Any) -> str:
    """SHA-256 of the graph with its weights, without what is noted beside it."""
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


def is_quantized(model: Any) -> bool:
    return any(node.op_type in QUANTIZERS for node in model.graph.node)


def producers(model: Any) -> dict[str, Any]:
    return {output: node for node in model.graph.node for output in node.output}


def kind_of(model: Any) -> tuple[str, str]:
    """Whether the output is logits or probabilities, by the last operator that makes numbers; and a note."""
    made_by = producers(model)
    name = model.graph.output[0].name
    for _ in range(len(model.graph.node)):
        node = made_by.get(name)
        if node is None or not node.input or node.op_type not in SHAPERS:
            break
        name = node.input[0]
    operator = node.op_type if node is not None else ""
    if operator == "Sigmoid":
        return "none", "it ends in a Sigmoid, so that each probability stands alone and they need not add up"
    return ("none" if operator == "Softmax" else "softmax"), ""


def scale_of(model: Any, entrance: Entrance) -> str | None:
    """What a graph that normalises its input itself takes: "unit" (0 to 1) or "levels" (0 to 255); None if it does not.

    It does where the input meets a mean or a deviation, constants of one or three numbers, before anything else.
    """
    import numpy as np
    import onnx

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    slope, has_any, name = np.ones(1), False, entrance.name
    for _ in range(16):
        readers = [node for node in model.graph.node if name in node.input]
        if len(readers) != 1:
            break
        node = readers[0]
        if node.op_type in ("Mul", "Div", "Sub", "Add") and len(node.input) == 2:
            other = node.input[1] if node.input[0] == name else node.input[0]
            if other not in constants:
                break
            values = onnx.numpy_helper.to_array(constants[other]).astype(np.float64).reshape(-1)
            if values.size not in (1, 3) or (node.op_type == "Div" and (not values.all() or node.input[0] != name)):
                break
            slope = slope * values if node.op_type == "Mul" else slope / values if node.op_type == "Div" else slope
            has_any = True
        elif node.op_type not in ("Cast", "Transpose", "Identity"):
            break
        name = node.output[0]
    if not has_any:
        return "levels" if entrance.dtype == "uint8" else None
    # A deviation of a quarter of the range: the slope is about 4 for inputs up to 1, and about 1/64 for those to 255.
    return "levels" if entrance.dtype == "uint8" or np.abs(slope).max() < 0.25 else "unit"


class Trial:
    """The graph run on noise: how many classes, and whether any batch gives what single images give."""

    def __init__(self, model: Any, data: bytes, entrance: Entrance) -> None:
        import numpy as np

        self._entrance = entrance
        self._output = model.graph.output[0].name
        self._tolerance = QUANTIZED_TOLERANCE if is_quantized(model) else TOLERANCE
        self.batch: int | None = entrance.batch or 1
        self.changed: bytes | None = None
        self.note = ""
        noise = np.random.default_rng(0).integers(0, 256, entrance.shape(3))
        images = noise.astype(np.uint8) if entrance.dtype == "uint8" else (noise / 64 - 2).astype(entrance.dtype)
        session = self._session(data)
        alone = np.concatenate([self._run(session, np.repeat(image[None], self.batch, 0))[:1] for image in images])
        self.classes = alone.shape[1]
        if not np.isfinite(alone).all():
            raise Refused("it answers noise with numbers that are not finite")
        try:
            if entrance.batch is None:
                together = self._run(session, images)
            else:
                data = free_batch(model, entrance).SerializeToString()
                together = self._run(self._session(data), images)
        except Exception:
            together = np.empty((0, 0))
        if together.shape == alone.shape and np.abs(together - alone).max() <= self._tolerance * (
            1 + np.abs(alone).max()
        ):
            self.batch = None
            self.changed = None if entrance.batch is None else data
            return
        self.note = f"it answers {self.batch} images at a time and no other number, so that smaller batches are padded"
        if self.batch > 1:
            # Images beside it must not change an image's answer.
            mixed = self._run(session, np.resize(images, entrance.shape(self.batch)))[:1]
            if np.abs(mixed - alone[:1]).max() > self._tolerance * (1 + np.abs(alone).max()):
                raise Refused("its answer for an image depends on the images beside it")

    def _session(self, data: bytes) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def _run(self, session: Any, images: Any) -> Any:
        """(N, classes) float32."""
        import numpy as np

        (scores,) = session.run([self._output], {self._entrance.name: images})
        if (
            scores.ndim < 2
            or scores.dtype.kind != "f"
            or scores.size == 0
            or prod(scores.shape[1:]) != max(scores.shape[1:])
        ):
            raise Refused(
                f"it answers with {scores.dtype} of the shape {list(scores.shape)}, not with scores for classes"
            )
        return np.asarray(scores, np.float32).reshape(len(scores), -1)


def free_batch(model: Any, entrance: Entrance) -> Any:
    """A copy whose first axis takes any size: in its declarations, and in reshapes that say it again."""
    import onnx

    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    for value in (*freed.graph.input, *freed.graph.output):
        if value.name == entrance.name or value in freed.graph.output:
            sides = value.type.tensor_type.shape.dim
            if sides:
                sides[0].dim_param = "batch"
    # Shapes noted along the way hold the old size; they are inferred again.
    del freed.graph.value_info[:]
    shapes = {tensor.name: tensor for tensor in freed.graph.initializer}
    for node in freed.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            shapes[node.output[0]] = node.attribute[0].t
    for node in freed.graph.node:
        if node.op_type == "Reshape" and len(node.input) > 1 and node.input[1] in shapes:
            tensor = shapes[node.input[1]]
            values = onnx.numpy_helper.to_array(tensor).copy()
            if values.ndim == 1 and values.size > 1 and values[0] == entrance.batch:
                # 0 keeps the axis as it comes; where another is left open, that one may have meant the images too.
                values[0] = 0 if (values[1:] == -1).any() else -1
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return freed


def main() -> None:
    answer = sys.stdout.buffer
    try:
        examine(sys.stdin.buffer.read(), answer)
    except Refused as refusal:
        answer.write(json.dumps({"refused": str(refusal)}).encode() + b"\n")
    except Exception as error:
        # Damage fails with whatever the libraries meet: DecodeError, ValidationError, InferenceError, Fail, …
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        answer.write(json.dumps({"damaged": reason[:160].rstrip(". ")}).encode() + b"\n")


if __name__ == "__main__":
    main()
