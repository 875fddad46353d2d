"""What a whole saved module tells of its layers: strides, padding and epsilon, which the weights do not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from ..errors import CheckpointError
from .base import Decision, Modules, Stored, Told
from .families import Place

_BLOCK_CONVOLUTION = re.compile(r"^layer\d\.\d+\.conv\d$")
_ANTI_ALIAS = re.compile(r"^layer\d\.\d+\.aa$|^maxpool\.[12]$")
# The classes whose forward this service's networks repeat.
_OURS = ("torchvision.", "timm.", "torch.nn.", "__torch__.")


def told_by_modules(stored: Stored, place: Place | None, path: Path) -> Told:
    """The switches of a ResNet, from its layers. Raises `CheckpointError` where they are not those that are served."""
    if place is None:
        return Told()
    source = stored.modules_source
    parts = {
        renamed: facts for name, facts in stored.modules.items() if (renamed := place.rename_module(name)) is not None
    }
    for name, facts in parts.items():
        kind = str(facts.get("class", "")).rpartition(".")[2]
        if _ANTI_ALIAS.match(name) and kind != "Identity":
            raise CheckpointError(
                f"{path} has anti-aliased strides ({name} is a {kind}), as timm's resnetaa50 and resnetblur50: they "
                f"are not served. Use a plain ResNet-50."
            )
        if name in ("relu", "act1") and kind not in ("ReLU", ""):
            raise CheckpointError(f"{path} has {kind} for an activation, which is not served. Use a plain ResNet-50.")
        if _BLOCK_CONVOLUTION.match(name) and _pair(facts.get("dilation", 1)) not in ((1, 1), None):
            raise CheckpointError(
                f"{path} has dilated convolutions ({name}), as networks for segmentation have: they are not served. "
                f"Use a plain ResNet-50."
            )
    return Told(
        stride_in=_stride(parts, source),
        stem=Decision("symmetric", source) if _pair(_fact(parts, "conv1", "padding")) == (3, 3) else None,
        pool=_pool(parts, source),
        epsilon=_epsilon(parts, source),
    )


def warn_of_class(modules: Modules, path: Path) -> tuple[str, ...]:
    """A sentence where a module is of somebody's own class: its code may do more than its layers tell."""
    kind = str(modules.get("", {}).get("class", "torch.nn."))
    if kind.startswith(_OURS):
        return ()
    return (
        f"{path.name} is a pickled {kind}, whose own code never runs here: it is served as the network that its "
        f"layers make up.",
    )


def _fact(parts: Modules, name: str, fact: str) -> Any:
    return parts.get(name, {}).get(fact)


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    return (value[0], value[1]) if isinstance(value, list | tuple) and len(value) == 2 else None


def _stride(parts: Modules, source: str) -> Decision[Literal["3x3", "1x1"]] | None:
    strides = {
        tuple(_pair(_fact(parts, f"{stage}.0.{name}", "stride")) for name in ("conv1", "conv2"))
        for stage in ("layer2", "layer3", "layer4")
    }
    if strides == {((1, 1), (2, 2))}:
        return Decision("3x3", source)
    return Decision("1x1", source) if strides == {((2, 2), (1, 1))} else None


def _pool(parts: Modules, source: str) -> Decision[Literal["symmetric", "ceil", "valid"]] | None:
    padding = _pair(_fact(parts, "maxpool", "padding"))
    if padding == (1, 1):
        return Decision("symmetric", source)
    if padding == (0, 0):
        return Decision("ceil" if _fact(parts, "maxpool", "ceil_mode") is True else "valid", source)
    return None


def _epsilon(parts: Modules, source: str) -> Decision[float] | None:
    found = {facts["eps"] for facts in parts.values() if isinstance(facts.get("eps"), float)}
    return Decision(found.pop(), source) if len(found) == 1 else None
