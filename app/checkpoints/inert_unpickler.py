"""A pickle → where its tensors' values lie, in a process of its own. Imports nothing that a pickle names.

Run as a script, alone (`python -I -S inert_unpickler.py zip|legacy < pickle`), with the standard library and nothing
else. Every global that the pickle asks for becomes a stand-in: an empty class that takes any argument and does nothing.
Those that have no place beside weights refuse the file. What a pickle can still do is to take time, memory or the
stack, and those are limited: then this process dies, and the one that asked says so.

Writes one JSON object: `{"refused": "os.system"}`, `{"failed": "why"}`, or

    {"tensors": {name: [storage, type, offset, shape, stride]}, "modules": {name: {"class": …, "stride": …}},
     "found": "what it is", "storages": [[key, type], …], "offset": 1234}

`storages` and `offset` are of a legacy file: the storages in their order, and where the first one's values begin.
"""

from __future__ import annotations

import io
import json
import pickle
import resource
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator
from typing import Any

MEMORY_BYTES = 512 << 20
CPU_SECONDS = 5
MAX_ANSWER_BYTES = 16 << 20
_MAX_MODULES = 5_000
_MAX_DEPTH = 32
_MAX_NAME = 512
_MAX_ALLOCATION = 1 << 24

# Where training scripts keep the weights, in the order of preference: averaged ones first.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "net", "weights")

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
}  # fmt: skip
# What is read of a module beside its tensors, to tell which variant of a network it is.
_ATTRIBUTES = ("stride", "padding", "dilation", "groups", "kernel_size", "eps", "ceil_mode", "inplace", "p")


class Refused(Exception):
    """The pickle names what has no place in a checkpoint."""


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
    def __init__(self, key: str, kind: str) -> None:
        self.key = key
        self.kind = kind


class Tensor:
    """Where a tensor lies: a storage, and the view of it."""

    def __init__(self, storage: Any, offset: Any, shape: Any, stride: Any, kind: str | None = None) -> None:
        if not isinstance(storage, Storage):
            raise Refused("a tensor without a storage")
        if not (_is_counts((offset,)) and _is_counts(shape) and _is_counts(stride) and len(shape) == len(stride)):
            raise Refused("a tensor whose shape is no shape")
        self.place = [storage.key, kind or storage.kind, offset, list(shape), list(stride)]

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


def _first(value: Any = None, *rest: Any) -> Any:
    return value


def _from_type(function: Any = None, kind: Any = None, arguments: Any = (), state: Any = None) -> Any:
    # torch's own functions alone: what else is callable here is a stand-in.
    return function(*arguments) if function in _REBUILD.values() and isinstance(arguments, tuple) else StandIn()


_REBUILD: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor_v2,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
}
_KNOWN: dict[str, Any] = {
    **_REBUILD,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": tuple,
    "torch.nn.parameter.Parameter": _first,
    "collections.OrderedDict": Entries,
    "builtins.dict": dict,
    "builtins.set": set,
}


class InertUnpickler(pickle.Unpickler):
    """Finds no class: a name becomes a stand-in, or refuses the file."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, fix_imports=False, encoding="utf-8")
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
        if len(pid) == 6 and pid[5] is not None:
            raise Refused("a view of a storage, as torch wrote before 0.4")
        key, dtype = str(pid[2])[:_MAX_NAME], _DTYPES.get(kind, kind)
        self.storages[key] = dtype
        return Storage(key, dtype)


def _contents(value: Any) -> dict[Any, Any] | None:
    """A mapping's entries: a dict's, or those of a class that was one."""
    if isinstance(value, dict):
        return value
    return value.items if isinstance(value, StandIn) and value.items else None


def _parts(value: Any) -> dict[str, Any] | None:
    """A module's attributes."""
    if not isinstance(value, StandIn) or not isinstance(value.state, dict):
        return None
    state = value.state
    is_scripted = value.name.startswith("__torch__.")
    return state if is_scripted or (isinstance(state.get("_modules"), dict) and "_parameters" in state) else None


