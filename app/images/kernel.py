"""The compiled resize: finds its library, compares it with Pillow before first use, and calls it."""

from __future__ import annotations

import ctypes
import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..types import Pixels
from . import kernel_build

logger = logging.getLogger(__name__)

# Pillow keeps an image in blocks of 16 MB unless it is told otherwise, and hands out, without a copy, only what lies in
# one block. A block is no larger than its image; this is what the default's 64 megapixels of 4 bytes need.
_BLOCK_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """One direction of a resize: pixel i is the sum of `weights[i, t] * source[starts[i] + t]`, 2²² being 1."""

    source: int
    """Pixels that the source has in this direction."""
    starts: NDArray[np.int32]
    """`(count,)`, and never falling."""
    weights: NDArray[np.int32]
    """`(count, taps)`."""

    def __post_init__(self) -> None:
        count, taps = self.weights.shape
        inside = self.starts.min() >= 0 and self.starts.max() + taps <= self.source
        if self.starts.shape != (count,) or not inside or (np.diff(self.starts) < 0).any():
            raise ValueError("These weights reach outside of the image.")


class _Axis(ctypes.Structure):
    """`axis` of resample.c."""

    _fields_ = (
        ("starts", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("taps", ctypes.c_int32),
        ("count", ctypes.c_int32),
    )

    @classmethod
    def of(cls, axis: Axis) -> _Axis:
        count, taps = axis.weights.shape
        return cls(axis.starts.ctypes.data, axis.weights.ctypes.data, taps, count)


class _ArrowArray(ctypes.Structure):
    """The first fields of the Arrow C data interface's `ArrowArray`, as Pillow fills it in."""


_ArrowArray._fields_ = (
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
)

_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype = ctypes.c_void_p
_pointer_of.argtypes = (ctypes.py_object, ctypes.c_char_p)


class Kernel:
    """`resample` of the library. Its calls release the interpreter lock."""

    def __init__(self, library: ctypes.CDLL, function: str = "resample") -> None:
        self._call = library[function]
        self._call.restype = ctypes.c_int
        self._call.argtypes = (
            ctypes.c_void_p,
            ctypes.c_ssize_t,
            ctypes.POINTER(_Axis),
            ctypes.POINTER(_Axis),
            ctypes.c_void_p,
        )

    def resample(self, image: Image.Image, x: Axis, y: Axis) -> Pixels | None:
        """`(y.count, x.count, 3)` uint8 of an RGB image; None of one that is not in one piece of memory.

        Raises `ValueError` where the image is not RGB or not of the size that the axes are for.
        """
        if image.mode != "RGB" or image.size != (x.source, y.source):
            raise ValueError("These weights are for another image.")
        try:
            _, array = image.__arrow_c_array__()
        except ValueError:
            return None
        # A list of four bytes for each pixel; the capsule keeps the image's memory.
        pixels = _ArrowArray.from_address(_pointer_of(array, b"arrow_array")).children[0].contents
        stride = 4 * image.width
        if pixels.length != stride * image.height or pixels.offset:
            return None
        result = np.empty((y.weights.shape[0], x.weights.shape[0], 3), np.uint8)
        if self._call(pixels.buffers[1], stride, _Axis.of(x), _Axis.of(y), result.ctypes.data):
            raise MemoryError
        return result


def open_kernel() -> Kernel | None:
    """The kernel that was compiled when this package was installed; None where there is none that can be loaded."""
    library = kernel_build.library_path()
    if not library.exists():
        return None
    try:
        kernel = Kernel(ctypes.CDLL(str(library)))
    except OSError as error:
        # Built on another machine: a folder that two kinds of container share.
        logger.warning("%s cannot be loaded (%s): Pillow resizes images, more slowly.", library.name, error)
        return None
    Image.core.set_block_size(_BLOCK_BYTES)  # type: ignore[attr-defined]
    return kernel
