"""Describes the contents of a pickle and imports nothing that it names: a program that `run_limited` runs.

The pickle is standard input; the argument says whether it comes from a zip or is a legacy file. The interpreter has the
standard library and no installed packages. Every global that the pickle asks for becomes a stand-in: an empty class
that takes any argument and does nothing. Names that no checkpoint needs refuse the file. A pickle can still take time,
memory or the stack: those are limited, and this process then dies.

Writes one document (see `processes/framing.py`): `{"refused": "os.system"}`, `{"failed": "why"}`, `{"limit": "why"}`,
or `{"document": …, "storages": [[key, type], …], "offset": 1234}`. `storages` and `offset` are of a legacy file: the
storages in their order, and where the first one's values begin. In the document a number, a boolean and a text are
themselves, and everything else is an object of one letter:

    {"t": [storage, type, offset, shape, stride]}   a tensor
    {"m": [[key, value], …]}                        a mapping
    {"l": [value, …]}                               a list, a tuple or a set
    {"o": name, "s": state, "a": [argument, …]}     an object of the class `name`
    {"c": name}                                     a class or a function by itself
    {"b": text}                                     bytes, as latin-1
    {"r": true}                                     what holds itself, lies too deep, or is one text too many
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from encodings import utf_32_le  # noqa: F401 - once limited, this process can open no file to import it from
from typing import Any

from ..processes.framing import pack

MAX_ANSWER_BYTES = 12 << 20
MAX_PARTS = 150_000
_MAX_DEPTH = 90
_MAX_TEXT_IN_ALL = 2 << 20
_MAX_NAME = 512
_MAX_BYTES = 1 << 19
_MAX_ALLOCATION = 1 << 24
# Of a list of anything but texts, and of a mapping whose values have parts, so many are described.
_MAX_ITEMS = 2_048
_MAX_TEXTS = 100_000

# Modules that no checkpoint needs and that run, reach or read things; some are Python 2's, `nt` is Windows'.
_REFUSED_MODULES = frozenset(
    """
    os posix nt posixpath ntpath subprocess commands popen2 _posixsubprocess sys importlib imp runpy pkgutil zipimport
    socket _socket ssl asyncio http urllib urllib2 httplib ftplib smtplib telnetlib xmlrpc webbrowser requests
    shutil tempfile glob fileinput io _io pty tty code codeop pdb bdb timeit cProfile profile trace doctest
    ctypes _ctypes cffi multiprocessing threading _thread thread signal resource atexit gc inspect
    marshal pickle _pickle cPickle dill cloudpickle shelve operator _operator idlelib pip setuptools distutils
    ensurepip venv platform pydoc
    """.split()  # noqa: SIM905 - a list of 80 names in quotes is no better to read
)
_REFUSED_BUILTINS = frozenset(
    """
    eval exec execfile compile __import__ open file input raw_input breakpoint globals locals vars
    setattr delattr apply memoryview
    """.split()  # noqa: SIM905
)
_REFUSED_NAMES = frozenset(
    """
    torch.load torch.serialization.load torch.hub.load torch.jit.load torch.package.PackageImporter numpy.load
    numpy.f2py.crackfortran.myeval numpy.testing._private.utils.runstring torch.utils.collect_env.run
    types.CodeType types.FunctionType
    """.split()  # noqa: SIM905
)
_DTYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "untyped",
    "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8", "QUInt8Storage": "quint8", "QInt32Storage": "qint32",
}  # fmt: skip


class Refused(Exception):
    """The pickle names what has no place in a checkpoint."""


class TooMuch(Exception):
    """The pickle holds more than is described."""


class StandIn:
    """In the place of any object that is not a tensor, a mapping or a number."""

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
        # An object with slots has its state in a pair.
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
    """In the place of an OrderedDict, whose own attributes (torch's `_metadata`) are passed over."""

    def __setstate__(self, state: Any) -> None:
        pass


class Storage:
    def __init__(self, key: str, kind: str, offset: int = 0) -> None:
        self.key = key
        self.kind = kind
        self.offset = offset


class Tensor:
    """Where a tensor lies: a storage, and the view of it."""

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
        and len(numbers) <= 8
        and all(type(number) is int and 0 <= number < 1 << 62 for number in numbers)
    )


