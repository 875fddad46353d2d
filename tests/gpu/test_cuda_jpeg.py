"""On a real card: JPEGs decoded by nvJPEG, cropped and resized, against the CPU's exact decode. `make gpu` runs it.

What decides (which files, lists, the order of waits, what an error means) is tested without a card in
tests/test_device_*.py and tests/test_torch_jpeg.py. Without a card every test is skipped.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from app.agreement import probabilities
from app.backends.torch.jpeg import TorchJpegs, open_jpegs
from app.checkpoints import published_resnet50_preprocessing
from app.errors import OutOfMemory
from app.images import decode
from app.images.device_check import open_checked
from app.images.device_images import DeviceImage, crop_plan, device_image
from app.images.device_lists import decode_list
from app.images.geometry import resize_and_crop
from app.images.on_device import DeviceDecoder
from app.images.orientation import turn_upright
from app.types import Interpolation, Pixels, Preprocessing, Want
from tests import images_made as made
from tests.checkpoints_made import load
from tests.images_made import photo
from tests.photos import LIMITS, encode

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(600),
]

RESNET50 = published_resnet50_preprocessing()
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry", "retina")
# Of a probability: twice what photos change by where colours of half the resolution are repeated (measured on CPU,
# tests/test_device_images.py). Of a crop's pixels, levels of 255: their mean there is below 1.
TOLERANCE, MEAN_LEVELS = 0.05, 1.5
KINDS = {
    "4:2:0": {},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0},
    "restarts": {"restart_marker_blocks": 4},
}


@pytest.fixture(scope="module")
def jpegs() -> Iterator[TorchJpegs]:
    opened = open_jpegs("cuda")
    yield opened
    opened.close()


def image_of(data: bytes, preprocessing: Preprocessing = RESNET50) -> DeviceImage:
    image = device_image(data, preprocessing, LIMITS)
    assert image is not None
    return image


def files(width: int | None = None) -> list[bytes]:
    """Every photo in every kind."""
    found = []
    for name in PHOTOS:
        image = photo(name)
        if width is not None:
            image = image.resize((width, width * image.height // image.width), Image.Resampling.LANCZOS)
        found += [encode(image, quality=92, **options) for options in KINDS.values()]  # type: ignore[arg-type]
    return found


def mean_levels(pixels: Pixels | None, data: bytes, preprocessing: Preprocessing = RESNET50) -> float:
    assert pixels is not None
    return float(np.abs(pixels.astype(np.int16) - decode(data, preprocessing, LIMITS)).mean())


# --- pixels and answers


def test_the_start_s_own_check_passes() -> None:
    """The card resizes with Pillow's pixels and decodes as near as is asked of it."""
    open_checked(lambda: open_jpegs("cuda")).close()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("interpolation", [Interpolation.BILINEAR, Interpolation.BICUBIC, Interpolation.LANCZOS])
def test_the_resize_is_exact(jpegs: TorchJpegs, interpolation: Interpolation, orientation: int) -> None:
    """Of the same pixels the card's crop is Pillow's to the last bit, small and large, whichever way up."""
    preprocessing = Preprocessing(256, (224, 224), interpolation, RESNET50.mean, RESNET50.std)
    for size in ((301, 257), (1203, 802), (4000, 3000)):
        stored = made.noise(size)
        plan = crop_plan(size, orientation, preprocessing)
        if plan is None:
            continue
        expected = resize_and_crop(turn_upright(stored, orientation), preprocessing)
        assert np.array_equal(jpegs.crop(np.asarray(stored), plan), np.asarray(expected)), size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PHOTOS)
def test_a_photo_is_near_the_cpu_s(jpegs: TorchJpegs, name: str, kind: str) -> None:
    """nvJPEG's own transform and colours differ by little from libjpeg's in each sampling, at an odd size too."""
    for size in (photo(name).size, (501, 375), (1777, 1333)):
        data = encode(photo(name).resize(size), quality=92, **KINDS[kind])  # type: ignore[arg-type]
        [pixels] = jpegs.decode([image_of(data)])
        assert mean_levels(pixels, data) <= MEAN_LEVELS


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright(jpegs: TorchJpegs, orientation: int) -> None:
    """By the orientation that the file says, as on the CPU."""
    data = encode(photo("coffee"), exif=made.exif_orientation(orientation))
    [pixels] = jpegs.decode([image_of(data)])
    assert mean_levels(pixels, data) <= MEAN_LEVELS


