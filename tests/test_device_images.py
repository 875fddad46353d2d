"""What a card is given: which files, and that what it is asked for is the crop of exact mode to the last bit.

torchvision's CPU decode, which is Pillow's to the last bit, stands in for nvJPEG; tests/gpu has what only a card shows.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from app.agreement import probabilities
from app.checkpoints import published_resnet50_preprocessing
from app.errors import ImageCorrupt, ImageTooComplex, ImageTooLarge, ServiceError
from app.images import DecodeLimits, decode
from app.images.device_images import DeviceImage, device_image
from app.images.jpeg_baseline import baseline_end
from app.types import Interpolation, Preprocessing, Want
from tests import images_made as made
from tests.checkpoints_made import load
from tests.images_made import photo
from tests.jpeg_devices import on_cpu, read_without_interpolation
from tests.photos import LIMITS, encode
from tests.test_images import SEEDS, damaged

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\..*")

RESNET50 = published_resnet50_preprocessing()
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry", "retina")
CPU = on_cpu()
# Of a probability; twice what test_answers_hold_where_colours_are_repeated sees.
TOLERANCE = 0.05


def made_for(crop: tuple[int, int], short: int | None, interpolation: Interpolation, **options: Any) -> Preprocessing:
    return Preprocessing(short, crop, interpolation, RESNET50.mean, RESNET50.std, **options)


PREPROCESSINGS = {
    "published": RESNET50,
    "bicubic 0.95": made_for((224, 224), 235, Interpolation.BICUBIC),
    "large crop": made_for((288, 288), 288, Interpolation.BICUBIC),
    "squashed": made_for((96, 160), None, Interpolation.LANCZOS),
    "odd, floor": made_for((75, 81), 100, Interpolation.LANCZOS, floor_crop=True),
    "small": made_for((6, 5), 7, Interpolation.BILINEAR),
    "squashed, then cropped": made_for((96, 160), None, Interpolation.BILINEAR, squash=(120, 181)),
    "torchvision's": made_for((224, 224), 256, Interpolation.BICUBIC, floor_crop=True, resizer="torchvision"),
}


def given_to_a_device(data: bytes, preprocessing: Preprocessing = RESNET50) -> DeviceImage:
    image = device_image(data, preprocessing, LIMITS)
    assert image is not None
    return image


def is_exact(data: bytes, preprocessing: Preprocessing) -> bool:
    [pixels] = CPU.decode([given_to_a_device(data, preprocessing)])
    assert pixels is not None
    return np.array_equal(pixels, decode(data, preprocessing, LIMITS))


# --- the pixels


@pytest.mark.parametrize("preprocessing", PREPROCESSINGS.values(), ids=PREPROCESSINGS.keys())
@pytest.mark.parametrize("name", PHOTOS)
def test_a_photo_is_exact_given_its_decoded_pixels(name: str, preprocessing: Preprocessing) -> None:
    """Resize and crop on a device give the pixels of exact mode to the last bit, for every preset's filter and crop."""
    assert is_exact(encode(photo(name), quality=92), preprocessing)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(451, 300), (301, 299), (256, 256), (257, 300)])
def test_every_orientation_is_exact(size: tuple[int, int], orientation: int) -> None:
    """A file that says how it was held is turned as the CPU turns it, also where a side is odd."""
    data = encode(photo().resize(size), exif=made.exif_orientation(orientation))
    for preprocessing in PREPROCESSINGS.values():
        image = device_image(data, preprocessing, LIMITS)
        assert image is None or is_exact(data, preprocessing)
    assert is_exact(data, RESNET50)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.integers(1, 8),
    st.sampled_from(sorted(PREPROCESSINGS)),
    st.sampled_from([0, 1, 2]),
)
def test_any_size_is_exact_or_the_cpu_s(width: int, height: int, orientation: int, name: str, subsampling: int) -> None:
    """An image of any size is either not given to a device, or comes out as exact mode has it."""
    noise = made.noise((width, height), seed=width)
    data = encode(noise, exif=made.exif_orientation(orientation), subsampling=subsampling)
    image = device_image(data, PREPROCESSINGS[name], LIMITS)
    assert image is None or is_exact(data, PREPROCESSINGS[name])


