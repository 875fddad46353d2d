"""A writer of ONNX files: nodes first, then tensors one by one, each computed just before it is written.

It needs neither the package onnx nor a copy of the weights: writing a model of 100 MB takes the memory of one layer.
Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..protobuf import bytes_field, field_head, number_field, varint_bytes

FLOAT, UINT8, INT64 = 1, 2, 7
_IR_VERSION = 9  # of opset 20
_PRODUCER = b"resnet-serve"
Attribute = int | float | str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """An initializer, of float32 or int64 numbers."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], NDArray[np.float32] | NDArray[np.int64]]
    data_type: int = FLOAT

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * (4 if self.data_type == FLOAT else 8)

    def head(self) -> bytes:
        """The TensorProto without its numbers, which come last."""
        dims = b"".join(number_field(1, each) for each in self.shape)
        name = bytes_field(8, self.name.encode())
        return dims + number_field(2, self.data_type) + name + field_head(9, self.size_bytes)


@dataclass(slots=True)
class OnnxFile:
    """A graph with one input and one output. Nodes are written in the order in which they were added."""

    opset: int
    input: bytes = b""
    output: bytes = b""
    _nodes: list[bytes] = field(default_factory=list)
    _tensors: list[Tensor] = field(default_factory=list)

    def add_node(self, operator: str, inputs: tuple[str, ...], output: str, **attributes: Attribute) -> str:
        """Add a node that is named like its output. Returns `output`."""
        node = b"".join(bytes_field(1, name.encode()) for name in inputs)
        node += bytes_field(2, output.encode()) + bytes_field(3, output.encode()) + bytes_field(4, operator.encode())
        node += b"".join(bytes_field(5, _attribute(name, value)) for name, value in attributes.items())
        self._nodes.append(bytes_field(1, node))
        return output

    def add_tensor(self, tensor: Tensor) -> str:
        self._tensors.append(tensor)
        return tensor.name

    def pieces(self) -> Iterator[bytes]:
        """The file, in consecutive pieces."""
        graph = b"".join(self._nodes) + bytes_field(2, b"network")
        graph += bytes_field(11, self.input) + bytes_field(12, self.output)
        heads = [(tensor, tensor.head()) for tensor in self._tensors]
        fields = [(each, head, field_head(5, len(head) + each.size_bytes)) for each, head in heads]
        size = len(graph) + sum(len(start) + len(head) + each.size_bytes for each, head, start in fields)
        yield number_field(1, _IR_VERSION) + bytes_field(2, _PRODUCER)
        yield bytes_field(8, bytes_field(1, b"") + number_field(2, self.opset))
        yield field_head(7, size) + graph
        for tensor, head, start in fields:
            yield start + head
            values = np.asarray(tensor.values(), "<f4" if tensor.data_type == FLOAT else "<i8")
            if values.shape != tensor.shape:
                raise ValueError(f"{tensor.name} is {values.shape} and was announced as {tensor.shape}")
            yield values.tobytes()

    def size_bytes(self) -> int:
        """The size of all tensors, which is nearly that of the file."""
        return sum(tensor.size_bytes for tensor in self._tensors)


def value_info(name: str, data_type: int, shape: tuple[int | str, ...]) -> bytes:
    """A ValueInfoProto for an input or output. An axis that is given by a name has any length."""
    axes = b"".join(
        bytes_field(1, number_field(1, each) if isinstance(each, int) else bytes_field(2, each.encode()))
        for each in shape
    )
    tensor_type = number_field(1, data_type) + bytes_field(2, axes)
    return bytes_field(1, name.encode()) + bytes_field(2, bytes_field(1, tensor_type))


def _attribute(name: str, value: Attribute) -> bytes:
    start = bytes_field(1, name.encode())
    if isinstance(value, int):
        return start + number_field(3, value) + number_field(20, 2)
    if isinstance(value, float):
        return start + varint_bytes(2 << 3 | 5) + struct.pack("<f", value) + number_field(20, 1)
    if isinstance(value, str):
        return start + bytes_field(4, value.encode()) + number_field(20, 3)
    return start + b"".join(number_field(8, each) for each in value) + number_field(20, 7)