def _tensor_v2(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Tensor:
    return Tensor(storage, offset, shape, stride)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> Tensor:
    return Tensor(storage, offset, shape, stride, str(getattr(dtype, "name", "")).removeprefix("torch."))


class OddTensor(Tensor):
    """A tensor that is no dense array of numbers in a storage."""

    def __init__(self, kind: str) -> None:
        self.place = ["", kind, 0, [1], [1]]


def _odd(kind: str) -> Callable[..., OddTensor]:
    return lambda *arguments: OddTensor(kind)


def _quantized(storage: Any = None, *rest: Any) -> OddTensor:
    return OddTensor(storage.kind if isinstance(storage, Storage) else "quantized")


def _first(value: Any = None, *rest: Any) -> Any:
    return value


def _encode(text: Any = "", encoding: Any = "", *rest: Any) -> bytes:
    return text.encode("latin-1", "replace") if isinstance(text, str) and encoding in ("latin1", "latin-1") else b""


def _from_type(function: Any = None, kind: Any = None, arguments: Any = (), state: Any = None) -> Any:
    # torch's own functions alone: what else is callable here is a stand-in.
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
_KNOWN: dict[str, Any] = {
    **_REBUILD,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": tuple,
    "torch.nn.parameter.Parameter": _first,
    "collections.OrderedDict": Entries,
    # torch.compile's: made of the module that it compiles.
    "torch._dynamo.eval_frame.OptimizedModule": _first,
    # Bytes, as protocol 2 has them.
    "_codecs.encode": _encode,
    "builtins.dict": dict,
    "builtins.set": set,
}


class InertUnpickler(pickle.Unpickler):
    """Finds no class: a name becomes a stand-in, or refuses the file."""

    def __init__(self, file: Any, encoding: str = "utf-8") -> None:
        super().__init__(file, fix_imports=False, encoding=encoding)
        self.storages: dict[str, str] = {}
        self._seen: dict[str, Any] = dict(_KNOWN)

    def find_class(self, module: str, name: str) -> Any:
        # As Python itself reads protocol 2, which torch writes: `commands` is subprocess there.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{module}.{name}"
        if full not in self._seen:
            root = module.split(".")[0]
            parts = set(name.split("."))
            is_builtin = root in ("builtins", "__builtins__")
            # A dotted name walks from one object to the next: `builtins` is within reach of all of them.
            if (
                root in _REFUSED_MODULES
                or full in _REFUSED_NAMES
                or (is_builtin and parts & _REFUSED_BUILTINS)
                or any(part.startswith("__") or part in _REFUSED_MODULES for part in name.split(".") if "." in name)
            ):
                raise Refused(full)
            self._seen[full] = type("StandIn", (StandIn,), {"name": full})
        return self._seen[full]

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and pid and pid[0] == "module":
            # Legacy files carry a module's class with its source text, which stays text.
            return pid[1] if len(pid) > 1 else None
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"):
            raise Refused("a storage that torch would not write")
        kind = getattr(pid[1], "name", "").rpartition(".")[2]
        key, dtype, offset = str(pid[2])[:_MAX_NAME], _DTYPES.get(kind, kind), 0
        if len(pid) == 6 and pid[5] is not None:
            # A view of a storage, as torch wrote before 0.4: (its key, offset, size).
            view = pid[5]
            if not (isinstance(view, tuple) and len(view) == 3 and _is_counts(view[1:])):
                raise Refused("a storage that torch would not write")
            offset = view[1]
        self.storages[key] = dtype
        return Storage(key, dtype, offset)


class Describer:
    """A document → the JSON that stands for it, within limits."""

    def __init__(self) -> None:
        self._parts = 0
        self._text = 0
        self._open: set[int] = set()

    def describe(self, value: Any, depth: int = 0) -> Any:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise TooMuch("it has more parts than any checkpoint has")
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int):
            return value if abs(value) < 1 << 62 else None
        if isinstance(value, str | bytes | bytearray):
            if self._text > _MAX_TEXT_IN_ALL:
                return {"r": True}
            if isinstance(value, str):
                return self._limited(value[:_MAX_NAME])
            return {"b": self._limited(value[:_MAX_BYTES].decode("latin-1"))}
        if isinstance(value, Tensor):
            return {"t": value.place}
        if isinstance(value, type):
            return {"c": self._limited(str(getattr(value, "name", value.__name__))[:_MAX_NAME])}
        if id(value) in self._open or depth > _MAX_DEPTH:
            return {"r": True}
        self._open.add(id(value))
        try:
            return self._compound(value, depth + 1)
        finally:
            self._open.discard(id(value))

    def _compound(self, value: Any, depth: int) -> Any:
        if isinstance(value, dict):
            return {"m": self._entries(value, depth)}
        if isinstance(value, list | tuple | set | frozenset):
            return {"l": self._items(value, depth)}
        if not isinstance(value, StandIn):
            return {"o": type(value).__name__[:_MAX_NAME]}
        scalar = _scalar(value)
        if scalar is not None:
            return scalar
        is_module = isinstance(value.state, dict) and "_modules" in value.state
        if value.items and not is_module:
            return {"m": self._entries(value.items, depth)}
        described: dict[str, Any] = {"o": self._limited(value.name[:_MAX_NAME])}
        if value.state is not None:
            described["s"] = self.describe(value.state, depth)
        if value.arguments:
            described["a"] = self._items(value.arguments, depth)
        return described

    def _entries(self, entries: dict[Any, Any], depth: int) -> list[Any]:
        pairs: list[Any] = []
        for key, value in entries.items():
            name = _scalar(key) if isinstance(key, StandIn) else key
            if not isinstance(name, str | int):
                continue
            is_plain = isinstance(value, str | int | float | Tensor)
            if len(pairs) < (_MAX_TEXTS if is_plain else _MAX_ITEMS):
                key = self._limited(name[:_MAX_NAME]) if isinstance(name, str) else self.describe(name)
                pairs.append([key, self.describe(value, depth)])
        return pairs

    def _items(self, items: Any, depth: int) -> list[Any]:
        described: list[Any] = []
        for item in items:
            if len(described) >= (_MAX_TEXTS if isinstance(item, str) else _MAX_ITEMS):
                # Not as a whole: who reads a list of names must see that this is none.
                described.append({"r": True})
                break
            described.append(self.describe(item, depth))
        return described

    def _limited(self, text: str) -> str:
        self._text += len(text)
        if self._text > 2 * _MAX_TEXT_IN_ALL:
            raise TooMuch("it has more text than any checkpoint has")
        # Halves of a pair (surrogates) are no letters, and nothing could print them.
        return text.encode("utf-8", "replace").decode("utf-8")