def test_a_long_filter_in_several_steps_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a pass takes more memory than a step may have, its parts add up to the same."""
    data = encode(photo("coffee").resize((1203, 802)))
    monkeypatch.setattr("app.backends.torch.jpeg._STEP_BYTES", 3_000_000)
    for preprocessing in PREPROCESSINGS.values():
        assert is_exact(data, preprocessing)


def test_an_image_of_its_final_size_is_not_resized() -> None:
    """Where nothing is to be resized the crop is cut out of what was decoded."""
    assert is_exact(encode(photo().resize((256, 256))), RESNET50)
    assert is_exact(encode(photo().resize((160, 96))), PREPROCESSINGS["squashed"])


# --- which files


def test_an_ordinary_photo_is_the_device_s() -> None:
    """Baseline JPEGs in each sampling that cameras and programs write, with restarts, metadata and what follows."""
    image = photo()
    for options in (
        {},
        {"subsampling": 0},
        {"subsampling": 1},
        {"quality": 100},
        {"optimize": True},
        {"restart_marker_blocks": 3},
        {"exif": made.exif_orientation(6)},
        {"icc_profile": bytes(100_000)},
        {"comment": b"a comment"},
    ):
        data = encode(image, **options)
        assert given_to_a_device(data).end == len(data), options
    padded = encode(image) + bytes(1000)
    assert given_to_a_device(padded).end == len(padded) - 1000


def test_of_several_pictures_the_first_is_the_device_s() -> None:
    """A phone's file with more pictures behind the first is cut behind the first, and shows it."""
    data = encode(photo(), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 48), "red")])
    image = given_to_a_device(data)
    assert data[image.end - 2 : image.end + 2] == b"\xff\xd9\xff\xd8"
    assert is_exact(data, RESNET50)


def with_adobe(transform: int) -> bytes:
    data = encode(photo())
    return data[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0" + bytes([transform]) + data[2:]


def changed(offset: int, value: int, marker: bytes = b"\xff\xc0") -> bytes:
    """A photo with one byte of the segment that begins at `marker` replaced."""
    data = bytearray(encode(photo()))
    data[data.index(marker) + offset] = value
    return bytes(data)


ORDINARY = encode(photo())
SCAN = ORDINARY.index(b"\xff\xda") + 14
OTHERS = {
    "progressive": encode(photo(), progressive=True),
    "grey": encode(photo().convert("L")),
    "CMYK": encode(photo().convert("CMYK")),
    "RGB stored as it is": encode(photo(), keep_rgb=True),
    "RGB by Adobe's word": with_adobe(0),
    "12 bits": changed(4, 12),
    "extended": changed(1, 0xC1),
    "arithmetic": changed(1, 0xC9),
    "lossless": changed(1, 0xC3),
    "four to one across": changed(11, 0x41),
    "colours finer than grey": changed(14, 0x21),
    "colours named otherwise": changed(10, 0),
    "one component in the scan": changed(4, 1, b"\xff\xda"),
    "a part of the spectrum": changed(12, 5, b"\xff\xda"),
    "cut": ORDINARY[:-2000],
    "without its end": ORDINARY[:-2],
    "with a marker in its data": ORDINARY[: SCAN + 90] + b"\xff\x02" + ORDINARY[SCAN + 90 :],
    "two scans": ORDINARY[:-2] + ORDINARY[SCAN - 14 :],
    "two frames": ORDINARY.replace(b"\xff\xc0", ORDINARY[ORDINARY.index(b"\xff\xc0") :][:19] + b"\xff\xc0", 1),
    "without tables": ORDINARY.replace(b"\xff\xdb", b"\xff\xe5"),
    "bytes between segments": ORDINARY.replace(b"\xff\xc0", b"\0\xff\xc0", 1),
    "a marker without its first byte": ORDINARY.replace(b"\xff\xdb", b"\0\xdb", 1),
    "head alone": ORDINARY[:40],
    "nothing": b"",
    "PNG": encode(photo().resize((64, 48)), "PNG"),
    "WebP": encode(photo().resize((64, 48)), "WEBP"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_decoders_do_in_their_own_ways_is_the_cpu_s(name: str) -> None:
    """Any other coding, sampling or colour, and every file that is not whole, is not given to a device."""
    assert baseline_end(OTHERS[name]) is None
    assert device_image(OTHERS[name], RESNET50, LIMITS) is None


def test_a_word_of_adobe_s_that_changes_nothing_is_let_in() -> None:
    """Photoshop's files say that they are YCbCr; another program's segment of that number says nothing of colours."""
    assert is_exact(with_adobe(1), RESNET50)
    assert is_exact(ORDINARY[:2] + b"\xff\xee\x00\x06Else" + ORDINARY[2:], RESNET50)


@pytest.mark.parametrize(
    ("size", "preprocessing"),
    [
        ((300, 451), made_for((224, 224), 256, Interpolation.NEAREST)),
        ((300, 3000), RESNET50),
        ((3000, 40), made_for((224, 224), 256, Interpolation.BILINEAR)),
        ((400, 300), made_for((320, 320), 256, Interpolation.BILINEAR)),
        ((3, 2), made_for((6, 5), 7, Interpolation.BICUBIC)),
    ],
    ids=["nearest", "tall", "extreme", "crop reaches outside", "a few pixels"],
)
def test_what_is_resized_in_another_way_is_the_cpu_s(size: tuple[int, int], preprocessing: Preprocessing) -> None:
    """Where exact mode does not take the two passes over the whole image, no device is asked to."""
    data = encode(photo().resize(size))
    assert baseline_end(data) == len(data)
    assert device_image(data, preprocessing, LIMITS) is None


# --- limits and errors


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        (replace(LIMITS, max_pixels_jpeg=100_000), ImageTooLarge),
        (replace(LIMITS, max_side=400), ImageTooLarge),
        (replace(LIMITS, max_jpeg_scans=0), ImageTooComplex),
        (replace(LIMITS, max_jpeg_megapixel_scans=0.1), ImageTooComplex),
    ],
)
def test_limits_hold_before_a_device_is_asked(limits: DecodeLimits, error: type[ServiceError]) -> None:
    """What is over a limit is refused with the type and the words of the CPU's decode."""
    with pytest.raises(error) as refused:
        device_image(ORDINARY, RESNET50, limits)
    with pytest.raises(error) as by_cpu:
        decode(ORDINARY, RESNET50, limits)
    assert refused.value.detail == by_cpu.value.detail


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([each for each in SEEDS if each.startswith(b"\xff\xd8")] + [ORDINARY]).flatmap(damaged))
def test_damage_is_never_an_error_that_the_cpu_would_not_say(data: bytes) -> None:
    """Looking at a damaged file raises nothing but what decoding it on the CPU raises, in the same words."""
    limits = DecodeLimits(4_000_000, 4_000_000, LIMITS.max_side)
    refused = said_of(device_image, data, limits)
    assert refused is None or refused == said_of(decode, data, limits)


