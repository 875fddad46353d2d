"""Architecture names → descriptions: the networks that need no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from ..layers import ResNetSwitches
from .alterations import with_altered, with_head
from .description import Description
from .efficientnet_lite0 import describe_efficientnet_lite0
from .resnet import RESNETS, describe_resnet
from .resnet50v2 import describe_resnet50v2

DEEP_STEM_NETWORKS = tuple(name for name, resnet in RESNETS.items() if resnet.stem)
RESNET50_VARIANTS = (*DEEP_STEM_NETWORKS, "resnet50v2")
_LITE0 = "tf_efficientnet_lite0"
_PLAIN = ResNetSwitches()


def is_described(architecture: str) -> bool:
    """Whether `architecture` is realised from a description: as an ONNX graph without torch, too."""
    return architecture in RESNETS or architecture in ("resnet50v2", _LITE0)


def describe(
    architecture: str,
    classes: int,
    switches: ResNetSwitches | None = None,
    weights: Mapping[str, NDArray[Any]] | None = None,
) -> Description:
    """The network `architecture` with `classes` outputs, or with the head of `switches`, whose shapes `weights` have.

    Stride, stem, pool and epsilon are a resnet50's switches; other networks have their own. Raises `CheckpointError`
    where `switches` do not fit the network.
    """
    description = _plain(architecture, classes, switches or _PLAIN)
    if switches is None:
        return description
    description = with_altered(description, switches.altered)
    if switches.head:
        description = with_head(description, switches.head, weights or {}, architecture)
    return description


def _plain(architecture: str, classes: int, switches: ResNetSwitches) -> Description:
    if architecture == "resnet50v2":
        return describe_resnet50v2(classes)
    if architecture == _LITE0:
        return describe_efficientnet_lite0(classes)
    return describe_resnet(RESNETS[architecture], classes, switches if architecture == "resnet50" else _PLAIN)
