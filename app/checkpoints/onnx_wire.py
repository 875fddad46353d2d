"""The structure of an ONNX file, read from its bytes within limits, before protobuf makes messages of them.

Large tensors stay in the file and only their positions are kept, so the part that is parsed afterwards is small. The
process that examines ONNX files imports this module too, so it needs nothing but Python.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..protobuf import bytes_field
from .onnx_fields import BYTES, Field, FieldReader
from .onnx_refusal import Refused
from .onnx_tensors import LARGE_BYTES, Tensor, read_tensor

RECORD_KEY = b"resnet_serve"
MAX_NODES = 20_000
MAX_TENSORS = 20_000
_MAX_PACKED_BYTES = 1 << 16

# Field numbers of onnx.proto3.
_GRAPH, _METADATA, _TRAINING, _FUNCTIONS = 7, 14, 20, 25
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO, _ANNOTATION, _SPARSE, _GRAPH_METADATA = 1, 5, 11, 12, 13, 14, 15, 16
_TENSOR_NAME = 8

# Sub-messages, by field number, of the messages that are copied whole. Their other fields are numbers and text.
_SUB_MESSAGES: dict[str, dict[int, str]] = {
    "value": {2: "type"},
    "type": {1: "tensor type"},
    "tensor type": {2: "shape"},
    "shape": {1: "axis"},
    "node": {5: "attribute", 9: "text pair"},
    "attribute": {5: "tensor", 10: "tensor"},
    "tensor": {13: "text pair"},
}
# Attributes that are refused: graphs, sparse tensors, types.
_ATTRIBUTE_GRAPHS = frozenset({6, 11, 14, 15, 22, 23})


@dataclass(slots=True)
class Contents:
    """A ModelProto, as the part that is parsed and the positions of the rest."""

    outside: bytes = b""
    """The model without its graph and metadata."""
    inside: bytes = b""
    """The graph without `tensors`, the shapes of inner values and other notes."""
    tensors: list[Tensor] = field(default_factory=list)
    """Large tensors, and all whose numbers are in another file."""
    graph: tuple[int, int] = (0, 0)
    """The positions of the graph's start and end."""
    record: tuple[int, int] | None = None
    """Offset and length of this service's record in the metadata."""
    has_moved_constants: bool = False
    """Whether a Constant became an initializer."""

    @property
    def locations(self) -> list[str]:
        """The names of the files beside the model, sorted."""
        return sorted({tensor.location for tensor in self.tensors if tensor.location is not None})


def walk(data: bytes | mmap.mmap) -> Contents:
    """Read a whole file. Raises `Refused`, and ValueError where it is no ModelProto."""
    try:
        return _Walk(data).model()
    except IndexError:
        raise ValueError("it ends in the middle") from None


class _Walk:
    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._reader = FieldReader(data)
        self._nodes = 0
        self._found = Contents()

    def model(self) -> Contents:
        found, outside, graphs = self._found, [], []
        for part in self._reader.fields(0, len(self._reader.data)):
            if part.number == _GRAPH:
                graphs.append(part)
            elif part.number == _FUNCTIONS:
                raise Refused("it defines functions of its own; export it with them inlined (onnx.inliner)")
            elif part.number == _METADATA:
                self._look_for_record(part)
            elif part.number != _TRAINING:
                outside.append(self._reader.copy(part))
        if len(graphs) != 1 or graphs[0].wire != BYTES:
            raise ValueError(f"it has {len(graphs)} graphs where one was expected")
        found.graph = graphs[0].begin, graphs[0].end
        found.outside = b"".join(outside)
        found.inside = b"".join(self._graph(*found.graph))
        if len(found.tensors) > MAX_TENSORS:
            raise Refused(f"it has over {MAX_TENSORS:,} tensors, which no classifier here has")
        return found

    def _look_for_record(self, part: Field) -> None:
        key, value = b"", None
        for entry in self._reader.fields(part.begin, part.end):
            if entry.number == 1:
                key = bytes(self._reader.data[entry.begin : min(entry.end, entry.begin + 64)])
            elif entry.number == 2:
                value = entry.begin, entry.end - entry.begin
        if key == RECORD_KEY and value is not None:
            self._found.record = value

    def _graph(self, start: int, end: int) -> Iterator[bytes]:
        for part in self._reader.fields(start, end):
            if part.number == _SPARSE:
                raise Refused("it has sparse weights; export it with dense ones")
            if part.number in (_VALUE_INFO, _ANNOTATION, _GRAPH_METADATA):
                # Notes, which are computed again where they are needed.
                continue
            if part.number == _INITIALIZER:
                tensor = read_tensor(self._reader, part)
                if tensor is None:
                    yield self._reader.copy(part)
                else:
                    self._found.tensors.append(tensor)
            elif part.number == _NODE:
                self._nodes += 1
                if self._nodes > MAX_NODES:
                    raise Refused(f"it has over {MAX_NODES:,} nodes, which no classifier here has")
                if part.end - part.begin > LARGE_BYTES and self._move_constant(part):
                    self._found.has_moved_constants = True
                    continue
                self._count("node", part)
                yield self._reader.copy(part)
            else:
                if part.number in (_INPUT, _OUTPUT):
                    self._count("value", part)
                yield self._reader.copy(part)

    def _count(self, kind: str, part: Field) -> None:
        """Read a message that is copied whole, so that its parts count towards the limits."""
        if part.wire != BYTES:
            raise ValueError(f"a {kind} is no message")
        inside = _SUB_MESSAGES.get(kind, {})
        for each in self._reader.fields(part.begin, part.end):
            if kind == "attribute" and each.number in _ATTRIBUTE_GRAPHS:
                raise Refused("a node of it holds a graph, a type or a sparse tensor (as Loop and If do): not run here")
            if kind == "type" and each.number not in (1, 6):
                raise Refused("a value of it is no tensor, and only tensors are taken here")
            if each.number in inside:
                self._count(inside[each.number], each)
            elif each.wire == BYTES and kind in ("attribute", "tensor") and each.end - each.begin > _MAX_PACKED_BYTES:
                raise Refused(f"a node of it holds a list of over {_MAX_PACKED_BYTES:,} bytes, which none here has")

    def _move_constant(self, part: Field) -> bool:
        """Add the large tensor of a Constant to the tensors; False for any other node."""
        outputs, operator, tensors, others = [], "", [], 0
        for each in self._reader.fields(part.begin, part.end):
            if each.number == 2:
                outputs.append(self._reader.text(each))
            elif each.number == 4:
                operator = self._reader.text(each)
            elif each.number == 5:
                inside = list(self._reader.fields(each.begin, each.end))
                tensors += [value for value in inside if value.number == 5]
                others += sum(value.number not in (1, 5, 13, 20) for value in inside)
        if operator != "Constant" or len(outputs) != 1 or len(tensors) != 1 or others:
            return False
        tensor = read_tensor(self._reader, tensors[0])
        if tensor is None:
            return False
        tensor.name = outputs[0]
        tensor.header += bytes_field(_TENSOR_NAME, outputs[0].encode())
        self._found.tensors.append(tensor)
        return True
