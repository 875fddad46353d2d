"""WebP through libwebp's own functions, without the interpreter lock.

Pillow's plugin copies the canvas while it holds the lock: 49 ms for 25 megapixels, in which no other thread runs. The
library that Pillow has loaded decodes into an array instead. Where it is not found, Pillow's plugin is used. The pixels
are the same.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from ..errors import ImageCorrupt
from .picture import Picture
from .pieces import Piece

# The part behind the dash is what a wheel's builder adds.
_NAME = re.compile(r"libwebp(-[0-9a-f]+)?\.so[.\d]*")
# libwebp/src/webp/decode.h: the major part must be the library's, and has been 2 since 2012.
_DECODER_ABI_VERSION = 0x0209


class _Features(ctypes.Structure):
    """WebPBitstreamFeatures."""

    _fields_ = (
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("has_alpha", ctypes.c_int),
        ("has_animation", ctypes.c_int),
        ("format", ctypes.c_int),
        ("pad", ctypes.c_uint32 * 5),
    )


@cache
def library() -> ctypes.CDLL | None:
    """The libwebp that Pillow has loaded; None where there is none, or it is not found."""
    try:
        importlib.import_module("PIL._webp")
        path = _loaded_path()
        if path is None:
            return None
        webp = ctypes.CDLL(path)
        webp.WebPGetFeaturesInternal.argtypes = (
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.POINTER(_Features),
            ctypes.c_int,
        )
        webp.WebPDecodeRGBAInto.argtypes = (
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
        )
        webp.WebPDecodeRGBAInto.restype = ctypes.c_void_p
    except (ImportError, OSError, AttributeError):
        return None
    return webp


def _loaded_path() -> str | None:
    """Where libwebp was loaded from (Linux)."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        # Address, permissions, offset, device, inode, and a path that may have spaces in it (proc_pid_maps(5)).
        path = line.split(maxsplit=5)[5:]
        if path and _NAME.fullmatch(path[0].rpartition("/")[2]):
            return path[0]
    return None


class WebPImage(ImageFile.ImageFile):
    """A still WebP as Pillow's plugin shows it: of mode RGBA where it says that it has alpha, else RGB."""

    format = "WEBP"
    format_description = "WebP image"

    def __init__(self, picture: Picture, webp: ctypes.CDLL) -> None:
        """Raises `ImageCorrupt`."""
        self._webp = webp
        self._data: NDArray[np.uint8] | None = _joined(picture.pieces)
        super().__init__(io.BytesIO())

    def _open(self) -> None:
        features = _Features()
        data = self._data
        assert data is not None
        if self._webp.WebPGetFeaturesInternal(data.ctypes.data, data.size, features, _DECODER_ABI_VERSION):
            raise ImageCorrupt()
        self._size = features.width, features.height
        self._mode = "RGBA" if features.has_alpha else "RGB"

    def load(self) -> Any:
        """Raises `ImageCorrupt`."""
        data, self._data = self._data, None
        if data is not None:
            width, height = self.size
            pixels = np.empty((height, width, 4), np.uint8)
            if not self._webp.WebPDecodeRGBAInto(
                data.ctypes.data, data.size, pixels.ctypes.data, pixels.nbytes, 4 * width
            ):
                raise ImageCorrupt()
            del data
            # Shares the memory; only without alpha it is copied, by code that leaves the lock alone.
            stored = Image.frombuffer("RGBA" if self.mode == "RGBA" else "RGBX", self.size, pixels, "raw")
            self.im = (stored if self.mode == "RGBA" else stored.convert("RGB")).im
        return super().load()


def _joined(pieces: Sequence[Piece]) -> NDArray[np.uint8]:
    """The file in one piece. NumPy copies without the interpreter lock."""
    parts = [np.frombuffer(piece if isinstance(piece, bytes | memoryview) else piece[:], np.uint8) for piece in pieces]
    whole = np.empty(sum(part.size for part in parts), np.uint8)
    begin = 0
    for part in parts:
        whole[begin : begin + part.size] = part
        begin += part.size
    return whole