def _scalar(value: StandIn) -> int | float | str | None:
    """numpy's scalar as Python's; None for anything else."""
    if not value.name.endswith("multiarray.scalar") or len(value.arguments) != 2:
        return None
    dtype, content = value.arguments
    kind = dtype.arguments[0] if isinstance(dtype, StandIn) and dtype.arguments else None
    if isinstance(content, str):
        # Python 2 has its bytes as text.
        content = content.encode("latin-1", "replace")
    if not isinstance(kind, str) or not isinstance(content, bytes) or len(content) > 4 * _MAX_NAME:
        return None
    if kind[:1] in ("i", "u"):
        return int.from_bytes(content, "little", signed=kind[0] == "i") if len(content) <= 8 else None
    if kind in ("f2", "f4", "f8") and len(content) == int(kind[1]):
        return float(struct.unpack("<" + {"f2": "e", "f4": "f", "f8": "d"}[kind], content)[0])
    return content.decode("utf-32-le", "replace").rstrip("\0") if kind[:1] == "U" else None


def _read(container: str, content: bytes, encoding: str) -> dict[str, Any]:
    file = io.BufferedReader(io.BytesIO(content))
    if container == "legacy":
        # torch/serialization.py, _legacy_load: magic number, protocol, system, the object, the storages' keys.
        for _ in range(3):
            InertUnpickler(file, encoding).load()
    unpickler = InertUnpickler(file, encoding)
    answer = {"document": Describer().describe(unpickler.load())}
    if container == "legacy":
        keys = InertUnpickler(file, encoding).load()
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise Refused("a list of storages that is none")
        answer |= {"storages": [(key, unpickler.storages.get(key, "")) for key in keys], "offset": file.tell()}
    return answer


def _answer(container: str, content: bytes) -> dict[str, Any]:
    try:
        try:
            return _read(container, content, "utf-8")
        except UnicodeDecodeError:
            # Python 2's texts are bytes of any encoding; latin-1 has a letter for each.
            return _read(container, content, "latin-1")
    except Refused as refused:
        return {"refused": str(refused)[:200]}
    except TooMuch as limit:
        return {"limit": str(limit)}
    except MemoryError:
        return {"limit": "it takes more memory than any checkpoint needs"}
    except Exception as error:
        # A damaged pickle fails with whatever its opcodes meet.
        return {"failed": f"{type(error).__name__}: {error}"[:200]}


def main(container: str) -> None:
    answer = pack(_answer(container, sys.stdin.buffer.read()))
    if len(answer) > MAX_ANSWER_BYTES:
        answer = pack({"limit": "it has more parts than any checkpoint has"})
    sys.stdout.buffer.write(answer)
