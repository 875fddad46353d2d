"""A device that decodes JPEGs is held to the CPU before the first image, by pictures that are made here."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from ..errors import StartError
from ..types import Interpolation, Pixels, Preprocessing
from .decode import DecodeLimits, decode
from .device_images import JpegDevice, crop_plan, device_image
from .geometry import resize_and_crop
from .orientation import turn_upright

_SIZE = (211, 157)
_CROPS = [
    Preprocessing(96, (88, 80), interpolation, (0.0,) * 3, (1.0,) * 3)
    for interpolation in (Interpolation.BILINEAR, Interpolation.BICUBIC, Interpolation.LANCZOS)
]
_LIMITS = DecodeLimits(10**6, 10**6, 10**4)
# Pillow's number of the sampling, and the mean over a crop in levels of 255 that is allowed. Transforms that round
# otherwise differ by less than one. Where libjpeg interpolates colours of half the resolution and a device repeats
# them, this picture shows 1.4. What is wrong is more: 12 where it is a column aside, 60 for red in blue's place.
_MOST = {"4:4:4": (0, 1.0), "4:2:0": (2, 4.0)}
_WAY_OUT = "Set RESNET_DECODER (--decoder) to threads."


def open_checked(open_device: Callable[[], JpegDevice]) -> JpegDevice:
    """The device that `open_device` opens. Blocks.

    Raises `StartError` where it decodes nothing, does not resize as Pillow does to the last bit, or decodes otherwise
    than the CPU.
    """
    device = open_device()
    try:
        _check_crops(device)
        _check_decoding(device)
    except StartError:
        raise
    except Exception as error:
        raise StartError(f"{device.name} decodes no JPEGs: {str(error).strip().rstrip('.')}. {_WAY_OUT}") from error
    return device


def _check_crops(device: JpegDevice) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (_SIZE[1], _SIZE[0], 3), np.uint8)
    for orientation, preprocessing in enumerate(_CROPS, start=6):
        plan = crop_plan(_SIZE, orientation, preprocessing)
        expected = resize_and_crop(turn_upright(Image.fromarray(noise), orientation), preprocessing)
        if plan is None or not np.array_equal(device.crop(noise, plan), np.asarray(expected)):
            raise StartError(
                f"{device.name} does not resize with Pillow's pixels ({preprocessing.interpolation.value}). {_WAY_OUT}"
            )


def _check_decoding(device: JpegDevice) -> None:
    files = [_jpeg(subsampling) for subsampling, _ in _MOST.values()]
    images = [device_image(data, _CROPS[0], _LIMITS) for data in files]
    found = device.decode([image for image in images if image is not None])
    for (name, (_, most)), data, pixels in zip(_MOST.items(), files, found, strict=True):
        distance = _distance(pixels, decode(data, _CROPS[0], _LIMITS))
        if distance > most:
            raise StartError(
                f"{device.name} decodes a JPEG ({name}) otherwise than the CPU: {distance:.1f} levels apart on "
                f"average, where {most:g} is allowed. {_WAY_OUT}"
            )


def _distance(pixels: Pixels | None, expected: Pixels) -> float:
    """The mean over all channels of all pixels; of what has another shape, the largest there is."""
    if pixels is None or pixels.shape != expected.shape:
        return 255.0
    return float(np.abs(pixels.astype(np.int16) - expected).mean())


def _jpeg(subsampling: int) -> bytes:
    """Waves of another direction and length in each channel: smooth, and nowhere the same a pixel further."""
    y, x = np.mgrid[: _SIZE[1], : _SIZE[0]] * (2 * np.pi)
    waves = np.stack([np.sin(x / 25 + y / 60), np.sin(x / 70 - y / 22), np.cos(x / 41 + y / 33)], axis=2)
    target = io.BytesIO()
    Image.fromarray((127.5 + 120 * waves).astype(np.uint8)).save(target, "JPEG", quality=95, subsampling=subsampling)
    return target.getvalue()
