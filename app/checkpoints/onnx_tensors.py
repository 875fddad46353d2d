"""TensorProtos of an ONNX file, read without the numbers of large ones, whose position in a file is kept instead."""

from __future__ import annotations

from dataclasses import dataclass

from ..protobuf import varint
from .onnx_fields import BYTES, Field, FieldReader
from .onnx_refusal import Refused

LARGE_BYTES = 1024

# Field numbers and types of onnx.proto3.
_DIMS, _DATA_TYPE, _FLOATS, _INT32S, _INT64S, _NAME, _RAW, _DOUBLES, _UINT64S = 1, 2, 4, 5, 7, 8, 9, 10, 11
_EXTERNAL, _DATA_LOCATION = 13, 14
_FLOAT = 1


@dataclass(slots=True)
class Tensor:
    """A TensorProto whose numbers were left in a file, and their position there."""

    header: bytes
    """The TensorProto without its numbers."""
    name: str = ""
    dims: tuple[int, ...] = ()
    data_type: int = 0
    location: str | None = None
    """The name of the file beside the model that has the numbers; None for the model's file."""
    offset: int = 0
    length: int | None = None
    """In bytes. None: as many as its shape needs."""
    is_varints: bool = False
    """Whether the numbers are stored as varints, not as raw memory."""


def read_tensor(reader: FieldReader, part: Field) -> Tensor | None:
    """A large tensor, or one whose numbers are in another file; None for any other, which is copied whole.

    Raises `Refused`, and ValueError for a malformed one.
    """
    header, tensor, numbers, external = [], Tensor(b""), None, []
    if part.wire != BYTES:
        raise ValueError("a tensor is no message")
    for each in reader.fields(part.begin, part.end):
        if each.number in (_FLOATS, _INT32S, _INT64S, _RAW, _DOUBLES, _UINT64S) and each.wire == BYTES:
            if each.end - each.begin > LARGE_BYTES:
                if numbers is not None:
                    raise ValueError("a tensor has its numbers twice")
                numbers = each
                continue
        elif each.number == _EXTERNAL:
            external.append(each)
            continue
        elif each.number == _DATA_LOCATION:
            if reader.data[each.begin] == 1:
                external.append(each)
            continue
        elif each.number == _DIMS:
            tensor.dims += reader.numbers(each)
            if len(tensor.dims) > 16:
                raise Refused("a tensor of it has over 16 dimensions, which none here has")
        elif each.number == _DATA_TYPE:
            tensor.data_type, _ = varint(reader.data, each.begin)
        elif each.number == _NAME:
            tensor.name = reader.text(each)
        header.append(each)
    if external:
        if numbers is not None:
            raise ValueError("a tensor has its numbers here and in another file")
        _read_location(reader, tensor, external)
    elif numbers is not None:
        tensor.offset, tensor.length = numbers.begin, numbers.end - numbers.begin
        raw = (_RAW, _FLOATS if tensor.data_type == _FLOAT else _DOUBLES)
        tensor.is_varints = numbers.number not in raw
    else:
        return None
    tensor.header = b"".join(reader.copy(each) for each in header)
    return tensor


def _read_location(reader: FieldReader, tensor: Tensor, parts: list[Field]) -> None:
    """Read file, offset and length from the entries of `external_data`."""
    entries: dict[str, str] = {}
    for part in parts:
        if part.number == _EXTERNAL:
            texts = {each.number: reader.text(each) for each in reader.fields(part.begin, part.end)}
            entries[texts.get(1, "")] = texts.get(2, "")
    tensor.location = entries.get("location", "")
    tensor.offset = int(entries.get("offset", "0") or 0)
    tensor.length = int(entries["length"]) if entries.get("length") else None
