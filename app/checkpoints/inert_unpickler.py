"""Program that describes the contents of a pickle and imports nothing that the pickle names; `run_limited` runs it.

The pickle is standard input. The argument is "zip" for the pickle of a zip archive, "legacy" for a legacy file. The
interpreter has the standard library and no installed packages. Every global that the pickle names becomes a stand-in,
or refuses the file. A pickle can still take time, memory or stack: the limits of the process then end it.

Writes one document (see `processes/framing.py`): `{"refused": "os.system"}`, `{"failed": "why"}`, `{"limit": "why"}`,
or `{"document": …, "storages": [[key, type], …], "offset": 1234}`. `pickle_description` defines the document.
`storages` and `offset` are of a legacy file: the storages in their order, and the offset of the first one's values.
"""

from __future__ import annotations

import io
import pickle
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from typing import Any

from ..processes.framing import pack
from .pickle_description import Describer, TooMuch
from .pickle_refusals import Refused, is_refused
from .pickle_stand_ins import KNOWN, StandIn, storage_of

MAX_ANSWER_BYTES = 12 << 20
_MAX_REASON = 200


class InertUnpickler(pickle.Unpickler):
    """Returns stand-ins for the classes and functions that a pickle names. Raises `Refused`."""

    def __init__(self, file: Any, encoding: str = "utf-8") -> None:
        super().__init__(file, fix_imports=False, encoding=encoding)
        self.storages: dict[str, str] = {}
        """Key and number format of each storage."""
        self._seen: dict[str, Any] = dict(KNOWN)

    def find_class(self, module: str, name: str) -> Any:
        # Python maps the names of protocol 2, which torch writes: `commands` is subprocess there.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{module}.{name}"
        if full not in self._seen:
            if is_refused(module, name):
                raise Refused(full)
            self._seen[full] = type("StandIn", (StandIn,), {"name": full})
        return self._seen[full]

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and pid and pid[0] == "module":
            # Legacy files store a module's class with its source text. The text is not used.
            return pid[1] if len(pid) > 1 else None
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"):
            raise Refused("a storage that torch would not write")
        storage = storage_of(pid)
        self.storages[storage.key] = storage.kind
        return storage


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
            # Python 2's texts are bytes in an unknown encoding. Any byte is a letter of latin-1.
            return _read(container, content, "latin-1")
    except Refused as refused:
        return {"refused": str(refused)[:_MAX_REASON]}
    except TooMuch as limit:
        return {"limit": str(limit)}
    except MemoryError:
        return {"limit": "it takes more memory than any checkpoint needs"}
    except Exception as error:
        # A damaged pickle can raise an error of any type.
        return {"failed": f"{type(error).__name__}: {error}"[:_MAX_REASON]}


def main(container: str) -> None:
    answer = pack(_answer(container, sys.stdin.buffer.read()))
    if len(answer) > MAX_ANSWER_BYTES:
        answer = pack({"limit": "it has more parts than any checkpoint has"})
    sys.stdout.buffer.write(answer)
