"""The resize of tensors is torchvision's own, bit for bit, without torch in the decoders."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from app.checkpoints.image_config import processor_preprocessing
from app.checkpoints.presets import PRESETS
from app.images import decode, decoding_messages, geometry, torchvision_resize
from app.images.geometry import cropped_pixels, resize_and_crop
from app.types import Interpolation, Pixels, Preprocessing, Resizer
from tests.images_made import largest_difference, noise, photo
from tests.lazy import torch, torchvision
from tests.parity.patterns import FIXTURES, photographs
from tests.photos import LIMITS, encode

SMOOTH = (Interpolation.BILINEAR, Interpolation.BICUBIC, Interpolation.LANCZOS)
PLAIN = (Interpolation.BILINEAR, Interpolation.BICUBIC)
KINDS = [("torchvision", each) for each in SMOOTH] + [("torchvision-no-antialias", each) for each in PLAIN]
KINDS.append(("torchvision", Interpolation.NEAREST))


# On an x86 without AVX2 torchvision itself resizes bilinearly in floating point.
@cache
def apart() -> int:
    return 1 if torch.backends.cpu.get_cpu_capability() == "DEFAULT" else 0


@pytest.fixture(params=["kernel", "numpy"])
def summed_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both that do the sums: compiled code, and numpy where there is no compiler."""
    if request.param == "numpy":
        monkeypatch.setattr(torchvision_resize, "usable_kernel", lambda: None)
    return str(request.param)


def torchvisions(image: Image.Image, height: int, width: int, interpolation: Interpolation, resizer: str) -> Pixels:
    """What torchvision makes of the image as a tensor."""
    modes = torchvision.transforms.InterpolationMode
    mode = modes(interpolation.value)
    if interpolation is Interpolation.NEAREST:
        mode = modes.NEAREST_EXACT
    functional = importlib.import_module("torchvision.transforms.v2.functional")
    tensor = functional.pil_to_tensor(image)
    resized = functional.resize(tensor, [height, width], mode, antialias=resizer == "torchvision")
    return resized.permute(1, 2, 0).numpy()


def squashed(height: int, width: int, interpolation: Interpolation, resizer: Resizer) -> Preprocessing:
    return Preprocessing(None, (height, width), interpolation, (0.0,) * 3, (1.0,) * 3, resizer=resizer)


@pytest.mark.parametrize(("resizer", "interpolation"), KINDS)
@pytest.mark.parametrize("size", [(224, 224), (256, 384), (97, 451), (299, 1000), (600, 70)])
def test_photos_are_torchvisions(
    summed_by: str, size: tuple[int, int], resizer: Resizer, interpolation: Interpolation
) -> None:
    """Photos made smaller, larger and both at once have torchvision's own pixels."""
    for name in ("chelsea", "astronaut"):
        ours = cropped_pixels(photo(name), squashed(*size, interpolation, resizer))
        assert largest_difference(ours, torchvisions(photo(name), *size, interpolation, resizer)) <= apart()


sides = st.integers(1, 400)


@settings(deadline=None, max_examples=200)
@given(st.tuples(sides, sides), st.tuples(sides, sides), st.sampled_from(KINDS))
# Pixels as near to one as to the other: torch rounds them by the size of the result.
@example((2, 1), (1, 165), ("torchvision", Interpolation.NEAREST))
@example((2, 1), (1, 41), ("torchvision", Interpolation.NEAREST))
def test_any_size_is_torchvisions(
    old: tuple[int, int], new: tuple[int, int], kind: tuple[Resizer, Interpolation]
) -> None:
    """Of noise, which shows every weight, with sources of a pixel too."""
    resizer, interpolation = kind
    ours = cropped_pixels(noise(old), squashed(*new, interpolation, resizer))
    assert largest_difference(ours, torchvisions(noise(old), *new, interpolation, resizer)) <= apart()


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (224, 224), (256, 259), (2000, 1200)])
def test_a_short_side_and_a_crop_are_transformers(size: tuple[int, int], summed_by: str) -> None:
    """The preset of transformers' present processor: resized as a tensor, and cropped at the offset rounded down."""
    image = photo("coffee").resize(size)
    short = min(size)
    height, width = (int(256 * side / short) for side in (size[1], size[0]))
    resized = torchvisions(image, height, width, Interpolation.BICUBIC, "torchvision")
    top, left = (height - 224) // 2, (width - 224) // 2
    ours = cropped_pixels(image, PRESETS["huggingface-torchvision"])
    assert np.array_equal(ours, resized[top : top + 224, left : left + 224])


@pytest.mark.parametrize("processor", ["cropped", "squashed"])
@pytest.mark.parametrize("name", ["cat", "cup", "portrait"])
def test_pixels_are_those_of_the_processor_on_torchvision(processor: str, name: str) -> None:
    """What transformers' own processor made of photos, by a configuration that names the processor of tensors."""
    folder = FIXTURES / "hugging-face"
    config = (folder / f"preprocessor-{processor}.json").read_text(encoding="utf-8")
    step = 2 if processor == "squashed" else 1
    preprocessing = processor_preprocessing(as_fast(config))
    assert preprocessing.resizer == "torchvision"
    ours = cropped_pixels(Image.fromarray(photographs()[name]), preprocessing)[::step, ::step]
    with np.load(folder / "pixels.npz") as stored:
        by_pillow = stored[f"{processor}-{name}"].astype(np.int16)
        assert np.array_equal(ours, by_pillow + stored[f"{processor}-{name}-torchvision"])


