"""The pixels and numbers that a network sees are torchvision's own."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from app.backends.torch import DevicePlan, TorchBackend
from app.checkpoints import find_by_name, published_resnet50_preprocessing
from app.images.geometry import resize_and_crop
from app.labels import imagenet_labels
from app.types import Want
from tests.images_made import decoded, largest_difference, noise, photo
from tests.lazy import torch, torchvision
from tests.parity import make_published
from tests.photos import encode

# Beyond this ratio of sides the crop is cut out before it is resized, and is equal within one level only.
MAX_RATIO = 60


def torchvision_pixels(image: Image.Image, preset: Any) -> np.ndarray:
    """What torchvision's preset does to a PIL image before it makes numbers of it."""
    transforms = torchvision.transforms.functional
    resized = transforms.resize(image, preset.resize_size, preset.interpolation, antialias=preset.antialias)
    return np.asarray(transforms.center_crop(resized, preset.crop_size))


def assert_equal_to_torchvision(architecture: str, name: str, size: tuple[int, int]) -> None:
    weights = torchvision.models.get_model_weights(architecture)[name]
    preprocessing = find_by_name(architecture, name).preprocessing
    image = noise(size)
    ours = np.asarray(resize_and_crop(image, preprocessing))
    assert np.array_equal(ours, torchvision_pixels(image, weights.transforms())), (architecture, name)


RESNET50 = ("IMAGENET1K_V1", "IMAGENET1K_V2")
sides = st.integers(1, 700)
sizes = st.tuples(sides, sides).filter(lambda size: max(size) <= MAX_RATIO * min(size))


@pytest.mark.parametrize("name", RESNET50)
@settings(deadline=None, max_examples=60)
@given(size=sizes)
@example(size=(1, 1))
@example(size=(224, 224))
@example(size=(256, 256))
@example(size=(232, 232))
@example(size=(257, 256))
@example(size=(256, 259))
@example(size=(233, 232))
@example(size=(232, 235))
@example(size=(31, 496))
@example(size=(1023, 767))
@example(size=(767, 1023))
@example(size=(1600, 1199))
def test_pixels_equal_torchvisions_for_any_size(name: str, size: tuple[int, int]) -> None:
    """Resize and crop equal torchvision's pixel for pixel, for portraits, landscapes, squares and tiny images."""
    assert_equal_to_torchvision("resnet50", name, size)


def test_every_published_preset_is_torchvisions() -> None:
    """For all weights that torchvision publishes, the pixels equal what its own preset makes of the image."""
    models = torchvision.models
    for architecture in models.list_models(module=models):
        for weights in models.get_model_weights(architecture):
            assert_equal_to_torchvision(architecture, weights.name, (333, 501))


def test_the_presets_differ_where_they_should() -> None:
    """Three networks with inputs of their own: the table of presets is not one preset many times."""
    described = {
        (architecture, name): find_by_name(architecture, name).preprocessing.describe()
        for architecture, name in [
            ("efficientnet_b0", "IMAGENET1K_V1"),
            ("vit_l_16", "IMAGENET1K_SWAG_E2E_V1"),
            ("inception_v3", "IMAGENET1K_V1"),
            ("resnet50", "IMAGENET1K_V2"),
        ]
    }
    assert described["efficientnet_b0", "IMAGENET1K_V1"].startswith("short side 256 bicubic, centre crop 224×224")
    assert described["vit_l_16", "IMAGENET1K_SWAG_E2E_V1"].startswith("short side 512 bicubic, centre crop 512×512")
    assert described["inception_v3", "IMAGENET1K_V1"].startswith("short side 342 bilinear, centre crop 299×299")
    assert described["resnet50", "IMAGENET1K_V2"].startswith("short side 232 bilinear, centre crop 224×224")


@pytest.mark.parametrize("size", [(60, 1), (1, 90), (2000, 20), (17, 1500)])
def test_very_long_images_are_within_a_level_of_torchvisions(size: tuple[int, int]) -> None:
    """Where only the part that the crop shows is resized, it is within one level of torchvision's pixels."""
    weights = torchvision.models.ResNet50_Weights["IMAGENET1K_V1"]
    image = noise(size)
    ours = np.asarray(resize_and_crop(image, published_resnet50_preprocessing()))
    assert largest_difference(ours, torchvision_pixels(image, weights.transforms())) <= 1


@pytest.mark.parametrize("name", RESNET50)
def test_a_file_on_its_way_through_decode_equals_torchvision(name: str) -> None:
    """A JPEG decodes to exactly what torchvision's preset makes of the image that Pillow opens."""
    data = encode(photo("coffee"), "JPEG", quality=90)
    preset = torchvision.models.ResNet50_Weights[name].transforms()
    with Image.open(io.BytesIO(data)) as image:
        expected = torchvision_pixels(image, preset)
    assert np.array_equal(decoded(data, find_by_name("resnet50", name).preprocessing), expected)


def test_the_preprocessing_that_is_known_without_torchvision_is_torchvisions() -> None:
    """The constant that the service holds of ResNet-50's V1 equals what torchvision says."""
    assert published_resnet50_preprocessing() == find_by_name("resnet50", "IMAGENET1K_V1").preprocessing


def test_the_table_of_published_weights_is_torchvisions() -> None:
    """Addresses, checksums and preprocessing that the service carries equal torchvision's, of every classifier."""
    assert make_published.TABLE.read_text(encoding="utf-8") == make_published.text()


@pytest.mark.parametrize("name", RESNET50)
def test_the_labels_are_torchvisions(name: str) -> None:
    """The label file that the service carries equals torchvision's categories, in their order."""
    assert list(imagenet_labels()) == torchvision.models.ResNet50_Weights[name].meta["categories"]


@pytest.mark.parametrize(
    ("architecture", "name"),
    [("resnet50", "IMAGENET1K_V1"), ("resnet50", "IMAGENET1K_V2"), ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")],
)
def test_the_numbers_that_a_network_is_given_are_torchvisions(architecture: str, name: str) -> None:
    """What the torch backend feeds its network equals the whole transform's output within 1e-5."""
    published = find_by_name(architecture, name)
    preset = torchvision.models.get_weight(
        f"{torchvision.models.get_model_weights(architecture).__name__}.{name}"
    ).transforms()
    images = [photo("chelsea"), photo("astronaut").resize((333, 640))]
    backend = TorchBackend(
        torch.nn.Flatten(), published.preprocessing, DevicePlan(torch.device("cpu"), torch.float32, 1, staged=False)
    )
    batch = np.stack([np.asarray(resize_and_crop(image, published.preprocessing)) for image in images])
    given_to_network = backend.infer(batch, Want.SCORES).scores
    expected = torch.stack([preset(image) for image in images]).flatten(1).numpy()
    assert np.abs(given_to_network - expected).max() <= 1e-5
