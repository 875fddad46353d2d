"""An ONNX graph, traversed from an output to its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .onnx_weights import is_told_by_place

# Operators that keep all values unchanged.
SHAPERS = frozenset({"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Dropout", "Transpose"})
ROUNDERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


class Graph:
    """The node that computes each value, and the constants. `model`: onnx.ModelProto."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.made_by: dict[str, Any] = {name: node for node in model.graph.node for name in node.output if name}
        self.constants: dict[str, Any] = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                self.constants[node.output[0]] = node.attribute[0].t

    def value(self, name: str, most: int = 4096) -> Any:
        """A small constant as an array, possibly in another shape; None for any other value."""
        import numpy as np
        import onnx

        tensor, node = self.constants.get(name), self.made_by.get(name)
        if tensor is None and node is not None and node.op_type == "DequantizeLinear":
            parts = [self.value(each) for each in node.input if each in self.constants]
            if len(parts) < len(node.input) or any(part is None or part.size != 1 for part in parts[1:]):
                return None
            numbers = parts[0].astype(np.float64) - (parts[2].astype(np.float64) if len(parts) > 2 else 0)
            return numbers * float(parts[1].reshape(-1)[0])
        if tensor is None and node is not None and node.op_type in SHAPERS and node.input[0] in self.constants:
            tensor = self.constants[node.input[0]]
        if tensor is None or is_told_by_place(tensor) or len(tensor.dims) > 8 or tensor.ByteSize() > most:
            return None
        return onnx.numpy_helper.to_array(tensor)

    def same_numbers(self, name: str) -> Iterator[str]:
        """`name`, and the values before it with the same numbers, possibly rounded or in another shape."""
        for _ in range(len(self.model.graph.node) + 1):
            yield name
            node = self.made_by.get(name)
            if node is None or not node.input or node.op_type not in SHAPERS | ROUNDERS:
                return
            name = node.input[0]

    def needs(self, name: str) -> set[str]:
        """All values that `name` is computed from, and itself."""
        needed, waiting = {name}, [name]
        while waiting:
            node = self.made_by.get(waiting.pop())
            if node is not None:
                new = {each for each in node.input if each} - needed
                needed |= new
                waiting += new
        return needed


def pruned(model: Any, output: str) -> bool:
    """Remove from `model` all that `output` does not depend on; returns whether there were such nodes or outputs."""
    needed = Graph(model).needs(output)
    kept = [node for node in model.graph.node if needed.intersection(node.output)]
    is_changed = len(kept) < len(model.graph.node) or len(model.graph.output) > 1
    outputs = [value for value in model.graph.output if value.name == output]
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    # Earlier exporters list the weights as inputs too. A real input that is not needed is kept, and refused later.
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored or value.name in needed]
    for field, values in (("node", kept), ("output", outputs[:1]), ("initializer", tensors), ("input", inputs)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        target = getattr(model.graph, field)
        del target[:]
        target.extend(copies)
    return is_changed
