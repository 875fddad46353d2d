"""Large tensors of an ONNX model, checked in their files and passed to ONNX Runtime without a copy."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from ..protobuf import bytes_field, field_head
from .onnx_refusal import Refused
from .onnx_tensors import Tensor
from .onnx_wire import Contents

# Bits of a number, by TensorProto.DataType; the missing types are texts or complex.
_BITS = {
    **{1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16},
    **{17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4},
}
_FLOATS = {1: "<f4", 10: "<f2", 11: "<f8"}
_BFLOAT16 = 16
_NUMPY = _FLOATS | {2: "u1", 3: "i1"}
_CHUNK_BYTES = 16 << 20
HUGE_BYTES = 32 << 20
_MAX_GROWN_BYTES = 1 << 20
_MODEL, _GRAPH, _INITIALIZER, _RAW = 0, 7, 5, 9
_EXTERNAL = 1


@dataclass(slots=True)
class Source:
    """A source of bytes: the model's file, a file beside it, or memory."""

    data: mmap.mmap | memoryview
    bytes_left: int
    """The bytes of a file beside the model that no tensor has claimed yet."""


class Weights:
    """The large tensors of a model; `skeleton` is the model without their values, as onnx.ModelProto."""

    def __init__(self, contents: Contents, model: mmap.mmap, beside: dict[str, mmap.mmap]) -> None:
        """Raises `Refused` if tensors claim more than a file has, before any value is read."""
        import onnx

        self._sources = {"": Source(model, len(model))}
        self._sources.update((name, Source(data, len(data))) for name, data in beside.items())
        self._numbers = {name: number for number, name in enumerate(self._sources)}
        self._varints: list[memoryview] = []
        self._arrays: dict[str, Any] = {}
        for tensor in contents.tensors:
            self._claim(tensor)
        graph = [contents.inside, *(self._told_by_place(onnx, tensor) for tensor in contents.tensors)]
        length = sum(len(part) for part in graph)
        self.skeleton = onnx.load_model_from_string(b"".join([contents.outside, field_head(_GRAPH, length), *graph]))

    def _claim(self, tensor: Tensor) -> None:
        name = tensor.name[:80] or "a constant"
        if tensor.data_type not in _BITS:
            raise Refused(f"{name} is text, complex, or of a kind that is not known here; export it in float32")
        source = self._sources[tensor.location or ""]
        claimed = (prod(tensor.dims) * _BITS[tensor.data_type] + 7) // 8
        if tensor.is_varints:
            # Each takes at least a byte. They must not grow when decoded, which 8-bit numbers never do.
            if prod(tensor.dims) > (tensor.length or 0):
                raise self._too_large(tensor, name)
            if claimed > max(tensor.length or 0, _MAX_GROWN_BYTES):
                raise Refused(
                    f"{name} has its numbers one by one; save it with raw data (onnx.numpy_helper.from_array)"
                )
            return
        if tensor.length is None:
            tensor.length = claimed
        if claimed != tensor.length or tensor.offset < 0 or tensor.offset + claimed > len(source.data):
            raise self._too_large(tensor, name)
        source.bytes_left -= claimed
        if tensor.location is not None and source.bytes_left < 0:
            raise Refused(
                f"its tensors claim more of {tensor.location[:80]} than that file has: they overlap; save it again"
            )

    def _too_large(self, tensor: Tensor, name: str) -> Refused:
        where = f"{tensor.location[:80]} does not have that there" if tensor.location else "the file stores other"
        return Refused(
            f"{name} claims shape {list(tensor.dims)} ({tensor.length} bytes) but {where}; copy the file, and the one "
            f"beside it if there is one, again"
        )

    def _told_by_place(self, onnx: Any, tensor: Tensor) -> bytes:
        """The initializer, as external data with the position of its values."""
        message = onnx.TensorProto.FromString(tensor.header)
        place, offset = str(self._numbers[tensor.location or ""]), tensor.offset
        if tensor.is_varints:
            numbers = _decoded(self._sources[""].data, tensor)
            place, offset, tensor.length = f"varints {len(self._varints)}", 0, len(numbers)
            self._varints.append(numbers)
        message.data_location = _EXTERNAL
        for key, value in (("location", place), ("offset", offset), ("length", tensor.length)):
            entry = message.external_data.add()
            entry.key, entry.value = key, str(value)
        written = bytes(message.SerializeToString())
        return bytes_field(_INITIALIZER, written)

    def bytes_of(self, tensor: Any) -> tuple[mmap.mmap | memoryview, int, int]:
        """Source, offset and length of an initializer that is stored as external data."""
        told = {entry.key: entry.value for entry in tensor.external_data}
        return self._source(told["location"]).data, int(told["offset"]), int(told["length"])

    def buffer(self, place: str) -> mmap.mmap | memoryview:
        """All bytes of the source `place`."""
        return self._source(place).data

    def array(self, tensor: Any) -> Any:
        """The values of a huge tensor, kept for later calls; None if numpy lacks the type."""
        import numpy as np

        kind = _NUMPY.get(tensor.data_type)
        if kind is None:
            return None
        if tensor.name not in self._arrays:
            values = np.empty(prod(tensor.dims) * np.dtype(kind).itemsize, np.uint8)
            done = 0
            for part in self._chunks(tensor):
                values[done : done + len(part)] = np.frombuffer(part, np.uint8)
                done += len(part)
            self._arrays[tensor.name] = values.view(kind).reshape(tuple(tensor.dims))
        return self._arrays[tensor.name]

    def stored_bytes(self, model: Any) -> int:
        """The bytes of the tensors of `model` that are stored as external data."""
        return sum(self.bytes_of(tensor)[2] for tensor in model.graph.initializer if is_told_by_place(tensor))

    def _source(self, place: str) -> Source:
        if place.startswith("varints "):
            numbers = self._varints[int(place.removeprefix("varints "))]
            return Source(numbers, len(numbers))
        return list(self._sources.values())[int(place)]

    def check(self, model: Any) -> None:
        """Raises `Refused` if a tensor of `model` has values that are not finite, or fewer than it claims."""
        import numpy as np
        import onnx

        for tensor in (*model.graph.initializer, *_constants(model)):
            name = tensor.name[:80] or "a constant"
            if tensor.data_type not in _BITS:
                raise Refused(f"{name} is text, complex, or of a kind that is not known here; export it in float32")
            if is_told_by_place(tensor):
                if not all(_finite(part, tensor.data_type) for part in self._chunks(tensor)):
                    raise Refused(f"{name} has values that are not finite; export the network from sound weights")
                continue
            if any(side < 0 for side in tensor.dims) or prod(tensor.dims) > 8 * max(1, tensor.ByteSize()):
                raise Refused(f"{name} claims shape {list(tensor.dims)} but the file stores fewer values")
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise Refused(f"{name} has values that are not finite; export the network from sound weights")

    def _chunks(self, tensor: Any) -> Iterator[memoryview]:
        data, offset, length = self.bytes_of(tensor)
        view = memoryview(data)
        for begin in range(offset, offset + length, _CHUNK_BYTES):
            yield view[begin : min(begin + _CHUNK_BYTES, offset + length)]
            if length > HUGE_BYTES:
                self.forget_pages()

    def forget_pages(self) -> None:
        """Release the pages of the mapped files, which count as this process's memory."""
        for source in self._sources.values():
            if isinstance(source.data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                source.data.madvise(mmap.MADV_DONTNEED)

    @staticmethod
    def place_of(tensor: Any) -> str:
        return next(str(entry.value) for entry in tensor.external_data if entry.key == "location")

    def pieces(self, model: Any) -> tuple[bytes, list[tuple[int, int, int]]]:
        """The complete `model`, as `onnx_data.assemble` takes it."""
        import onnx

        outside, inside = onnx.ModelProto(), onnx.GraphProto()
        outside.CopyFrom(model)
        outside.ClearField("graph")
        inside.CopyFrom(model.graph)
        del inside.initializer[:]
        graph: list[bytes | tuple[int, int, int]] = [inside.SerializeToString()]
        for tensor in model.graph.initializer:
            graph += self._written(onnx, tensor)
        length = sum(len(part) if isinstance(part, bytes) else part[2] for part in graph)
        small, pieces = bytearray(), []
        for part in (outside.SerializeToString(), field_head(_GRAPH, length), *graph):
            if isinstance(part, bytes):
                pieces.append((-1, len(small), len(part)))
                small += part
            else:
                pieces.append(part)
        return bytes(small), pieces

    def _written(self, onnx: Any, tensor: Any) -> list[bytes | tuple[int, int, int]]:
        """An initializer of the graph that contains its values."""
        if not is_told_by_place(tensor):
            written = bytes(tensor.SerializeToString())
            return [bytes_field(_INITIALIZER, written)]
        data, offset, length = self.bytes_of(tensor)
        place = self.place_of(tensor)
        header = onnx.TensorProto()
        header.CopyFrom(tensor)
        header.ClearField("external_data")
        header.ClearField("data_location")
        before = bytes(header.SerializeToString()) + field_head(_RAW, length)
        numbers = bytes(data) if isinstance(data, memoryview) else (int(place), offset, length)
        return [field_head(_INITIALIZER, len(before) + length) + before, numbers]


def is_told_by_place(tensor: Any) -> bool:
    return bool(tensor.data_location == _EXTERNAL)


def _constants(model: Any) -> Iterator[Any]:
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _finite(part: memoryview, data_type: int) -> bool:
    import numpy as np

    if data_type in _FLOATS:
        return bool(np.isfinite(np.frombuffer(part, _FLOATS[data_type])).all())
    if data_type == _BFLOAT16:
        return bool(((np.frombuffer(part, "<u2") & 0x7F80) != 0x7F80).all())
    return True


def _decoded(data: mmap.mmap | memoryview, tensor: Tensor) -> memoryview:
    """Numbers stored as protobuf's varints, decoded into raw data. Raises `Refused` if there are more or fewer."""
    import numpy as np

    kind = np.dtype(f"<u{max(8, _BITS[tensor.data_type]) // 8}")
    decoded, done = np.empty(prod(tensor.dims), kind), 0
    begin, end = tensor.offset, tensor.offset + (tensor.length or 0)
    while begin < end:
        chunk = np.frombuffer(data[begin : min(begin + _CHUNK_BYTES, end)], np.uint8)
        lasts = chunk < 0x80
        size = chunk.size - int(lasts[::-1].argmax())
        if not lasts[size - 1]:
            raise ValueError("a tensor's numbers end in the middle")
        firsts = np.concatenate([[True], lasts[: size - 1]])
        begin += size
        # Zeros after the chunk's end, so that the last number can be read with up to ten bytes.
        padded = np.concatenate([chunk[:size], np.zeros(10, np.uint8)])
        numbers = np.zeros(int(firsts.sum()), kind)
        goes_on = np.ones(numbers.size, bool)
        for place in range((8 * kind.itemsize + 6) // 7):
            byte = padded[place : place + size][firsts]
            numbers |= np.where(goes_on, byte & 0x7F, 0).astype(kind) << kind.type(7 * place)
            goes_on &= byte >= 0x80
        if done + numbers.size > decoded.size:
            break
        decoded[done : done + numbers.size] = numbers
        done += numbers.size
    if begin < end or done != decoded.size:
        raise Refused(
            f"{tensor.name[:80]} claims shape {list(tensor.dims)} but the file stores another number of values; copy "
            f"or export it again"
        )
    return decoded.data.cast("B")
