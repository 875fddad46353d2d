"""The orientation of a stored image, from EXIF (EXIF 2.32, tag 0x0112)."""

from __future__ import annotations

from PIL import Image

from .geometry import Size, Window

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MIRRORED_X = frozenset({2, 3, 6, 7})
_MIRRORED_Y = frozenset({3, 4, 7, 8})
_FIRST_ON_ITS_SIDE = 5


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    method = _TURNS.get(orientation)
    return image if method is None else image.transpose(method)


def turned_size(size: Size, orientation: int) -> Size:
    """Of a stored size the upright one, and the other way round."""
    return size if orientation < _FIRST_ON_ITS_SIDE else (size[1], size[0])


def stored_window(upright: Window, size: Size, orientation: int) -> Window:
    """Where a window of the upright image of `size` lies in the stored one."""
    left, top, right, bottom = upright
    if orientation in _MIRRORED_X:
        left, right = size[0] - right, size[0] - left
    if orientation in _MIRRORED_Y:
        top, bottom = size[1] - bottom, size[1] - top
    return (left, top, right, bottom) if orientation < _FIRST_ON_ITS_SIDE else (top, left, bottom, right)
