"""A bounded walk over the bytes of an ONNX file, before protobuf makes messages of them.

Large tensors are left where they are and given by its place, so that what is parsed afterwards, the file's skeleton, is
small. The process that examines ONNX files imports this module too, so that it needs nothing but Python.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..protobuf import bytes_field, varint

RECORD_KEY = b"resnet_serve"
# What is parsed: of a ResNet-50 in 8 bits 40 kB and 20,000 fields.
MAX_SKELETON_BYTES = 16 << 20
MAX_FIELDS = 500_000
MAX_NODES = 20_000
MAX_TENSORS = 20_000
LARGE_BYTES = 1024
_MAX_PACKED_BYTES = 1 << 16

# Field numbers and types of onnx.proto3.
_GRAPH, _OPSETS, _METADATA, _TRAINING, _FUNCTIONS = 7, 8, 14, 20, 25
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO, _ANNOTATION, _SPARSE, _GRAPH_METADATA = 1, 5, 11, 12, 13, 14, 15, 16
_DIMS, _DATA_TYPE, _FLOATS, _INT32S, _INT64S, _NAME, _RAW, _DOUBLES, _UINT64S = 1, 2, 4, 5, 7, 8, 9, 10, 11
_EXTERNAL, _DATA_LOCATION = 13, 14
FLOAT, DOUBLE = 1, 11
_BYTES = 2  # the wire type of everything that has a length

# Sub-messages by field, of what is parsed as it is; everything else in it is numbers and text.
_SUB_MESSAGES: dict[str, dict[int, str]] = {
    "value": {2: "type"},
    "type": {1: "tensor type"},
    "tensor type": {2: "shape"},
    "shape": {1: "axis"},
    "node": {5: "attribute", 9: "text pair"},
    "attribute": {5: "tensor", 10: "tensor"},
    "tensor": {13: "text pair"},
}
# What a node's attribute may not be: graphs, sparse tensors, types.
_ATTRIBUTE_GRAPHS = frozenset({6, 11, 14, 15, 22, 23})


class Refused(Exception):
    """What the graph does and what is not done here, as a clause that says what to do instead."""


@dataclass(frozen=True, slots=True)
class Field:
    number: int
    wire: int
    at: int
    """Where its tag begins."""
    begin: int
    """Where its value begins."""
    end: int


@dataclass(slots=True)
class Tensor:
    """A tensor without its numbers, and where those are."""

    header: bytes
    """The TensorProto without them."""
    name: str = ""
    dims: tuple[int, ...] = ()
    data_type: int = 0
    location: str | None = None
    """The file beside the model that has its numbers; None: the model's own."""
    offset: int = 0
    length: int | None = None
    """None: to the end that its shape gives."""
    is_varints: bool = False
    """Whether each number is written as one of protobuf's, not as it lies in memory."""


@dataclass(slots=True)
class Contents:
    """A ModelProto in parts."""

    outside: bytes = b""
    """The model without its graph and its metadata."""
    inside: bytes = b""
    """The graph without the tensors that are given by its place, without shapes noted along the way and other notes."""
    tensors: list[Tensor] = field(default_factory=list)
    """Large tensors, and all whose numbers lie in another file."""
    graph: tuple[int, int] = (0, 0)
    """Where the graph begins and ends."""
    record: tuple[int, int] | None = None
    """Where the text is that `quantize` wrote into the metadata."""
    has_moved_constants: bool = False
    """Whether a Constant became an initializer."""

    @property
    def locations(self) -> list[str]:
        """The files beside the model, in the order of their names."""
        return sorted({tensor.location for tensor in self.tensors if tensor.location is not None})


def walk(data: bytes | mmap.mmap) -> Contents:
    """All of a file. Raises `Refused`, and ValueError where it is no ModelProto."""
    try:
        return _Walk(data).model()
    except IndexError:
        raise ValueError("it ends in the middle") from None


