"""The process that opens HDF5 files: `python hdf5_process.py FILE`, or `ZIP MEMBER` for one that lies in a zip.

It stands alone, because the HDF5 library can crash on a damaged file; `limited_process` keeps it to limited time and
memory. It answers on standard output with the tensors' float32, one after the other, then JSON, then that JSON's length
(8 bytes, little-endian), so that it holds one tensor at a time and can still say what went wrong:

    {"groups": {path: {attribute: text}}, "tensors": [[path, shape], …]}
    {"refused": sentence}     what the file does is not done here
    {"damaged": reason}

Keras writes plain files: hard links, datasets as they are. So a link to elsewhere, storage elsewhere, a filter
(compression, and plugins loaded by name) and a dataset with fewer bytes than its shape needs are all refused before
anything is read.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import zipfile
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

MAX_TEXT_BYTES = 16 * 1024 * 1024
MAX_TENSORS = 2_000
MAX_GROUPS = 20_000
MAX_DEPTH = 32
# Texts that are read; lists of texts are not: each of a list's many could be the same long one.
ATTRIBUTES = ("model_config", "name")
# An optimizer's own tensors are no weights.
SKIPPED = ("optimizer", "optimizer_weights")


class Refused(Exception):
    """What the file does and what is not done here, as a clause."""


class Dump:
    """All of a file that Keras's weights need, walked once and checked."""

    def __init__(self, size_bytes: int) -> None:
        self._bytes_left = size_bytes
        self.groups: dict[str, dict[str, str]] = {}
        self.datasets: dict[str, Any] = {}

    def walk(self, group: Any, path: str = "", depth: int = 0) -> None:
        import h5py

        if depth > MAX_DEPTH:
            raise Refused("its groups lie deeper than any network's, or in a circle")
        self.groups[path] = {name: self._text(group, path, name) for name in ATTRIBUTES if name in group.attrs}
        for name in group:
            where = f"{path}/{name}" if path else name
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
        if len(value) > MAX_TEXT_BYTES:
            raise Refused(f"the attribute {name} of /{path} is over {MAX_TEXT_BYTES:,} bytes")
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)

    def check(self, where: str) -> None:
        """All together, tensors may claim no more bytes than the file has."""
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


def dump(source: Path | io.BytesIO, size_bytes: int, numbers: BinaryIO) -> dict[str, Any]:
    """Write the numbers of a file that is as it should be, and return what tells them apart.

    Raises `Refused`, or whatever the library meets.
    """
    import h5py
    import numpy as np

    # Read only and unlocked: the folder may not be ours to write to.
    with h5py.File(source, "r", locking=False) as file:
        found = Dump(size_bytes)
        found.walk(file)
        wanted = [where for where in found.datasets if where.split("/")[0] not in SKIPPED]
        for where in wanted:
            found.check(where)
        shapes = [[where, list(found.datasets[where].shape)] for where in wanted]
        for where in wanted:
            numbers.write(np.asarray(found.datasets[where][()]).astype("<f4", copy=False).tobytes())
    return {"groups": found.groups, "tensors": shapes}


def open_source(name: str, member: str | None) -> tuple[Path | io.BytesIO, int]:
    """What h5py opens, and its size in bytes. The zip's directory was checked by whoever asked."""
    if member is None:
        return Path(name), Path(name).stat().st_size
    with zipfile.ZipFile(name) as archive:
        content = archive.read(member)
    return io.BytesIO(content), len(content)


def main(name: str, member: str | None = None) -> None:
    output = sys.stdout.buffer
    try:
        answer = dump(*open_source(name, member), output)
    except Refused as refusal:
        answer = {"refused": str(refusal)}
    except Exception as error:
        # Damage fails with whatever the library meets: OSError, KeyError, RuntimeError, TypeError, …
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        answer = {"damaged": reason[:160].rstrip(". ")}
    document = json.dumps(answer).encode()
    output.write(document + struct.pack("<Q", len(document)))


if __name__ == "__main__":
    main(*sys.argv[1:])
