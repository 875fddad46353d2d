"""Inert classes and functions that replace the globals of a pickle. Part of the program `inert_unpickler`.

A stand-in takes any argument and does nothing. torch's functions that rebuild tensors are replaced by functions that
record where a tensor lies in its storage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .pickle_refusals import Refused

MAX_NAME = 512
_MAX_ALLOCATION = 1 << 24
_MAX_RANK = 8
_MAX_COUNT = 1 << 62
_DTYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "untyped",
    "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8", "QUInt8Storage": "quint8", "QInt32Storage": "qint32",
}  # fmt: skip


class StandIn:
    """An object of any class that is not listed in `KNOWN`. Subclasses have the class's name as `name`."""

    name = ""

    def __new__(cls, *arguments: Any, **named: Any) -> StandIn:
        if cls.name.endswith(("Tensor", "bytearray", "Storage")) and any(
            isinstance(each, int) and each > _MAX_ALLOCATION for each in arguments
        ):
            raise Refused(f"{cls.name} of {max(e for e in arguments if isinstance(e, int)):,} entries")
        made = super().__new__(cls)
        made.arguments = arguments
        made.state = None
        made.items = {}
        return made

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.arguments: tuple[Any, ...]
        self.state: Any
        self.items: dict[Any, Any]

    def __setstate__(self, state: Any) -> None:
        # The state of an object with slots is a pair.
        self.state = state[0] or state[1] if isinstance(state, tuple) and len(state) == 2 else state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass


class Entries(dict[Any, Any]):
    """An OrderedDict. Its own attributes, such as torch's `_metadata`, are ignored."""

    def __setstate__(self, state: Any) -> None:
        pass


class Storage:
    """A torch storage: its key in the file, number format and offset in entries."""

    def __init__(self, key: str, kind: str, offset: int = 0) -> None:
        self.key = key
        self.kind = kind
        self.offset = offset


def storage_of(pid: tuple[Any, ...]) -> Storage:
    """From a persistent ID of torch's: ("storage", class, key, device, size) and, before 0.4, a view."""
    kind = getattr(pid[1], "name", "").rpartition(".")[2]
    key, dtype, offset = str(pid[2])[:MAX_NAME], _DTYPES.get(kind, kind), 0
    if len(pid) == 6 and pid[5] is not None:
        # A view of a storage: (its key, offset, size).
        view = pid[5]
        if not (isinstance(view, tuple) and len(view) == 3 and _is_counts(view[1:])):
            raise Refused("a storage that torch would not write")
        offset = view[1]
    return Storage(key, dtype, offset)


class Tensor:
    """The place of a tensor: [storage, number format, offset, shape, stride]."""

    def __init__(self, storage: Any, offset: Any, shape: Any, stride: Any, kind: str | None = None) -> None:
        if not isinstance(storage, Storage):
            raise Refused("a tensor without a storage")
        if not (_is_counts((offset,)) and _is_counts(shape) and _is_counts(stride) and len(shape) == len(stride)):
            raise Refused("a tensor whose shape is no shape")
        self.place = [storage.key, kind or storage.kind, storage.offset + offset, list(shape), list(stride)]

    def __setstate__(self, state: Any) -> None:
        pass


def _is_counts(numbers: Any) -> bool:
    return (
        isinstance(numbers, tuple | list)
        and len(numbers) <= _MAX_RANK
        and all(type(number) is int and 0 <= number < _MAX_COUNT for number in numbers)
    )


class OddTensor(Tensor):
    """A tensor that is no dense array of numbers in a storage."""

    def __init__(self, kind: str) -> None:
        self.place = ["", kind, 0, [1], [1]]


def _tensor_v2(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Tensor:
    return Tensor(storage, offset, shape, stride)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> Tensor:
    return Tensor(storage, offset, shape, stride, str(getattr(dtype, "name", "")).removeprefix("torch."))


def _odd(kind: str) -> Callable[..., OddTensor]:
    return lambda *arguments: OddTensor(kind)


def _quantized(storage: Any = None, *rest: Any) -> OddTensor:
    return OddTensor(storage.kind if isinstance(storage, Storage) else "quantized")


def _first(value: Any = None, *rest: Any) -> Any:
    return value


def _encode(text: Any = "", encoding: Any = "", *rest: Any) -> bytes:
    return text.encode("latin-1", "replace") if isinstance(text, str) and encoding in ("latin1", "latin-1") else b""


def _from_type(function: Any = None, kind: Any = None, arguments: Any = (), state: Any = None) -> Any:
    # `function` is the pickle's choice: it is called only where it replaces one of torch's.
    is_known = function in _REBUILD.values() and isinstance(arguments, tuple)
    return function(*arguments) if is_known else OddTensor("a tensor of a class of its own")


_REBUILD: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor_v2,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_sparse_tensor": _odd("sparse"),
    "torch._utils._rebuild_sparse_csr_tensor": _odd("sparse"),
    "torch._utils._rebuild_nested_tensor": _odd("nested"),
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_meta_tensor_no_storage": _odd("without data"),
    "torch._utils._rebuild_wrapper_subclass": _odd("a tensor of a class of its own"),
    "torch._utils._rebuild_device_tensor_from_numpy": _odd("of a device's own kind"),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _odd("of a device's own kind"),
    "torch._utils._rebuild_xla_tensor": _odd("of a device's own kind"),
    "torch._utils._rebuild_mlc_tensor": _odd("of a device's own kind"),
}
KNOWN: dict[str, Any] = {
    **_REBUILD,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": tuple,
    "torch.nn.parameter.Parameter": _first,
    "collections.OrderedDict": Entries,
    # torch.compile's class, called with the module that it compiles.
    "torch._dynamo.eval_frame.OptimizedModule": _first,
    # Protocol 2 writes bytes as a text that is encoded.
    "_codecs.encode": _encode,
    "builtins.dict": dict,
    "builtins.set": set,
}
"""The globals with a stand-in of their own."""