def find_weights(document: Any) -> dict[str, Any]:
    """The tensors and modules of a state dict, of a whole module, or of what wraps one of them."""
    # As deep as there are wrappers and no deeper: a mapping in a file may hold itself.
    for _ in WRAPPERS:
        entries = _contents(document)
        if entries is not None:
            wrapped = (entries[key] for key in WRAPPERS if _contents(entries.get(key)) or _parts(entries.get(key)))
            document = next(wrapped, document)
    if _parts(document) is not None:
        tensors, modules = _flattened(document)
        return {"tensors": tensors, "modules": modules, "found": f"a pickled {document.name}"[:200]}
    entries = _contents(document)
    if entries is None:
        kind = "Tensor" if isinstance(document, Tensor) else getattr(document, "name", "") or type(document).__name__
        return {"tensors": {}, "modules": {}, "found": f"a {kind}"[:200]}
    tensors = {str(name): value.place for name, value in entries.items() if isinstance(value, Tensor)}
    keys = ", ".join(str(key)[:40] for key in list(entries)[:5] if isinstance(key, str | int))
    return {"tensors": tensors, "modules": {}, "found": f"a mapping with the keys {keys}"}


def _flattened(module: StandIn) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors: dict[str, Any] = {}
    modules: dict[str, Any] = {}
    left: list[tuple[str, StandIn, int]] = [("", module, 0)]
    while left:
        prefix, current, depth = left.pop()
        if len(modules) >= _MAX_MODULES or depth > _MAX_DEPTH or len(prefix) > _MAX_NAME:
            raise Refused("modules without end")
        attributes = _parts(current) or {}
        facts: dict[str, Any] = {"class": current.name[:200]}
        for key in _ATTRIBUTES:
            value = attributes.get(key)
            if isinstance(value, bool | float) or _is_counts((value,)) or _is_counts(value):
                facts[key] = value
        modules[prefix.removesuffix(".")] = facts
        for name, value in _members(attributes):
            if isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value.place
            elif _parts(value) is not None:
                left.append((f"{prefix}{name}.", value, depth + 1))
    return tensors, modules


def _members(attributes: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A module's tensors and modules by name: torch keeps them in mappings, TorchScript among the attributes."""
    groups = [attributes.get(group) for group in ("_parameters", "_buffers", "_modules")]
    for group in [attributes] if "_modules" not in attributes else groups:
        if isinstance(group, dict):
            yield from ((name[:_MAX_NAME], value) for name, value in group.items() if isinstance(name, str))


def _limit() -> None:
    """Of all that a process can take: memory, time, and no file, child or socket beyond what is open."""
    for kind, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_NOFILE, 3),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def _answer(container: str, content: bytes) -> dict[str, Any]:
    file = io.BufferedReader(io.BytesIO(content))
    try:
        if container == "legacy":
            # torch/serialization.py, _legacy_load: magic number, protocol, system, the object, the storages' keys.
            for _ in range(3):
                InertUnpickler(file).load()
        unpickler = InertUnpickler(file)
        answer = find_weights(unpickler.load())
        if container == "legacy":
            keys = InertUnpickler(file).load()
            if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
                raise Refused("a list of storages that is none")
            answer |= {"storages": [(key, unpickler.storages.get(key, "")) for key in keys], "offset": file.tell()}
        return answer
    except Refused as refused:
        return {"refused": str(refused)[:200]}
    except MemoryError:
        return {"failed": "it takes more memory than any checkpoint needs"}
    except Exception as error:
        # A damaged pickle fails with whatever its opcodes meet.
        return {"failed": f"{type(error).__name__}: {error}"[:200]}


def main() -> None:
    _limit()
    text = json.dumps(_answer(sys.argv[1], sys.stdin.buffer.read()))
    if len(text) > MAX_ANSWER_BYTES:
        text = json.dumps({"failed": "it names more tensors than any checkpoint has"})
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
