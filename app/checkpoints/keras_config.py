"""What a Keras model's configuration tells, read as JSON: strides, padding, epsilon, input size, last activation.

Nothing is made of it. A layer that would change the answer and that is not a ResNet's (a Lambda's code, a Rescaling)
is refused by its class, since the weights alone would not answer as the model does.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import CheckpointError
from ..types import Activation
from .base import Decision, Told
from .presets import PRESETS

_SOURCE = "the file's config"
_MODELS = frozenset({"Functional", "Model", "Sequential"})
_LAYERS = frozenset(
    {
        "Activation",
        "Add",
        "AveragePooling2D",
        "BatchNormalization",
        "Conv2D",
        "Dense",
        "Flatten",
        "GlobalAveragePooling2D",
        "InputLayer",
        "MaxPooling2D",
        "ReLU",
        "Softmax",
        "ZeroPadding2D",
    }
)
# These do nothing once a model is trained.
_TRAINING_ONLY = re.compile(
    r"^(?:Random\w+|(?:Spatial|Gaussian|Alpha)?Dropout(?:2D)?|GaussianNoise|ActivityRegularization)$"
)
_IMAGE_SIDE = 224


@dataclass(frozen=True, slots=True)
class _Layer:
    kind: str
    name: str
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class KerasConfig:
    """The layers of a model, those of the models in it included, in Keras's order."""

    layers: tuple[_Layer, ...]
    names: dict[str, str]
    """Where Keras 3 keeps a layer's variables (`layers/conv2d_1`) → the layer's name."""
    path: Path

    @property
    def warnings(self) -> tuple[str, ...]:
        activation = self._last_activation()
        if activation in (None, "softmax", "sigmoid", "linear"):
            return ()
        return (
            f"{self.path.name} ends in {activation}, whose answers do not add up to one. Here the same weights are "
            f"served with a softmax: the order of the classes is the model's, the probabilities are not.",
        )

    def told(self, names: Sequence[str]) -> Told:
        """What the layers say of a network whose weights belong to the layers `names`."""
        is_preactivated = any(name.endswith("_preact_bn") for name in names)
        preset = "keras-v2" if is_preactivated else "keras"
        crop = self._input_size()
        output = self._last_activation()
        kind: Activation = "sigmoid" if output == "sigmoid" else "softmax"
        told = Told(
            epsilon=Decision(self._epsilon(is_preactivated), _SOURCE),
            activation=Decision(kind, _SOURCE) if output else None,
            preprocessing=Decision(replace(PRESETS[preset], crop=crop), f"{_SOURCE} (size) and the family's way")
            if crop
            else None,
        )
        if is_preactivated:
            return told
        return replace(
            told,
            stride_in=Decision(self._stride_in(), _SOURCE),
            stem=Decision(self._stem(), _SOURCE),
            pool=Decision(self._pool(), _SOURCE),
        )

    def _all(self, kind: str) -> list[_Layer]:
        return [layer for layer in self.layers if layer.kind == kind]

    def _epsilon(self, is_preactivated: bool) -> float:
        found = {layer.options.get("epsilon", 1e-3) for layer in self._all("BatchNormalization")}
        if len(found) != 1:
            raise self._refusal(f"has batch normalisations with {len(found)} different epsilons")
        (epsilon,) = found
        if not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
            raise self._refusal(f"has a batch normalisation with epsilon {str(epsilon)[:20]}")
        if is_preactivated and epsilon != 1.001e-5:
            raise self._refusal(f"has epsilon {epsilon:g} where ResNet50V2 has 1.001e-05")
        return float(epsilon)

    def _stride_in(self) -> Literal["3x3", "1x1"]:
        strided = [
            layer.options.get("kernel_size")
            for layer in self._all("Conv2D")
            if layer.options.get("strides") in ([2, 2], 2)
        ]
        for layer in self._all("Conv2D"):
            if layer.options.get("dilation_rate", 1) not in (1, [1, 1]) or layer.options.get("groups", 1) != 1:
                raise self._refusal(f"has the convolution {layer.name} with holes or groups")
        return "3x3" if [3, 3] in strided or 3 in strided else "1x1"

    def _stem(self) -> Literal["symmetric", "same"]:
        stem = next((layer for layer in self._all("Conv2D") if layer.options.get("kernel_size") in ([7, 7], 7)), None)
        if stem is not None and stem.options.get("padding") == "same":
            return "same"
        if stem is None or not self._has_padding(3):
            raise self._refusal("has no first convolution of 7×7 with padding 3 or same")
        return "symmetric"

    def _pool(self) -> Literal["symmetric", "ceil", "valid"]:
        pools = [layer for layer in self._all("MaxPooling2D") if layer.options.get("pool_size") in ([3, 3], 3)]
        if len(pools) != 1 or pools[0].options.get("strides") not in ([2, 2], 2):
            raise self._refusal("has no one pool of 3×3 with stride 2")
        if pools[0].options.get("padding") == "same":
            return "ceil"
        return "symmetric" if self._has_padding(1) else "valid"

    def _has_padding(self, width: int) -> bool:
        whole = ([[width, width], [width, width]], [width, width], width)
        return any(layer.options.get("padding") in whole for layer in self._all("ZeroPadding2D"))

    def _input_size(self) -> tuple[int, int] | None:
        """Height and width, where the model has a size of its own that is not the usual one."""
        for layer in self._all("InputLayer"):
            shape = layer.options.get("batch_shape") or layer.options.get("batch_input_shape")
            if isinstance(shape, list) and len(shape) == 4 and all(isinstance(side, int) for side in shape[1:3]):
                height, width = shape[1:3]
                if not (32 <= height <= 4096 and 32 <= width <= 4096):
                    raise self._refusal(f"takes images of {height}×{width}")
                return None if height == width == _IMAGE_SIDE else (height, width)
        return None

    def _last_activation(self) -> str | None:
        """Of the last dense layer, or of the activation behind it."""
        found: str | None = None
        for layer in self.layers:
            if layer.kind in ("Dense", "Activation"):
                activation = layer.options.get("activation")
                is_behind = layer.kind == "Activation" and found is not None
                found = str(activation)[:40] if layer.kind == "Dense" or is_behind else found
            elif layer.kind == "Softmax" and found is not None:
                found = "softmax"
        return found

    def _refusal(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} {what}: no ResNet-50 that is known here, so it would answer wrongly. Expected Keras's "
            f"ResNet50 or ResNet50V2."
        )