@pytest.mark.parametrize("width", [None, 500, 1500])
def test_a_real_network_answers_as_with_the_cpu_s_decode(jpegs: TorchJpegs, width: int | None) -> None:
    """No probability changes by more than the tolerance, nor a first class where two are not as near as that."""
    model = load(weights="offline-demo")
    network = model.engine.backend  # type: ignore[attr-defined]
    some = files(width)
    found = jpegs.decode([image_of(data, model.preprocessing) for data in some])
    for data, pixels in zip(some, found, strict=True):
        assert pixels is not None
        outputs = network.infer(np.stack([decode(data, model.preprocessing, LIMITS), pixels]), Want.SCORES)
        here, there = probabilities(outputs.scores, outputs.activation)
        assert np.abs(here - there).max() <= TOLERANCE
        assert here.max() - here[there.argmax()] <= TOLERANCE
    network.close()


# --- order


def test_lists_in_any_order_give_the_same_pixels(jpegs: TorchJpegs) -> None:
    """A photo's pixels are the same alone and in any list, time after time: nothing is written over what is read."""
    images = [image_of(data) for data in files()]
    alone = [jpegs.decode([image])[0] for image in images]
    random = np.random.default_rng(0)
    for _ in range(100):
        chosen = random.permutation(len(images))[: random.integers(1, 25)]
        for number, pixels in zip(chosen, jpegs.decode([images[number] for number in chosen]), strict=True):
            assert np.array_equal(pixels, alone[number])


def test_decoding_beside_a_network_changes_neither(jpegs: TorchJpegs) -> None:
    """While another stream computes with memory that it gives back and takes again, its sums and the pixels stay what
    they are."""
    images = [image_of(data) for data in files()]
    alone = [jpegs.decode([image])[0] for image in images]
    is_over = threading.Event()
    wrong: list[float] = []

    def compute() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            while not is_over.is_set():
                made_here = [torch.full((3, 512, 512), 2.0, device="cuda") for _ in range(8)]
                sums = [each.sum() for each in made_here]
                del made_here
                wrong.extend(value for value in (each.item() for each in sums) if value != 2.0 * 3 * 512 * 512)

    other = threading.Thread(target=compute)
    other.start()
    try:
        for _ in range(100):
            for pixels, expected in zip(jpegs.decode(images), alone, strict=True):
                assert np.array_equal(pixels, expected)
    finally:
        is_over.set()
        other.join()
    assert wrong == []


# --- errors and memory


def test_a_damaged_file_costs_no_other_its_pixels(jpegs: TorchJpegs) -> None:
    """Whatever the card makes of impossible tables, those beside it have their own pixels, also in the next list."""
    some = files()[:7]
    tables = some[3].index(b"\xff\xc4")
    corrupt = some[3][: tables + 5] + b"\xff" * 16 + some[3][tables + 21 :]
    for _ in range(5):
        decoded = decode_list(jpegs, [image_of(data) for data in (*some[:3], corrupt, *some[4:])])
        for number, data in enumerate(some):
            if number != 3:
                assert mean_levels(decoded.pixels[number], data) <= MEAN_LEVELS
    torch.cuda.synchronize()


def test_out_of_memory_is_told_and_survived(jpegs: TorchJpegs) -> None:
    """A list that the card's memory does not hold says so, and its halves are decoded."""
    gc.collect()
    torch.cuda.empty_cache()
    data = encode(photo("coffee").resize((4000, 3000)))
    images = [image_of(data)] * 16
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 300e6) / total)
    try:
        with pytest.raises(OutOfMemory):
            jpegs.decode(images)
        decoded = decode_list(jpegs, images)
        assert decoded.ran_out_of_memory
        assert all(mean_levels(pixels, data) <= MEAN_LEVELS for pixels in decoded.pixels)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_memory_does_not_grow(jpegs: TorchJpegs) -> None:
    """A thousand lists leave torch's memory about where it was."""
    images = [image_of(data) for data in files()]
    jpegs.decode(images)
    reserved = torch.cuda.memory_reserved()
    for number in range(1000):
        jpegs.decode(images[: 1 + number % len(images)])
    assert torch.cuda.memory_reserved() - reserved < 64e6  # to keep one crop of each list would be more


# --- the decoder


def test_a_crowd_is_answered_from_lists(caplog: pytest.LogCaptureFixture) -> None:
    """400 photos at once through the decoder of the service: each its own, on the card, and nothing is warned of."""
    some = files()
    counted: list[str] = []
    decoder = DeviceDecoder(
        LIMITS,
        lambda: open_jpegs("cuda"),
        slots=4,
        max_waiting=400,
        timeout_seconds=60,
        count=counted.append,
    )

    async def ask() -> list[Pixels]:
        await decoder.start()
        deadline = time.monotonic() + 120
        found = await asyncio.gather(
            *[decoder.decode(some[number % len(some)], RESNET50, deadline) for number in range(400)]
        )
        await decoder.close()
        return found

    with caplog.at_level(logging.WARNING):
        answers = asyncio.run(ask())
    assert caplog.records == []
    assert counted == ["decoded"] * 400
    for number, pixels in enumerate(answers):
        assert mean_levels(pixels, some[number % len(some)]) <= MEAN_LEVELS