def said_of(call: Callable[..., object], data: bytes, limits: DecodeLimits) -> tuple[type[ServiceError], str] | None:
    try:
        call(data, RESNET50, limits)
    except ServiceError as error:
        return type(error), error.detail
    return None


def test_damage_between_the_markers_is_for_the_device_to_find() -> None:
    """A file whose codes are damaged looks ordinary; a device that fails on it says so, and the list is what failed."""
    data = bytearray(ORDINARY)
    tables = data.index(b"\xff\xc4")
    data[tables + 5 : tables + 21] = bytes([255] * 16)
    image = device_image(bytes(data), RESNET50, LIMITS)
    assert image is not None
    with pytest.raises(RuntimeError):
        CPU.decode([image])
    with pytest.raises(ImageCorrupt):
        decode(bytes(data), RESNET50, LIMITS)


def test_pillow_reads_the_header_that_the_device_gets() -> None:
    """The size in the plan is that of the file's header, by which a device's result is checked."""
    image = given_to_a_device(encode(photo().resize((333, 222)), exif=made.exif_orientation(8)))
    assert image.crop.stored == Image.open(io.BytesIO(image.data)).size == (333, 222)
    assert image.decoded_bytes == 3 * 333 * 222
    assert image.crop.shape == (224, 224, 3)


# --- answers


def test_answers_hold_where_colours_are_repeated() -> None:
    """Decoded as nvJPEG does, without libjpeg's interpolation of colours of half the resolution, photos keep their
    first class but where two are as near as the tolerance, by which no probability changes."""
    device = on_cpu(read_without_interpolation)
    model = load(weights="offline-demo")
    network = model.engine.backend  # type: ignore[attr-defined]
    largest = 0.0
    for name in PHOTOS:
        for width in (500, 1200):
            image = photo(name).resize((width, width * photo(name).height // photo(name).width))
            data = encode(image, quality=92)
            [pixels] = device.decode([given_to_a_device(data, model.preprocessing)])
            exact = decode(data, model.preprocessing, LIMITS)
            assert pixels is not None
            outputs = network.infer(np.stack([exact, pixels]), Want.SCORES)
            here, there = probabilities(outputs.scores, outputs.activation)
            assert here.max() - here[there.argmax()] <= TOLERANCE, name
            largest = max(largest, float(np.abs(here - there).max()))
    network.close()
    assert 0 < largest <= TOLERANCE
