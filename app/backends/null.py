"""A backend without a network: it answers with a fixed function of the pixels, to measure the service alone."""

from __future__ import annotations

import zlib

import numpy as np

from ..checkpoints import Checkpoint, published_resnet50_preprocessing
from ..labels import imagenet_labels
from ..types import FeatureMaps, InputSpec, Outputs, Pixels, Tensor, Want, is_pixels
from .base import Batch

_MAP_SIDE = 7

NULL_CHECKPOINT = Checkpoint(
    weights={},
    architecture="null",
    class_count=1000,
    preprocessing=published_resnet50_preprocessing(),
    labels=imagenet_labels(),
    sha256="0" * 64,
    source="no weights",
)


class NullBackend:
    """Answers at once with a fixed function of the input.

    Of the logits of an image, 8 stands at class `f mod classes`, 7 at class `f // classes mod classes` (where that is
    another one) and 0 elsewhere, where f is the CRC-32 of a sample of its pixels: the two best classes name the image.
    Its feature maps are a 7×7 sample of its three channels.
    """

    name = "null"
    device = "none"
    input_specs = frozenset(InputSpec)
    wants = Want.SCORES | Want.FEATURES | Want.FEATURE_MAPS
    concurrency = 1
    max_batch_size = 64

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._classes = checkpoint.class_count
        self._crop = checkpoint.preprocessing.crop

    def prepare(self, spec: InputSpec, want: Want) -> None:
        pass

    def infer(self, batch: Batch, want: Want) -> Outputs:
        scores = np.zeros((len(batch), self._classes), np.float32)
        for row, image in zip(scores, batch, strict=True):
            best, second = self.classes_of(image)
            row[second] = 7.0
            row[best] = 8.0
        if want == Want.SCORES:
            return Outputs(scores, "softmax")
        maps = _sampled(batch)
        return Outputs(
            scores,
            "softmax",
            maps.mean((2, 3)) if Want.FEATURES in want else None,
            maps if Want.FEATURE_MAPS in want else None,
        )

    def classes_of(self, image: Pixels | Tensor) -> tuple[int, int]:
        """The two best classes of an image."""
        sample = image[::5, ::5] if is_pixels(image) else image[:, ::5, ::5]
        fingerprint = zlib.crc32(sample.tobytes())
        return fingerprint % self._classes, fingerprint // self._classes % self._classes

    def warm_up(self, batch_size: int) -> None:
        self.infer(np.zeros((batch_size, *self._crop, 3), np.uint8), Want.SCORES)

    def close(self) -> None:
        pass


def _sampled(batch: Batch) -> FeatureMaps:
    """`(N, 3, 7, 7)`: points of the images, levels as fractions."""
    planes = batch.transpose(0, 3, 1, 2) / np.float32(255) if is_pixels(batch) else batch
    rows, columns = (np.arange(_MAP_SIDE) * side // _MAP_SIDE for side in planes.shape[2:])
    return np.ascontiguousarray(planes[:, :, rows[:, None], columns], np.float32)
