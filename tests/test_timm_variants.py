"""timm's deep-stemmed ResNet-50s are told by their shapes and answer as timm's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.checkpoints import decide_all, read_checkpoint
from app.checkpoints.deep_stems import told_by_stem
from app.checkpoints.presets import PRESETS
from app.networks import RESNET50_VARIANTS, build_network
from app.settings import Settings
from tests import torch_made as made
from tests.torch_made import PARITY

timm = pytest.importorskip("timm")

VARIANTS = ("resnet50c", "resnet50d", "resnet50s", "resnet50t")


def timms(architecture: str) -> Any:
    return made.discriminating(timm.create_model(architecture, num_classes=10))


@pytest.mark.parametrize("architecture", VARIANTS)
def test_a_deep_stem_answers_as_timms(architecture: str, tmp_path: Path) -> None:
    """A bare state dict is told to be the variant that it is, and its logits on photos are timm's, on odd sizes too."""
    network = timms(architecture)
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    examined = made.opened(path)
    assert examined.contents.family == f"timm {architecture}"
    assert examined.decisions.architecture.value == architecture
    assert examined.decisions.architecture.source == "the shapes of its stem"
    for images in (made.photos()[:2], made.photos()[:2, :, :217, :203]):
        expected = made.own_logits(network, images)
        assert made.distance(made.logits_of(examined, images), expected) <= PARITY
        assert made.distance(expected[0], expected[1]) > 100 * PARITY


def test_a_projection_that_skips_is_told_from_one_that_pools(tmp_path: Path) -> None:
    """The weights of a resnet50d, their projections skipping points as a resnet50c's do, answer otherwise."""
    network = timms("resnet50d")
    weights = {
        name.replace("downsample.1.", "downsample.0.").replace("downsample.2.", "downsample.1."): tensor.numpy()
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    with torch.inference_mode():
        wrong = np.asarray(build_network("resnet50c", weights).eval()(made.photos()).numpy())
    assert made.distance(wrong, made.own_logits(network, made.photos())) > 100 * PARITY


def test_a_whole_pickled_variant_is_read(tmp_path: Path) -> None:
    """timm's own module, pickled whole, answers as it did, and with another epsilon too."""
    network = timms("resnet50t")
    images = made.photos()[:1]
    for epsilon in (1e-5, 0.1):
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = epsilon
        torch.save(network, tmp_path / "m.pth")
        served = made.logits_of(made.opened(tmp_path / "m.pth"), images)
        assert made.distance(served, made.own_logits(network, images)) <= PARITY


def test_its_preprocessing_is_timms_and_assumed(tmp_path: Path) -> None:
    """Without a word from the file, images are prepared as timm does for most of them, and that is marked."""
    torch.save(timm.create_model("resnet50d").state_dict(), tmp_path / "w.pth")
    decisions = decide_all(Settings(), read_checkpoint(tmp_path / "w.pth"))
    assert decisions.preprocessing.value == PRESETS["timm"]
    assert decisions.preprocessing.is_assumed
    assert not decisions.stride_in.is_assumed


@pytest.mark.parametrize(
    ("twin", "plain"),
    [
        ("resnetaa50", "resnet50"),
        ("resnetblur50", "resnet50"),
        ("resnetaa50d", "resnet50d"),
        ("resnetblur50d", "resnet50d"),
    ],
)
def test_anti_aliased_twins_cannot_be_told_by_their_entries(twin: str, plain: str) -> None:
    """The entries of timm's anti-aliased networks are those of the plain ones, name by name and shape by shape."""
    shapes = []
    for architecture in (twin, plain):
        with torch.device("meta"):
            state = timm.create_model(architecture).state_dict()
        shapes.append({name: tuple(tensor.shape) for name, tensor in state.items()})
    assert shapes[0] == shapes[1]


def test_other_deep_stems_are_no_variant() -> None:
    """A stem of other widths, and one whose projections are another variant's, are none of the four."""

    def zeros(*widths: int) -> dict[str, Any]:
        return {f"conv1.{3 * n}.weight": np.zeros((width, 3, 3, 3)) for n, width in enumerate(widths)}

    pooled = {"layer1.0.downsample.1.weight": np.zeros((256, 64, 1, 1))}
    assert told_by_stem(zeros(32, 64, 128)).architecture is None
    assert told_by_stem(zeros(24, 32, 64)).architecture is None
    assert told_by_stem({**zeros(64, 64, 128), **pooled}).architecture is None
    told = told_by_stem({**zeros(24, 32, 64), **pooled}).architecture
    assert told is not None
    assert told.value == "resnet50t"
    assert set(VARIANTS) < set(RESNET50_VARIANTS)
