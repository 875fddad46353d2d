"""Made images, by which one form of a network is held to another."""

from __future__ import annotations

import numpy as np

from ..types import Pixels


def trial_images(crop: tuple[int, int]) -> Pixels:
    """`(5, H, W, 3)`: noise, a ramp of all levels, noise in large patches, black and white."""
    height, width = crop
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    ramp = np.linspace(0, 255, height * width * 3).reshape(height, width, 3).astype(np.uint8)
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    patches = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)[rows][:, columns]
    return np.stack([noise, ramp, patches, np.zeros_like(noise), np.full_like(noise, 255)])
