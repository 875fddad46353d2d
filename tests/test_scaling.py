"""A scaling that contradicts the first batch normalisation is told, on networks that were really trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision

from app.checkpoints import Weights, read_offline_demo
from app.checkpoints.offline_demo import PREPROCESSING
from app.checkpoints.presets import PRESETS
from app.checkpoints.scaling import SUSPICIOUS, fitting_presets, spread_error
from app.errors import SettingError
from app.settings import Settings
from tests.examined import examine
from tests.trained import stem_statistics


@pytest.fixture(scope="module")
def trained() -> Weights:
    """A real network's stem, under the names that a ResNet has."""
    weights, _, _ = read_offline_demo()
    return {"conv1.weight": weights["conv_stem.weight"], "bn1.running_var": weights["bn1.running_var"]}


def test_the_right_scaling_fits_a_trained_network(trained: Weights) -> None:
    """What the network was trained with is within 0.25, far below what is suspicious."""
    error = spread_error(trained, PREPROCESSING)
    assert error is not None
    assert abs(error) < 0.25 < SUSPICIOUS


@pytest.mark.parametrize(
    ("name", "least"), [("torchvision-v1", SUSPICIOUS), ("huggingface", SUSPICIOUS), ("keras", 4), ("tf-slim", 4)]
)
def test_a_wrong_scaling_stands_out(trained: Weights, name: str, least: float) -> None:
    """Another convention's deviation, and grey levels for fractions, are past what is suspicious."""
    error = spread_error(trained, PRESETS[name])
    assert error is not None
    assert error > least


def test_the_presets_that_fit_are_named(trained: Weights) -> None:
    """Of the presets, those with the trained network's own scaling are found, and no other."""
    assert set(fitting_presets(trained)) == {"timm-half", "keras-v2", "keras-v2-nearest"}


def test_fractions_without_normalisation_stand_out(trained: Weights) -> None:
    """A network fed 0 to 1 where it expects twice that spread is seen from below."""
    error = spread_error(trained, replace(PREPROCESSING, mean=(0.0,) * 3, std=(1.0,) * 3))
    assert error is not None
    assert error < -SUSPICIOUS


@pytest.fixture(scope="module")
def as_if_trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-50 whose first statistics are its convolution's on real photos, scaled as ImageNet's usually are."""
    torch.manual_seed(0)
    state = torchvision.models.resnet50(num_classes=5).state_dict()
    state["bn1.running_mean"], state["bn1.running_var"] = stem_statistics(state["conv1.weight"])
    path = tmp_path_factory.mktemp("trained") / "weights.pth"
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("preprocessing", "warned"),
    [("torchvision-v1", False), ("timm", False), ("huggingface", False), ("timm-half", True), ("keras", True)],
)
def test_the_start_warns_of_a_wrong_scaling(as_if_trained: Path, preprocessing: str, warned: bool) -> None:
    """Of statistics that real photos gave, each scaling that fits is silent and each that does not is warned of."""
    examined = examine(Settings(preprocessing=preprocessing), as_if_trained)
    told = [line for line in examined.warnings if "the scaling is probably wrong" in line]
    assert bool(told) is warned
    assert all("RESNET_PREPROCESSING with the scaling that fits: torchvision-v1" in line for line in told)


@pytest.mark.parametrize(
    ("name", "value"), [("stride_in", "1x1"), ("stem", "same"), ("pool", "ceil"), ("epsilon", 0.1)]
)
def test_a_switch_of_another_network_is_refused(tmp_path: Path, name: str, value: object) -> None:
    """A setting that would change nothing stops the start, with its name and the network's."""
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    with pytest.raises(SettingError, match=f"RESNET_{name.upper()} is a setting of a resnet50, and this is resnet18"):
        examine(Settings(architecture="resnet18", **{name: value}), path)
