"""Metric values in files, where several processes are one service (prometheus_client's multiprocess mode).

Each process writes its own files; any of them reads all files to answer `/metrics`. The replacement of a process that
died continues its files, so that no counter falls. A model's values are in separate files of each process, because
prometheus_client cannot remove a series from a file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from prometheus_client.mmap_dict import MmapedDict, mmap_key

from ..types import ModelIdentity

# prometheus_client's file names: the metric's type, and for gauges how the values of several processes are combined.
_FILE_KINDS = ("counter", "histogram", "gauge_livesum", "gauge_livemin", "gauge_livemax")
_MODEL_FILE_KINDS = ("counter", "histogram", "gauge_livesum", "gauge_livemax")
_FILE_BYTES, _MODEL_FILE_BYTES = 256 * 1024, 64 * 1024


@dataclass(frozen=True, slots=True)
class SharedFiles:
    """The folder in which several processes keep their metrics, and the name of this process.

    The environment's `PROMETHEUS_MULTIPROC_DIR` has to name the same folder. A replacement takes the name of the
    process that it replaces.
    """

    folder: Path
    process: str

    def create(self) -> None:
        """Create the process's files, empty and with their space allocated: a page without space would kill its writer.

        Existing files are continued. Raises `OSError`.
        """
        for kind in _FILE_KINDS:
            _allocate(self.folder / f"{kind}_{self.process}.db", _FILE_BYTES)

    def forget_gauges(self) -> None:
        """The process has died: keep its counters, drop its gauges."""
        for kind in _FILE_KINDS:
            if kind.startswith("gauge"):
                own = f"{kind}_{self.process}"
                for file in (self.folder / f"{own}.db", *self._found(f"{own}.*.db")):
                    # The folder for temporary files may have been cleaned, or no file can be opened now. Then the
                    # values stay out of date until the next process of this name writes its own gauges.
                    with suppress(OSError), file.open("r+b") as opened:
                        opened.write(bytes(8))  # the length of the used part

    def of_model(self, identity: ModelIdentity) -> ModelFiles:
        """This process's files for a model's metrics. Raises `OSError` if there is no space for them."""
        return ModelFiles(self.folder, f"{self.process}.{_digest(identity)}")

    def remove_model(self, identity: ModelIdentity) -> None:
        """Remove a model's files of all processes."""
        for file in self._found(f"*.{_digest(identity)}.db"):
            with suppress(OSError):
                file.unlink()

    def _found(self, pattern: str) -> list[Path]:
        """Files that match; none if no folder can be opened now."""
        with suppress(OSError):
            return list(self.folder.glob(pattern))
        return []


class ModelFiles:
    """The values of one model's metrics in this process."""

    def __init__(self, folder: Path, name: str) -> None:
        self._paths = {kind: folder / f"{kind}_{name}.db" for kind in _MODEL_FILE_KINDS}
        self._opened: dict[str, MmapedDict] = {}
        self._lock = Lock()
        for path in self._paths.values():
            _allocate(path, _MODEL_FILE_BYTES)

    def new_value(
        self,
        kind: str,
        metric: str,
        name: str,
        label_names: Sequence[str],
        label_values: Sequence[str],
        help_text: str,
        multiprocess_mode: str = "",
        **unused: Any,
    ) -> FileValue:
        """Takes the arguments of prometheus_client's own value classes."""
        kind = f"{kind}_{multiprocess_mode}" if kind == "gauge" else kind
        if kind not in self._opened:
            self._opened[kind] = MmapedDict(str(self._paths[kind]))  # type: ignore[no-untyped-call]
        key = mmap_key(metric, name, list(label_names), list(label_values), help_text)
        return FileValue(self._opened[kind], key, self._lock)

    def remove(self) -> None:
        """Close and remove the files; values that are still referenced no longer count."""
        with self._lock:
            for opened in self._opened.values():
                opened.close()  # type: ignore[no-untyped-call]
            for path in self._paths.values():
                with suppress(OSError):
                    path.unlink()


class FileValue:
    """A number in a file; has the interface of prometheus_client's `MutexValue`."""

    def __init__(self, file: MmapedDict, key: str, lock: Lock) -> None:
        self._file = file
        self._key = key
        self._lock = lock
        with lock:
            self._value: float = file.read_value(key)[0]  # type: ignore[no-untyped-call]

    def inc(self, amount: float) -> None:
        with self._lock:
            self._write(self._value + amount)

    def set(self, value: float, timestamp: float | None = None) -> None:
        with self._lock:
            self._write(value)

    def get(self) -> float:
        return self._value

    def set_exemplar(self, exemplar: object) -> None:
        """Files hold no exemplars."""

    def get_exemplar(self) -> None:
        return None

    def _write(self, value: float) -> None:
        self._value = value
        if self._file._m is not None:
            self._file.write_value(self._key, value, 0.0)  # type: ignore[no-untyped-call]


def _allocate(path: Path, size_bytes: int) -> None:
    with path.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)


def _digest(identity: ModelIdentity) -> str:
    """A model's name for a file name; the name itself may contain any characters."""
    return hashlib.sha256(f"{identity.name}\0{identity.version}".encode()).hexdigest()[:16]
