"""What decoding JPEGs asks of a card, in which order, and what it makes of a card's errors.

The card is the recording stand-in of the slots' tests, and torchvision's CPU decode has nvJPEG's place.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from app.backends.torch import jpeg
from app.backends.torch.devices import CpuDevice
from app.backends.torch.jpeg import Read, TorchJpegs, nvjpeg, open_jpegs
from app.checkpoints import published_resnet50_preprocessing
from app.errors import DeviceLost, OutOfMemory, SettingError
from app.images import decode
from app.images.device_images import DeviceImage, device_image
from app.types import Interpolation, Preprocessing
from tests.images_made import photo
from tests.jpeg_devices import read_by_libjpeg
from tests.photos import LIMITS, encode, make_jpeg
from tests.recording_device import RecordingDevice, Step

RESNET50 = published_resnet50_preprocessing()
SMALL = Preprocessing(40, (32, 24), Interpolation.BILINEAR, RESNET50.mean, RESNET50.std)
FILES = [make_jpeg(seed, (64 + 8 * seed, 48)) for seed in range(4)]


def images(*files: bytes, preprocessing: Preprocessing = SMALL) -> list[DeviceImage]:
    found = [device_image(data, preprocessing, LIMITS) for data in files]
    assert None not in found
    return [image for image in found if image is not None]


# What an operator of torchvision's adds to an error of torch's that it meets.
FROM_WITHIN = (
    'originally from torch_call_dispatcher( "aten::empty", "memory_format", stack.data(), TORCH_ABI_VERSION) '
    "API call failed at torch/csrc/stable/ops.h, line 631"
)


class Card(RecordingDevice):
    """Writes down "read" too: nvJPEG's call, which is on no stream that the caller has."""

    def __init__(self, read: Read = read_by_libjpeg) -> None:
        super().__init__()
        self.jpegs = TorchJpegs(self, self._read, "card")
        self._reads = read

    def _read(self, files: list[torch.Tensor]) -> list[torch.Tensor]:
        self._put("read", len(files))
        return self._reads(files)

    def kinds(self) -> list[str]:
        return [step.kind for step in self.steps]


# --- order


def test_the_stream_is_empty_when_nvjpeg_begins_and_when_pixels_are_read() -> None:
    """The host waits for the decoder's own stream before the call, which writes without regard to it, and once at the
    end, after every crop's copy."""
    card = Card()
    card.jpegs.decode(images(*FILES))
    crop = 32 * 24 * 3
    assert card.steps == [
        Step(1, "wait"),
        Step(1, "read", 4),
        *[Step(1, "out", crop)] * 4,
        Step(1, "wait"),
    ]


def test_the_stream_is_empty_again_before_the_next_list() -> None:
    """Between the last copy of one list and the next call of nvJPEG there is a wait, whatever was queued."""
    card = Card()
    for _ in range(3):
        card.jpegs.decode(images(*FILES[:2]))
    kinds = card.kinds()
    for number, kind in enumerate(kinds):
        if kind == "read":
            assert kinds[number - 1] == "wait"
    assert kinds.count("read") == 3


def test_pixels_are_read_after_the_last_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a copy brings only by the time that it has been waited for is what the caller gets."""
    card = Card()
    late: list[tuple[torch.Tensor, torch.Tensor]] = []
    monkeypatch.setattr(card, "copy", lambda target, source: late.append((target, source.clone())))

    def arrive() -> None:
        for target, source in late:
            target.copy_(source)

    card.on_wait = arrive
    found = card.jpegs.decode(images(*FILES))
    for pixels, data in zip(found, FILES, strict=True):
        assert np.array_equal(pixels, decode(data, SMALL, LIMITS))


def test_a_list_does_not_change_what_an_earlier_one_gave() -> None:
    """The pinned buffer is used again, and nobody keeps a view of it; it grows where a list is larger."""
    card = Card()
    lists = [(FILES[0],), FILES, FILES[1:3], (FILES[3],)]
    found = [card.jpegs.decode(images(*files)) for files in lists]
    for answers, files in zip(found, lists, strict=True):
        for pixels, data in zip(answers, files, strict=True):
            assert np.array_equal(pixels, decode(data, SMALL, LIMITS))


def test_nvjpeg_gets_the_picture_and_nothing_behind_it() -> None:
    """Bytes behind the end, such as a phone's further pictures, do not reach the card."""
    seen: list[int] = []

    def read(files: list[torch.Tensor]) -> list[torch.Tensor]:
        seen.extend(len(file) for file in files)
        return read_by_libjpeg(files)

    Card(read).jpegs.decode(images(FILES[0] + bytes(5000)))
    assert seen == [len(FILES[0])]


