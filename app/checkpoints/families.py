"""The naming conventions of ResNet-50 checkpoints (timm, Hugging Face, Keras, …), recognised by one tensor's name.

`FAMILIES` is a table with one row for each convention. The origin of each rule stands beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..layers import ResNetSwitches
from .base import Decision, Told
from .family_names import (
    Rename,
    from_hugging_face,
    from_keras,
    from_keras_v2,
    from_old_keras,
    from_original,
    from_sequential,
    from_slim,
    from_torchvision,
)
from .presets import PRESETS

_FAMILY = "the family's way"


@dataclass(frozen=True, slots=True)
class Family:
    """One naming convention for the weights of a ResNet-50."""

    name: str
    anchor: re.Pattern[str]
    """Matches a name that only this family has. The group `scope` is the prefix of the family's names."""
    rename: Rename
    told: Told
    """The decisions that follow from these names."""
    channels_last: bool
    """Whether kernels are stored as HWIO and dense weights as `(in, out)`, as in TensorFlow."""


def _switches(switches: ResNetSwitches) -> Told:
    """All four switches of the family's ResNet-50."""
    return Told(
        stride_in=Decision(switches.stride_in, _FAMILY),
        stem=Decision(switches.stem, _FAMILY),
        pool=Decision(switches.pool, _FAMILY),
        epsilon=Decision(switches.epsilon, _FAMILY),
    )


FAMILIES = (
    Family(
        "the original TensorFlow ResNet-50",
        re.compile(r"^(?P<scope>(?:.*/)?)block2/bottlencek1/conv_1/kernel$"),
        from_original,
        _switches(ResNetSwitches(stride_in="1x1", stem="same", pool="ceil", epsilon=1e-3)),
        channels_last=True,
    ),
    Family(
        "TF-slim resnet_v1_50",
        re.compile(r"^(?P<scope>(?:.*/)?)block1/unit_1/bottleneck_v1/conv1/weights$"),
        from_slim,
        # A stage's last unit has the stride, in its 3×3: the same points remain as with a stride in the next 1×1.
        _switches(ResNetSwitches(stride_in="1x1", stem="symmetric", pool="ceil", epsilon=1e-5)),
        channels_last=True,
    ),
    Family(
        # This row precedes Keras ResNet50, whose anchor matches too.
        "Keras ResNet50V2",
        re.compile(r"^(?P<scope>(?:.*/)?)conv2_block1_preact_bn/gamma$"),
        from_keras_v2,
        Told(
            architecture=Decision("resnet50v2", "its layers"),
            epsilon=Decision(1.001e-5, _FAMILY),
            preprocessing=Decision(PRESETS["keras-v2"], _FAMILY),
        ),
        channels_last=True,
    ),
    Family(
        "Keras ResNet50",
        re.compile(r"^(?P<scope>(?:.*/)?)conv2_block1_1_conv/kernel$"),
        from_keras,
        replace(
            _switches(ResNetSwitches(stride_in="1x1", epsilon=1.001e-5)),
            preprocessing=Decision(PRESETS["keras"], _FAMILY),
        ),
        channels_last=True,
    ),
    Family(
        "Keras ResNet50, old names",
        re.compile(r"^(?P<scope>(?:.*/)?)res2a_branch2a/kernel$"),
        from_old_keras,
        # Later keras_applications pad the pool, under the same names. Only the file's config tells the two apart.
        replace(
            _switches(ResNetSwitches(stride_in="1x1", pool="valid", epsilon=1e-3)),
            pool=Decision("valid", _FAMILY, is_assumed=True),
            preprocessing=Decision(PRESETS["keras"], _FAMILY),
        ),
        channels_last=True,
    ),
    Family(
        "Hugging Face ResNetForImageClassification",
        re.compile(r"^(?P<scope>(?:.*\.)?)embedder\.embedder\.convolution\.weight$"),
        from_hugging_face,
        # Older files have the stride in the 1×1, and a config.json that says so. The default is v1.5.
        _switches(ResNetSwitches()),
        channels_last=False,
    ),
    Family(
        "torchvision",
        re.compile(r"^(?P<scope>(?:.*\.)?)layer4\.(?:2\.conv3|1\.conv2)\.weight$"),
        from_torchvision,
        Told(),
        channels_last=False,
    ),
    Family(
        "torchvision, its children in a Sequential",
        re.compile(r"^(?P<scope>(?:.*\.)?)7\.2\.conv3\.weight$"),
        from_sequential,
        Told(),
        channels_last=False,
    ),
)


@dataclass(frozen=True, slots=True)
class Place:
    """One network in a checkpoint: its family, and the prefix of its names."""

    family: Family
    scope: str
    """The prefix with its separator; "" for none."""

    def rename(self, name: str) -> str | None:
        """The torchvision name for a stored name; None for a tensor outside the body."""
        return self.family.rename(name.removeprefix(self.scope)) if name.startswith(self.scope) else None

    def rename_module(self, name: str) -> str | None:
        """The torchvision name for a module; one without weights keeps its name, without the scope."""
        if not name.startswith(self.scope):
            return None
        bare = name.removeprefix(self.scope)
        renamed = self.family.rename(f"{bare}.weight")
        return renamed.removesuffix(".weight") if renamed else bare


def find_places(names: Iterable[str]) -> list[Place]:
    """The networks of the first family whose anchor matches one of `names`, one for each scope."""
    names = list(names)
    for family in FAMILIES:
        scopes = {match["scope"] for name in names if (match := family.anchor.search(name))}
        if scopes:
            return [Place(family, scope) for scope in sorted(scopes, key=lambda scope: (len(scope), scope))]
    return []