class _Walk:
    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = data
        self._fields_left = MAX_FIELDS
        self._bytes_left = MAX_SKELETON_BYTES
        self._nodes = 0
        self._found = Contents()

    def model(self) -> Contents:
        found, outside, graphs = self._found, [], []
        for part in self._fields(0, len(self._data)):
            if part.number == _GRAPH:
                graphs.append(part)
            elif part.number == _FUNCTIONS:
                raise Refused("it defines functions of its own; export it with them inlined (onnx.inliner)")
            elif part.number == _METADATA:
                self._look_for_record(part)
            elif part.number != _TRAINING:
                outside.append(self._kept(part))
        if len(graphs) != 1 or graphs[0].wire != _BYTES:
            raise ValueError(f"it has {len(graphs)} graphs where one was expected")
        found.graph = graphs[0].begin, graphs[0].end
        found.outside = b"".join(outside)
        found.inside = b"".join(self._graph(*found.graph))
        if len(found.tensors) > MAX_TENSORS:
            raise Refused(f"it has over {MAX_TENSORS:,} tensors, which no classifier here has")
        return found

    def _fields(self, start: int, end: int) -> Iterator[Field]:
        data, position = self._data, start
        while position < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise Refused(f"it consists of over {MAX_FIELDS:,} parts, which no classifier here does")
            at = position
            tag, position = varint(data, position)
            begin = position
            if tag & 7 == 0:
                _, position = varint(data, position)
            elif tag & 7 == _BYTES:
                length, begin = varint(data, position)
                position = begin + length
            elif tag & 7 in (1, 5):
                position += 8 if tag & 7 == 1 else 4
            else:
                raise ValueError(f"a field has the unknown wire type {tag & 7}")
            if position > end:
                raise ValueError("a field is longer than its message")
            yield Field(tag >> 3, tag & 7, at, begin, position)

    def _kept(self, part: Field) -> bytes:
        """A field that is parsed."""
        self._bytes_left -= part.end - part.at
        if self._bytes_left < 0:
            raise Refused(f"it has over {MAX_SKELETON_BYTES:,} bytes beside its weights, which no classifier here has")
        return bytes(self._data[part.at : part.end])

    def _text(self, part: Field) -> str:
        return bytes(self._data[part.begin : min(part.end, part.begin + 4096)]).decode("utf-8", "replace")

    def _look_for_record(self, part: Field) -> None:
        key, value = b"", None
        for entry in self._fields(part.begin, part.end):
            if entry.number == 1:
                key = bytes(self._data[entry.begin : min(entry.end, entry.begin + 64)])
            elif entry.number == 2:
                value = entry.begin, entry.end - entry.begin
        if key == RECORD_KEY and value is not None:
            self._found.record = value

    def _graph(self, start: int, end: int) -> Iterator[bytes]:
        for part in self._fields(start, end):
            if part.number == _SPARSE:
                raise Refused("it has sparse weights; export it with dense ones")
            if part.number in (_VALUE_INFO, _ANNOTATION, _GRAPH_METADATA):
                # Notes, which are worked out again where they are needed.
                continue
            if part.number == _INITIALIZER:
                tensor = self._tensor(part)
                if tensor is None:
                    yield self._kept(part)
                else:
                    self._found.tensors.append(tensor)
            elif part.number == _NODE:
                self._nodes += 1
                if self._nodes > MAX_NODES:
                    raise Refused(f"it has over {MAX_NODES:,} nodes, which no classifier here has")
                if part.end - part.begin > LARGE_BYTES and self._moved_constant(part):
                    self._found.has_moved_constants = True
                    continue
                self._count("node", part)
                yield self._kept(part)
            else:
                if part.number in (_INPUT, _OUTPUT):
                    self._count("value", part)
                yield self._kept(part)

    def _count(self, kind: str, part: Field) -> None:
        """Go through a message that is parsed as it is, so that its parts are counted."""
        if part.wire != _BYTES:
            raise ValueError(f"a {kind} is no message")
        inside = _SUB_MESSAGES.get(kind, {})
        for each in self._fields(part.begin, part.end):
            if kind == "attribute" and each.number in _ATTRIBUTE_GRAPHS:
                raise Refused("a node of it holds a graph, a type or a sparse tensor (as Loop and If do): not run here")
            if kind == "type" and each.number not in (1, 6):
                raise Refused("a value of it is no tensor, and only tensors are taken here")
            if each.number in inside:
                self._count(inside[each.number], each)
            elif each.wire == _BYTES and kind in ("attribute", "tensor") and each.end - each.begin > _MAX_PACKED_BYTES:
                raise Refused(f"a node of it holds a list of over {_MAX_PACKED_BYTES:,} bytes, which none here has")

    def _moved_constant(self, part: Field) -> bool:
        """Whether the node is a Constant whose large tensor is given by its place, as an initializer's is."""
        outputs, operator, tensors, others = [], "", [], 0
        for each in self._fields(part.begin, part.end):
            if each.number == 2:
                outputs.append(self._text(each))
            elif each.number == 4:
                operator = self._text(each)
            elif each.number == 5:
                inside = list(self._fields(each.begin, each.end))
                tensors += [value for value in inside if value.number == 5]
                others += sum(value.number not in (1, 5, 13, 20) for value in inside)
        if operator != "Constant" or len(outputs) != 1 or len(tensors) != 1 or others:
            return False
        tensor = self._tensor(tensors[0])
        if tensor is None:
            return False
        tensor.name = outputs[0]
        tensor.header += bytes_field(_NAME, outputs[0].encode())
        self._found.tensors.append(tensor)
        return True

    def _tensor(self, part: Field) -> Tensor | None:
        """A tensor that is given by its place; None for a small one, which is parsed with the rest."""
        header, tensor, numbers, external = [], Tensor(b""), None, []
        if part.wire != _BYTES:
            raise ValueError("a tensor is no message")
        for each in self._fields(part.begin, part.end):
            if each.number in (_FLOATS, _INT32S, _INT64S, _RAW, _DOUBLES, _UINT64S) and each.wire == _BYTES:
                if each.end - each.begin > LARGE_BYTES:
                    if numbers is not None:
                        raise ValueError("a tensor has its numbers twice")
                    numbers = each
                    continue
            elif each.number == _EXTERNAL:
                external.append(each)
                continue
            elif each.number == _DATA_LOCATION:
                if self._data[each.begin] == 1:
                    external.append(each)
                continue
            elif each.number == _DIMS:
                tensor.dims += self._numbers(each)
                if len(tensor.dims) > 16:
                    raise Refused("a tensor of it has over 16 dimensions, which none here has")
            elif each.number == _DATA_TYPE:
                tensor.data_type, _ = varint(self._data, each.begin)
            elif each.number == _NAME:
                tensor.name = self._text(each)
            header.append(each)
        if external:
            if numbers is not None:
                raise ValueError("a tensor has its numbers here and in another file")
            self._external(tensor, external)
        elif numbers is not None:
            tensor.offset, tensor.length = numbers.begin, numbers.end - numbers.begin
            as_they_lie = (_RAW, _FLOATS if tensor.data_type == FLOAT else _DOUBLES)
            tensor.is_varints = numbers.number not in as_they_lie
        else:
            return None
        tensor.header = b"".join(self._kept(each) for each in header)
        return tensor

    def _numbers(self, part: Field) -> tuple[int, ...]:
        """Of a field of numbers, packed or one by one. Negative ones are seen as very large."""
        numbers: list[int] = []
        position = part.begin
        while position < part.end and len(numbers) <= 16:
            number, position = varint(self._data, position)
            numbers.append(number)
        return tuple(numbers)

    def _external(self, tensor: Tensor, parts: list[Field]) -> None:
        """The entries that say where in which file the numbers are."""
        entries: dict[str, str] = {}
        for part in parts:
            if part.number == _EXTERNAL:
                texts = {each.number: self._text(each) for each in self._fields(part.begin, part.end)}
                entries[texts.get(1, "")] = texts.get(2, "")
        tensor.location = entries.get("location", "")
        tensor.offset = int(entries.get("offset", "0") or 0)
        tensor.length = int(entries["length"]) if entries.get("length") else None
