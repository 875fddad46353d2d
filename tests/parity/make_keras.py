"""Keras's ResNet50 and ResNet50V2, and ResNet50 by its old names, saved and run by Keras itself.

python -m tests.parity.make_keras      (in an environment with tests/parity/requirements.txt)

Each network is saved three times: as `.h5` (legacy), `.weights.h5` and `.keras`. The three lie in one tar: they hold
the same numbers, so that packed together they are hardly larger than one.
"""

from __future__ import annotations

import io
import lzma
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from tests.parity.patterns import FIXTURES, inputs, kernel, normalisation, tiled

CLASSES = 1000
# Reaches back over one whole container (103 MB), to where the one before has the same numbers.
_PACKING = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 27}]


def old_resnet50(activation: str | None) -> Any:
    """ResNet50 as Keras 1 and 2.0 built it, layer by layer (keras/applications/resnet50.py of 2016): res2a_branch2a."""

    def block(x: Any, filters: int, stage: int, letter: str, stride: int, has_projection: bool) -> Any:
        conv, norm = f"res{stage}{letter}_branch", f"bn{stage}{letter}_branch"
        y = layers.Conv2D(filters, 1, strides=stride, name=f"{conv}2a")(x)
        y = layers.Activation("relu")(layers.BatchNormalization(name=f"{norm}2a")(y))
        y = layers.Conv2D(filters, 3, padding="same", name=f"{conv}2b")(y)
        y = layers.Activation("relu")(layers.BatchNormalization(name=f"{norm}2b")(y))
        y = layers.BatchNormalization(name=f"{norm}2c")(layers.Conv2D(4 * filters, 1, name=f"{conv}2c")(y))
        if has_projection:
            x = layers.Conv2D(4 * filters, 1, strides=stride, name=f"{conv}1")(x)
            x = layers.BatchNormalization(name=f"{norm}1")(x)
        return layers.Activation("relu")(layers.Add()([y, x]))

    images = layers.Input((224, 224, 3))
    x = layers.Conv2D(64, 7, strides=2, name="conv1")(layers.ZeroPadding2D(3)(images))
    x = layers.Activation("relu")(layers.BatchNormalization(name="bn_conv1")(x))
    x = layers.MaxPooling2D(3, strides=2)(x)
    for stage, filters, blocks in ((2, 64, 3), (3, 128, 4), (4, 256, 6), (5, 512, 3)):
        for number in range(blocks):
            stride = 2 if stage > 2 and number == 0 else 1
            x = block(x, filters, stage, "abcdef"[number], stride, has_projection=number == 0)
    x = layers.Flatten()(layers.AveragePooling2D(7, name="avg_pool")(x))
    return keras.Model(images, layers.Dense(CLASSES, activation=activation, name="fc1000")(x), name="resnet50")


def resnet50(activation: str | None) -> Any:
    return keras.applications.ResNet50(weights=None, classifier_activation=activation)


def resnet50v2(activation: str | None) -> Any:
    return keras.applications.ResNet50V2(weights=None, classifier_activation=activation)


def fill(model: Any) -> None:
    """Give every layer its pattern."""
    is_preactivated = any(layer.name == "post_bn" for layer in model.layers)
    for seed, layer in enumerate((layer for layer in model.layers if layer.weights), start=1):
        shapes = [tuple(weight.shape) for weight in layer.weights]
        if isinstance(layer, layers.BatchNormalization):
            is_last = layer.name.endswith(("_3_bn", "branch2c"))
            values = normalisation(10 * seed, shapes[0][0], is_last)
            layer.set_weights([values[name] for name in ("gamma", "beta", "mean", "variance")])
        elif isinstance(layer, layers.Conv2D):
            height, width, _, outputs = shapes[0]
            numbers = kernel(10 * seed, shapes[0], height * width * outputs)
            if is_preactivated and layer.name.endswith("_3_conv"):
                numbers = numbers * np.float32(0.2)  # its blocks end in no normalisation that could be small
            biases = [tiled(10 * seed + 1, shape, "normal", 0, 0.1) for shape in shapes[1:]]
            layer.set_weights([numbers, *biases])
        else:
            weight, bias = shapes
            layer.set_weights(
                [tiled(10 * seed, weight, "normal", 0, 0.02), tiled(10 * seed + 1, bias, "normal", 0, 0.1)]
            )


def make(name: str, network: Any) -> None:
    """Build, fill, run, save: the logits, and `containers.tar.xz`."""
    target = FIXTURES / name
    target.mkdir(parents=True, exist_ok=True)
    logits_model = network(None)
    fill(logits_model)
    np.save(target / "logits.npy", logits_model.predict(inputs(), verbose=0))
    model = network("softmax")
    fill(model)
    packed = lzma.LZMACompressor(filters=_PACKING)
    with tempfile.TemporaryDirectory() as folder, (target / "containers.tar.xz").open("wb") as file:
        for suffix in (".h5", ".weights.h5", ".keras"):
            path = Path(folder, f"{name}{suffix}")
            model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as archive:
            for path in sorted(Path(folder).iterdir()):
                archive.add(path, path.name, filter=_anonymous)
        file.write(packed.compress(tar.getbuffer()))
        file.write(packed.flush())
    sys.stderr.write(f"{name}: made by Keras {keras.__version__}\n")


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    make("keras", resnet50)
    make("keras-old", old_resnet50)
    make("keras-v2", resnet50v2)
