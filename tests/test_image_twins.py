"""One photo in many guises, over a socket, to a real network: the guise does not change what it shows."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.settings import Settings
from tests import images_made as made
from tests.photos import encode
from tests.running import running_server

PHOTO = made.photo()
GREY = PHOTO.convert("L")
# 8 bits of a level in 16: what a 16-bit camera writes for the same scene.
DEEP = Image.frombytes("I;16", GREY.size, (np.asarray(GREY).astype("<u2") * 257).tobytes())


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    settings = Settings(weights="offline-demo", port=0, log_level="error", max_batch_size=1)
    with running_server(settings) as server, httpx.Client(base_url=server.address, timeout=60) as client:
        yield client


def probabilities(client: httpx.Client, data: bytes) -> NDArray[np.float64]:
    """Of all classes, in their order."""
    answer = client.post("/predict", params={"top_k": 1000}, content=data).json()
    found = np.zeros(1000)
    for prediction in answer["predictions"]:
        found[prediction["class_id"]] = prediction["probability"]
    return found


TWINS = {
    "16 and 8 bits of grey": (encode(DEEP, "PNG"), encode(GREY, "PNG"), 1e-6),
    "grey and its RGB": (encode(GREY, "PNG"), encode(GREY.convert("RGB"), "PNG"), 1e-6),
    "1 bit and its RGB": (encode(PHOTO.convert("1"), "PNG"), encode(PHOTO.convert("1").convert("RGB"), "PNG"), 1e-6),
    "a palette and its RGB": (
        encode(PHOTO.quantize(256), "PNG"),
        encode(PHOTO.quantize(256).convert("RGB"), "PNG"),
        1e-6,
    ),
    "opaque alpha and none": (encode(PHOTO.convert("RGBA"), "PNG"), encode(PHOTO, "PNG"), 1e-6),
    "grey with opaque alpha and without": (encode(GREY.convert("LA"), "PNG"), encode(GREY, "PNG"), 1e-6),
    "lossless WebP and PNG": (encode(PHOTO, "WEBP", lossless=True), encode(PHOTO, "PNG"), 1e-6),
    "BMP and PNG": (encode(PHOTO, "BMP"), encode(PHOTO, "PNG"), 1e-6),
    "CMYK and RGB": (
        encode(PHOTO.convert("CMYK"), quality=100, subsampling=0),
        encode(PHOTO, quality=100, subsampling=0),
        0.02,
    ),
    "progressive and baseline": (encode(PHOTO, progressive=True, quality=95), encode(PHOTO, quality=95), 1e-6),
}


@pytest.mark.parametrize("name", TWINS)
def test_twins_have_one_answer(client: httpx.Client, name: str) -> None:
    """No probability of any class differs by more than the two files' pixels do."""
    one, other, tolerance = TWINS[name]
    first, second = probabilities(client, one), probabilities(client, other)
    assert first.sum() == pytest.approx(1, abs=1e-3)
    assert np.abs(first - second).max() <= tolerance
    assert first.argmax() == second.argmax()


def test_eight_orientations_have_one_first_class(client: httpx.Client) -> None:
    """A photo that a camera stored in each of EXIF's eight ways shows the same thing."""
    cup = made.photo("coffee")
    best = []
    for orientation in range(1, 9):
        stored = Image.fromarray(made.stored_turned(np.asarray(cup), orientation))
        data = encode(stored, "JPEG", quality=95, exif=made.exif_orientation(orientation))
        best.append(int(probabilities(client, data).argmax()))
    assert len(set(best)) == 1
    # A network sees a turned photo otherwise: without the turning back, the test above would say something else.
    turned = Image.fromarray(made.stored_turned(np.asarray(cup), 3))
    assert np.abs(probabilities(client, encode(turned)) - probabilities(client, encode(cup))).max() > 0.05
