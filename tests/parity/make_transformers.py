"""Hugging Face's ResNet-50, v1.5 and v1, saved and run by transformers itself, and its image processors on photos.

python -m tests.parity.make_transformers      (in an environment with tests/parity/requirements.txt)

Both variants have the same weights: one file of them, two configurations and two sets of logits.
"""

from __future__ import annotations

import lzma
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

from tests.parity.patterns import FIXTURES, inputs, kernel, normalisation, photographs, tiled

CLASSES = 40
TARGET = FIXTURES / "hugging-face"
LABELS = {index: f"kind {index}" for index in range(CLASSES)}
# crop_pct, size: resized and cropped, and squashed.
PROCESSORS = {
    "cropped": {"size": {"shortest_edge": 224}, "crop_pct": 0.875},
    "squashed": {"size": {"shortest_edge": 384}},
}


def network(downsample_in_bottleneck: bool) -> ResNetForImageClassification:
    config = ResNetConfig(id2label=LABELS, downsample_in_bottleneck=downsample_in_bottleneck)
    model = ResNetForImageClassification(config).eval()
    state = model.state_dict()
    for seed, (name, values) in enumerate(state.items(), start=1):
        shape = tuple(values.shape)
        if match := re.search(r"normalization\.(weight|bias|running_mean|running_var)$", name):
            part = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "variance"}[match[1]]
            state[name] = torch.from_numpy(normalisation(10 * seed, shape[0], ".layer.2." in name)[part])
        elif values.ndim == 4:
            state[name] = torch.from_numpy(kernel(10 * seed, shape, shape[0] * shape[2] * shape[3]))
        elif name.startswith("classifier"):
            state[name] = torch.from_numpy(tiled(10 * seed, shape, "normal", 0, 0.02 if values.ndim == 2 else 0.1))
    model.load_state_dict(state)
    return model


def levels(processed: torch.Tensor, processor: ConvNextImageProcessor) -> np.ndarray:
    """What the processor normalised, as grey levels (H, W, 3): exactly representable, since its input was uint8."""
    mean, std = (np.array(each).reshape(3, 1, 1) for each in (processor.image_mean, processor.image_std))
    exact = (processed.numpy().astype(np.float64) * std + mean) * 255
    pixels = np.rint(exact)
    assert np.abs(exact - pixels).max() < 1e-3
    return pixels.astype(np.int16).transpose(1, 2, 0)


def make_network() -> None:
    TARGET.mkdir(parents=True, exist_ok=True)
    images = torch.from_numpy(inputs().transpose(0, 3, 1, 2).copy())
    for name, in_bottleneck in (("v1.5", False), ("v1", True)):
        model = network(in_bottleneck)
        with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
            np.save(TARGET / f"logits-{name}.npy", model(images).logits.numpy())
            model.save_pretrained(folder)
            (TARGET / f"config-{name}.json").write_bytes(Path(folder, "config.json").read_bytes())
            weights = Path(folder, "model.safetensors").read_bytes()
    (TARGET / "model.safetensors.xz").write_bytes(lzma.compress(weights, preset=6))


def make_pixels() -> None:
    found = {}
    for name, options in PROCESSORS.items():
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        kinds = [
            kind(**options, image_mean=mean, image_std=std)
            for kind in (ConvNextImageProcessorPil, ConvNextImageProcessor)
        ]
        with tempfile.TemporaryDirectory() as folder:
            kinds[1].save_pretrained(folder)
            (TARGET / f"preprocessor-{name}.json").write_bytes(Path(folder, "preprocessor_config.json").read_bytes())
        for photo, image in photographs().items():
            by_pillow, by_torchvision = (
                levels(torch.as_tensor(np.asarray(kind(image, return_tensors="pt")["pixel_values"][0])), kind)
                for kind in kinds
            )
            thinned = (slice(None, None, 2 if name == "squashed" else 1),) * 2
            by_pillow, by_torchvision = by_pillow[thinned], by_torchvision[thinned]
            found[f"{name}-{photo}"] = by_pillow.astype(np.uint8)
            # The processor without Pillow computes the same filter in other numbers: only the difference is kept.
            found[f"{name}-{photo}-torchvision"] = (by_torchvision - by_pillow).astype(np.int8)
    np.savez_compressed(TARGET / "pixels.npz", **found)


if __name__ == "__main__":
    make_network()
    make_pixels()
    sys.stderr.write(f"hugging-face: made by transformers {transformers.__version__}\n")
