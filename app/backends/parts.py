"""Any number of images through a backend."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..types import Outputs, Pixels, Want
from .base import Backend

_AT_ONCE = 8


def infer_all(backend: Backend, images: Pixels, progress: Callable[[int], None] = lambda done: None) -> Outputs:
    """The answers for `images` (N, H, W, 3), one and more, a few at a time; `progress` is told how many are done."""
    size = min(_AT_ONCE, backend.max_batch_size)
    parts = []
    for first in range(0, len(images), size):
        parts.append(backend.infer(images[first : first + size], Want.SCORES))
        progress(min(first + size, len(images)))
    return Outputs(np.concatenate([part.scores for part in parts]), parts[0].activation)
