"""What a device that decodes JPEGs is asked for, and which images it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..types import Pixels, Preprocessing
from .decode import DecodeLimits, image_format, opened
from .geometry import Size, crop_axes, is_short, resized_and_crop_box
from .jpeg_baseline import baseline_end
from .kernel import Axis
from .orientation import lies_on_its_side, mirrored, turned_size
from .structure import picture_of

# As many as `resample` remembers of the weights that these are made of, both ways round.
_REMEMBERED = 128


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """One direction of a resize: pixel i is the sum over t of `weights[t, i] * source[at[t, i]]`, 2²² being 1.

    Equal to itself alone, so that a device can keep its copy of it.
    """

    at: NDArray[np.int32]
    """`(taps, count)`; rising or falling with i, never both."""
    weights: NDArray[np.int32]
    """`(taps, count)`."""


@dataclass(frozen=True, slots=True)
class CropPlan:
    """How the crop comes of the stored pixels: what turning upright, resizing and cropping would give, in two passes.

    Each gives a byte: the sum plus a half, divided by 2²² and rounded down, held to 0…255. First across, and only what
    the second needs, then down.
    """

    stored: Size
    is_on_its_side: bool
    """Whether rows and columns are exchanged before the passes, which speak of the upright image."""
    across: Sums
    down: Sums

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the crop's pixels."""
        return self.down.at.shape[1], self.across.at.shape[1], 3


@dataclass(frozen=True, slots=True)
class DeviceImage:
    """A JPEG that a device decodes as the CPU does, but for how transforms and colours are rounded."""

    data: bytes
    end: int
    """Where the picture ends in `data`."""
    crop: CropPlan

    @property
    def decoded_bytes(self) -> int:
        """What it takes of the device's memory as pixels."""
        return 3 * self.crop.stored[0] * self.crop.stored[1]


class JpegDevice(Protocol):
    """Decodes JPEGs many at a time. One thread at a time calls it."""

    name: str
    """For a person: "cuda:0 (NVIDIA …)"."""

    def decode(self, images: Sequence[DeviceImage]) -> list[Pixels | None]:
        """The crop of each; None of one that came out as something else than its header says. Blocks.

        Raises `OutOfMemory` where a smaller list may fit, `DeviceLost` where only a restart helps, and anything else
        for a list that failed, by whichever of its images.
        """
        ...

    def crop(self, pixels: Pixels, plan: CropPlan) -> Pixels:
        """The crop of stored pixels `(height, width, 3)`: what `decode` does after decoding. Blocks."""
        ...

    def close(self) -> None:
        """Give the device's memory back. Nothing may be called afterwards."""
        ...


def device_image(data: bytes, preprocessing: Preprocessing, limits: DecodeLimits) -> DeviceImage | None:
    """The image as a device decodes it; None of one that is for the CPU.

    An image that a device could decode is held to all limits and refused as `decode` does, which does so of the others.
    """
    end = baseline_end(data) if image_format(data) == "jpeg" else None
    if end is None:
        return None
    picture = picture_of(data, limits)
    with opened(picture) as image:
        plan = crop_plan(picture.size, picture.orientation, preprocessing) if image.mode == "RGB" else None
    return None if plan is None else DeviceImage(data, end, plan)


def crop_plan(stored: Size, orientation: int, preprocessing: Preprocessing) -> CropPlan | None:
    """None where the CPU takes another road than two passes over the whole image: nearest neighbours, tall and extreme
    shapes, crops that reach outside, sources of a few pixels.
    """
    upright = turned_size(stored, orientation)
    resized, box = resized_and_crop_box(upright, preprocessing)
    is_inside = min(box[:2]) >= 0 and box[2] <= resized[0] and box[3] <= resized[1]
    if not is_inside or not is_short(resized):
        return None
    axes = crop_axes(upright, resized, box, preprocessing)
    if axes is None:
        return None
    across, down = (_sums_of(axis, turn) for axis, turn in zip(axes, mirrored(orientation), strict=True))
    return CropPlan(stored, lies_on_its_side(orientation), across, down)


@lru_cache(maxsize=_REMEMBERED)
def _sums_of(axis: Axis, is_mirrored: bool) -> Sums:
    at = axis.starts + np.arange(axis.weights.shape[1], dtype=np.int32)[:, None]
    return Sums(axis.source - 1 - at if is_mirrored else at, np.ascontiguousarray(axis.weights.T))
