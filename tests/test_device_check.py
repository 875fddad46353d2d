"""A device that decodes JPEGs is held to the CPU at the start: one that is wrong, in whatever way, does not serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from app.errors import DeviceLost, SettingError, StartError
from app.images.device_check import open_checked
from app.images.device_images import CropPlan, DeviceImage
from app.types import Pixels
from tests.jpeg_devices import ScriptedJpegs, on_cpu, read_by_libjpeg, read_without_interpolation


def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[list[torch.Tensor]], list[torch.Tensor]]:
    return lambda files: [change(planes).contiguous() for planes in read_by_libjpeg(files)]


def plus(levels: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda planes: (planes.int() + levels).clamp(0, 255).to(torch.uint8)


def roughly(planes: torch.Tensor) -> torch.Tensor:
    """Off by a level up or down here and there, as another transform's rounding is."""
    noise = torch.randint(-1, 2, planes.shape, generator=torch.Generator().manual_seed(0))
    return (planes + noise).clamp(0, 255).to(torch.uint8)


def test_a_device_that_is_exact_is_opened() -> None:
    """The device itself is what comes back."""
    device = on_cpu()
    assert open_checked(lambda: device) is device


def test_another_rounding_is_let_in() -> None:
    """A level up or down in any pixel is what two right decoders may differ by."""
    open_checked(lambda: on_cpu(changed(roughly)))


def test_colours_that_are_not_interpolated_are_let_in() -> None:
    """nvJPEG repeats colours of half the resolution where libjpeg interpolates them."""

    def read(files: list[torch.Tensor]) -> list[torch.Tensor]:
        whole, halved = files
        return [*read_by_libjpeg([whole]), *read_without_interpolation([halved])]

    open_checked(lambda: on_cpu(read))


@pytest.mark.parametrize(
    "change",
    [
        lambda planes: planes.flip(0),
        lambda planes: planes.roll(1, 2),
        lambda planes: planes.roll(1, 1),
        lambda planes: planes.flip(2),
        plus(3),
        lambda planes: planes * 0,
        lambda planes: torch.stack([planes.float().mean(0).to(torch.uint8)] * 3),
    ],
    ids=["blue first", "a column aside", "a row aside", "mirrored", "too light", "black", "grey"],
)
def test_wrong_pixels_end_the_start(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """The error says how far off they are and what to do."""
    with pytest.raises(StartError, match=r"decodes a JPEG \(4:4:4\) otherwise than the CPU: .*RESNET_DECODER"):
        open_checked(lambda: on_cpu(changed(change)))


def test_wrong_colours_of_half_the_resolution_end_the_start() -> None:
    """Each sampling is looked at."""

    def read(files: list[torch.Tensor]) -> list[torch.Tensor]:
        whole, halved = read_by_libjpeg(files)
        return [whole, halved.roll(1, 2)]

    with pytest.raises(StartError, match="4:2:0"):
        open_checked(lambda: on_cpu(read))


def test_an_image_that_is_not_decoded_ends_the_start() -> None:
    """What the device leaves to the CPU in the check it would leave to it always."""
    with pytest.raises(StartError, match="255"):
        open_checked(lambda: on_cpu(changed(lambda planes: planes[:, 1:])))


class OffByOne(ScriptedJpegs):
    """Rounds down where Pillow rounds to the nearest."""

    def crop(self, pixels: Pixels, plan: CropPlan) -> Pixels:
        exact = super().crop(pixels, plan)
        return np.where(exact > 200, exact - 1, exact).astype(np.uint8)


def test_a_resize_that_is_nearly_right_ends_the_start() -> None:
    """The resize is to be Pillow's to the last bit: it is whole numbers."""
    with pytest.raises(StartError, match="does not resize with Pillow's pixels"):
        open_checked(OffByOne)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support"),
        DeviceLost("cuda:0 failed: illegal address"),
    ],
)
def test_a_device_that_fails_ends_the_start(error: Exception) -> None:
    """Whatever it says is told, with the way out."""

    class Failing(ScriptedJpegs):
        def decode(self, images: Sequence[DeviceImage]) -> list[Pixels | None]:
            raise error

    with pytest.raises(StartError) as told:
        open_checked(Failing)
    assert str(error) in str(told.value)
    assert "RESNET_DECODER" in str(told.value)


def test_what_is_wrong_with_a_setting_is_told_as_it_is() -> None:
    """A device that cannot be opened has its own words."""

    def missing() -> ScriptedJpegs:
        raise SettingError("no card")

    with pytest.raises(SettingError, match=r"^no card$"):
        open_checked(missing)
