"""Statistics of a stem as training leaves them: its convolution's answers to real photos."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from skimage import data

from tests.lazy import torch

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def stem_statistics(
    kernel: torch.Tensor, normalisation: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance, each `(channels,)`, of a 7×7 stem's answers to photos, scaled by mean and deviation."""
    mean, deviation = normalisation
    photos = [photo[:224, :224] for photo in (data.chelsea(), data.coffee(), data.astronaut(), data.rocket())]
    scaled = (np.stack(photos) / 255 - mean) / deviation
    windows = sliding_window_view(scaled, (7, 7), axis=(1, 2))[:, ::16, ::16].reshape(-1, 3 * 49)
    answers = windows @ kernel.detach().numpy().reshape(len(kernel), -1).T.astype(np.float64)
    return torch.tensor(answers.mean(0), dtype=torch.float32), torch.tensor(answers.var(0), dtype=torch.float32)
