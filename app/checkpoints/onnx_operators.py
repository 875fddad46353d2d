"""The ONNX operators that are run, by domain: those of image classifiers.

Loops, branches, sequences, strings and random numbers are excluded, so that shapes determine a run's size and time.
"""

from __future__ import annotations

from typing import Any

from .onnx_refusal import Refused

ONNX = ("", "ai.onnx")
MICROSOFT = "com.microsoft"

OPERATORS = frozenset(
    {
        *("Conv", "ConvInteger", "QLinearConv", "Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"),
        *("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "LRN"),
        *("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool", "MaxPool"),
        *("Celu", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "LogSoftmax", "Mish", "PRelu"),
        *("Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu"),
        *("Abs", "Add", "Ceil", "Div", "Exp", "Floor", "Log", "Max", "Mean", "Min", "Mul", "Neg", "Pow", "Reciprocal"),
        *("Round", "Sqrt", "Sub", "Sum"),
        *("LpNormalization", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
        *("ReduceSum", "ReduceSumSquare"),
        *("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Where"),
        *("Cast", "CastLike", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Dropout", "Expand", "Flatten"),
        *("Gather", "Identity", "Pad", "Range", "Reshape", "Resize", "Shape", "Size", "Slice", "SpaceToDepth", "Split"),
        *("Squeeze", "Tile", "Transpose", "Unsqueeze", "Upsample"),
        *("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"),
    }
)
# ONNX Runtime's own operators, as its quantizer and its optimizer write them. Each has the ONNX operator with the same
# output shape, and the inputs that this one takes; the other inputs are scales, zero points and biases.
STAND_INS: dict[str, tuple[str, tuple[int, ...]]] = {
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearReduceMean": ("ReduceMean", (0,)),
    "QLinearConv": ("Conv", (0, 3)),
    "QLinearConcat": ("Concat", ()),
    "QLinearLeakyRelu": ("Identity", (0,)),
    "QLinearSigmoid": ("Identity", (0,)),
    "QLinearSoftmax": ("Identity", (0,)),
    "QGemm": ("Gemm", (0, 3)),
    "QuantizeLinear": ("Identity", (0,)),
    "DequantizeLinear": ("Identity", (0,)),
    "NhwcMaxPool": ("MaxPool", (0,)),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1)),
    "MatMulIntegerToFloat": ("MatMul", (0, 1)),
    "FusedConv": ("Conv", (0, 1)),
    "FusedGemm": ("Gemm", (0, 1)),
    "FusedMatMul": ("MatMul", (0, 1)),
    "Gelu": ("Identity", (0,)),
    "FastGelu": ("Identity", (0,)),
    "QuickGelu": ("Identity", (0,)),
    "BiasGelu": ("Identity", (0,)),
}
QUANTIZERS = frozenset(
    {
        *("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm"),
        *("DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
    }
)


def is_quantized(model: Any) -> bool:
    return any(node.op_type in QUANTIZERS for node in model.graph.node)


def check_operators(model: Any) -> None:
    """Raises `Refused` for an operator that is not run."""
    for node in model.graph.node:
        name, domain = node.op_type[:40], node.domain[:60]
        if node.domain == "com.microsoft.nchwc":
            raise Refused(
                "ONNX Runtime has laid it out for one kind of CPU, on which alone it answers right; serve the model "
                "that was optimised, or save it with ORT_ENABLE_EXTENDED in place of ORT_ENABLE_ALL"
            )
        if node.domain not in (*ONNX, MICROSOFT):
            raise Refused(
                f"it uses {name} of the domain {domain}, and only ONNX's and ONNX Runtime's own operators are run; "
                f"export it with those alone"
            )
        if node.op_type not in (STAND_INS if node.domain == MICROSOFT else OPERATORS):
            raise Refused(
                f"it uses {name}{' of com.microsoft' if node.domain == MICROSOFT else ''}, which is not run here; "
                f"export the network alone, without what is done before and after it"
            )


def in_onnx_alone(model: Any) -> None:
    """Replace ONNX Runtime's own operators in `model` by ONNX operators with the same shapes, to measure it."""
    import onnx

    versions = {each.domain: each.version for each in model.opset_import}
    version = versions.get("") or versions.get("ai.onnx") or 1
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for number, node in enumerate(nodes):
        if node.domain == MICROSOFT and node.op_type in STAND_INS:
            model.graph.node.extend(_stand_in(node, number, version, onnx))
        else:
            model.graph.node.append(node)


def _stand_in(node: Any, number: int, version: int, onnx: Any) -> list[Any]:
    operator, taken = STAND_INS[node.op_type]
    inputs = (
        list(node.input[2::3]) if operator == "Concat" else [node.input[at] for at in taken if at < len(node.input)]
    )
    attributes = {each.name: each for each in node.attribute}
    transposes = (attributes[name].i for name in ("transA", "transB", "transBatchA") if name in attributes)
    if operator == "MatMul" and any(transposes):
        # The shape of a transposed product is left open.
        return []
    known = onnx.defs.get_schema(operator, version).attributes
    output, nodes = node.output[0], []
    is_nhwc = ("channels_last" in attributes and attributes["channels_last"].i) or node.op_type == "NhwcMaxPool"
    if is_nhwc and inputs:
        nodes.append(onnx.helper.make_node("Transpose", [inputs[0]], [f"planes:{number}"], perm=[0, 3, 1, 2]))
        inputs[0], output = f"planes:{number}", f"made:{number}"
    made = onnx.helper.make_node(operator, inputs, [output])
    made.attribute.extend(each for name, each in attributes.items() if name in known)
    nodes.append(made)
    if is_nhwc and inputs:
        nodes.append(onnx.helper.make_node("Transpose", [output], [node.output[0]], perm=[0, 2, 3, 1]))
    return nodes