# --- what comes back


@pytest.mark.parametrize(
    "wrong",
    [
        lambda planes: planes[:, :-1],
        lambda planes: planes[:1],
        lambda planes: planes.to(torch.int16),
        lambda planes: planes.transpose(1, 2),
    ],
)
def test_an_image_of_another_shape_is_left_to_the_cpu(wrong: Any) -> None:
    """What is not of the size that the header says is no answer, and those beside it have theirs."""

    def read(files: list[torch.Tensor]) -> list[torch.Tensor]:
        planes = read_by_libjpeg(files)
        return [planes[0], wrong(planes[1]), *planes[2:]]

    found = Card(read).jpegs.decode(images(*FILES))
    assert found[1] is None
    for number in (0, 2, 3):
        assert np.array_equal(found[number], decode(FILES[number], SMALL, LIMITS))


def test_too_few_images_are_a_failure() -> None:
    """A list that comes back shorter is not matched with its files by guess."""
    with pytest.raises(RuntimeError, match="3 images of 4"):
        Card(lambda files: read_by_libjpeg(files)[:3]).jpegs.decode(images(*FILES))


# --- errors


def failing(error: BaseException) -> Card:
    def read(files: list[torch.Tensor]) -> list[torch.Tensor]:
        raise error

    return Card(read)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError(f"Error while decoding JPEG images: CUDA out of memory. Tried to allocate 2 GiB. ({FROM_WITHIN})"),
        RuntimeError(f"Error while decoding JPEG images: {FROM_WITHIN.removeprefix('originally from ')}"),
        RuntimeError("Error while decoding JPEG images: Failed to decode batch: 5"),
        MemoryError(),
    ],
    ids=["torch's", "from within the operator", "the same from an earlier torch", "nvJPEG's", "the host's"],
)
def test_out_of_memory_is_told_and_memory_given_back(error: BaseException) -> None:
    """Whoever ran out of it, what torch keeps for later is given back, and a smaller list is asked for."""
    card = failing(error)
    with pytest.raises(OutOfMemory):
        card.jpegs.decode(images(*FILES))
    assert card.freed == 1


@pytest.mark.parametrize("status", [3, 4, 6, 8])
def test_a_file_that_nvjpeg_refuses_is_that_list_s_failure(status: int) -> None:
    """Where the device answers afterwards, the error is passed on as it is."""
    card = failing(RuntimeError(f"Error while decoding JPEG images: Failed to parse jpeg stream: {status}"))
    with pytest.raises(RuntimeError, match="parse jpeg stream"):
        card.jpegs.decode(images(FILES[0]))
    assert card.freed == 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("Error while decoding JPEG images: Failed to decode jpeg stream: 3"),
    ],
)
def test_after_a_failure_the_whole_device_is_waited_for(error: BaseException) -> None:
    """What nvJPEG had begun of the list still writes into memory that its error has given back."""
    card = failing(error)
    with pytest.raises((RuntimeError, OutOfMemory)):
        card.jpegs.decode(images(*FILES))
    assert card.drained_before == len(card.steps)
    assert card.steps[-1].kind == "read"


def test_a_lost_device_is_told_as_one() -> None:
    """nvJPEG says only a number; that the device no longer answers is seen by asking it."""
    card = failing(RuntimeError("Error while decoding JPEG images: Failed to synchronize CUDA stream: 700"))
    card.well = False
    with pytest.raises(DeviceLost, match=r"card failed: .*700"):
        card.jpegs.decode(images(FILES[0]))


def test_an_error_that_names_a_lost_device_is_one() -> None:
    """An error of a kernel of the resize says what it is, as it does for the network."""
    card = Card()
    card.on_wait = lambda: (_ for _ in ()).throw(torch.AcceleratorError("CUDA error: device-side assert triggered"))
    with pytest.raises(DeviceLost, match="device-side assert"):
        card.jpegs.decode(images(FILES[0]))


