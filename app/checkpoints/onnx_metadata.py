"""The metadata of an ONNX model, and the digest of its graph: read and written without parsing either."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator

from ..protobuf import bytes_field, fields, spans

# Field numbers of onnx.proto3: ModelProto's, and StringStringEntryProto's.
_GRAPH, _METADATA = 7, 14
_KEY, _VALUE = 1, 2


def graph_digest(model: bytes) -> str:
    """SHA-256 of the graph with its weights, as `onnx_process` computes it for a file."""
    sha256 = hashlib.sha256()
    with memoryview(model) as view:
        for number, _, begin, end in spans(model):
            if number == _GRAPH:
                sha256.update(view[begin:end])
    return sha256.hexdigest()


def without_metadata(model: bytes) -> Iterator[memoryview]:
    """`model` in pieces, without its metadata."""
    view = memoryview(model)
    return (view[at:end] for number, at, _, end in spans(model) if number != _METADATA)


def metadata_entry(key: str, value: str) -> bytes:
    """One entry of a model's metadata, to be appended to the model."""
    return bytes_field(_METADATA, bytes_field(_KEY, key.encode()) + bytes_field(_VALUE, value.encode()))


def read_metadata(data: bytes | mmap.mmap) -> dict[str, str]:
    """Key → value. Raises ValueError if the model is damaged."""
    entries = {}
    try:
        for number, _, begin, end in spans(data):
            if number == _METADATA:
                entry = dict(fields(data[begin:end]))
                entries[_text(entry[_KEY])] = _text(entry[_VALUE])
    except (IndexError, KeyError):
        raise ValueError("its metadata is damaged") from None
    return entries


def _text(value: int | bytes) -> str:
    if isinstance(value, int):
        raise ValueError("its metadata is no text")
    return value.decode()
