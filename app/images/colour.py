"""Any Pillow mode → RGB, without the errors of `convert("RGB")` on transparency and 16-bit grey."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .geometry import Size

# What shows through transparent pixels: what a browser's empty page shows.
_BACKGROUND = (255, 255, 255)

_STRIPE_ROWS = 64

_TRANSPARENT_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
_DEEP_GREY_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})


def to_rgb(image: Image.Image) -> Image.Image:
    """An RGB image of the same size.

    - 16-bit grey is scaled to 8 bits (65535 → 255); Pillow's own conversion clips at 255 instead.
    - Transparency, an alpha channel or a transparent palette entry, is laid over white; dropping it would show
      whatever colour the encoder left in pixels that nobody sees.
    - Palette, 1-bit, grey and CMYK are converted as Pillow does, without colour management.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _DEEP_GREY_MODES:
        return _eight_bits(image).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(np.clip(np.nan_to_num(np.asarray(image)), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in _TRANSPARENT_MODES or "transparency" in image.info:
        return _over_background(image if image.mode == "RGBA" else image.convert("RGBA"))
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey levels 0…65535 → 0…255, to the nearest: 65535 / 257 is 255 exactly."""
    levels = np.asarray(image).astype(np.int64).clip(0, 65535)
    # A level that the file names as transparent shows the background; `fromarray` below would forget it.
    levels[levels == image.info.get("transparency", -1)] = 65535
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8))


def _over_background(image: Image.Image) -> Image.Image:
    # Pasted and not composed: one copy of a large image instead of three.
    background = Image.new("RGB", image.size, _BACKGROUND)
    background.paste(image, mask=image)
    return background


def on_canvas(picture: Image.Image, size: Size, offset: tuple[int, int]) -> Image.Image:
    """An RGB picture on a transparent canvas of `size`, of which the background shows."""
    canvas = Image.new("RGB", size, _BACKGROUND)
    canvas.paste(picture, offset)
    return canvas


def without_colour(upper: Image.Image, lower: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """An RGB image of 16 bits with the background where a pixel has `colour`: its upper 8 bits are in `upper`, which is
    returned, and its lower ones in `lower`.
    """
    wanted = np.array(colour, ">u2").view(np.uint8).reshape(3, 2)
    shown = upper.copy()
    for top in range(0, upper.height, _STRIPE_ROWS):
        stripe = (0, top, upper.width, min(top + _STRIPE_ROWS, upper.height))
        is_upper = (np.asarray(upper.crop(stripe)) == wanted[:, 0]).all(axis=2)
        is_lower = (np.asarray(lower.crop(stripe)) == wanted[:, 1]).all(axis=2)
        mask = (is_upper & is_lower).astype(np.uint8) * 255
        shown.paste(_BACKGROUND, stripe, Image.fromarray(mask))
    return shown
