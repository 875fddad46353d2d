"""Devices that decode JPEGs without a card: libjpeg in nvJPEG's place, and one that does as it is told."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torchvision.io  # noqa: F401  loads the operators
from PIL import Image

from app.backends.torch.devices import CpuDevice, Device
from app.backends.torch.jpeg import Read, TorchJpegs
from app.images.device_images import CropPlan, DeviceImage
from app.types import Pixels

RGB = 3


def read_by_libjpeg(files: list[torch.Tensor]) -> list[torch.Tensor]:
    """What nvJPEG is asked for, as Pillow decodes it to the last bit; errors are those of torchvision's operators."""
    return [torch.ops.image.decode_jpeg(file, RGB, False) for file in files]


def read_without_interpolation(files: list[torch.Tensor]) -> list[torch.Tensor]:
    """As nvJPEG does without its flag for interpolation: each value of Cb and Cr stands for all pixels that share it.

    4:2:0 only. At half the size libjpeg gives Cb and Cr as they are stored.
    """
    return [torch.from_numpy(_repeated(bytes(file.tolist()))) for file in files]


def _repeated(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        image.draft("YCbCr", image.size)
        luma = np.asarray(image)[:, :, 0]
    height, width = luma.shape
    with Image.open(io.BytesIO(data)) as image:
        image.draft("YCbCr", (width // 2, height // 2))
        chroma = np.asarray(image)[:, :, 1:]
    assert chroma.shape[:2] == (-(-height // 2), -(-width // 2))
    whole = chroma.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    rgb = Image.fromarray(np.dstack([luma, whole]), "YCbCr").convert("RGB")
    return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))


def on_cpu(read: Read = read_by_libjpeg, device: Device | None = None) -> TorchJpegs:
    """The road of the card, on the CPU."""
    return TorchJpegs(device or CpuDevice(), read, "cpu (libjpeg)")


class ScriptedJpegs:
    """Decodes with libjpeg, keeps what it was asked, and waits or fails as it is told."""

    name = "scripted"

    def __init__(self) -> None:
        self.lists: list[list[bytes]] = []
        self.before: Callable[[Sequence[DeviceImage]], None] = lambda images: None
        self.is_open = threading.Event()
        self.is_open.set()
        self.is_closed = False
        self._real = on_cpu()

    def decode(self, images: Sequence[DeviceImage]) -> list[Pixels | None]:
        self.lists.append([image.data for image in images])
        assert self.is_open.wait(60)
        self.before(images)
        return self._real.decode(images)

    def crop(self, pixels: Pixels, plan: CropPlan) -> Pixels:
        return self._real.crop(pixels, plan)

    def close(self) -> None:
        self.is_closed = True

    def hold(self) -> None:
        self.is_open.clear()

    def release(self) -> None:
        self.is_open.set()