def as_fast(config: str) -> dict[str, object]:
    document: dict[str, object] = json.loads(config)
    return document | {"image_processor_type": "ConvNextImageProcessorFast"}


def test_without_antialiasing_it_is_the_plain_interpolation_of_other_libraries() -> None:
    """Within a level of bilinear interpolation in floating point, which OpenCV and tf.image.resize do."""
    tensor = torch.from_numpy(np.asarray(photo("coffee")).copy()).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(tensor, (224, 224), mode="bilinear", antialias=False)[0]
    ours = cropped_pixels(photo("coffee"), squashed(224, 224, Interpolation.BILINEAR, "torchvision-no-antialias"))
    assert np.abs(ours - expected.permute(1, 2, 0).numpy()).max() < 1.01


@pytest.mark.parametrize("size", [(16_000, 2), (3, 9000), (400, 1)])
def test_very_long_images_are_within_a_level(size: tuple[int, int]) -> None:
    """Where the whole result would be too large for memory, only the crop is computed."""
    preprocessing = replace(PRESETS["torchvision-v1"], resize_short_side=300, resizer="torchvision")
    resized, (left, top, right, bottom) = geometry.resized_and_crop_box(size, preprocessing)
    long = torch.from_numpy(np.asarray(noise(size)).copy()).permute(2, 0, 1)[None]
    if max(size) > 400:
        # torch's own result of that size: a strip, and the short side resized after the other.
        across = size[0] > size[1]
        shape = (size[1], resized[0]) if across else (resized[1], size[0])
        strip = torch.nn.functional.interpolate(long, shape, mode="bilinear", antialias=True)
        strip = strip[..., left:right] if across else strip[..., top:bottom, :]
        shape = (resized[1], 224) if across else (224, resized[0])
        whole = torch.nn.functional.interpolate(strip, shape, mode="bilinear", antialias=True)[0]
        whole = whole[:, top:bottom] if across else whole[..., left:right]
    else:
        whole = torch.nn.functional.interpolate(long, resized[::-1], mode="bilinear", antialias=True)[0]
        whole = whole[:, top:bottom, left:right]
    assert largest_difference(cropped_pixels(noise(size), preprocessing), whole.permute(1, 2, 0).numpy()) <= 1


def test_what_a_crop_shows_beyond_the_image_is_black() -> None:
    """As with Pillow's resize."""
    preprocessing = replace(PRESETS["torchvision-v1"], resize_short_side=200, resizer="torchvision")
    pixels = cropped_pixels(photo("coffee"), preprocessing)
    assert not pixels[:12].any()
    assert not pixels[212:].any()
    resized = torchvisions(photo("coffee"), 200, 300, Interpolation.BILINEAR, "torchvision")
    assert np.array_equal(pixels[12:212], resized[:, 38:262])


@pytest.mark.parametrize(
    "preprocessing",
    [
        PRESETS["huggingface-torchvision"],
        PRESETS["keras-nearest"],
        replace(PRESETS["keras"], resizer="torchvision-no-antialias", squash=(256, 256)),
    ],
    ids=["torchvision", "nearest", "no antialias"],
)
def test_fast_mode_is_exact_where_it_would_show(preprocessing: Preprocessing) -> None:
    """A large JPEG is not decoded smaller for a resize that picks pixels, or is another than Pillow's."""
    data = encode(photo("coffee").resize((1800, 1200)), "JPEG", quality=90)
    assert np.array_equal(decode(data, preprocessing, LIMITS, "fast"), decode(data, preprocessing, LIMITS, "exact"))


@pytest.mark.parametrize("name", PRESETS)
def test_a_decoding_process_is_told_everything(name: str) -> None:
    """What crosses to it comes out as it was, for every preset and with every fact that presets do not have."""
    other = replace(PRESETS[name], squash=(300, 200), is_resized=False, floor_crop=True)
    for preprocessing in (PRESETS[name], other):
        assert decoding_messages.preprocessing_of(decoding_messages.document_of(preprocessing)) == preprocessing


def test_an_image_that_is_not_resized_is_cropped() -> None:
    """Of any size, also where the whole image is larger than an intermediate may be; what is missing is black."""
    preprocessing = replace(PRESETS["torchvision-v1"], resize_short_side=None, is_resized=False)
    for size in ((451, 300), (3000, 2000), (100, 300)):
        image = photo().resize(size)
        left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
        expected = np.asarray(image.crop((left, top, left + 224, top + 224)))
        assert np.array_equal(cropped_pixels(image, preprocessing), expected)
        assert np.array_equal(np.asarray(resize_and_crop(image, preprocessing)), expected)


def test_the_decoders_need_no_torch(repository: Path) -> None:
    """The resize is computed without importing it."""
    code = (
        "import sys; from app.checkpoints.presets import PRESETS; from app.images.geometry import cropped_pixels; "
        "from PIL import Image; cropped_pixels(Image.new('RGB', (300, 400)), PRESETS['huggingface-torchvision']); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
