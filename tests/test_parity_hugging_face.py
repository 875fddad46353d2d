"""Hugging Face's ResNet-50 answers here as it does in transformers, and its photos are prepared as there.

The fixtures were written by tests/parity/make_transformers.py.
"""

from __future__ import annotations

import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.checkpoints import decide_all, read_checkpoint
from app.checkpoints.model_config import read_hugging_face
from app.images.geometry import resize_and_crop
from app.networks import build_network
from app.settings import Settings
from tests.parity.patterns import FIXTURES, inputs, photographs

FOLDER = FIXTURES / "hugging-face"
# The most by which the two processors of transformers differ between them, in grey levels: 5 where both sides grow.
CASES = [
    ("cropped", "cat", 1),
    ("cropped", "cup", 1),
    ("cropped", "portrait", 2),
    ("squashed", "cat", 1),
    ("squashed", "cup", 1),
    ("squashed", "portrait", 5),
]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hugging-face")
    with lzma.open(FOLDER / "model.safetensors.xz") as packed, (folder / "model.safetensors").open("wb") as plain:
        shutil.copyfileobj(packed, plain)
    shutil.copy(FOLDER / "preprocessor-cropped.json", folder / "preprocessor_config.json")
    return folder


@pytest.mark.parametrize(("variant", "other"), [("v1.5", "v1"), ("v1", "v1.5")])
def test_logits_are_those_of_transformers(unpacked: Path, variant: str, other: str) -> None:
    """Both variants' logits are transformers' within 1e-4, by their config.json alone; the other's are far off."""
    shutil.copy(FOLDER / f"config-{variant}.json", unpacked / "config.json")
    contents = read_checkpoint(unpacked)
    decisions = decide_all(Settings(), contents)
    network = build_network(decisions.architecture.value, contents.weights, decisions.switches).eval()
    with torch.inference_mode():
        logits = network(torch.from_numpy(inputs().transpose(0, 3, 1, 2).copy())).numpy()
    assert np.abs(logits - np.load(FOLDER / f"logits-{variant}.npy")).max() < 1e-4
    assert np.abs(logits - np.load(FOLDER / f"logits-{other}.npy")).max() > 0.02
    assert contents.told.labels is not None
    assert contents.told.labels.value[:2] == ("kind 0", "kind 1")


@pytest.mark.parametrize(("processor", "photo", "apart"), CASES)
def test_pixels_are_those_of_the_image_processor(tmp_path: Path, processor: str, photo: str, apart: int) -> None:
    """Each photo is prepared as transformers' processor on Pillow does, to the last pixel.

    Its processor on torchvision computes the same filter in other numbers, and differs from both by few levels.
    """
    shutil.copy(FOLDER / "config-v1.json", tmp_path / "config.json")
    shutil.copy(FOLDER / f"preprocessor-{processor}.json", tmp_path / "preprocessor_config.json")
    preprocessing = read_hugging_face(tmp_path)[0].preprocessing
    assert preprocessing is not None
    pixels = np.asarray(resize_and_crop(Image.fromarray(photographs()[photo]), preprocessing.value))
    step = 2 if processor == "squashed" else 1
    with np.load(FOLDER / "pixels.npz") as stored:
        assert np.array_equal(pixels[::step, ::step], stored[f"{processor}-{photo}"])
        assert np.abs(stored[f"{processor}-{photo}-torchvision"]).max() == apart
