"""Names of modules in the families → positions of a ResNet-50's layers, also of layers without weights."""

from __future__ import annotations

import re

from .families import Place

# Children without weights in a Sequential of torchvision's children. families.py renames the others.
_CHILDREN = {"2": "relu", "3": "maxpool", "8": "avgpool"}
# torchvision's and timm's names: timm has an activation for each position, and optional layers.
_STEM = {
    **{"relu": "relu", "act1": "relu", "maxpool": "maxpool", "avgpool": "avgpool", "global_pool": "avgpool"},
    **{"conv1.2": "conv1.2", "conv1.5": "conv1.5"},
}
_BLOCK = re.compile(r"layer[1-4]\.\d+\.(?:act[123]|relu|relu[123]|downsample\.0)")
_HF = re.compile(r"encoder\.stages\.(\d)\.layers\.(\d+)\.(?:layer\.([0-2])\.)?activation")
_HF_STEM = {"embedder.embedder.activation": "relu", "embedder.pooler": "maxpool", "pooler": "avgpool"}


def layers_of(place: Place, name: str) -> tuple[str, ...] | None:
    """The layers of the body, by the names of `layer_facts`, that a module represents; () for a mere container.

    None for a module outside the body.
    """
    if not name.startswith(place.scope):
        return None
    bare = name.removeprefix(place.scope)
    renamed = place.family.rename(f"{bare}.weight")
    if renamed is not None and "." in renamed:
        return _of_torchvision(renamed.removesuffix(".weight"))
    if place.family.name.startswith("Hugging Face"):
        return _of_hugging_face(bare)
    first, dot, rest = bare.partition(".")
    if place.family.name.endswith("in a Sequential"):
        first = _CHILDREN.get(first, first)
    if f"{first}{dot}{rest}" in _STEM:
        return (_STEM[f"{first}{dot}{rest}"],)
    return () if first in ("maxpool", "global_pool", "avgpool", "relu") and rest else None


def _of_torchvision(name: str) -> tuple[str, ...]:
    """`name` is within conv1, bn1 or layer1…4."""
    if _BLOCK.fullmatch(name):
        block, part = name.rsplit(".", 1) if "downsample" not in name else (name, "")
        if not part:
            return (name,)
        number = part.removeprefix("act").removeprefix("relu")
        return tuple(f"{block}.act{each}" for each in (number or "123"))
    return (name,)


def _of_hugging_face(bare: str) -> tuple[str, ...] | None:
    if match := _HF.fullmatch(bare):
        stage, block, layer = match.groups()
        # The third convolution has an Identity for an activation, since the sum comes first.
        part = {None: "act3", "0": "act1", "1": "act2"}.get(layer, "before_sum")
        return (f"layer{int(stage) + 1}.{block}.{part}",)
    if bare in _HF_STEM:
        return (_HF_STEM[bare],)
    return () if bare.partition(".")[0] in ("embedder", "encoder", "pooler") else None