def test_it_works_on_after_a_failure() -> None:
    """A list that failed leaves nothing that the next one would meet."""
    fails = [True]

    def read(files: list[torch.Tensor]) -> list[torch.Tensor]:
        if fails.pop() if fails else False:
            raise RuntimeError("Error while decoding JPEG images: Failed to decode jpeg stream: 3")
        return read_by_libjpeg(files)

    card = Card(read)
    with pytest.raises(RuntimeError):
        card.jpegs.decode(images(*FILES))
    for pixels, data in zip(card.jpegs.decode(images(*FILES)), FILES, strict=True):
        assert np.array_equal(pixels, decode(data, SMALL, LIMITS))


def test_closing_gives_memory_back() -> None:
    """The buffer and the weights are let go of, and what torch keeps is given back."""
    card = Card()
    card.jpegs.decode(images(*FILES))
    card.jpegs.close()
    assert card.freed == 1
    assert card.jpegs._host is None
    assert card.jpegs._on_device.cache_info().currsize == 0


def test_weights_cross_once() -> None:
    """A second photo of the same size finds its weights on the device."""
    card = Card()
    allocated: list[tuple[int, ...]] = []
    card.on_buffer = allocated.append
    card.jpegs.decode(images(FILES[0]))
    assert len(allocated) == 4
    card.jpegs.decode(images(FILES[0], FILES[0]))
    assert len(allocated) == 4


# --- opening


def test_without_a_card_the_start_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting asks for a card: without one nothing else is done in its place."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match=r"RESNET_DECODER is gpu, but .* no CUDA device\. Set RESNET_DECODER"):
        open_jpegs("auto")
    with pytest.raises(SettingError, match="RESNET_DEVICE is cuda:3"):
        open_jpegs("cuda:3")


def test_a_torchvision_without_the_decoder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once torchvision no longer decodes on CUDA the start says so, and which release did."""

    class NoOperators:
        def __getattr__(self, name: str) -> Any:
            raise AttributeError(name)

    monkeypatch.setattr(torch.ops, "image", NoOperators(), raising=False)
    with pytest.raises(SettingError, match=r"no JPEGs on CUDA.*Set RESNET_DECODER to threads"):
        nvjpeg(torch.device("cuda", 0))
    monkeypatch.setitem(sys.modules, "torchvision.io", None)
    with pytest.raises(SettingError, match="no JPEGs on CUDA"):
        nvjpeg(torch.device("cuda", 0))


def test_nvjpeg_is_called_for_colours_on_that_card_and_warns_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator gets the files, RGB's number and the card's own; the deprecation of what surrounds it is not met."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        torch.ops, "image", types.SimpleNamespace(decode_jpegs_cuda=lambda *given: calls.append(given) or [])
    )
    files = [torch.zeros(3, dtype=torch.uint8)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert nvjpeg(torch.device("cuda", 1))(files) == []
    from torchvision.io import ImageReadMode

    assert calls == [(files, ImageReadMode.RGB.value, torch.device("cuda", 1))]
    assert caught == []


def test_the_operator_takes_what_it_is_given() -> None:
    """The installed torchvision's operator has the parameters that it is called with."""
    import torchvision.io  # noqa: F401

    schema = torch.ops.image.decode_jpegs_cuda.default._schema
    assert [str(argument.type) for argument in schema.arguments] == ["List[Tensor]", "int", "Device"]
    assert [str(result.type) for result in schema.returns] == ["List[Tensor]"]


def test_the_card_s_stream_is_the_decoder_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened on a card, files are read for that card and within a stream that was made for it."""
    import app.backends.torch.cuda as border

    where: list[Any] = []

    class Cuda(CpuDevice):
        def __init__(self, device: torch.device) -> None:
            where.append(device)

        def stream(self) -> Any:
            return "own"

        @contextmanager
        def on(self, stream: Any) -> Iterator[None]:
            where.append(stream)
            yield

    class Plan:
        is_cuda = True
        device = torch.device("cuda", 0)

    def read(device: torch.device) -> Read:
        where.append(device)
        return read_by_libjpeg

    monkeypatch.setattr(border, "CudaDevice", Cuda)
    monkeypatch.setattr(jpeg, "plan_device", lambda device, precision: Plan)
    monkeypatch.setattr(jpeg, "nvjpeg", read)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
    jpegs = open_jpegs("cuda")
    data = encode(photo())
    [pixels] = jpegs.decode(images(data, preprocessing=RESNET50))
    assert np.array_equal(pixels, decode(data, RESNET50, LIMITS))
    assert jpegs.name == "cuda:0 (A card)"
    assert where == [torch.device("cuda", 0), torch.device("cuda", 0), "own"]
