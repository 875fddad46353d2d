"""timm's ResNet-50 variants with a deep stem (resnet50c, d, s, t), recognised by the shapes of stem and projections.

Shapes do not identify all of timm's variants. resnetaa50 and resnetblur50 (anti-aliased strides) have resnet50's 320
names and shapes, and resnetaa50d and resnetblur50d have those of resnet50d. Served as the plain network, their answers
are wrong. A timm folder's config.json or a whole pickled module identifies them; a bare state dict does not.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from ..layers import ResNetSwitches
from .base import Decision, Told, Weights
from .presets import PRESETS

# Widths of the three convolutions, and whether projections pool first (timm/models/resnet.py).
_STEMS = {
    (32, 32, 64, False): "resnet50c",
    (32, 32, 64, True): "resnet50d",
    (64, 64, 128, False): "resnet50s",
    (24, 32, 64, True): "resnet50t",
}


def told_by_stem(weights: Weights) -> Told:
    """The architecture of a deep stem, and timm's preprocessing as an assumption."""
    stem = [weights.get(f"conv1.{index}.weight") for index in (0, 3, 6)]
    widths = [len(each) if each is not None and each.ndim == 4 else 0 for each in stem]
    projection = weights.get("layer1.0.downsample.1.weight")
    is_pooled = projection is not None and projection.ndim == 4
    architecture = _STEMS.get((widths[0], widths[1], widths[2], is_pooled))
    if architecture is None:
        return Told()
    return Told(
        architecture=Decision(architecture, "the shapes of its stem"),
        preprocessing=Decision(PRESETS["timm"], "timm's way", is_assumed=True),
    )


def check_plain(told: Told, path: Path) -> None:
    """Raises `CheckpointError` if the file states strides, padding or an epsilon that deep stems cannot have."""
    plain = ResNetSwitches()
    for name in ("stride_in", "pool", "epsilon"):
        decision = getattr(told, name)
        if decision is not None and decision.value != getattr(plain, name):
            raise CheckpointError(
                f"{path}: {decision.source} has {name} {decision.value}, and networks with a deep stem are served with "
                f"{getattr(plain, name)} alone. Export it to ONNX."
            )
