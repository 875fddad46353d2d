"""Rebuilds app/data/torchvision_weights.json, the table of torchvision's published classifiers, from torchvision.

python -m tests.parity.make_published
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torchvision.models

TABLE = Path(__file__).parents[2] / "app" / "data" / "torchvision_weights.json"
FOLDER = "https://download.pytorch.org/models/"


def table() -> dict[str, list[dict[str, Any]]]:
    """Architecture → its published weights in torchvision's order, of every classifier that torchvision has."""
    return {
        architecture: [_entry(weights) for weights in torchvision.models.get_model_weights(architecture)]
        for architecture in torchvision.models.list_models(module=torchvision.models)
    }


def _entry(weights: Any) -> dict[str, Any]:
    transforms = weights.transforms()
    (resize,) = transforms.resize_size
    crop = transforms.crop_size
    assert weights.url.startswith(FOLDER)
    return {
        "name": weights.name,
        "file": weights.url.removeprefix(FOLDER),
        "resize": resize,
        "crop": [crop[0], crop[-1]],
        "interpolation": transforms.interpolation.value,
        "mean": list(transforms.mean),
        "std": list(transforms.std),
    }


def text() -> str:
    """One line for each of the weights."""
    entries = (
        f"{json.dumps(architecture)}: [\n" + ",\n".join(f"  {json.dumps(each)}" for each in published) + "\n]"
        for architecture, published in table().items()
    )
    return "{\n" + ",\n".join(entries) + "\n}\n"


if __name__ == "__main__":
    TABLE.write_text(text(), encoding="utf-8")
