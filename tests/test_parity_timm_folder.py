"""A folder that timm itself writes is served with timm's own preparation of images and timm's logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf

from app.images.geometry import resize_and_crop
from app.networks import build_network
from app.settings import Settings
from tests.examined import examine
from tests.parity.patterns import inputs, photographs
from tests.trained import stem_statistics


@pytest.mark.parametrize(
    "given",
    [
        {"tag": "a1_in1k"},
        {"tag": "tv2", "input_size": (3, 176, 176), "crop_pct": 0.875, "interpolation": "bilinear"},
        {"tag": "half", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 0.95},
        {"tag": "squashed", "crop_mode": "squash", "crop_pct": 1.0},
    ],
    ids=lambda given: str(given["tag"]),
)
def test_folder_is_served_as_timm_serves_it(tmp_path: Path, given: dict[str, object]) -> None:
    """Each photo is prepared as timm's own transform does, to the last pixel, and the logits are timm's within 1e-4."""
    torch.manual_seed(0)
    network = timm.create_model("resnet50", num_classes=12, pretrained_cfg_overlay=given).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    # The stem's are those that its own photos gave: others would be warned of.
    normalisation = (network.pretrained_cfg["mean"], network.pretrained_cfg["std"])
    network.bn1.running_mean, network.bn1.running_var = stem_statistics(network.conv1.weight, normalisation)
    save_for_hf(network, tmp_path, model_config={"label_names": [f"kind {index}" for index in range(12)]})
    examined = examine(Settings(), tmp_path)
    assert examined.warnings == ()
    assert examined.labels.value[:2] == ("kind 0", "kind 1")
    preprocessing = examined.decisions.preprocessing.value
    transform = create_transform(**resolve_data_config(model=network), is_training=False)
    for photo in photographs().values():
        pixels = np.asarray(resize_and_crop(Image.fromarray(photo), preprocessing))
        prepared = transform(Image.fromarray(photo)).numpy().transpose(1, 2, 0).astype(np.float64)
        levels = (prepared * preprocessing.std + preprocessing.mean) * 255
        assert np.abs(levels - pixels).max() < 1e-3
    ours = build_network("resnet50", examined.contents.weights, examined.decisions.switches).eval()
    images = torch.from_numpy(inputs().transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        assert (ours(images) - network(images)).abs().max() < 1e-4
