"""Opens an HDF5 file: a program that `run_limited` runs within limits, with the path as argument.

For a file in a zip the arguments are the zip's path and the member's name. The HDF5 library can crash on a damaged
file, so this is a separate process, which imports only the framing from this package. The answer on standard output is
a document (see `processes/framing.py`), the tensors as float32, one after the other, and a closing document. The
process holds a piece of one tensor at a time.

    {"groups": {path: {attribute: text}}, "tensors": [[path, shape], …]}
    {"refused": sentence}     the file uses a feature that is not supported; nothing follows
    {"damaged": reason}       in place of either document; nothing follows
    {"not_run": reason}       the library could not be loaded, whatever the file is; nothing follows
    {}                        the end

Keras writes plain files, with hard links and unfiltered datasets. So other links, external storage, filters
(compression, and plugins loaded by name) and datasets with fewer bytes than their shape needs are refused before any
value is read.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import clause_of
from ..processes.framing import write_document

MAX_TEXT_BYTES = 2 * 1024 * 1024
MAX_NAME_BYTES = 1024
MAX_PATH_LENGTH = 1024
MAX_LINKS = 30_000
MAX_TENSORS = 2_000
MAX_GROUPS = 20_000
MAX_DEPTH = 32
# Text attributes that are read. Lists of texts are not: many entries could refer to the same long text.
NAME = "name"
TEXTS = ("model_config", "training_config")  # of the file itself
# An optimizer's own tensors are no weights.
SKIPPED = ("optimizer", "optimizer_weights")
# Counters, and the seeds of random layers: no layer computes with them.
SMALL_INTEGERS = 4
PIECE_BYTES = 16 * 1024 * 1024


class Refused(Exception):
    """An unsupported feature of the file, as a clause."""


class Dump:
    """The groups and datasets of a file, walked once and checked."""

    def __init__(self, size_bytes: int) -> None:
        self._bytes_left = size_bytes
        self._links = 0
        self.groups: dict[str, dict[str, str]] = {}
        self.datasets: dict[str, Any] = {}

    def walk(self, group: Any, path: str = "", depth: int = 0) -> None:
        import h5py

        if depth > MAX_DEPTH:
            raise Refused("its groups lie deeper than any network's, or in a circle")
        texts = () if path else TEXTS
        self.groups[path] = {name: self._text(group, path, name) for name in (NAME, *texts) if name in group.attrs}
        for name in group:
            where = f"{path}/{name}" if path else name
            self._links += 1
            if self._links > MAX_LINKS or len(where) > MAX_PATH_LENGTH:
                raise Refused(f"it has over {MAX_LINKS:,} entries, or names of over {MAX_PATH_LENGTH:,} characters")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise Refused(f"{where} is a link to elsewhere, and links are not followed")
            entry = group[name]
            if isinstance(entry, h5py.Dataset):
                self.datasets[where] = entry
            elif isinstance(entry, h5py.Group):
                self.walk(entry, where, depth + 1)
            if len(self.datasets) > MAX_TENSORS or len(self.groups) > MAX_GROUPS:
                raise Refused(f"it has over {MAX_TENSORS:,} tensors, which no ResNet-50 has")

    def _text(self, group: Any, path: str, name: str) -> str:
        attribute = group.attrs.get_id(name)
        if attribute.shape != () or attribute.dtype.kind not in "SO":
            raise Refused(f"the attribute {name} of /{path} is no text")
        value = group.attrs[name]
        limit = MAX_NAME_BYTES if name == NAME else MAX_TEXT_BYTES
        if len(value) > limit:
            raise Refused(f"the attribute {name} of /{path} is over {limit:,} bytes")
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)

    def is_counter(self, where: str) -> bool:
        dataset = self.datasets[where]
        return dataset.dtype.kind in "iu" and dataset.shape is not None and prod(dataset.shape) <= SMALL_INTEGERS

    def check(self, where: str) -> None:
        """Raises `Refused` for an unsupported dataset, and if all tensors together claim more bytes than there are."""
        dataset = self.datasets[where]
        if dataset.is_virtual or dataset.external:
            raise Refused(f"{where} keeps its numbers in another file, and none is opened")
        if dataset.id.get_create_plist().get_nfilters():
            raise Refused(f"{where} is compressed, which Keras does not do; unpack the file with h5repack -f NONE")
        if dataset.dtype.kind != "f" or dataset.dtype.itemsize not in (2, 4, 8) or dataset.shape is None:
            raise Refused(f"{where} is {dataset.dtype} where float16, float32 or float64 was expected")
        size = prod(dataset.shape) * dataset.dtype.itemsize
        self._bytes_left -= size
        if size > dataset.id.get_storage_size() or self._bytes_left < 0:
            raise Refused(f"{where} claims shape {dataset.shape} but the file stores fewer values")
        if dataset.chunks and prod(dataset.chunks) > 2 * max(1, prod(dataset.shape)):
            raise Refused(f"{where} is stored in pieces larger than itself")


def dump(source: Path | io.BytesIO, size_bytes: int, output: BinaryIO) -> None:
    """Write the groups and tensors of a valid file. Raises `Refused`, or any error of the library."""
    import h5py

    # Read only and unlocked: the folder may not be writable.
    with h5py.File(source, "r", locking=False) as file:
        found = Dump(size_bytes)
        found.walk(file)
        wanted = [where for where in found.datasets if where.split("/")[0] not in SKIPPED]
        wanted = [where for where in wanted if not found.is_counter(where)]
        for where in wanted:
            found.check(where)
        shapes = [[where, list(found.datasets[where].shape)] for where in wanted]
        write_document(output, {"groups": found.groups, "tensors": shapes})
        for where in wanted:
            for piece in pieces(found.datasets[where], ()):
                output.write(memoryview(piece).cast("B"))
    write_document(output, {})


def pieces(dataset: Any, index: tuple[int, ...]) -> Iterator[Any]:
    """The values of a dataset in order, in pieces of at most `PIECE_BYTES`."""
    import numpy as np

    shape = dataset.shape[len(index) :]
    if not shape or 0 in shape:
        if not shape:
            yield np.ascontiguousarray(dataset[index], "<f4")
        return
    row_bytes = prod(shape[1:]) * 4
    if row_bytes > PIECE_BYTES:
        for number in range(shape[0]):
            yield from pieces(dataset, (*index, number))
        return
    step = max(1, PIECE_BYTES // row_bytes)
    for start in range(0, shape[0], step):
        yield np.ascontiguousarray(dataset[(*index, slice(start, start + step))], "<f4")


def open_source(name: str, member: str | None) -> tuple[Path | io.BytesIO, int]:
    """The file for h5py to open, and its size in bytes. The caller has checked the zip's directory."""
    if member is None:
        return Path(name), Path(name).stat().st_size
    with zipfile.ZipFile(name) as archive:
        content = archive.read(member)
    return io.BytesIO(content), len(content)


def main(name: str, member: str | None = None) -> None:
    output = sys.stdout.buffer
    try:
        import h5py  # noqa: F401
        import numpy  # noqa: F401
    except (ImportError, OSError, MemoryError) as error:
        write_document(output, {"not_run": str(error)[:160].rstrip(". ")})
        return
    try:
        dump(*open_source(name, member), output)
    except Refused as refusal:
        write_document(output, {"refused": str(refusal)})
    except Exception as error:
        # Damage causes all kinds of errors in the library: OSError, KeyError, RuntimeError, TypeError, …
        write_document(output, {"damaged": clause_of(error, 160)})
