"""Keras's ResNet50 as TF2 saves it, by its graph of objects: a training's checkpoint, and SavedModels.

python -m tests.parity.make_objects      (in an environment with tests/parity/requirements.txt)

The layouts lie in one tar: they hold the same numbers, so that packed together they are hardly larger than one.
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
import tensorflow as tf
import tf_keras

from tests.parity.patterns import FIXTURES, inputs, kernel, normalisation, tiled

CLASSES = 40
TARGET = FIXTURES / "objects"
# Reaches back over one whole checkpoint (95 MB), to where the one before has the same numbers.
_PACKING = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 27}]


def fill(model: Any) -> None:
    """Give every layer its pattern."""
    for seed, layer in enumerate((layer for layer in model.layers if layer.weights), start=1):
        shapes = [tuple(weight.shape) for weight in layer.weights]
        if layer.name.endswith("_bn"):
            values = normalisation(10 * seed, shapes[0][0], layer.name.endswith("_3_bn"))
            layer.set_weights([values[name] for name in ("gamma", "beta", "mean", "variance")])
        elif layer.name.endswith("_conv"):
            height, width, _, outputs = shapes[0]
            numbers = kernel(10 * seed, shapes[0], height * width * outputs)
            layer.set_weights([numbers, tiled(10 * seed + 1, shapes[1], "normal", 0, 0.1)])
        else:
            numbers = tiled(10 * seed, shapes[0], "normal", 0, 0.02)
            layer.set_weights([numbers, tiled(10 * seed + 1, shapes[1], "normal", 0, 0.1)])


def make() -> None:
    """Build, fill, run, save: the logits, and `layouts.tar.xz`."""
    TARGET.mkdir(parents=True, exist_ok=True)
    logits = keras.applications.ResNet50(weights=None, classes=CLASSES, classifier_activation=None)
    fill(logits)
    np.save(TARGET / "logits.npy", logits.predict(inputs(), verbose=0))
    model = keras.applications.ResNet50(weights=None, classes=CLASSES)
    older = tf_keras.applications.ResNet50(weights=None, classes=CLASSES)
    fill(model)
    fill(older)
    older.compile(optimizer=tf_keras.optimizers.SGD(momentum=0.9), loss="sparse_categorical_crossentropy")
    older.optimizer.build(older.trainable_variables)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tf.train.Checkpoint(model=older, optimizer=older.optimizer).save(folder / "training" / "ckpt")
        older.save(folder / "keras-2", save_format="tf", include_optimizer=False)
        model.export(folder / "keras-3", verbose=False)
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as archive:
            for path in sorted(each for each in folder.rglob("*") if each.is_file()):
                archive.add(path, path.relative_to(folder), filter=_anonymous)
    packed = lzma.LZMACompressor(filters=_PACKING)
    (TARGET / "layouts.tar.xz").write_bytes(packed.compress(tar.getbuffer()) + packed.flush())
    sys.stderr.write(
        f"objects: made by TensorFlow {tf.__version__}, Keras {keras.__version__} and {tf_keras.__version__}\n"
    )


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    make()
