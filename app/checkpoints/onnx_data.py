"""The files of an ONNX model: the model itself and the files beside it that have its weights."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import CheckpointError
from . import onnx_wire
from .onnx_refusal import Refused

MAX_FILES = 1_000
_NEXT_TAGS = frozenset({0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42})
# The name of the file beside `NAME.onnx` from torch.onnx.export and transformers' exporter.
_USUAL_NAME = re.compile(r"\.onnx[._]data$")


def is_onnx(head: bytes, tail: bytes) -> bool:
    """Whether it is a ModelProto, which begins with `ir_version`, 3 (2017) and up. (A SavedModel begins with 1.)

    The tags of the other fields follow, which writers put in the order of their numbers.
    """
    return len(head) > 2 and head[0] == 0x08 and 3 <= head[1] < 0x40 and head[2] in _NEXT_TAGS


def model_files(path: Path) -> list[Path]:
    """The model and the files beside it. Raises `CheckpointError` if it is damaged or names any other file."""
    return [path, *data_files(path).values()]


def data_files(path: Path) -> dict[str, Path]:
    """Name in the model → the file beside it with weights, sorted by name.

    Raises `CheckpointError` for a file that is not regular, is missing, or is not beside the model.
    """
    try:
        with mapped(path) as data:
            locations = onnx_wire.walk(data).locations
        if len(locations) > MAX_FILES:
            raise Refused(f"its weights are in over {MAX_FILES:,} files; save them in one (onnx.save_model)")
        return {location: _beside(path, location) for location in locations}
    except Refused as refusal:
        raise cannot_be_served(path, str(refusal)) from None
    except ValueError as error:
        raise damaged(path, str(error)) from None
    except OSError as error:
        raise CheckpointError(f"Cannot read {error.filename or path}: {error.strerror}.") from None


def beside_others(entries: Sequence[Path]) -> set[Path]:
    """The entries of a folder that are no checkpoints but the weights of an ONNX model beside them."""
    found = {path for path in entries if _USUAL_NAME.search(path.name)}
    for path in entries:
        if path.suffix.lower() == ".onnx" and path.is_file():
            # Its reader decides whether it can be served.
            with contextlib.suppress(CheckpointError):
                found.update(path.parent / location for location in data_files(path))
    return found


def assemble(path: Path, beside: Sequence[Path], small: bytes, pieces: Sequence[tuple[int, int, int]]) -> bytes:
    """A model joined from pieces: source, offset, length. Sources are `small` (-1), the model (0), the files beside it.

    Raises `OSError` and ValueError if the files have changed.
    """
    with contextlib.ExitStack() as stack:
        views = [stack.enter_context(memoryview(small))]
        for file in (path, *beside):
            views.append(stack.enter_context(memoryview(stack.enter_context(mapped(file)))))
        parts = [stack.enter_context(views[source + 1][offset : offset + length]) for source, offset, length in pieces]
        if any(len(part) != piece[2] for part, piece in zip(parts, pieces, strict=True)):
            raise ValueError("a file beside it was changed as it was read")
        return b"".join(parts)


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """A regular file's bytes as a memory map. Raises `OSError` and ValueError."""
    # Without O_NONBLOCK, a FIFO would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
    with data:
        yield data


def _beside(path: Path, location: str) -> Path:
    """The file `location` beside the model. Raises `Refused` if it is missing, elsewhere or not regular."""
    if not location or location in (".", "..") or re.search(r"[/\\:\0]", location) or len(location) > 255:
        raise Refused(
            f"it keeps its weights in {location[:80]!r}, which is no file beside it; save it again, as one file or "
            f"with the weights beside it (onnx.save_model with save_as_external_data)"
        )
    file = path.parent / location
    try:
        mode = file.stat().st_mode
    except OSError:
        raise Refused(
            f"its weights are in {location[:80]}, which does not lie beside it; copy that file there too"
        ) from None
    # In a cache, both may be links to files in one folder elsewhere.
    if file.resolve().parent not in (path.parent.resolve(), path.resolve().parent):
        raise Refused(f"its weights are in {location[:80]}, a link that leads elsewhere; copy the file itself there")
    if not stat.S_ISREG(mode):
        raise Refused(f"its weights are in {location[:80]}, which is no regular file; copy the real file there")
    return file


def cannot_be_served(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be served: {reason}.")


def damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is a damaged ONNX file ({reason}). Copy or export it again.")