def read_config(text: str | bytes, path: Path) -> KerasConfig:
    """Raises `CheckpointError` where it is no configuration of layers that are known, in one line."""
    try:
        document = json.loads(text)
        names: dict[str, str] = {}
        layers = tuple(_layers(document, "", names, path))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} has a model configuration that cannot be read ({type(error).__name__}). Save it with Keras again."
        ) from None
    return KerasConfig(layers, names, path)


def _layers(model: dict[str, Any], prefix: str, names: dict[str, str], path: Path) -> Iterator[_Layer]:
    """The layers of `model`, and into `names` where Keras 3 keeps the variables of each."""
    config = model["config"]
    counted: Counter[str] = Counter()
    # A Sequential of Keras 2.0 and 1 is a bare list.
    for entry in config if isinstance(config, list) else config["layers"]:
        kind, options = str(entry["class_name"]), dict(entry["config"])
        name = str(options.get("name", entry.get("name", "")))
        snake = _snake(kind)
        place = f"{prefix}layers/{snake}{f'_{counted[snake]}' if counted[snake] else ''}"
        counted[snake] += 1
        names[place] = name
        if kind in _MODELS:
            yield from _layers(entry, f"{place}/", names, path)
        elif kind in _LAYERS:
            yield _Layer(kind, name, options)
        elif not _TRAINING_ONLY.match(kind):
            why = "code, and no code in a file is ever run" if kind == "Lambda" else "which ResNet-50 does not have"
            raise CheckpointError(
                f"{path} has the layer {name[:60]!r}, a {kind[:60]}: {why}. Save the ResNet-50 in it alone, or its "
                f"weights: model.save_weights('resnet50.weights.h5')."
            )


def _snake(kind: str) -> str:
    """As Keras makes a name of a class (keras/utils/naming.py): Conv2D → conv2d, BatchNormalization → batch_…"""
    kind = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", kind).lower()
