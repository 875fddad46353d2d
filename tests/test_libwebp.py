"""WebP by libwebp's own functions: the pixels of Pillow's plugin, and the same errors."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.backends import null_checkpoint
from app.errors import ImageCorrupt
from app.images import decode, libwebp
from app.images.structure import picture_of
from tests.photos import LIMITS, encode, make_jpeg

PREPROCESSING = null_checkpoint().preprocessing
WAYS: dict[str, dict[str, Any]] = {
    "lossy": {"quality": 80},
    "lossless": {"lossless": True},
    "lossless, hidden colours": {"lossless": True, "exact": True},
    "lossy, lossless alpha": {"quality": 60, "alpha_quality": 100},
    "an animation": {"save_all": True, "quality": 90},
}


def webp(mode: str, size: tuple[int, int], **options: Any) -> bytes:
    image = Image.open(io.BytesIO(make_jpeg(3, size))).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.open(io.BytesIO(make_jpeg(4, size))).convert("L"))
    if "save_all" in options:
        options = options | {"append_images": [image.transpose(Image.Transpose.ROTATE_180)]}
    return encode(image, "WEBP", **options)


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libwebp, "library", lambda: None)


def test_the_library_is_found() -> None:
    """Where Pillow has a libwebp, as its wheels for Linux do, that one is used."""
    assert libwebp.library() is not None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (31, 17), (640, 427)], ids=str)
def test_pixels_and_mode_are_those_of_the_plugin(size: tuple[int, int], mode: str, way: str) -> None:
    """With alpha and without, lossy and lossless, bit for bit."""
    picture = picture_of(webp(mode, size, **WAYS[way]), LIMITS)
    library = libwebp.library()
    assert library is not None
    own = libwebp.WebPImage(picture, library)
    own.load()
    plugins = Image.open(picture.file(), formats=("WEBP",))
    plugins.load()
    assert (own.mode, own.size) == (plugins.mode, plugins.size)
    assert np.array_equal(np.asarray(own), np.asarray(plugins))


@pytest.mark.usefixtures("without_library")
def test_without_the_library_the_plugin_decodes() -> None:
    """A Pillow whose libwebp is not found decodes WebP all the same."""
    assert decode(webp("RGB", (64, 48)), PREPROCESSING, LIMITS).shape == (224, 224, 3)


@pytest.mark.parametrize("way", ["lossy", "lossless"])
def test_damage_is_an_error_by_either(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """What the plugin refuses this refuses too, and what it shows this shows, with the same pixels."""
    whole = webp("RGB", (64, 48), **WAYS[way])
    outcomes = set()
    for position in range(20, len(whole), max(1, len(whole) // 60)):
        damaged = whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]
        results = []
        for library in (libwebp.library, lambda: None):
            with monkeypatch.context() as patch:
                patch.setattr(libwebp, "library", library)
                try:
                    results.append(decode(damaged, PREPROCESSING, LIMITS).tobytes())
                except ImageCorrupt:
                    results.append(b"corrupt")
        assert results[0] == results[1], position
        outcomes.add(results[0] == b"corrupt")
    assert True in outcomes
