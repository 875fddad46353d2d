"""torchvision's ResNet-50 as torch exports it to ONNX answers here as it does in torch."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from app.backends import BackendOptions, create_backend
from app.settings import Settings
from app.types import Want
from tests.examined import examine
from tests.parity.patterns import kernel, normalisation, photographs, tiled

CLASSES = 30


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """torchvision's, with the patterns that discriminate."""
    network = torchvision.models.resnet50(num_classes=CLASSES).eval()
    for seed, (name, module) in enumerate(network.named_modules(), start=1):
        if isinstance(module, torch.nn.Conv2d):
            shape = tuple(module.weight.shape)
            module.weight.data = torch.from_numpy(kernel(10 * seed, shape, shape[0] * shape[2] * shape[3]))
        elif isinstance(module, torch.nn.BatchNorm2d):
            values = normalisation(10 * seed, module.num_features, name.endswith("bn3"))
            module.weight.data, module.bias.data = (torch.from_numpy(values[key]) for key in ("gamma", "beta"))
            module.running_mean, module.running_var = (torch.from_numpy(values[key]) for key in ("mean", "variance"))
    network.fc.weight.data = torch.from_numpy(tiled(7, (CLASSES, 2048), "normal", 0, 0.02))
    return network


@pytest.mark.parametrize("batch", [None, 2])
def test_logits_are_those_of_torch(tmp_path: Path, network: torch.nn.Module, batch: int | None) -> None:
    """With a dynamic or a fixed batch axis, the logits of three photos at once are torch's within 1e-4."""
    path = tmp_path / "resnet50.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the exporter that needs no further package
        torch.onnx.export(
            network,
            (torch.zeros(batch or 1, 3, 224, 224),),
            path,
            dynamo=False,
            input_names=["image"],
            dynamic_axes={"image": {0: "batch"}} if batch is None else None,
        )
    checkpoint = examine(Settings(preprocessing="torchvision-v1"), path).checkpoint
    path.unlink()
    assert checkpoint.graph is not None
    assert checkpoint.graph.batch_size is None
    pixels = np.stack([photo[:224, :224] for photo in photographs().values()])
    backend = create_backend("auto", checkpoint, BackendOptions(threads=2))
    outputs = backend.infer(pixels, Want.SCORES)
    assert outputs.activation == "softmax"
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        expected = network((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std).numpy()
    assert np.abs(outputs.scores - expected).max() < 1e-4
    assert np.abs(expected[0] - expected[1]).max() > 0.05
